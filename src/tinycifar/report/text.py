"""Results as the lines of text that commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinycifar import metrics, recipes
from tinycifar.recipes import Recipe
from tinycifar.scores import Accuracy, ClassScores, Robustness, Scores
from tinycifar.words import counted, printable, table

MISSING = {14: "frost", 13: "snow and frost"}
"""Missing corruptions of CIFAR-10-C's fifteen, by how many are present."""
MISLEADING = 0.1  # warn if accuracy exceeds balanced accuracy by more
SUBSETS = {
    "without-near-duplicates": "Without near-duplicates of training images",
    "mlperf-tiny": "On MLPerf Tiny's test images",
}
"""Names of the subsets of `tinycifar.evaluation.subsets` in lines and pages."""


def corruption_note(robustness: Robustness) -> str:
    """Say which corruptions were measured, and that their mean is not the benchmark's."""
    from tinycifar.evaluation.corruptions import EXTRA  # with SciPy's filters, a quarter of a second

    extra = sum(name in EXTRA for name in robustness.accuracy)
    fifteen = len(robustness.accuracy) - extra
    return (
        f"The mean is of these {fifteen + extra}: {fifteen} of CIFAR-10-C's fifteen (without {MISSING[fifteen]}) and "
        f"{extra} of its extra ones. It is not the benchmark's figure"
    )


def closing_summary(recipe: Recipe, record: Mapping[str, Any], evaluation: Scores | None, stopped: bool) -> list[str]:
    """The closing lines of `train`, from the run's record and, unless it was stopped, its evaluation."""
    lines = []
    if stopped:
        lines.append(f"Stopped in epoch {record['epochs'] + 1}; the weights of the last step are saved")
    if record["train_accuracy"] is not None:
        share = f", {1 - recipe.skip_easiest:.0%} of all" if recipe.skip_easiest and record["epochs"] > 1 else ""
        lines.append(
            f"Train accuracy, last epoch: {record['train_accuracy']:.2%} (on the augmented images trained on{share})"
        )
    if evaluation is not None:
        lines += scores(evaluation)
        if record["best_test_accuracy"] is not None:
            best = f"{record['best_test_accuracy']:.2%}"
            lines.append(f"Best on test, any epoch: {best} (chosen on the test set, as the reference did)")
        # A recipe's target is for CIFAR-10.
        if not evaluation.data_digest or "target_accuracy" in recipes.changed(recipe):
            verdict = "met" if evaluation.accuracy >= recipe.target_accuracy else "not met"
            lines.append(f"Target of {recipe.target_accuracy:.2%}: {verdict} on the {evaluation.split} images")
    if record["images_per_second"]:
        seconds, speed = record["train_seconds"], record["images_per_second"]
        lines.append(
            f"Training took {seconds:,.1f} s at {speed:,.0f} images/s on {counted(record['threads'], 'thread')}"
        )
    return lines


def accuracy(measured: Scores | Accuracy) -> str:
    """An accuracy with its interval and the number of images."""
    low, high = measured.accuracy_interval
    return (
        f"{measured.accuracy:.2%} (95% interval {low:.2%} to {high:.2%}; "
        f"{measured.correct:,} of {measured.images:,} images)"
    )


def outside(evaluation: Scores) -> list[str]:
    """What the threshold for none of these keeps and rejects."""
    result = evaluation.outside
    if result is None:
        return []
    how = "" if result.keep is None else f", chosen to keep {result.keep:.0%} of right answers"
    if result.keep is not None and evaluation.split == "validation":
        how += "; each half of the validation images at the threshold of the other half"
    wrong = "" if result.wrong_kept is None else f" and {result.wrong_kept:.1%} of the wrong answers"
    return [
        f"None of these below a score of {result.threshold:.3f}{how}",
        f"Kept: {result.right_kept or 0:.1%} of the right answers{wrong} on {result.images:,} "
        f"{evaluation.split} images",
        f"Rejected: {result.outside_rejected:.1%} of the {counted(result.outside, 'picture')} of "
        f"{printable(result.source)} (area under the ROC curve {result.auroc:.3f})",
    ]


