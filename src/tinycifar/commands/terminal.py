"""What commands share: options that mean the same everywhere, and how they print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar import run, trained, words
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
    """The option for images from elsewhere; `default` says where they come from without it."""
    return click.option(
        "--data",
        "source",
        metavar="PATH",
        help="A folder of pictures, train/CLASS/*.png, or of MNIST's files; CIFAR-10's binary folder or archive; "
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
