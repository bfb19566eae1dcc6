"""What commands share: options that mean the same everywhere, and printing."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from tinycifar import atomic, catalog, data, recipes, typed, words
from tinycifar.data import sources

if TYPE_CHECKING:  # none of it is needed to parse a command line or to print a list
    from rich.console import Console
    from rich.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


class _Option(click.Option):
    """An option whose help does not list its range, which the error message does."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


option = functools.partial(click.option, cls=_Option)


def number_option(
    *names: str, help: str, least: int = 1, most: int | None = None, metavar: str = "N", default: int | None = None
) -> Callable[[Command], Command]:
    """An option for a whole number in a range; a default is shown."""
    shown = default is not None
    return option(
        *names, type=click.IntRange(least, most), metavar=metavar, default=default, show_default=shown, help=help
    )


json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
overwrite_option = option("--overwrite", is_flag=True, help="Replace output that exists already.")
device_option = option("--device", default="auto", metavar="NAME", show_default=True, help="auto, cpu, cuda or mps.")
threads_option = number_option("--threads", most=os.cpu_count(), help="CPU threads (default: torch's).")
model_option = option(
    "--model",
    "model_name",
    metavar="MODEL",
    default=catalog.best,
    show_default="the most accurate shipped one",
    help="A run directory, a weights file, or a shipped model.",
)


class NamedPath(click.Path):
    """A path, as a `Path`; an empty one is refused."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as a `Path`."""
        try:
            typed.path("it", value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def out_option(help: str, **options: Any) -> Callable[[Command], Command]:
    """The option for the path of what a command writes."""
    return option("--out", type=NamedPath(), help=help, **options)


def data_option(default: str, hide_details: bool = True) -> Callable[[Command], Command]:
    """The options for images from elsewhere; `default` says where they come from without them.

    The command has them all as `source`, as `tinycifar.data.load` takes it. The help of most commands shows only
    `--data`; that of `data info` shows the others too.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_source(*arguments: Any, source: str | None, **options: Any) -> Any:
            skip = options.pop("skip_unreadable")
            chosen = {name: options.pop(name) for name in SOURCE_OPTIONS} | {"unreadable": "skip" if skip else None}
            given = {name: value for name, value in chosen.items() if value is not None}
            if given and (source is None or source in data.NAMES):
                name = next(iter(given)).replace("unreadable", "skip-unreadable")
                raise ValueError(f"--{name} is for own data: give --data too")
            if source is not None and given:
                parsed = sources.parse(source)
                if twice := [name for name in given if getattr(parsed, name)]:
                    option = twice[0].replace("unreadable", "skip-unreadable")
                    raise ValueError(f"{twice[0]} is given twice, in --data and as --{option}; give it once")
                source = str(replace(parsed, **given))
            return command(*arguments, source=source, **options)

        with_source = click.option(
            "--skip-unreadable", is_flag=True, hidden=hide_details, help="Leave out unreadable pictures and count them."
        )(with_source)
        for name, (metavar, text) in reversed(SOURCE_OPTIONS.items()):
            with_source = option(f"--{name}", name, metavar=metavar, hidden=hide_details, help=text)(with_source)
        path_help = f"Images: path, cifar10 or sample (default: {default})."
        return cast(Command, option("--data", "source", metavar="PATH", help=path_help)(with_source))

    return decorate


SOURCE_OPTIONS = {
    "group": ("PATTERN", r"Never split files that agree in (...): '(.*)_\d+'."),
    "columns": ("KIND=NAME,...", "Columns of a label table: file=, label=, ..."),
    "labels": ("fine|coarse", "Labels of CIFAR-100 (default: fine)."),
    "transposed": ("yes|no", "IDX images are transposed (default: EMNIST's)."),
}


def recipe_changes(settings: Sequence[str], epochs: int | None) -> dict[str, object]:
    """The values of recipe fields that --set and --epochs give; ValueError for a field that is given twice."""
    names = [setting.partition("=")[0] for setting in settings] + ["epochs"] * (epochs is not None)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"the recipe field {twice[0]} is given twice; give each field once")
    return recipes.parse_settings(settings) | ({} if epochs is None else {"epochs": epochs})


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads that torch uses; None leaves torch's choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _first() -> bool:
    """Whether this process prints: the only one, or the first of those that torchrun started."""
    rank = os.environ.get("RANK", "") if "WORLD_SIZE" in os.environ else ""
    return not rank.isdecimal() or int(rank) == 0


class OutputFile(click.Path):
    """The path of a file to write, whose name ends in `suffix`; anything else is refused."""

    def __init__(self, suffix: str) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self._suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as a `Path`."""
        try:
            atomic.file_path(value)
            atomic.check_suffix(value, self._suffix)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def console(to_stderr: bool) -> Console:
    """Print lines as they are: no markup, no wrapping at the terminal's width; only in the first process."""
    from rich.console import Console

    return Console(stderr=to_stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=not _first())


def display(to_stderr: bool) -> Progress:
    """The live display of a command: progress bars on a terminal, otherwise only lines."""
    from rich.progress import Progress

    shown_on = console(to_stderr)
    return Progress(console=shown_on, transient=True, disable=shown_on.quiet or not shown_on.is_terminal)


def progress(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Iterate over `items` with a progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    with display(to_stderr=True) as bar:
        yield from bar.track(items, total=total, description=description)


def print_json(content: object) -> None:
    """Print a dictionary or a dataclass as one JSON object."""
    click.echo(json.dumps(typed.to_json(content), allow_nan=False))  # in ASCII, which every stream takes


def show(as_json: bool, content: object, *lines: str) -> None:
    """Print a result: `content` as one JSON object, or the lines."""
    if as_json:
        print_json(content)
    else:
        for line in lines:
            click.echo(line)


def problem(error: OSError) -> str:
    """The system's message, and the file it is about."""
    if isinstance(error, FileExistsError) and error.filename:  # as `mkdir` has it for a file
        return f"{error.filename} exists and is not a folder"
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def fail(message: str, code: int, report: bool | None = None) -> int:
    """Print one line about an error to standard error, and return the exit code.

    Of several processes that torchrun started only the first prints, unless `report` says which.
    """
    if _first() if report is None else report:
        click.echo(f"tinycifar: {words.printable(' '.join(words.as_options(message).splitlines()))}", err=True)
    return code
