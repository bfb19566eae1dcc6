"""Pure functions of logits and labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional


def correct_count(logits: Tensor, labels: Tensor) -> int:
    """How many of the logits (N, C) have their largest entry at the label (N,)."""
    return int((logits.argmax(1) == labels).sum())


def wilson_interval(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Lower and upper end, in [0, 1], of the Wilson score interval for `correct` successes in `count` trials.

    `z` is the normal quantile of the confidence: 1.96 gives 95%. It stays inside [0, 1] and keeps its coverage near 0
    and 1, where the plain normal interval does not (Wilson 1927; Brown, Cai & DasGupta 2001).
    Raises ValueError unless 0 <= correct <= count and count > 0.
    """
    if not 0 <= correct <= count or count == 0:
        raise ValueError(f"cannot give an interval for {correct} of {count}")
    p = correct / count
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of Student's t-interval for the mean of which `values` are independent measurements.

    Raises ValueError for fewer than two values, which tell nothing of their spread.
    """
    if len(values) < 2:
        raise ValueError("an interval of the mean needs at least two values")
    from scipy.special import stdtrit  # the quantile of Student's distribution; half a second to load

    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    mean = statistics.mean(values)
    return mean - half, mean + half


def summarize(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Images, accuracy with its 95% Wilson interval, and mean cross-entropy loss in nats, of logits (N, C)."""
    correct = correct_count(logits, labels)
    return {
        "images": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "accuracy_interval": list(wilson_interval(correct, len(labels))),
        "loss": functional.cross_entropy(logits.double(), labels).item(),
    }