def balance(evaluation: Scores) -> list[str]:
    """Balanced accuracy and macro F1 of classes of different sizes, and a warning if accuracy alone misleads."""
    balanced, macro_f1 = evaluation.balanced_accuracy, evaluation.macro_f1
    if balanced is None or macro_f1 is None:  # written by an earlier version
        return []
    rows = [row for row in evaluation.classes if row.images]
    counts = [row.images for row in rows]
    lines = []
    if max(counts) > 1.1 * min(counts):
        lines.append(f"Balanced accuracy: {balanced:.2%}, macro F1: {macro_f1:.2%} (every class has the same weight)")
    share = max(counts) / sum(counts)
    if evaluation.accuracy > balanced + MISLEADING:
        worst = min(rows, key=lambda row: row.recall)
        common = rows[counts.index(max(counts))]
        lines.append(
            f"Warning: accuracy alone misleads: {share:.1%} of the images are of class {printable(common.name)}, "
            f"but of class {printable(worst.name)} only {worst.recall:.1%} are recognised; see class_weights"
        )
    return lines


def scores(evaluation: Scores) -> list[str]:
    """Accuracy and calibration."""
    return [
        f"{evaluation.split.capitalize()} accuracy: {accuracy(evaluation)}, loss {evaluation.loss:.4f}",
        *leaks(evaluation),
        *subsets(evaluation),
        *balance(evaluation),
        f"With flip averaging (TTA): {evaluation.accuracy_tta:.2%}",
        f"Top-2 accuracy: {evaluation.top2_accuracy:.2%}, top-3: {evaluation.top3_accuracy:.2%}",
        f"Calibration: {calibration(evaluation)}",
    ]


def leaks(evaluation: Scores) -> list[str]:
    """Warnings of images that the model was trained on, and of images that look like training images."""
    lines, images = [], f"of the {evaluation.images:,} {evaluation.split} images"
    if evaluation.seen is not None and evaluation.seen.images:
        count, names = evaluation.seen.images, evaluation.seen.first
        first = ", ".join(map(printable, names)) + ", ..." * (count > len(names))
        lines.append(f"Warning: the model was trained on {count:,} {images}: scores are too good ({first})")
    if evaluation.near_duplicates:
        lines.append(
            f"{evaluation.near_duplicates:,} {images} look like training images (perceptual hashes): scores may be too "
            "good; see --group"
        )
    return lines


def subsets(evaluation: Scores) -> list[str]:
    """Accuracy on subsets of CIFAR-10's test images; nothing for other data, and in files of earlier versions."""
    return [f"{SUBSETS[name]}: {accuracy(subset)}" for name, subset in evaluation.subsets.items()]


def calibration(evaluation: Scores) -> str:
    """Calibration without and with a temperature."""
    plain = f"ECE {evaluation.ece:.4f}, NLL {evaluation.loss:.4f}, Brier {evaluation.brier:.4f}"
    after = evaluation.calibrated
    if after is None:
        is_validation = evaluation.split == "validation"
        reason = "too few images are wrong or right" if is_validation else "it is fitted on validation images only"
        return f"{plain}; no temperature: {reason}"
    source = (
        "fitted to these images; the scores are of each half at the temperature that fits the other"
        if evaluation.split == "validation"
        else "fitted to validation images of a twin that was trained without them"
    )
    return (
        f"{plain}; at temperature {evaluation.temperature:.3f} {after.ece:.4f}, {after.loss:.4f}, "
        f"{after.brier:.4f} ({source})"
    )


