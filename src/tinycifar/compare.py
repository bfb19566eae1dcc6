"""Runs side by side: a table, curves, and whether they differ by more than noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinycifar import metrics, plots, report, run, text
from tinycifar.models import build
from tinycifar.recipes import RECIPES, Recipe
from tinycifar.summary import summarize


@dataclass(frozen=True)
class Evaluated:
    """A run with what is known of it; `right` (N,) says of each image whether it got it right."""

    directory: Path
    recipe: Recipe
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    evaluation: dict[str, Any]
    labels: Tensor
    right: Tensor


@dataclass(frozen=True)
class Contender:
    """Runs that differ in nothing but the seed, with what they gave; accuracies and the like are means over them.

    `interval` is Wilson's for one run, and Student's for the mean of several. `ece_calibrated` is that at a temperature
    fitted on validation images; None where there is none.
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

    def table(self) -> list[list[str]]:
        """Heading and rows, a contender each."""
        rows = [
            ["", "seeds", "split", "accuracy", "95% interval", "ECE", "ECE, scaled", "parameters", "MACs", "seconds"]
        ]
        for of in self.contenders:
            low, high = of.interval
            rows.append(
                [
                    f"{of.letter}  {of.label}",
                    str(len(of.runs)),
                    of.split,
                    f"{of.accuracy:.2%}",
                    f"{low:.2%} to {high:.2%}",
                    f"{of.ece:.4f}",
                    "-" if of.ece_calibrated is None else f"{of.ece_calibrated:.4f}",
                    f"{of.parameters:,}",
                    f"{of.macs:,}",
                    f"{of.train_seconds:,.1f}",
                ]
            )
        return rows

    def lines(self) -> list[str]:
        """Table, curves and verdicts as text."""
        series = [(of.letter, *curve(of)) for of in self.contenders if of.runs[0].history]
        chart = text.chart(series) if series else []
        verdicts = [verdict["text"] for verdict in self.verdicts]
        return [*text.table(self.table()), "", *chart, "", *verdicts, *self.remarks()]

    def remarks(self) -> list[str]:
        """What to bear in mind."""
        remarks = ["Interval: Wilson's over images for a single run, Student's over seeds for the mean of several."]
        if len(self.verdicts) > 1:
            remarks.append(f"Each of the {len(self.verdicts)} comparisons takes noise for more once in 20 times.")
        return remarks

    def as_json(self) -> dict[str, Any]:
        """Contenders and verdicts as plain values."""
        fields = ("letter", "label", "split", "parameters", "macs", "accuracy", "interval", "ece", "ece_calibrated")
        contenders = [
            {name: getattr(of, name) for name in (*fields, "train_seconds")}
            | {"runs": [str(member.directory) for member in of.runs]}
            for of in self.contenders
        ]
        return {"contenders": contenders, "verdicts": list(self.verdicts)}


def read(directory: Path) -> Evaluated:
    """A run that was evaluated; ValueError, naming the file, for any other folder."""
    recipe, environment = run.read_recipe(directory), run.read_environment(directory)
    if not (directory / "evaluation.json").exists():
        raise ValueError(f"{directory} was not evaluated; `tinycifar evaluate` does that")
    stored = report.read_logits(directory / "evaluation.safetensors")
    evaluation = run.read_json(directory / "evaluation.json")
    right = stored["logits"].argmax(1) == stored["labels"]
    return Evaluated(directory, recipe, environment, run.read_metrics(directory), evaluation, stored["labels"], right)


def compare(directories: Sequence[Path]) -> Comparison:
    """Compare runs; a directory of several seeds, and several runs of one recipe and data, are one contender.

    Raises ValueError for a folder that is no evaluated run, and for one named twice.
    """
    members = [read(path) for directory in directories for path in run.seeds(directory) or [directory]]
    paths = [member.directory.resolve() for member in members]
    if len(set(paths)) < len(paths):
        raise ValueError("a run is named twice; name each once")
    groups: dict[tuple[Any, ...], list[Evaluated]] = {}
    for member in members:
        evaluation, environment = member.evaluation, member.environment
        key = (
            member.recipe,
            evaluation["data"],
            evaluation["split"],
            environment["train_images"],
            len(member.history),
        )
        groups.setdefault(key, []).append(member)
    contenders = tuple(_contender(number, tuple(group)) for number, group in enumerate(groups.values()))
    return Comparison(contenders, tuple(_verdict(contenders[0], other) for other in contenders[1:]))


def _contender(number: int, runs: tuple[Evaluated, ...]) -> Contender:
    accuracies = [member.evaluation["accuracy"] for member in runs]
    calibrated = [member.evaluation["calibrated"] for member in runs]
    table = summarize(build(runs[0].recipe.model))
    return Contender(
        letter=chr(ord("A") + number % 26),
        label=_label(runs[0]),
        runs=runs,
        split=runs[0].evaluation["split"],
        parameters=table.parameters,
        macs=table.macs,
        accuracy=statistics.mean(accuracies),
        interval=metrics.mean_interval(accuracies) if len(runs) > 1 else runs[0].evaluation["accuracy_interval"],
        ece=statistics.mean(member.evaluation["ece"] for member in runs),
        ece_calibrated=statistics.mean(of["ece"] for of in calibrated) if all(calibrated) else None,
        train_seconds=statistics.mean(sum(entry["train_seconds"] for entry in member.history) for member in runs),
    )


