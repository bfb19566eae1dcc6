"""Runs to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tinycifar import run

# Okabe & Ito's palette, told apart with any colour vision.
BLUE, ORANGE = "#0072b2", "#d55e00"
NAMES = {"train": "training", "validation": "validation", "test": "test"}


def plot_curves(history: Sequence[dict[str, Any]], quantity: str, title: str) -> Figure:
    """Curves over the epochs of `quantity`, "loss" or "accuracy", for each split that the history has it of."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    scale = 100 if quantity == "accuracy" else 1
    for split, colour in (("train", BLUE), ("validation", ORANGE), ("test", ORANGE)):
        points = [
            (entry["epoch"], entry[f"{split}_{quantity}"] * scale)
            for entry in history
            if f"{split}_{quantity}" in entry
        ]
        if points:
            epochs, values = zip(*points, strict=True)
            marker = "o" if len(points) < 3 else None
            label = f"{NAMES[split]}, last {values[-1]:.2f}{' %' if scale == 100 else ''}"
            axes.plot(epochs, values, colour, marker=marker, linewidth=2, label=label)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)" if quantity == "accuracy" else "cross-entropy loss (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(entry["epoch"] for entry in history) + 0.5)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_run(directory: Path) -> list[Path]:
    """Draw `loss.png` and `accuracy.png` of a run from its metrics; nothing if no epoch was finished.

    Raises ValueError if `directory` is no run directory.
    """
    history = run.read_metrics(directory)
    name = run.read_json(directory / "recipe.json")["name"]
    paths = []
    for quantity in ("loss", "accuracy") if history else ():
        path = directory / f"{quantity}.png"
        plot_curves(history, quantity, f"{name}: {quantity} after each epoch").savefig(path, dpi=120)
        paths.append(path)
    return paths
