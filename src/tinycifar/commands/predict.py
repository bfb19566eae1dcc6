"""`tinycifar predict` and `explain`: what models say of pictures, and why."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import click

from tinycifar import heatmaps, inference, trained, words
from tinycifar.commands import terminal
from tinycifar.data import pictures
from tinycifar.report import text


@click.command()
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@terminal.model_option
@terminal.device_option
@terminal.threads_option
@click.option("--csv", "as_csv", is_flag=True, help="Print one line of comma-separated values a picture.")
@terminal.json_option
def predict(
    paths: tuple[str, ...], model_name: str, device: str, threads: int | None, as_csv: bool, as_json: bool
) -> int:
    """Give the three most probable classes of pictures: PNG, JPEG and WebP files of any size, or folders of them."""
    if as_csv and as_json:
        raise ValueError("--csv and --json exclude each other")
    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    files = pictures.find(paths)
    width = max(len(words.printable(str(path))) for path in files)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    found = []
    display = terminal.display(to_stderr=True)
    with display:
        if as_csv:
            ranks = range(1, min(3, len(model.classes)) + 1)
            rows.writerow(["file", *(f"{name}_{rank}" for rank in ranks for name in ("class", "probability"))])
        for entry in display.track(inference.predict(model, files), total=len(files), description="Pictures"):
            found.append(entry)
            if "problem" in entry:
                terminal.fail(entry["problem"], 1)
            elif as_csv:
                cells = [cell for of in entry["classes"] for cell in (of["class"], f"{of['probability']:.6f}")]
                rows.writerow([words.printable(entry["file"]), *cells])
            elif not as_json:
                click.echo(text.prediction(entry, width))
    unreadable = [entry for entry in found if "problem" in entry]
    if as_json:
        predictions = [entry for entry in found if "classes" in entry]
        content = {"model": model_name, "temperature": model.temperature, "predictions": predictions}
        terminal.print_json({**content, "unreadable": unreadable})
    if unreadable:
        terminal.fail(f"{len(unreadable):,} of {len(found):,} files skipped", 1)
    return 1 if unreadable else 0


@click.command("explain")
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@terminal.model_option
@click.option("--class", "class_name", metavar="CLASS", help="Explain this class (default: the most probable one).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="explanations",
    show_default=True,
    help="Folder for the pictures.",
)
@terminal.device_option
@terminal.threads_option
@terminal.json_option
def explain_command(
    paths: tuple[str, ...],
    model_name: str,
    class_name: str | None,
    out: Path,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Draw what in pictures speaks for a class: Grad-CAM as a heat map over each, one PNG a picture."""
    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    files = pictures.find(paths)
    display = terminal.display(to_stderr=True)
    with display:
        work = heatmaps.explain_files(model, files, out, class_name)
        found = list(display.track(work, total=len(files), description="Pictures"))
    unreadable = [entry for entry in found if "problem" in entry]
    explained = [entry for entry in found if "problem" not in entry]
    if as_json:
        terminal.print_json({"model": model_name, "explanations": explained, "unreadable": unreadable})
    else:
        for entry in explained:
            file, drawn = words.printable(entry["file"]), words.printable(entry["picture"])
            click.echo(f"{file}: {entry['class']} {entry['probability']:.1%}, drawn in {drawn}")
    for entry in unreadable:
        terminal.fail(entry["problem"], 1)
    return 1 if unreadable else 0
