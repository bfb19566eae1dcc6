"""Words and tables for people: printable names, plurals, aligned columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

JOINERS = "\u200c\u200d"  # the zero width (non-)joiner, which Persian, Indic scripts and emoji are written with


def is_printable(name: str) -> bool:
    """Whether a terminal and a page can show a name: `str.isprintable`, and joiners between other characters."""
    return name.strip(JOINERS) == name and all(letter.isprintable() or letter in JOINERS for letter in name)


def printable(name: str) -> str:
    """A name as it is, but with escapes for what a terminal or a picture cannot show: control codes, stray bytes."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    if is_printable(shown):
        return shown
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in shown)


def as_options(message: str) -> str:
    """A message with the Python API's arguments as options of the command line.

    Messages write an argument as `name=`, and a recipe field as `name=value`.
    """
    message = re.sub(r"`([a-z0-9_]+)=`", lambda match: f"--{match[1].replace('_', '-')}", message)
    return re.sub(r"`([a-z0-9_]+=[^`\s]+)`", r"--set \1", message)


def differences(then: Mapping[str, object], now: Mapping[str, object], verb: str) -> str:
    """What differs, by name, as "seed was 1, not 2"; "" if nothing does."""
    return ", ".join(f"{name} {verb} {then[name]}, not {value}" for name, value in now.items() if then[name] != value)


def counted(number: int, noun: str) -> str:
    """So many of something, as "1 thread" and "2 threads"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first of them the heading, as lines of aligned columns: the first flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{'>' if column else '<'}{width}}" for column, (cell, width) in cells).rstrip()
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
