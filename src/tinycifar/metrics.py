"""Pure functions of logits and labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tinycifar.scores import Accuracy, Bin, Calibration, ClassScores

RELIABILITY_BINS = 15
LEAST_OF_EACH = 5  # mistakes and right answers
MANY_CLASSES = 30  # with more, reports show the best and worst of them instead of the whole confusion matrix


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
    """Lower and upper end of Student's t-interval for the mean of independent measurements.

    Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval of the mean needs at least two values")
    from scipy.special import stdtrit  # the quantile of Student's distribution; half a second to load

    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    mean = statistics.mean(values)
    return mean - half, mean + half


def summarize(logits: Tensor, labels: Tensor) -> Accuracy:
    """Images, accuracy with its interval, and loss of logits (N, C)."""
    correct = correct_count(logits, labels)
    return Accuracy(
        images=len(labels),
        correct=correct,
        accuracy=correct / len(labels),
        accuracy_interval=wilson_interval(correct, len(labels)),
        loss=functional.cross_entropy(logits.double(), labels).item(),
    )


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts (C, C), int64, from logits (N, C) and labels (N,): row the true class, column the predicted one."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def per_class(confusion: Tensor, names: Sequence[str]) -> tuple[ClassScores, ...]:
    """The scores of each class from a confusion matrix (C, C) and the names of its C classes; 0 instead of 0 / 0."""
    hits, true, predicted = (counts.tolist() for counts in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    return tuple(
        ClassScores(
            name,
            images=n,
            precision=hit / guesses if guesses else 0.0,
            recall=hit / n if n else 0.0,
            f1=2 * hit / (n + guesses) if n + guesses else 0.0,
        )
        for name, hit, n, guesses in zip(names, hits, true, predicted, strict=True)
    )


def balanced(confusion: Tensor) -> tuple[float, float]:
    """Balanced accuracy and macro F1, which count each class alike, from a confusion matrix (C, C).

    They are the mean recall of the classes that have images (Brodersen et al. 2010), and the mean F1 of those that have
    images or are predicted.
    """
    hits, true, predicted = (counts.double() for counts in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    recall, f1 = hits / true, 2 * hits / (true + predicted)
    return recall[true > 0].mean().item(), f1[true + predicted > 0].mean().item()


def best_and_worst(classes: Sequence[ClassScores], count: int = 10) -> tuple[list[ClassScores], list[ClassScores]]:
    """The `count` classes with the largest F1, and those with the smallest, worst first.

    Classes without images are left out; of those that are alike, the ones with more images come first.
    """
    ranked = sorted((row for row in classes if row.images), key=lambda row: (-row.f1, -row.images))
    worst = sorted(ranked[count:], key=lambda row: (row.f1, -row.images))
    return ranked[:count], worst[:count]


def most_confused(confusion: Sequence[Sequence[int]], count: int = 10) -> list[tuple[int, int, int]]:
    """The `count` pairs of classes that are confused most often: true class, predicted class, images."""
    counts = torch.tensor(confusion)
    wrong = (counts - counts.diagonal().diag()).flatten()
    largest = wrong.argsort(descending=True, stable=True)[:count].tolist()
    return [(*divmod(index, len(counts)), int(wrong[index])) for index in largest if wrong[index]]


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """How often the label (N,) is among the `k` largest of the logits (N, C), a fraction; 1 where k exceeds C."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1).double().mean().item()


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Squared error of the probabilities, summed over classes (0 to 2), mean over images (Brier 1950)."""
    probabilities = logits.double().softmax(1)
    truth = functional.one_hot(labels, logits.shape[1])
    return ((probabilities - truth) ** 2).sum(1).mean().item()


def reliability(logits: Tensor, labels: Tensor, bins: int = RELIABILITY_BINS) -> tuple[Bin, ...]:
    """Images by the probability of their predicted class, in bins of equal width that hold their upper edge.

    Confidence and accuracy of an empty bin are 0.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    bin_indices = torch.bucketize(confidence, inner_edges)
    count = torch.bincount(bin_indices, minlength=bins)
    sums = [
        torch.bincount(bin_indices, weights=w, minlength=bins) for w in (confidence, (predicted == labels).double())
    ]
    means = [(total / count.clamp(min=1)).tolist() for total in sums]
    return tuple(Bin(*values) for values in zip(count.tolist(), *means, strict=True))


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = RELIABILITY_BINS) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability`, by images (Guo et al. 2017)."""
    rows = reliability(logits, labels, bins)
    return sum(row.images * abs(row.confidence - row.accuracy) for row in rows) / len(labels)


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Loss, Brier score and expected calibration error of logits (N, C)."""
    return Calibration(
        loss=functional.cross_entropy(logits.double(), labels).item(),
        brier=brier_score(logits, labels),
        ece=expected_calibration_error(logits, labels),
    )


def tells_temperature(logits: Tensor, labels: Tensor) -> bool:
    """Whether logits (N, C) say enough for `fit_temperature`: each half of them has some mistakes and right answers.

    Without mistakes the best temperature is the lowest, at which all is certain; without right answers the highest.
    """
    right = logits.argmax(1) == labels
    return all(min(int(half.sum()), int((~half).sum())) >= LEAST_OF_EACH for half in (right[::2], right[1::2]))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The number by which logits (N, C) are divided for the least cross-entropy with labels (Guo et al. 2017).

    To be fitted on images that were not trained on; between 0.05 and 20.
    """
    from scipy.optimize import minimize_scalar

    exact = logits.double()
    result = minimize_scalar(
        lambda log: functional.cross_entropy(exact / math.exp(log), labels).item(),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(result.x)


def crossfit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, C), those at even places divided by the temperature that fits the others, and the other way round.

    So calibration can be reported for the images that the temperature is fitted to, without optimism.
    """
    scaled = torch.empty_like(logits)
    for half in range(2):
        scaled[half::2] = logits[half::2] / fit_temperature(logits[1 - half :: 2], labels[1 - half :: 2])
    return scaled


def prediction_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of Student's interval for one more value of the kind of `values`.

    Raises ValueError for fewer than two values.
    """
    low, high = mean_interval(values, confidence)
    mean, half = (low + high) / 2, (high - low) / 2 * math.sqrt(len(values) + 1)
    return mean - half, mean + half


def mcnemar(first: Tensor, second: Tensor) -> tuple[int, int, float]:
    """Compare two models on the same images by whether each was right, bool (N,).

    Returns how many images only the first and only the second model gets right, and the two-sided p-value of the exact
    McNemar test (McNemar 1947): how often equally good models would differ by that much or more on such images.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 0, 0, 1.0
    return only_first, only_second, float(binomtest(only_first, only_first + only_second).pvalue)


def welch_interval(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the interval for the mean of `second` minus that of `first`, spreads not being equal.

    By Welch's t-test (1947), both independent measurements. Raises ValueError for fewer than two values on a side.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("an interval of the difference needs at least two values on each side")
    from scipy.stats import ttest_ind

    if len({*first}) == len({*second}) == 1:  # without spread SciPy gives no interval
        return second[0] - first[0], second[0] - first[0]
    low, high = ttest_ind(second, first, equal_var=False).confidence_interval(confidence)
    return float(low), float(high)
