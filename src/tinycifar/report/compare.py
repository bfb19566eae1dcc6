"""Runs side by side: a table, curves, and whether they differ by more than noise."""

from __future__ import annotations

import statistics
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinycifar import atomic, metrics, recipes, run
from tinycifar.environment import Environment
from tinycifar.recipes import Recipe
from tinycifar.report import plots, run_page, text
from tinycifar.scores import Scores
from tinycifar.summary import summarize
from tinycifar.words import table

LETTERS = string.ascii_uppercase + string.ascii_lowercase  # of contenders, by which verdicts name them


@dataclass(frozen=True)
class Evaluated:
    """A run with its results; `labels` (N,) are those of the evaluated images, `right` (N,) whether each is right."""

    directory: Path
    recipe: Recipe
    environment: Environment
    scores: Scores
    history: list[dict[str, Any]]
    labels: Tensor
    right: Tensor

    @property
    def data(self) -> str:
        """Which images it was evaluated on: the digest of own images, or a name."""
        return self.scores.data_digest or self.scores.data

    @property
    def machine(self) -> tuple[object, ...]:
        """What the training time depends on besides the recipe."""
        known = self.environment
        return known.device, known.threads, known.torch_version, known.git_revision

    @property
    def train_seconds(self) -> float:
        """Seconds of training over all epochs."""
        return sum(float(entry["train_seconds"]) for entry in self.history)


