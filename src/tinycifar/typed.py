"""Frozen dataclasses as JSON objects, and back with every field checked."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tinycifar import atomic

T = TypeVar("T")
OMIT_EMPTY = {"omit_empty": True}
"""Metadata of a field that is left out of the JSON object while it is None, "" or {}."""
REST = {"rest": True}
"""Metadata of a field, a mapping, that holds the keys of the JSON object that no other field has."""
LONGEST = 60  # characters of a value in a message
WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false", types.NoneType: "null"}


def key(name: str) -> dict[str, str]:
    """Metadata of a field whose name in JSON is another one."""
    return {"key": name}


def whole_number(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int | None:
    """The value of an argument as an int, which NumPy's integers are not; ValueError outside the range. None stays."""
    try:
        number = None if value is None else operator.index(value)
    except TypeError:
        number = least - 1
    if number is not None and not least <= number <= most:
        allowed = f"from {least} to {most}" if number > most else f"of at least {least}"
        raise ValueError(f"{name} must be a whole number {allowed}, not {value!r}")
    return number


def number(name: str, value: Any) -> Any:
    """The value of an argument that is None or a finite number; ValueError, naming the argument, for any other."""
    if value is None or (isinstance(value, numbers.Real) and math.isfinite(value)):
        return value
    raise ValueError(f"{name} must be a number, not {value!r}")


def path(name: str, value: str | Path) -> Path:
    """The value of an argument as a Path; ValueError for an empty text, which would name the current folder."""
    if value == "":
        raise ValueError(f"{name} is empty; name a file or folder, or . for the current folder")
    return Path(value)


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError, listing the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"unknown {field} {value!r}; allowed are: {', '.join(choices)}")


def to_json(value: Any) -> Any:
    """A dataclass as a JSON object with its fields in their order; also lists, mappings, paths and plain values."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value):
        content: dict[str, Any] = {}
        for item in dataclasses.fields(value):
            field_value = getattr(value, item.name)
            if item.metadata.get("rest"):
                content |= to_json(field_value)
            elif not (item.metadata.get("omit_empty") and (field_value is None or field_value in ("", {}))):
                content[_key(item)] = to_json(field_value)
        return content
    if isinstance(value, Mapping):
        return {name: to_json(inner) for name, inner in value.items()}
    return [to_json(inner) for inner in value]


def read(kind: type[T], path: Path) -> T:
    """The JSON file at `path` as a dataclass of that kind; ValueError, naming file and field, if it does not fit."""
    return from_json(kind, atomic.read_json(path), path)


def from_json(kind: type[T], content: object, source: Path | str) -> T:
    """Parsed JSON as a dataclass; ValueError, naming `source` and the field, if it does not fit.

    Keys that the dataclass does not have are ignored. Fields may be plain values, unions with None, tuples, mappings
    from strings, and dataclasses of such fields.
    """
    try:
        return typing.cast(T, _value(kind, content, ""))
    except _MismatchError as error:
        raise ValueError(f"{source} is not as tinycifar writes it: {error}") from None


class _MismatchError(Exception):
    """A value that is not of the kind of its field."""


def _key(item: dataclasses.Field[Any]) -> str:
    return str(item.metadata.get("key", item.name))


def _value(kind: Any, value: Any, name: str) -> Any:
    """`value` as an instance of `kind`; `name` is the path of the field in the whole object."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in WORDS:
        if type(value) is not kind:
            raise _mismatch(name, WORDS[kind], value)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        return _value(kind, value, name)
    if origin is tuple:
        return _tuple(arguments, value, name)
    if not isinstance(value, dict):
        raise _mismatch(name, "an object", value)
    if origin is Mapping:
        return {inner: _value(arguments[1], value[inner], _joined(name, inner)) for inner in value}
    return _dataclass(kind, value, name)


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """A list as a tuple: (X, ...) of any length, or of exactly these kinds."""
    if not isinstance(value, list):
        raise _mismatch(name, "a list", value)
    if kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise _mismatch(name, f"a list of {len(kinds)} values", value)
        return tuple(_value(kind, inner, f"{name}[{i}]") for i, (kind, inner) in enumerate(zip(kinds, value)))  # noqa: B905
    kind = kinds[0]
    if kind in WORDS and all(type(inner) is kind for inner in value):  # much faster, for a confusion matrix
        return tuple(value)
    return tuple(_value(kind, inner, f"{name}[{i}]") for i, inner in enumerate(value))


def _dataclass(kind: Any, content: dict[str, Any], name: str) -> Any:
    kinds, values, rest = typing.get_type_hints(kind), {}, dict(content)
    rest_field = None
    for item in dataclasses.fields(kind):
        if item.metadata.get("rest"):
            rest_field = item.name
        elif _key(item) in content:
            values[item.name] = _value(kinds[item.name], rest.pop(_key(item)), _joined(name, _key(item)))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise _MismatchError(f"{_joined(name, _key(item))} is missing")
    if rest_field is not None:
        values[rest_field] = rest
    return kind(**values)


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def _mismatch(name: str, expected: str, value: Any) -> _MismatchError:
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
    return _MismatchError(f"{name or 'the file'} must be {expected}, not {shown}")
