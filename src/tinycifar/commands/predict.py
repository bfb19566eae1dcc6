"""`tinycifar predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinycifar import catalog, predictions, words
from tinycifar.commands import terminal
from tinycifar.data import pictures
from tinycifar.evaluation import outside

if TYPE_CHECKING:
    from tinycifar.numpy_model import NumpyModel
    from tinycifar.trained import Trained

FEW = 64  # pictures that NumPy classifies before PyTorch would be loaded


@click.command()
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@terminal.model_option
@terminal.device_option
@terminal.threads_option
@terminal.option(
    "--keep", type=float, metavar="SHARE", help="Answer none of these, but keep this share of right answers: 0.95."
)
@terminal.option("--threshold", type=float, metavar="SCORE", help="Answer none of these below this score.")
@terminal.option("--csv", "as_csv", is_flag=True, help="Print one line of comma-separated values per picture.")
@terminal.json_option
def predict(
    paths: tuple[str, ...],
    model_name: str,
    device: str,
    threads: int | None,
    keep: float | None,
    threshold: float | None,
    as_csv: bool,
    as_json: bool,
) -> int:
    """Print the three most probable classes of pictures: PNG, JPEG and WebP files, or folders of them."""
    if as_csv and as_json:
        raise ValueError("--csv and --json exclude each other")
    files = pictures.find(paths)
    model, limit, results = _predictions(files, model_name, device, threads, keep, threshold)
    width = max(len(words.printable(str(path))) for path in files)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    entries = []
    if as_csv:
        ranks = range(1, min(3, len(model.classes)) + 1)
        columns = [f"{name}_{rank}" for rank in ranks for name in ("class", "probability")]
        rows.writerow(["file", *columns, *([] if limit is None else ["none_of_these"])])
    for entry in terminal.progress(results, len(files), "Pictures"):
        entries.append(entry)
        if "problem" in entry:
            terminal.fail(entry["problem"], 1)
        elif as_csv:
            cells = [cell for row in entry["classes"] for cell in (row["class"], f"{row['probability']:.6f}")]
            cells += ["yes" if entry["none_of_these"] else "no"] if "none_of_these" in entry else []
            rows.writerow([words.printable(entry["file"]), *cells])
        elif not as_json:
            shown = "  ".join(f"{row['class']} {row['probability']:.1%}" for row in entry["classes"])
            rejected = f"none of these (score {entry['score']:.2f})  " if entry.get("none_of_these") else ""
            click.echo(f"{words.printable(entry['file']):{width}}  {rejected}{shown}")
    unreadable = [entry for entry in entries if "problem" in entry]
    if as_json:
        readable = [entry for entry in entries if "classes" in entry]
        content = {"model": model_name, "temperature": model.temperature, "predictions": readable}
        chosen = {} if limit is None else {"threshold": limit}
        terminal.print_json({**content, **chosen, "unreadable": unreadable})
    if unreadable:
        terminal.fail(f"{len(unreadable):,} of {words.counted(len(entries), 'file')} skipped", 1)
    return 1 if unreadable else 0


def _predictions(
    files: list[Path],
    model_name: str,
    device: str,
    threads: int | None,
    keep: float | None,
    threshold: float | None,
) -> tuple[NumpyModel | Trained, float | None, Iterator[dict[str, Any]]]:
    """A model, its threshold and its predictions, one by one; without loading PyTorch if that is possible."""
    if model_name in catalog.shipped() and device in ("auto", "cpu") and threads is None and len(files) <= FEW:
        from tinycifar import numpy_model

        quick = numpy_model.load(model_name)
        limit = outside.chosen(quick.kept, keep, threshold, model_name)
        return quick, limit, predictions.predict(quick, files, quick.logits, threshold=limit)
    from tinycifar import inference, trained

    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    limit = outside.chosen(model.kept, keep, threshold, model.name)
    return model, limit, inference.predict(model, files, threshold=limit)