@dataclass(frozen=True)
class Contender:
    """Runs that differ only in the seed, with their results; accuracy, ECE and seconds are means over them.

    `interval` is Wilson's for one run, and Student's for the mean of several. `ece_calibrated` is the ECE at a
    temperature fitted on validation images; None without one.
    """

    letter: str
    label: str
    runs: tuple[Evaluated, ...]
    split: str
    parameters: int
    macs: int
    accuracy: float
    interval: tuple[float, float]
    ece: float
    ece_calibrated: float | None
    train_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Contenders, and for each after the first a verdict on how it compares with the first."""

    contenders: tuple[Contender, ...]
    verdicts: tuple[dict[str, Any], ...]
    unfinished: tuple[Path, ...]

    def table(self) -> list[list[str]]:
        """Heading and rows, a contender each."""
        rows = [
            ["", "seeds", "split", "accuracy", "95% interval", "ECE", "ECE, scaled", "parameters", "MACs", "seconds"]
        ]
        for contender in self.contenders:
            low, high = contender.interval
            rows.append(
                [
                    f"{contender.letter}  {contender.label}",
                    str(len(contender.runs)),
                    contender.split,
                    f"{contender.accuracy:.2%}",
                    f"{low:.2%} to {high:.2%}",
                    f"{contender.ece:.4f}",
                    "-" if contender.ece_calibrated is None else f"{contender.ece_calibrated:.4f}",
                    f"{contender.parameters:,}",
                    f"{contender.macs:,}",
                    f"{contender.train_seconds:,.1f}",
                ]
            )
        return rows

    def lines(self) -> list[str]:
        """Table, curves and verdicts as text."""
        series = [
            (f"{contender.letter} {plots.SPLITS[watched(contender)][0]}", *curve(contender))
            for contender in self.contenders
        ]
        verdicts = [verdict["text"] for verdict in self.verdicts]
        return [*table(self.table()), "", *text.chart(series), "", *verdicts, *self.remarks()]

    def remarks(self) -> list[str]:
        """Notes on how to read the comparison."""
        remarks = ["Interval: Wilson's over images for a single run, Student's over seeds for the mean of several."]
        if len(self.verdicts) > 1:
            remarks.append(
                f"Each of the {len(self.verdicts)} comparisons mistakes noise for a difference once in 20 times."
            )
        if len({member.machine for contender in self.contenders for member in contender.runs}) > 1:
            remarks.append("The runs differ in device, thread count, torch or revision.")
        remarks += [f"{path} is not finished and is left out." for path in self.unfinished]
        return remarks

    def as_json(self) -> dict[str, Any]:
        """Contenders and verdicts as plain values."""
        fields = ("letter", "label", "split", "parameters", "macs", "accuracy", "interval", "ece", "ece_calibrated")
        contenders = [
            {name: getattr(contender, name) for name in (*fields, "train_seconds")}
            | {"runs": [str(member.directory) for member in contender.runs]}
            for contender in self.contenders
        ]
        unfinished = [str(path) for path in self.unfinished]
        return {"contenders": contenders, "verdicts": list(self.verdicts), "unfinished": unfinished}


def read(directory: Path) -> Evaluated:
    """A run that was evaluated; ValueError, naming the file, for any other folder."""
    run.check_is_run(directory)
    with run.as_written(directory):
        return _read(directory)


def _read(directory: Path) -> Evaluated:
    recipe = run.read_recipe(directory)
    if not (directory / "evaluation.json").exists():
        raise ValueError(f"{directory} was not evaluated; `tinycifar evaluate` does that")
    history = run.read_metrics(directory)
    if not history or not all({"train_accuracy", "train_seconds"} <= entry.keys() for entry in history):
        raise ValueError(f"{directory / 'metrics.jsonl'} lacks epochs: it is missing, empty or damaged")
    stored = run_page.read_logits(directory / "evaluation.safetensors")
    return Evaluated(
        directory=directory,
        recipe=recipe,
        environment=run.read_environment(directory),
        scores=run.read_evaluation(directory),
        history=history,
        labels=stored["labels"],
        right=stored["logits"].argmax(1) == stored["labels"],
    )


def compare(directories: Sequence[Path]) -> Comparison:
    """Compare runs; a directory of several seeds is one contender, as are runs of one recipe, data and precision.

    Only two single runs are always two. Seeds that were not finished are left out. Raises ValueError for a folder that
    is not an evaluated run, and for two runs of one contender with the same seed, which are one measurement.
    """
    paths = [path for directory in directories for path in run.seeds(directory) or [directory]]
    unfinished = tuple(path for path in paths if path not in directories and not (path / "evaluation.json").exists())
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a run is named twice; name each once")
    members = [read(path) for path in paths if path not in unfinished]
    if not directories:
        raise ValueError("no run is named; name at least one")
    if not members:
        raise ValueError("no seed was finished: there is nothing to compare")
    groups: dict[tuple[Any, ...], list[Evaluated]] = {}
    for number, member in enumerate(members):
        alone = number if len(directories) == len(paths) == 2 else None
        key = (
            member.recipe,
            member.data,
            member.environment.init and member.environment.init.sha256,
            member.scores.split,
            member.environment.train_images,
            member.environment.precision,
            len(member.history),
            alone,
        )
        for other in groups.setdefault(key, []):
            if other.environment.seed == member.environment.seed:
                raise ValueError(f"{other.directory} and {member.directory} are the same recipe and seed; name one")
        groups[key].append(member)
    if len(groups) > len(LETTERS):
        raise ValueError(f"{len(groups)} recipes are too many to compare; allowed are {len(LETTERS)}")
    contenders = tuple(
        _contender(letter, tuple(group)) for letter, group in zip(LETTERS, groups.values(), strict=False)
    )
    verdicts = tuple(_verdict(contenders[0], other) for other in contenders[1:])
    return Comparison(contenders, verdicts, unfinished)


def _contender(letter: str, runs: tuple[Evaluated, ...]) -> Contender:
    scores = [member.scores for member in runs]
    accuracies = [each.accuracy for each in scores]
    calibrated = [each.calibrated.ece for each in scores if each.calibrated is not None]
    table = summarize(runs[0].recipe.build(len(scores[0].classes)))
    return Contender(
        letter=letter,
        label=_label(runs[0]),
        runs=runs,
        split=scores[0].split,
        parameters=table.parameters,
        macs=table.macs,
        accuracy=statistics.mean(accuracies),
        interval=_in_range(metrics.mean_interval(accuracies)) if len(runs) > 1 else scores[0].accuracy_interval,
        ece=statistics.mean(each.ece for each in scores),
        ece_calibrated=statistics.mean(calibrated) if len(calibrated) == len(runs) else None,
        train_seconds=statistics.mean(member.train_seconds for member in runs),
    )


def _in_range(interval: tuple[float, float]) -> tuple[float, float]:
    """An interval of an accuracy, cut to [0, 1]."""
    return max(0.0, interval[0]), min(1.0, interval[1])


def _label(member: Evaluated) -> str:
    """The recipe's name, its changed fields, and the number of images if it is not all of CIFAR-10."""
    recipe, environment = member.recipe, member.environment
    parts = [recipe.name, *(f"{name}={value}" for name, value in recipes.changed(recipe).items())]
    if environment.init is not None:
        parts.append(f"from {environment.init.name}'s weights")
    if (member.data, environment.train_images) != ("cifar10", 50_000 - recipe.validation_images):
        parts.append(f"{environment.train_images:,} images of {member.scores.data}")
    if recipe.precision == "auto":
        parts.append(environment.precision)
    if len(member.history) != recipe.epochs:
        parts.append(f"{len(member.history)} of its epochs")
    return ", ".join(parts)


