"""The results of a sweep: `sweep.json`, the picture `sweep.png`, the best recipe as `best.toml`, and lines of text."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tinycifar import atomic, recipes, typed
from tinycifar.recipes import Recipe
from tinycifar.report import plots
from tinycifar.sweep.ranges import Range
from tinycifar.sweep.study import Study, Trial
from tinycifar.words import table

# What trials look like in the picture, by state, and on top of it the unchanged recipe and the best.
LOOKS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "color": plots.BLUE, "s": 30, "alpha": 0.8, "zorder": 3},
    "pruned": {"marker": "x", "color": "#7f7f7f", "s": 30, "alpha": 0.8, "zorder": 3},
    "diverged": {"marker": "v", "color": plots.ORANGE, "s": 40, "alpha": 0.8, "zorder": 3},
}
UNCHANGED = {"marker": "s", "facecolors": "none", "edgecolors": "#009e73", "s": 70, "linewidths": 2, "zorder": 4}
BEST = {"marker": "*", "facecolors": plots.COLOURS[4], "edgecolors": "black", "s": 220, "linewidths": 0.8, "zorder": 4}


@dataclass(frozen=True)
class Baseline:
    """The unchanged recipe: its values of the varied fields, and its accuracy if that trial is complete."""

    parameters: Mapping[str, Any]
    validation_accuracy: float | None


@dataclass(frozen=True)
class Outcome:
    """The content of `sweep.json`: what was searched, every trial, the best, and how far to trust it.

    `gain` is how far the best is above trial 0, the unchanged recipe. `standard_error` is that of the best accuracy on
    so many validation images, and `luck` how far above their mean the best of so many complete trials would stand if
    all were equally good and each off by one such error. All are fractions, None if no trial is complete.
    """

    recipe: str
    folder: str
    data: str
    validation_images: int
    seed: int
    ranges: tuple[Range, ...]
    best: Trial | None
    as_it_is: Baseline
    gain: float | None
    standard_error: float | None
    luck: float | None
    trials: tuple[Trial, ...]


def outcome(study: Study, entries: Sequence[Trial]) -> Outcome:
    """Summarise a sweep from its trials."""
    accuracies = {trial.number: trial.validation_accuracy or 0.0 for trial in entries if trial.state == "complete"}
    baseline = accuracies.get(0)
    best = error = luck = gain = None
    if accuracies:
        number = max(accuracies, key=lambda number: (accuracies[number], -number))
        best = next(trial for trial in entries if trial.number == number)
        error = math.sqrt(accuracies[number] * (1 - accuracies[number]) / study.scored_on)
        luck = error * expected_largest(len(accuracies))
        gain = None if baseline is None else accuracies[number] - baseline
    return Outcome(
        recipe=study.recipe.name,
        folder=str(study.folder),
        data=study.data,
        validation_images=study.scored_on,
        seed=study.seed,
        ranges=study.ranges,
        best=best,
        as_it_is=Baseline(study.as_it_is(), baseline),
        gain=gain,
        standard_error=error,
        luck=luck,
        trials=tuple(entries),
    )


def expected_largest(count: int) -> float:
    """Expected largest of `count` standard normal draws, by Blom's approximation (1958), correct within 0.02."""
    return statistics.NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def save(study: Study, outcome: Outcome) -> None:
    """Write `sweep.json` and, if a trial is complete, `sweep.png` and `best.toml`, each whole or not at all."""
    atomic.write_json(study.folder / "sweep.json", typed.to_json(outcome))
    if outcome.best is not None:
        recipe = best_recipe(study, outcome.best)
        atomic.write_bytes(study.folder / "best.toml", recipes.to_toml(recipe).encode())
        plots.save(study.folder / "sweep.png", picture, study, outcome)


def best_recipe(study: Study, best: Trial) -> Recipe:
    """The recipe of the best trial, which holds out as many validation images as the one that was varied.

    If that is none and it needs some, to choose an epoch by them, it holds out as many as the sweep did.
    """
    recipe = replace(study.recipe, **best.parameters)
    if best.number:
        recipe = replace(recipe, name=f"{study.recipe.name[:94]}-sweep")
    if recipe.keep_best or recipe.patience:
        recipe = replace(recipe, validation_images=recipe.validation_images or study.validation_images)
    return recipe


# --- text ---------------------------------------------------------------------------------------------------------


def line(entry: Trial) -> str:
    """A trial in one line."""
    accuracy = f"{entry.validation_accuracy or 0:.2%}"
    results = {
        "complete": accuracy,
        "pruned": f"pruned at {accuracy} after epoch {entry.epochs}",
        "failed": f"failed: {entry.problem}",
    }
    seconds = "" if entry.train_seconds is None else f", {entry.train_seconds:,.1f} s"
    values = ", ".join(f"{name} {_shown(value)}" for name, value in entry.parameters.items())
    which = " (the unchanged recipe)" if entry.number == 0 else ""
    return f"Trial {entry.number}{which}: {results.get(entry.state, entry.state)}{seconds}; {values}"


