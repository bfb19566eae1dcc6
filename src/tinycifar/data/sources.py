"""Where own data lies and how it is to be read, as one text: `photos?group=(.*)_\\d+`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote

USES = {  # of an option, unless it is for all pictures
    "group": "pictures in files",
    "columns": "tables of labels",
    "labels": "CIFAR-100 and parquet files",
    "transposed": "IDX files",
}
CHOICES = {"labels": ("fine", "coarse"), "transposed": ("yes", "no"), "unreadable": ("skip",)}


@dataclass(frozen=True)
class Source:
    """A path, and what its layout leaves open; "" leaves each to what is found there.

    `group` is a regular expression with a group in parentheses, whose text in a file's name is the picture's group.
    `columns` says which columns of a table are meant, as "file=Path,label=ClassId". `labels` chooses between the "fine"
    and "coarse" ones of CIFAR-100. `transposed` says whether the images of IDX files are stored transposed, "yes" or
    "no". `unreadable` is "skip" to leave out pictures that cannot be read.
    Raises ValueError for a choice that there is not.
    """

    path: str
    group: str = ""
    columns: str = ""
    labels: str = ""
    transposed: str = ""
    unreadable: str = ""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in ("", *allowed):
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")

    def __str__(self) -> str:
        options = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        query = "&".join(f"{name}={quote(value, safe='()*.=,/')}" for name, value in options.items() if value)
        return f"{self.path}?{query}" if query else self.path

    def absolute(self) -> Source:
        """The same source from any working directory; ValueError for an empty path, which would be that directory."""
        if not self.path:
            raise ValueError("the name of the data is empty; name a folder or file, as ./photos")
        path = Path(self.path)
        return replace(self, path=str(path.resolve() if ".." in path.parts else path.absolute()))

    def check_used(self, *used: str) -> None:
        """Raise ValueError for an option that has no effect on data in whose layout only the options `used` have."""
        for name, use in USES.items():
            if getattr(self, name) and name not in used:
                raise ValueError(f"`{name}=` is for {use}, and has no effect on {self.path}; leave it out")


def parse(text: str | Path) -> Source:
    """Read a source: a path that exists is one as it is, else what follows a "?" are options.

    That is the first "?" behind a path that exists, or the first one of all: values may have others. Raises ValueError
    for an unknown option and for one that is given twice, TypeError for what is no path.
    """
    whole = os.fspath(text) if isinstance(text, os.PathLike) else text
    if not isinstance(whole, str):
        raise TypeError(f"data is a name, a path or a Dataset, not {type(text).__name__}")
    parts = [(whole[: mark.start()], whole[mark.end() :]) for mark in re.finditer(r"\?(?=\w+=)", whole)]
    if not parts or Path(whole).exists():
        return Source(whole)
    path, query = next((part for part in parts if part[0] and Path(part[0]).exists()), parts[0])
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    options = dict(pairs)
    allowed = [field.name for field in fields(Source)[1:]]
    if unknown := sorted(options.keys() - set(allowed)):
        raise ValueError(f"{text}: unknown option {unknown[0]!r}; allowed are {', '.join(allowed)}")
    if len(options) < len(pairs):
        raise ValueError(f"{text}: an option is given twice; give each once")
    return Source(path, **options)
