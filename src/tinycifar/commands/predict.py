"""`tinycifar predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tinycifar import catalog, predictions, words
from tinycifar.commands import terminal
from tinycifar.data import pictures

FEW = 64  # pictures that NumPy classifies before PyTorch would be loaded


@click.command()
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@terminal.model_option
@terminal.device_option
@terminal.threads_option
@terminal.option("--csv", "as_csv", is_flag=True, help="Print one line of comma-separated values per picture.")
@terminal.json_option
def predict(
    paths: tuple[str, ...], model_name: str, device: str, threads: int | None, as_csv: bool, as_json: bool
) -> int:
    """Print the three most probable classes of pictures: PNG, JPEG and WebP files, or folders of them."""
    if as_csv and as_json:
        raise ValueError("--csv and --json exclude each other")
    files = pictures.find(paths)
    classes, temperature, results = _predictions(files, model_name, device, threads)
    width = max(len(words.printable(str(path))) for path in files)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    entries = []
    if as_csv:
        ranks = range(1, min(3, len(classes)) + 1)
        rows.writerow(["file", *(f"{name}_{rank}" for rank in ranks for name in ("class", "probability"))])
    for entry in terminal.progress(results, len(files), "Pictures"):
        entries.append(entry)
        if "problem" in entry:
            terminal.fail(entry["problem"], 1)
        elif as_csv:
            cells = [cell for row in entry["classes"] for cell in (row["class"], f"{row['probability']:.6f}")]
            rows.writerow([words.printable(entry["file"]), *cells])
        elif not as_json:
            shown = "  ".join(f"{row['class']} {row['probability']:.1%}" for row in entry["classes"])
            click.echo(f"{words.printable(entry['file']):{width}}  {shown}")
    unreadable = [entry for entry in entries if "problem" in entry]
    if as_json:
        readable = [entry for entry in entries if "classes" in entry]
        content = {"model": model_name, "temperature": temperature, "predictions": readable}
        terminal.print_json({**content, "unreadable": unreadable})
    if unreadable:
        terminal.fail(f"{len(unreadable):,} of {len(entries):,} files skipped", 1)
    return 1 if unreadable else 0


def _predictions(
    files: list[Path], model_name: str, device: str, threads: int | None
) -> tuple[tuple[str, ...], float | None, Iterator[dict[str, Any]]]:
    """Classes and temperature of the model, and its predictions; without loading PyTorch if that is possible."""
    if model_name in catalog.shipped() and device in ("auto", "cpu") and threads is None and len(files) <= FEW:
        from tinycifar import numpy_model

        quick = numpy_model.load(model_name)
        results = predictions.predict(
            files, quick.classes, quick.image_size, quick.probabilities, fit=quick.fit, channels=quick.channels
        )
        return quick.classes, quick.temperature, results
    from tinycifar import inference, trained

    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    return model.classes, model.temperature, inference.predict(model, files)
