"""Pictures: functions from results to figures, each with a title that says what to see."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from tinycifar import atomic, run
from tinycifar.scores import Robustness, Scores
from tinycifar.summary import Summary

# Okabe & Ito's palette, told apart with any colour vision.
BLUE, ORANGE = "#0072b2", "#d55e00"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
STYLES = ("-", "--", ":", "-.")
SPLITS = {"train": ("training", BLUE, "-"), "validation": ("validation", ORANGE, "--"), "test": ("test", ORANGE, "--")}
INK = "#010203"  # stands for the text colour of the page that a figure is put into
SHADES = LinearSegmentedColormap.from_list("shades", [f"{BLUE}00", f"{BLUE}ff"])  # from nothing to blue
LONGEST_NAME = 24  # of a class, in a figure
EXAMPLE = 0  # of the sample's test images, a cat in the middle of the picture


def new_axes(width: float, height: float, title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure, in inches, and its empty axes, with a title and named axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, wrap=True)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def shortened(name: str) -> str:
    """The name of a class as it fits beside a picture."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def save(path: Path, draw: Callable[..., Figure], *arguments: Any) -> None:
    """Write the figure that `draw` makes of `arguments` as PNG, whole or not at all, into a folder made if needed."""
    content = io.BytesIO()
    with _names_as_they_are():
        draw(*arguments).savefig(content, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, content.getvalue())


