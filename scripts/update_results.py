"""Write the README's figures and pictures from the records in `results/`; with `--check`, only say whether they are.

Exit code 1 if a check finds one that is stale.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from tinycifar.recipes import RECIPES
from tinycifar.report import BLUE, ORANGE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- results: written by `make results` -->", "<!-- results end -->"
NOT_MEASURED = "not measured"


def records(recipe: str) -> list[dict[str, Any]]:
    """The records of a recipe's runs on a CPU, by seed."""
    paths = sorted((RESULTS / recipe).glob("seed-*.json"), key=lambda path: int(path.stem.removeprefix("seed-")))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def original(epochs: int) -> list[dict[str, float]]:
    """The original's log of its run over that many epochs."""
    with (RESULTS / "original" / f"log-{epochs}-epochs.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def percent(values: list[float]) -> str:
    """Mean in per cent, with the standard deviation where there are several values."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def table() -> str:
    """The result table, our records beside what the original logged, and where they were measured."""
    lines = [
        "| recipe | seeds | train % | test %, last epoch | with flip TTA | best on test¹ | training "
        "| original: train, test, best on test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    places = set()
    for name, recipe in RECIPES.items():
        runs = records(name)
        cells = [NOT_MEASURED] + [""] * 5
        if runs:
            fields = ("train_accuracy", "test_accuracy", "test_accuracy_tta", "best_test_accuracy")
            minutes = statistics.mean(run["train_seconds"] for run in runs) / 60
            speed = statistics.mean(run["images_per_second"] for run in runs)
            scores = [percent([run[field] for run in runs]) for field in fields]
            fastest = min(epoch["train_seconds"] for run in runs for epoch in run["history"])
            time = f"{minutes:.1f} min, {speed:,.0f} images/s; fastest epoch {fastest:.1f} s"
            cells = [str(len(runs)), *scores, time]
            places |= {f"{run['device']}, {run['threads']} threads, torch {run['torch_version']}" for run in runs}
        logged = "–"
        if name.endswith("-as-run"):
            log = original(recipe.epochs)
            best = max(row["test_accuracy"] for row in log)
            logged = f"{100 * log[-1]['train_accuracy']:.2f}, {100 * log[-1]['test_accuracy']:.2f}, {100 * best:.2f}"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {logged} |")
    lines += [
        "",
        "¹ The epoch chosen by its test accuracy, as the original did: told for comparison, no fair figure.",
        "",
    ]
    lines += [
        f"Measured on: {'; '.join(sorted(places))}. One run over 10,000 images has a standard error of 0.35 points."
    ]
    return "\n".join(lines)


def compare_curves(recipe: str) -> tuple[Figure, str]:
    """Accuracy over the epochs, ours (first seed) and the original's; and a digest of all that was drawn."""
    ours = records(recipe)[0]["history"]
    theirs = original(len(ours))
    ends = " and ".join(f"{100 * rows[-1]['test_accuracy']:.2f}%" for rows in (ours, theirs))
    title = f"{recipe}, ours beside the original's log: {ends} on test at the end"
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, colour, style, rows in (("ours", BLUE, "-", ours), ("original's log", ORANGE, "--", theirs)):
        epochs = [row["epoch"] for row in rows]
        for split, width in (("test", 2), ("train", 1)):
            values = [100 * row[f"{split}_accuracy"] for row in rows]
            axes.plot(epochs, values, colour, linestyle=style, linewidth=width, label=f"{split}, {label}")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure, hashlib.sha256(json.dumps([title, ours, theirs]).encode()).hexdigest()


def drawn_from(path: Path) -> str | None:
    """The digest that a picture of ours carries; None if there is none."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        digest: str | None = image.info.get("Source")
        return digest


def main(arguments: list[str] | None = None) -> int:
    """Update, or with `--check` compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is stale")
    check = parser.parse_args(arguments).check
    stale = []
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    fresh = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if fresh != text:
        stale.append(README)
        if not check:
            README.write_text(fresh, encoding="utf-8")
    for recipe in RECIPES:
        if not (recipe.endswith("-as-run") and records(recipe)):
            continue
        path = IMAGES / f"{recipe}.png"
        figure, digest = compare_curves(recipe)
        if drawn_from(path) != digest:
            stale.append(path)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=110, metadata={"Source": digest})
    for path in stale:
        print(f"{path}: {'differs from results/; run `make results`' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
