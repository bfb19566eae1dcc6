"""What commands share: options that mean the same everywhere, and how they print."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar import data, run, trained, words
from tinycifar.data import sources
from tinycifar.scale import distributed
from tinycifar.trained import Trained

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, os.cpu_count()), help="CPU threads (default: torch's own choice)."
)
model_option = click.option(
    "--model",
    "model_name",
    metavar="MODEL",
    default=trained.best,
    show_default="the most accurate that is shipped",
    help="A run directory, a weights file, or a shipped model.",
)


def data_option(default: str) -> Callable[[Command], Command]:
    """The options for images from elsewhere; `default` says where they come from without them.

    The command has them all as `source`, as `tinycifar.data.load` takes it.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_source(*arguments: Any, source: str | None, **options: Any) -> Any:
            chosen = {name: options.pop(name) for name in SOURCE_OPTIONS}
            given = {name: value for name, value in chosen.items() if value is not None}
            if given and (source is None or source in data.NAMES):
                raise ValueError(f"--{next(iter(given))} is for own data: give --data too")
            if source is not None and given:
                source = str(replace(sources.parse(source), **given))
            return command(*arguments, source=source, **options)

        for name, (metavar, text) in reversed(SOURCE_OPTIONS.items()):
            with_source = click.option(f"--{name}", name, metavar=metavar, help=text)(with_source)
        return cast(Command, _path_option(default)(with_source))

    return decorate


SOURCE_OPTIONS = {
    "group": ("PATTERN", r"Never split pictures whose file names agree in the part in parentheses: '(.*)_\d+'."),
    "columns": (
        "KIND=NAME,...",
        "Columns of a table of labels: file=Path,label=ClassId, optionally split= and group=.",
    ),
    "labels": ("fine|coarse", "Labels of CIFAR-100 (default: fine)."),
    "transposed": ("yes|no", "Whether IDX files store images transposed (default: EMNIST's do)."),
}


def _path_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--data",
        "source",
        metavar="PATH",
        help="A folder or zip archive of pictures, IDX, .npz or parquet files, or another layout of docs/DATA.md; "
        f"cifar10 or sample (default: {default}).",
    )


def set_threads(threads: int | None) -> None:
    """Have torch compute with so many threads; None leaves it its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def console(to_stderr: bool) -> Console:
    """What prints lines as they are: a name that looks like markup is none, and none is cut at the terminal's width.

    Of several processes that torchrun started only the first prints.
    """
    quiet = not distributed.here().first
    return Console(stderr=to_stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)


def display(to_stderr: bool) -> Progress:
    """The live display of a command: bars on a terminal, else lines alone."""
    shown_on = console(to_stderr)
    return Progress(console=shown_on, transient=True, disable=shown_on.quiet or not shown_on.is_terminal)


def file_name(model: Trained) -> str:
    """What is made from a model is called: as it is, or, for one of several seeds, that behind their directory's."""
    source = Path(model.source)
    of_seeds = source.name == "model.safetensors" and source.parent in run.seeds(source.parent.parent)
    return f"{source.parent.parent.name}-{model.name}" if of_seeds else model.name


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(content, allow_nan=False))  # in ASCII, which every stream takes


def problem(error: OSError) -> str:
    """What the disk or the system says, and of which file."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def fail(message: str, code: int, tell: bool | None = None) -> int:
    """Print one line of what went wrong to standard error, and give the exit code.

    Of several processes that torchrun started only the first prints, unless `tell` says which.
    """
    if distributed.here().first if tell is None else tell:
        click.echo(f"tinycifar: {words.printable(' '.join(message.splitlines()))}", err=True)
    return code
