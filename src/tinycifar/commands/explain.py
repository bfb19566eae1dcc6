"""`tinycifar explain`."""

from __future__ import annotations

from pathlib import Path

import click

from tinycifar import words
from tinycifar.commands import terminal
from tinycifar.data import pictures


@click.command("explain")
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@terminal.model_option
@terminal.option("--class", "class_name", metavar="CLASS", help="Class to explain (default: the most probable one).")
@terminal.out_option("Folder for the drawings.", default="explanations", show_default=True)
@terminal.overwrite_option
@terminal.device_option
@terminal.threads_option
@terminal.json_option
def explain_command(
    paths: tuple[str, ...],
    model_name: str,
    class_name: str | None,
    out: Path,
    overwrite: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Draw a Grad-CAM heat map over each picture: which parts speak for a class."""
    from tinycifar import trained
    from tinycifar.report import explanations

    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    files = pictures.find(paths)
    work = explanations.explain_files(model, files, out, class_name, overwrite)
    entries = list(terminal.progress(work, len(files), "Pictures"))
    unreadable = [entry for entry in entries if "problem" in entry]
    explained = [entry for entry in entries if "problem" not in entry]
    lines = [
        f"{words.printable(entry['file'])}: {entry['class']} {entry['probability']:.1%}, drawn in "
        f"{words.printable(entry['picture'])}"
        for entry in explained
    ]
    terminal.show(as_json, {"model": model_name, "explanations": explained, "unreadable": unreadable}, *lines)
    for entry in unreadable:
        terminal.fail(entry["problem"], 1)
    return 1 if unreadable else 0