def _verdict(first: Contender, other: Contender) -> dict[str, Any]:
    """How `other` compares with `first`, in figures and in words."""
    difference = other.accuracy - first.accuracy
    more = (
        f"{abs(100 * difference):.2f} points {'above' if difference > 0 else 'below'}" if difference else "level with"
    )
    verdict: dict[str, Any] = {"first": first.letter, "second": other.letter, "difference": difference, "test": None}
    start = f"{other.letter} is {more} {first.letter}"
    first_run, other_run = first.runs[0], other.runs[0]
    if not torch.equal(first_run.labels, other_run.labels) or first_run.data != other_run.data:
        return verdict | {"text": f"{start}, but on different images: this says little."}
    if len(first.runs) == len(other.runs) == 1:
        only_first, only_second, p = metrics.mcnemar(first_run.right, other_run.right)
        shown = f"p = {p:.2g}" if p > 1e-4 else "p < 0.0001"
        words = (
            f"{start}: {_noise(p < 0.05)} (McNemar {shown}; only {first.letter} has {only_first:,} images right, "
            f"only {other.letter} {only_second:,}). There is one seed each; other seeds would change both."
        )
        figures = {"test": "mcnemar", "only_first": only_first, "only_second": only_second, "p": p}
        return verdict | figures | {"significant": p < 0.05, "text": words}
    if min(len(first.runs), len(other.runs)) < 2:
        several, single = (first, other) if len(first.runs) > 1 else (other, first)
        low, high = _in_range(metrics.prediction_interval([member.scores.accuracy for member in several.runs]))
        significant = not low <= single.accuracy <= high
        words = (
            f"{start}: {_noise(significant)} (95% of further seeds of {several.letter} would lie within {low:.2%} to "
            f"{high:.2%}). {single.letter} has only one seed."
        )
        figures = {"test": "prediction", "interval": [low, high], "significant": significant}
        return verdict | figures | {"text": words}
    before, after = ([member.scores.accuracy for member in contender.runs] for contender in (first, other))
    low, high = metrics.welch_interval(before, after)
    significant = low > 0 or high < 0
    words = (
        f"{start}: {_noise(significant)} (Welch's 95% interval of the difference over seeds: {100 * low:+.2f} to "
        f"{100 * high:+.2f} points)."
    )
    return verdict | {"test": "welch", "interval": [low, high], "significant": significant, "text": words}


def _noise(significant: bool) -> str:
    return "more than noise" if significant else "within noise"


def curve(contender: Contender) -> tuple[list[int], list[float]]:
    """Epochs and, in per cent, the mean over the runs of the accuracy on the split that was watched."""
    name = f"{watched(contender)}_accuracy"
    epochs = [entry["epoch"] for entry in contender.runs[0].history]
    return epochs, [
        100 * statistics.mean(entry[name] for entry in entries)
        for entries in zip(*(member.history for member in contender.runs), strict=True)
    ]


def watched(contender: Contender) -> str:
    """The split whose accuracy is known after every epoch: that of the evaluation, or else "train"."""
    return contender.split if f"{contender.split}_accuracy" in contender.runs[0].history[-1] else "train"


def write(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one self-contained page."""
    runs = [
        (number, contender.letter, watched(contender), member.history)
        for number, contender in enumerate(comparison.contenders)
        for member in contender.runs
    ]
    figure = plots.svg("curves", plots.compared_curves, runs)
    page = run_page.render(
        "compare.html", comparison=comparison, rows=comparison.table(), figure=figure, remarks=comparison.remarks()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, page.encode())