@contextlib.contextmanager
def _names_as_they_are() -> Iterator[None]:
    """Names of files and classes may hold dollar signs, which are no mathematics, and letters that a font lacks."""
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def svg(name: str, draw: Callable[..., Figure], *arguments: Any) -> dict[str, str]:
    """A figure for a page: its `title`, and its `markup`, which takes the page's text colour and its blue.

    `name` keeps the ids inside apart from those of the page's other figures.
    """
    style: dict[str, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    style |= {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10.5,
        "grid.color": INK,
        "legend.frameon": False,
    }
    with _names_as_they_are(), matplotlib.rc_context(cast(Any, style)):
        figure = draw(*arguments)
        title = figure.axes[0].get_title()
        figure.axes[0].set_title("")
        content = io.StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    markup = content.getvalue()
    markup = markup[markup.index("<svg") :].replace(INK, "currentColor").replace(BLUE, "var(--blue)")
    markup = re.sub(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', r'\1 role="img"', markup, count=1)
    for prefix in ("figure", "axes", "patch", "line2d", "matplotlib.axis", "xtick", "ytick", "text", "legend"):
        markup = markup.replace(f'id="{prefix}_', f'id="{name}-{prefix}_')
    return {"title": title, "markup": markup}


def curves(history: Sequence[Mapping[str, Any]], quantity: str, title: str) -> Figure:
    """Curves over the epochs of `quantity`, "loss" or "accuracy", for each split that the history has it of."""
    scale, unit = (100, "accuracy (%)") if quantity == "accuracy" else (1, "cross-entropy loss (nats)")
    figure, axes = new_axes(4.6, 3.2, title, "epoch", unit)
    for split, (name, colour, style) in SPLITS.items():
        points = [(e["epoch"], e[f"{split}_{quantity}"] * scale) for e in history if f"{split}_{quantity}" in e]
        if points:
            epochs, values = zip(*points, strict=True)
            marker = "o" if len(points) < 12 else None
            label = f"{name}, last {values[-1]:.2f}{' %' if scale == 100 else ''}"
            axes.plot(epochs, values, colour, linestyle=style, marker=marker, linewidth=2, label=label)
    _epochs(axes, history[-1]["epoch"])
    axes.legend()
    return figure


def _epochs(axes: Axes, last: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, last + 0.5)


def save_curves(directory: Path) -> list[Path]:
    """Draw `loss.png` and `accuracy.png` of a run from its metrics; nothing if no epoch was finished.

    Raises ValueError if `directory` is no run directory.
    """
    name = run.read_recipe(directory).name
    history = run.read_metrics(directory)
    paths = []
    for quantity in ("loss", "accuracy") if history else ():
        path = directory / f"{quantity}.png"
        save(path, curves, history, quantity, f"{name}: {quantity} after each epoch")
        paths.append(path)
    return paths


def learning_rates(epochs: Sequence[float], rates: Mapping[str, Sequence[float]]) -> Figure:
    """Learning rates by optimizer, over the epoch at which they hold, a fraction."""
    figure, axes = new_axes(4.6, 3.2, "Learning rate over the whole schedule", "epochs passed", "learning rate")
    for (name, values), colour, style in zip(rates.items(), COLOURS, STYLES, strict=False):
        axes.plot(epochs, values, colour, linestyle=style, linewidth=2, label=f"{name}, at most {max(values):g}")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(epochs))
    axes.legend()
    return figure


def confusion(scores: Scores) -> Figure:
    """The confusion matrix with its counts, each row shaded by its share of the true class; for no more than 30."""
    counts = np.array(scores.confusion)
    names = [shortened(row.name) for row in scores.classes]
    wrong = counts - np.diag(counts.diagonal())
    title = "Confusion: no image taken for another class"
    if wrong.any():
        true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
        title = (
            f"Confusion: most often {names[true]} is taken for {names[taken]}, "
            f"{wrong[true, taken]:,} of {counts[true].sum():,} images"
        )
    side = min(max(4.2, 0.48 * len(names)), 12)
    figure, axes = new_axes(side + 0.3, side, title, "predicted", "true")
    axes.grid(False)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap=SHADES, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else matplotlib.rcParams["text.color"]
        axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    return figure


def reliability(scores: Scores) -> Figure:
    """Accuracy against confidence in 15 bins, without and with the temperature; areas show how many images."""
    rows = scores.reliability
    gap = sum(row.images * (row.confidence - row.accuracy) for row in rows) / sum(row.images for row in rows)
    side = "above accuracy: overconfident" if gap > 0 else "below accuracy: underconfident"
    title = f"Calibration: confidence is on average {abs(100 * gap):.1f} points {side}"
    figure, axes = new_axes(4.5, 4.2, title, "confidence (probability of the predicted class)", "accuracy")
    axes.plot([0, 1], [0, 1], color=matplotlib.rcParams["text.color"], linewidth=1, label="confidence = accuracy")
    series = [(rows, "o", BLUE, f"as trained, ECE {scores.ece:.3f}")]
    if scores.reliability_calibrated is not None and scores.calibrated is not None:
        after = f"temperature {scores.temperature:.2f}, ECE {scores.calibrated.ece:.3f}"
        series.append((scores.reliability_calibrated, "s", ORANGE, after))
    for rows, marker, colour, label in series:
        filled = [row for row in rows if row.images]
        x, y = [row.confidence for row in filled], [row.accuracy for row in filled]
        area = [8 + 300 * row.images / scores.images for row in filled]
        axes.plot(x, y, colour, linewidth=1)
        axes.scatter(x, y, area, colour, marker=marker, alpha=0.7, linewidths=0)
        axes.plot([], [], colour, marker=marker, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure


def robustness(robustness: Robustness) -> Figure:
    """Accuracy by corruption, the hardest last, and severity; the darker, the more images are right."""
    mean = {name: float(np.mean(values)) for name, values in robustness.accuracy.items()}
    names = sorted(mean, key=mean.__getitem__, reverse=True)
    title = (
        f"Corrupted images: {robustness.mean_corruption_accuracy:.1%} right on average, least with {names[-1]} "
        f"({mean[names[-1]]:.1%}); {robustness.clean_accuracy:.1%} without corruption"
    )
    figure, axes = new_axes(4.8, 0.28 * len(names) + 0.9, title, "severity", "")
    axes.grid(False)
    values = np.array([[*robustness.accuracy[name], mean[name]] for name in names])
    axes.imshow(values, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.65 else matplotlib.rcParams["text.color"]
        axes.text(column, row, f"{100 * value:.0f}%", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(values.shape[1]), [*map(str, range(1, values.shape[1])), "mean"])
    axes.set_yticks(range(len(names)), [name.replace("-", " ") for name in names])
    return figure


def compared_curves(runs: Sequence[tuple[int, str, str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Accuracy over the epochs of several runs: for each a number that gives its colour, a label, a split, a history.

    The accuracy is that on the split, "train", "validation" or "test", which the label names too.
    """
    figure, axes = new_axes(7.5, 4.5, "Accuracy over the epochs", "epoch", "accuracy (%)")
    named: set[str] = set()
    for number, label, split, history in runs:
        label = f"{label}, {SPLITS[split][0]}"
        values = [100 * entry[f"{split}_accuracy"] for entry in history]
        axes.plot(
            [entry["epoch"] for entry in history],
            values,
            COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            marker="o" if len(values) < 12 else None,
            markersize=4,
            label=None if label in named else label,
        )
        named.add(label)
    _epochs(axes, max(history[-1]["epoch"] for *_, history in runs))
    axes.legend(fontsize=8)
    return figure


def heat_overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """A picture with a heat map (H, W), values in [0, 1], over it: the hotter, the more of the colour scale shows."""
    side = picture.size
    values = np.asarray(Image.fromarray(heat.numpy()).resize(side, Image.Resampling.BILINEAR)).clip(0, 1)
    colours = matplotlib.colormaps["inferno"](values)[..., :3]
    grey = np.asarray(picture.convert("L").convert("RGB")) / 255
    share = 0.25 + 0.5 * values[..., None]
    return Image.fromarray((255 * ((1 - share) * grey + share * colours)).round().astype(np.uint8))


def explanation(picture: Image.Image, seen: Image.Image, heat: Tensor, title: str) -> Figure:
    """A picture, what the model sees of it, and its heat map, side by side."""
    figure = Figure(figsize=(8, 3.1), layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    large = picture.resize((320, 320), Image.Resampling.LANCZOS)
    left.imshow(large)
    left.set_title("the picture's square", fontsize=9)
    middle.imshow(seen)
    middle.set_title(f"what the model sees: {seen.width}x{seen.height} pixels", fontsize=9)
    right.imshow(heat_overlay(large, heat))
    right.set_title("what speaks for it: the brighter, the more", fontsize=9)
    for axes in (left, middle, right):
        axes.set_axis_off()
    return figure


def receptive_fields(table: Summary, field: Tensor, example: Tensor, label: str) -> Figure:
    """The receptive field of a middle position of the last feature map over an example, uint8 (3, H, W).

    `field` (H, W) is how much each pixel matters to it, as from `explain.effective_receptive_field`.
    """
    centre = table.map_centre
    size = example.shape[-1]
    side = effective_side(field, centre)
    widest = max(side, table.map_field)
    within = centre - side / 2 >= -0.5 and centre + side / 2 <= size - 0.5
    outside = "" if within else " (partly outside the image)"
    figure = Figure(figsize=(8, 4.7), layout="constrained")
    figure.suptitle(
        f"{label}: theory lets a position of the last feature map see {table.map_field} x "
        f"{table.map_field} pixels;\n95% of what it heeds lies within {side} x {side}{outside}"
    )
    left, right = figure.subplots(1, 2)
    left.imshow(example.permute(1, 2, 0).numpy())
    left.set_title("over an example", fontsize=9)
    shares = field.numpy() / float(field.max())
    drawn = right.imshow(shares, cmap="cividis")
    right.set_title("gradient, mean over real images", fontsize=9)
    figure.colorbar(drawn, ax=right, shrink=0.8, label="size of the gradient, largest = 1")
    for axes in (left, right):
        for width, colour, style, name in (
            (table.map_field, BLUE, "--", "theoretical"),
            (side, ORANGE, "-", "effective, 95%"),
        ):
            corner = (centre - width / 2, centre - width / 2)
            axes.add_patch(
                Rectangle(corner, width, width, fill=False, color=colour, linestyle=style, linewidth=2, label=name)
            )
        low = min(-0.5, centre - widest / 2) - 1
        high = max(size - 0.5, centre + widest / 2) + 1
        axes.set(xlim=(low, high), ylim=(high, low), xlabel="pixels", facecolor="#b0b0b0")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def effective_side(field: Tensor, centre: float, share: float = 0.95) -> int:
    """Side, in pixels, of the smallest square around (centre, centre) that holds `share` of a field (H, W)."""
    offsets = np.abs(np.arange(field.shape[0]) - centre)
    distance = np.maximum(offsets[:, None], offsets[None, :])
    values = field.double().numpy()
    sides = range(1, 2 * int(distance.max()) + 3)
    return next(side for side in sides if values[distance <= side / 2].sum() >= share * values.sum())
