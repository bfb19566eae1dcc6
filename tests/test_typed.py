"""Dataclasses as JSON and back: every field is checked, and a message names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tinycifar import typed


@dataclass(frozen=True)
class Row:
    name: str = field(metadata=typed.key("class"))
    share: float = 0.0


@dataclass(frozen=True)
class Table:
    title: str
    count: int
    ok: bool
    interval: tuple[float, float]
    rows: tuple[Row, ...]
    cells: tuple[tuple[int, ...], ...]
    best: Row | None = None
    skipped: Mapping[str, int] = field(default_factory=dict, metadata=typed.OMIT_EMPTY)
    other: Mapping[str, Any] = field(default_factory=dict, metadata=typed.REST)


CONTENT: dict[str, Any] = {
    "title": "a",
    "count": 2,
    "ok": True,
    "interval": [0.1, 1],
    "rows": [{"class": "cat", "share": 0.5}, {"class": "dog"}],
    "cells": [[1, 2], [3]],
}


def test_an_object_is_read_and_written_back():
    table = typed.from_json(Table, CONTENT | {"best": None, "note": ["x"]}, "file")
    rows = (Row("cat", 0.5), Row("dog"))
    assert table == Table("a", 2, True, (0.1, 1.0), rows, ((1, 2), (3,)), other={"note": ["x"]})
    written = [{"class": "cat", "share": 0.5}, {"class": "dog", "share": 0.0}]
    assert typed.to_json(table) == CONTENT | {"rows": written, "best": None, "note": ["x"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 5}, "title must be a string, not 5"),
        ({"title": None}, "title must be a string, not None"),
        ({"count": True}, "count must be an integer, not True"),
        ({"count": 2.0}, r"count must be an integer, not 2\.0"),
        ({"ok": 1}, "ok must be true or false, not 1"),
        ({"interval": [0.1]}, r"interval must be a list of 2 values, not \[0\.1\]"),
        ({"interval": [10**400, 1]}, r"interval\[0\] must be a number, not 10000.*"),
        ({"interval": ["a", 1]}, r"interval\[0\] must be a number, not 'a'"),
        ({"rows": {}}, r"rows must be a list, not {}"),
        ({"rows": [{"share": 1}]}, r"rows\[0\]\.class is missing"),
        ({"rows": [{"class": "a"}, 7]}, r"rows\[1\] must be an object, not 7"),
        ({"cells": [[1], [2, "x"]]}, r"cells\[1\]\[1\] must be an integer, not 'x'"),
        ({"best": {"class": []}}, r"best\.class must be a string, not \[\]"),
        ({"skipped": {"a": "b"}}, r"skipped\.a must be an integer, not 'b'"),
        ({"title": ["x" * 500]}, "title must be a string, not .{60}[.]{3}$"),
    ],
)
def test_a_message_names_file_and_field(change, message):
    with pytest.raises(ValueError, match=rf"^table\.json is not as tinycifar writes it: {message}"):
        typed.from_json(Table, CONTENT | change, "table.json")


def test_a_field_may_not_be_missing_unless_it_has_a_default():
    with pytest.raises(ValueError, match=r"table\.json is not as tinycifar writes it: count is missing"):
        typed.from_json(Table, {name: value for name, value in CONTENT.items() if name != "count"}, "table.json")
    with pytest.raises(ValueError, match=r"the file must be an object, not \[\]"):
        typed.from_json(Table, [], "table.json")
