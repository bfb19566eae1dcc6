"""None of these: pictures that belong to no class of a model, by how far its largest logit stands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycifar import typed

KEEP_PERCENT = range(50, 100)  # of right answers, for which a threshold is stored
LEAST_RIGHT = 100  # right answers from which thresholds are chosen
Array = NDArray[Any]


def scores(logits: Array) -> Array:
    """The largest of logits (N, C) less their mean, (N,): low for pictures that speak for no class.

    Of the scores that were compared (docs/RESULTS.md) it rejects most pictures of other kinds where as many right
    answers are kept; it needs nothing but a model's logits, and the temperature does not change its order.
    """
    values = np.asarray(logits, np.float64)
    result: Array = values.max(1) - values.mean(1)
    return result


def thresholds(logits: Array, labels: Array) -> list[float]:
    """For each of `KEEP_PERCENT` the score that so many of the right answers reach; none if these are too few.

    `logits` (N, C) and `labels` (N,) are of images that the model was not trained on.
    """
    right = scores(logits)[np.asarray(logits).argmax(1) == np.asarray(labels)]
    if len(right) < LEAST_RIGHT:
        return []
    return [round(float(value), 4) for value in np.quantile(right, [1 - percent / 100 for percent in KEEP_PERCENT])]


def check_share(keep: float) -> None:
    """Raise ValueError for a share of right answers outside of 0.5 to 0.99, or that is no number."""
    typed.number("keep", keep)
    if not KEEP_PERCENT[0] / 100 <= keep <= KEEP_PERCENT[-1] / 100:
        raise ValueError(f"the share of right answers to keep lies between 0.5 and 0.99, not {keep:g}")


def threshold(kept: Sequence[float], keep: float, name: str) -> float:
    """The score that a share `keep` of right answers reach, from what `thresholds` gave for the model `name`.

    Raises ValueError for a model without thresholds and for a share outside of 0.5 to 0.99.
    """
    check_share(keep)
    if not kept:
        raise ValueError(
            f"{name} has no thresholds, as it was trained without validation images, or with too few; give a "
            "threshold as a value, or train with validation_images"
        )
    return float(np.interp(100 * keep, KEEP_PERCENT, kept))


def chosen(kept: Sequence[float], keep: float | None, value: float | None, name: str) -> float | None:
    """The threshold that a user asked for, by a share to keep or as a value; None for neither. ValueError for both."""
    if keep is not None and value is not None:
        raise ValueError("`keep=` and `threshold=` exclude each other")
    typed.number("threshold", value)
    return value if keep is None else threshold(kept, keep, name)


def auroc(inside: Array, outside: Array) -> float:
    """How often a score of `inside` exceeds one of `outside`, ties counting half: 1 is best, 0.5 is chance."""
    from scipy.stats import rankdata  # not before: `tinycifar predict` does without it

    ranks = rankdata(np.concatenate([inside, outside]))
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def compare(logits: Array, labels: Array, outside: Array, limit: float) -> dict[str, Any]:
    """What a threshold `limit` does with known images, logits (N, C) and labels (N,), and logits (M, C) of others.

    `right_kept` is the share of right answers that are kept, `wrong_kept` that of wrong ones (None without any),
    `outside_rejected` that of the other pictures that are "none of these".
    """
    known, others = scores(logits), scores(outside)
    right = np.asarray(logits).argmax(1) == np.asarray(labels)

    def share(values: Array) -> float | None:
        return float((values >= limit).mean()) if len(values) else None

    return {
        "threshold": limit,
        "images": len(known),
        "right": int(right.sum()),
        "right_kept": share(known[right]),
        "wrong_kept": share(known[~right]),
        "outside": len(others),
        "outside_rejected": float((others < limit).mean()),
        "auroc": auroc(known, others),
    }


def crossfit(logits: Array, labels: Array, outside: Array, keep: float, name: str) -> dict[str, Any]:
    """As `compare`, each half of the known images with the threshold that the other half gives; means of both."""
    halves = []
    for half in range(2):
        kept = thresholds(logits[1 - half :: 2], labels[1 - half :: 2])
        halves.append(compare(logits[half::2], labels[half::2], outside, threshold(kept, keep, name)))
    means = {key: sum(half[key] for half in halves) / 2 for key in ("threshold", "outside_rejected")}
    both = compare(logits, labels, outside, means["threshold"])
    kept_shares = {
        key: None if None in (parts := [half[key] for half in halves]) else sum(parts) / 2
        for key in ("right_kept", "wrong_kept")
    }
    return {**both, **kept_shares, **means}