def _shown(value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else str(value)


def lines(study: Study, outcome: Outcome, source: str | None = None) -> list[str]:
    """The closing lines of a sweep; `source` is where its data was read from, as given to the command."""
    best, count = outcome.best, len(outcome.trials)
    states = [trial.state for trial in outcome.trials]
    counted = ", ".join(
        f"{states.count(state)} {state}"
        for state in ("complete", "pruned", "diverged", "failed", "running")
        if state in states
    )
    if best is None:
        return [f"No trial was complete ({counted or 'none was started'})"]
    error, luck, images = outcome.standard_error or 0.0, outcome.luck, outcome.validation_images
    text = [
        f"Best of {count} trials ({counted}): trial {best.number}, {best.validation_accuracy:.2%} on "
        f"{images:,} validation images (one standard error: {100 * error:.2f} points)"
    ]
    rows = [["field", "best", "recipe"]]
    for name, value in outcome.as_it_is.parameters.items():
        rows.append([name, *map(_shown, (best.parameters[name], value))])
    text += table(rows)
    if best.number == 0:
        text.append("No trial was better than the unchanged recipe.")
    elif outcome.gain is not None:
        baseline = outcome.as_it_is.validation_accuracy
        text.append(f"That is {100 * outcome.gain:.2f} points above the unchanged recipe (trial 0, {baseline:.2%}).")
    if luck:
        complete = states.count("complete")
        text.append(
            f"The best of many is chosen for its luck too: if {complete} trials were equally good and each off by one "
            f"standard error, the best would stand {100 * luck:.2f} points above their mean. Train both recipes with "
            "several seeds and compare them before you believe it."
        )
    text.append(f"Trials, picture, best recipe: sweep.json, sweep.png, best.toml in {study.folder}")
    holds_out = best_recipe(study, best).validation_images or not study.validation_images  # of the recipe or the data
    opens = "" if holds_out else " (which evaluates the test images)"
    words = ["tinycifar", "train", str(study.folder / "best.toml"), *(["--data", source] if source else [])]
    text.append(f"Train it with: {shlex.join(words)}{opens}")
    return text


# --- picture ------------------------------------------------------------------------------------------------------


def picture(study: Study, outcome: Outcome) -> Figure:
    """Validation accuracy over each varied field, and over the trials with the best so far."""
    trials = [trial for trial in outcome.trials if trial.state in LOOKS]
    low, high = limits(outcome)
    panels = len(study.ranges) + 1
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.1 * rows + 1.0), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for panel in axes[panels:]:
        panel.set_axis_off()
    best, error = outcome.best, 100 * (outcome.standard_error or 0.0)
    assert best is not None
    gain = "" if not outcome.gain else f", {100 * outcome.gain:.2f} points above the unchanged recipe"
    figure.suptitle(
        f"{study.recipe.name}: best of {len(outcome.trials)} trials {_height(best):.2f}% on "
        f"{outcome.validation_images:,} validation images{gain}",
        wrap=True,
    )
    for number, panel in enumerate(axes[:panels]):
        varied = study.ranges[number] if number < len(study.ranges) else None
        panel.grid(alpha=0.3)
        shaded = {"color": plots.COLOURS[4], "alpha": 0.2, "linewidth": 0, "label": "best, one standard error"}
        panel.axhspan(_height(best) - error, _height(best) + error, **shaded)
        marks = [(state, [trial for trial in trials if trial.state == state], look) for state, look in LOOKS.items()]
        marks += [("the unchanged recipe", [trial for trial in trials if trial.number == 0], UNCHANGED)]
        for label, shown, look in (*marks, ("best", [best], BEST)):
            if shown:
                across = [_position(varied, trial) for trial in shown]
                panel.scatter(across, [max(low, _height(trial)) for trial in shown], label=label, clip_on=False, **look)
        if varied is None:
            _best_so_far(panel, trials)
        else:
            _name_values(panel, varied, study.as_it_is()[varied.field])
        if number % columns == 0:
            panel.set_ylabel("validation accuracy (%)")
    axes[0].set_ylim(low, high)
    named = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(4, len(named)), fontsize=9)
    if any(_height(trial) < low for trial in trials):
        axes[0].annotate(
            "marks at the lower edge lie below it", (0.02, 0.03), xycoords="axes fraction", fontsize=8, color="#555555"
        )
    return figure


def limits(outcome: Outcome) -> tuple[float, float]:
    """The lowest and the highest accuracy that a picture shows, in per cent; a trial must be complete.

    They follow the noise and the better half of the complete trials, so that what failed does not flatten the rest.
    """
    values = [_height(trial) for trial in outcome.trials if trial.state == "complete"]
    best, error = max(values), max(100 * (outcome.standard_error or 0.0), 0.05)
    spread = max(best - statistics.median(values), error)
    return max(max(min(values), best - 3 * spread) - error, 0), min(best + 2 * error, 100 + error)


def _height(entry: Trial) -> float:
    """Where a trial is drawn, in per cent; one that diverged lies below everything."""
    accuracy = entry.validation_accuracy
    return -1.0 if accuracy is None or entry.state == "diverged" else 100 * accuracy


def _position(varied: Range | None, entry: Trial) -> float:
    if varied is None:
        return float(entry.number)
    value = entry.parameters[varied.field]
    if varied.kind == "choice":
        return float(varied.values.index(value)) if value in varied.values else float(len(varied.values))
    return float(value)


def _name_values(panel: Axes, varied: Range, as_it_is: Any) -> None:
    panel.set_xlabel(varied.field)
    if varied.kind == "choice":
        names = [str(value) for value in (*varied.values, *([] if varied.contains(as_it_is) else [as_it_is]))]
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.5, len(names) - 0.5)
        return
    if varied.log:
        panel.set_xscale("log")
        decades = math.log10(varied.values[1] / varied.values[0])
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    elif varied.kind == "int":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for end in varied.values:
        label = "ends of the range" if end == varied.values[0] else None
        panel.axvline(end, color="#7f7f7f", linestyle=":", linewidth=1, label=label)


def _best_so_far(panel: Axes, trials: Sequence[Trial]) -> None:
    numbers: list[int] = []
    heights: list[float] = []
    for trial in trials:
        if trial.state == "complete":
            numbers.append(trial.number)
            heights.append(max([_height(trial), *heights[-1:]]))
    panel.step(
        [*numbers, trials[-1].number], [*heights, heights[-1]], where="post", color=plots.BLUE, label="best so far"
    )
    panel.set_xlabel("trial")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