def by_class(evaluation: Scores) -> list[str]:
    """Scores of each class and the confusion matrix; of many classes the worst, the best and those most confused."""
    classes = evaluation.classes

    def scores_of(rows: Sequence[ClassScores]) -> list[str]:
        cells = [
            [row.name, f"{row.images:,}", f"{row.precision:.2%}", f"{row.recall:.2%}", f"{row.f1:.2%}"] for row in rows
        ]
        return table([["", "images", "precision", "recall", "F1"], *cells])

    names = [row.name for row in classes]
    if len(classes) > metrics.MANY_CLASSES:
        best, worst = metrics.best_and_worst(classes)
        pairs = [
            [f"{names[true]} taken for {names[taken]}", f"{count:,}", f"{classes[true].images:,}"]
            for true, taken, count in metrics.most_confused(evaluation.confusion)
        ]
        return [
            *[f"The {len(worst)} worst of {len(classes):,} classes", *scores_of(worst), ""],
            *[f"The {len(best)} best", *scores_of(best), ""],
            *["Most often confused", *table([["", "images", "of"], *pairs])],
            "evaluation.json has all classes and the whole confusion matrix",
        ]
    heads = [name[:6] for name in names]
    if len(set(heads)) < len(heads):  # cut like this they would be taken for each other
        heads = [str(number) for number in range(1, 1 + len(names))]
        names = [f"{head} {name}" for head, name in zip(heads, names, strict=True)]
    confusion = [["", *heads]]
    for name, counts in zip(names, evaluation.confusion, strict=True):
        confusion.append([name, *map(str, counts)])
    return [*scores_of(classes), "", "Confusion, true classes down, predicted across", *table(confusion)]


def robustness(evaluation: Scores) -> list[str]:
    """Accuracy on corrupted images; no lines if it was not measured."""
    measured = evaluation.robustness
    if measured is None:
        return []
    rows = [["", *map(str, range(1, 6))]]
    rows += [[name, *(f"{value:.2%}" for value in values)] for name, values in measured.accuracy.items()]
    return [
        f"Corrupted: {measured.images:,} images, accuracy at severity 1 to 5",
        *table(rows),
        f"Mean {measured.mean_corruption_accuracy:.2%}, without corruption {measured.clean_accuracy:.2%}",
        corruption_note(measured),
    ]


def over_seeds(summary: Mapping[str, Any]) -> list[str]:
    """The results of several seeds of one recipe."""
    if not summary["finished"]:
        return ["No seed was finished"]
    lines = [f"{counted(len(summary['finished']), 'seed')} of {summary['recipe']}, {summary['split']} accuracy:"]
    if summary["interval"] is not None:
        low, high = summary["interval"]
        lines.append(
            f"mean {summary['mean']:.2%} (95% t-interval of the mean {low:.2%} to {high:.2%}), "
            f"standard deviation {100 * summary['standard_deviation']:.2f} points"
        )
    lines.append(f"min {summary['min']:.2%}, max {summary['max']:.2%}")
    lines.append(f"training: mean {summary['mean_train_seconds']:,.1f} s")
    return lines


def chart(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]], width: int = 64, height: int = 14
) -> list[str]:
    """Curves of accuracies in per cent over epochs, each a label, its epochs and its values, as characters.

    A curve is drawn with the first letter of its label, and with an asterisk where it meets another.
    """
    values = [value for _, _, ys in series for value in ys]
    low, high = 5 * math.floor(min(values) / 5), 5 * math.ceil(max(values) / 5)
    high = max(high, low + 5)
    last = max(max(xs) for _, xs, _ in series)
    first = min(min(xs) for _, xs, _ in series)
    grid = [[" "] * width for _ in range(height)]
    for label, xs, ys in series:
        letter = label[0]
        for x, y in zip(xs, ys, strict=True):
            column = round((x - first) / max(1, last - first) * (width - 1))
            row = round((high - y) / (high - low) * (height - 1))
            grid[row][column] = letter if grid[row][column] in (" ", letter) else "*"
    heights = [f"{high:3d}% " if row == 0 else f"{low:3d}% " if row == height - 1 else "     " for row in range(height)]
    lines = [f"{label}|{''.join(cells)}".rstrip() for label, cells in zip(heights, grid, strict=True)]
    axis = f"epoch {first:g}".ljust(width - 4) + f"{last:>4g}"
    named = ", ".join(label for label, _, _ in series)
    return [f"accuracy over the epochs: {named} (* where curves meet)", *lines, "     +" + "-" * width, "      " + axis]
