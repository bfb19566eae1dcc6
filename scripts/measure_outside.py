"""Measure "none of these": what thresholds keep and reject; writes results/outside.json.

    python scripts/measure_outside.py shipped FASHION_MNIST [--ship]
    python scripts/measure_outside.py held-out FASHION_MNIST OUT

`shipped` chooses thresholds on CIFAR-10's test images 0 to 4,999, as the shipped models were trained on all training
images, and scores them on the other 5,000 and on Fashion-MNIST's test images; `--ship` writes the thresholds into
`weights/NAME.json`. `held-out` trains `minute` on eight classes of CIFAR-10 with validation images, from which its
thresholds come, and rejects the test images of the other two.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinycifar import atomic, catalog, data, inference, recipes, trained, training
from tinycifar.data import Dataset
from tinycifar.evaluation import outside
from tinycifar.evaluation.outside import Array

RECORD = Path(__file__).resolve().parents[1] / "results" / "outside.json"
KEEP = 0.95
HELD_OUT = ("cat", "truck")
VALIDATION_IMAGES = 4_000


def candidates(logits: Array, temperature: float) -> dict[str, Array]:
    """By name the scores (N,) that are compared, of logits (N, C)."""
    values = torch.from_numpy(logits).double()
    return {
        "largest logit less the mean": outside.scores(logits),
        "largest logit": values.amax(1).numpy(),
        "energy": values.logsumexp(1).numpy(),
        "largest probability": (values / temperature).softmax(1).amax(1).numpy(),
    }


def rows(
    chosen_on: tuple[Array, Array], known: tuple[Array, Array], others: dict[str, Array], temperature: float
) -> list[dict[str, Any]]:
    """What each score keeps of `known` and rejects of `others`; `chosen_on` and `known` are logits and labels."""
    first, second = (candidates(logits, temperature) for logits, _ in (chosen_on, known))
    foreign = {name: candidates(logits, temperature) for name, logits in others.items()}
    chosen_right, right = (logits.argmax(1) == labels for logits, labels in (chosen_on, known))
    records = []
    for name, scores in second.items():
        limit = float(np.quantile(first[name][chosen_right], 1 - KEEP))
        records.append(
            {
                "score": name,
                "threshold": limit,
                "right_kept": float((scores[right] >= limit).mean()),
                "wrong_kept": float((scores[~right] >= limit).mean()),
                **{
                    what: {
                        "images": len(scored[name]),
                        "rejected": float((scored[name] < limit).mean()),
                        "auroc": outside.auroc(scores, scored[name]),
                    }
                    for what, scored in foreign.items()
                },
            }
        )
    return records


def shipped(fashion: str, ship: bool) -> dict[str, Any]:
    """The shipped models on CIFAR-10 and Fashion-MNIST."""
    cifar, foreign = data.load("cifar10"), data.load_pictures(fashion)
    labels = cifar.test_labels.numpy()
    records = {}
    for name in catalog.shipped():
        model = trained.load(name, "cpu")
        logits = inference.logits(model.model, cifar.test_images).numpy()
        others = {"fashion-mnist": inference.logits(model.model, foreign).numpy()}
        halves = [(logits[part], labels[part]) for part in (slice(0, 5_000), slice(5_000, None))]
        records[name] = rows(halves[0], halves[1], others, model.temperature or 1.0)
        if ship:
            path = catalog.WEIGHTS / f"{name}.json"
            kept = {"kept": outside.thresholds(*halves[0]), "kept_from": "CIFAR-10's test images 0 to 4,999"}
            atomic.write_json(path, atomic.read_json(path) | kept)
    return records


def without(dataset: Dataset, names: tuple[str, ...]) -> tuple[Dataset, torch.Tensor]:
    """The data without classes of these names, and the test images of these."""
    dropped = [dataset.classes.index(name) for name in names]
    classes = tuple(name for name in dataset.classes if name not in names)
    number = torch.tensor([classes.index(name) if name in classes else -1 for name in dataset.classes])
    train, test = number[dataset.train_labels], number[dataset.test_labels]
    kept = Dataset(
        f"CIFAR-10 without {' and '.join(names)}",
        classes,
        dataset.train_images[train >= 0],
        train[train >= 0],
        dataset.test_images[test >= 0],
        test[test >= 0],
    )
    return kept, dataset.test_images[torch.isin(dataset.test_labels, torch.tensor(dropped))]


def held_out(fashion: str, out: Path) -> dict[str, Any]:
    """`minute` on eight classes, and the pictures of the other two."""
    dataset, foreign = without(data.load("cifar10"), HELD_OUT)
    recipe = recipes.with_settings(recipes.get("minute"), [f"validation_images={VALIDATION_IMAGES}"])
    training.train(recipe, dataset, out=out)
    model = trained.load(out, "cpu")
    split = dataset.split(VALIDATION_IMAGES)
    assert split.validation_images is not None
    assert split.validation_labels is not None
    pairs = [
        (inference.logits(model.model, images).numpy(), labels.numpy())
        for images, labels in (
            (split.validation_images, split.validation_labels),
            (split.test_images, split.test_labels),
        )
    ]
    others = {
        "held-out classes": inference.logits(model.model, foreign).numpy(),
        "fashion-mnist": inference.logits(model.model, data.load_pictures(fashion)).numpy(),
    }
    accuracy = float((pairs[1][0].argmax(1) == pairs[1][1]).mean())
    return {
        "classes": list(HELD_OUT),
        "validation_images": VALIDATION_IMAGES,
        "test_accuracy": accuracy,
        "rows": rows(pairs[0], pairs[1], others, model.temperature or 1.0),
    }


def main() -> int:
    """Measure what the arguments say, into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shipped", "held-out"))
    parser.add_argument("fashion", help="Fashion-MNIST's folder")
    parser.add_argument("out", nargs="?", type=Path, help="the run to train, for held-out")
    parser.add_argument("--ship", action="store_true", help="write thresholds into the package")
    arguments = parser.parse_args()
    if (arguments.what == "held-out") != (arguments.out is not None):
        parser.error("held-out needs OUT, a new folder for its run; shipped takes none")
    records = (
        shipped(arguments.fashion, arguments.ship)
        if arguments.what == "shipped"
        else held_out(arguments.fashion, arguments.out)
    )
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    atomic.write_json(RECORD, {"keep": KEEP, **record, arguments.what: records})
    return 0


if __name__ == "__main__":
    sys.exit(main())