def _label(member: Evaluated) -> str:
    """The recipe's name, what was changed of it, and, if it was, on how few images it was trained."""
    recipe = member.recipe
    original = RECIPES.get(recipe.name, recipe)
    changed = {name: value for name, value in asdict(recipe).items() if value != asdict(original)[name]}
    changed = {name: value for name, value in changed.items() if not name.startswith("expected")}
    parts = [recipe.name, *(f"{name}={value}" for name, value in changed.items())]
    data, images = member.evaluation["data"], member.environment["train_images"]
    if (data, images) != ("cifar10", 50_000 - recipe.validation_images):
        parts.append(f"{images:,} images of {data}")
    if len(member.history) != recipe.epochs:
        parts.append(f"{len(member.history)} of its epochs")
    return ", ".join(parts)


def _verdict(first: Contender, other: Contender) -> dict[str, Any]:
    """How `other` compares with `first`, in figures and in words."""
    difference = other.accuracy - first.accuracy
    more = f"{abs(100 * difference):.2f} points {'above' if difference > 0 else 'below'}"
    found: dict[str, Any] = {"first": first.letter, "second": other.letter, "difference": difference, "test": None}
    start = f"{other.letter} is {more} {first.letter}"
    one, two = first.runs[0], other.runs[0]
    if not torch.equal(one.labels, two.labels) or one.evaluation["data"] != two.evaluation["data"]:
        return found | {"text": f"{start}, but on other images: that says little."}
    if len(first.runs) == len(other.runs) == 1:
        only_first, only_second, p = metrics.mcnemar(one.right, two.right)
        words = (
            f"{start}: {_noise(p < 0.05)} (McNemar p = {p:.2g}; only {first.letter} has {only_first:,} images right, "
            f"only {other.letter} {only_second:,}). One seed each: of the recipes it says less, as another moves both."
        )
        figures = {"test": "mcnemar", "only_first": only_first, "only_second": only_second, "p": p}
        return found | figures | {"significant": p < 0.05, "text": words}
    if min(len(first.runs), len(other.runs)) < 2:
        several, single = (first, other) if len(first.runs) > 1 else (other, first)
        low, high = metrics.prediction_interval([member.evaluation["accuracy"] for member in several.runs])
        significant = not low <= single.accuracy <= high
        words = (
            f"{start}: {_noise(significant)} (95% of further seeds of {several.letter} would lie within {low:.2%} to "
            f"{high:.2%}). Of {single.letter} there is one seed only."
        )
        figures = {"test": "prediction", "interval": [low, high], "significant": significant}
        return found | figures | {"text": words}
    before, after = ([member.evaluation["accuracy"] for member in of.runs] for of in (first, other))
    low, high = metrics.welch_interval(before, after)
    significant = low > 0 or high < 0
    words = (
        f"{start}: {_noise(significant)} (Welch's 95% interval of the difference over seeds: {100 * low:+.2f} to "
        f"{100 * high:+.2f} points)."
    )
    return found | {"test": "welch", "interval": [low, high], "significant": significant, "text": words}


def _noise(significant: bool) -> str:
    return "more than noise" if significant else "within noise"


def curve(of: Contender) -> tuple[list[int], list[float]]:
    """Epochs and, in per cent, the mean over the runs of the accuracy that was watched, else of that in training."""
    name = _watched(of)
    epochs = [entry["epoch"] for entry in of.runs[0].history]
    return epochs, [
        100 * statistics.mean(entry[name] for entry in entries)
        for entries in zip(*(member.history for member in of.runs), strict=True)
    ]


def _watched(of: Contender) -> str:
    watched = f"{of.split}_accuracy"
    return watched if watched in of.runs[0].history[-1] else "train_accuracy"


def write(found: Comparison, path: Path) -> None:
    """Write a comparison as one self-contained page."""
    runs = [
        (number, of.letter, member.history)
        for number, of in enumerate(found.contenders)
        for member in of.runs
        if member.history
    ]
    figure = plots.svg("curves", plots.compared_curves, runs, found.contenders[0].split) if runs else None
    page = report.render("compare.html", found=found, rows=found.table(), figure=figure, remarks=found.remarks())
    run.write_bytes(path, page.encode())


def over_seeds(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What finished runs of one recipe gave, from their records: mean, standard deviation, min, max, 95% t-interval."""
    if not records:
        return {"finished": []}
    split = "test" if records[0]["test_accuracy"] is not None else "validation"
    accuracies = [record[f"{split}_accuracy"] for record in records]
    several = len(records) > 1
    return {
        "recipe": records[0]["recipe"],
        "split": split,
        "finished": [record["seed"] for record in records],
        "accuracies": accuracies,
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if several else None,
        "min": min(accuracies),
        "max": max(accuracies),
        "interval": list(metrics.mean_interval(accuracies)) if several else None,
        "mean_train_seconds": statistics.mean(record["train_seconds"] for record in records),
    }
