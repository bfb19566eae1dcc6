"""What a sweep varies: ranges and choices of recipe fields, as texts like `FIELD=LOW:HIGH`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from tinycifar import recipes
from tinycifar.recipes import SETTABLE, Recipe

ALIASES = {"learning_rate": "max_learning_rate"}
FORMS = "FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C"
FIXED = ("teacher", "validation_images", "watch_test", "target_accuracy")  # what decides how a trial is judged


@dataclass(frozen=True)
class Range:
    """Values of one recipe field.

    `kind` is "float" or "int", and `values` the lowest and the highest of them, drawn evenly or, with `log`, evenly by
    their logarithm; or it is "choice", and `values` are the choices.
    """

    field: str
    kind: str
    values: tuple[Any, ...]
    log: bool = False

    def contains(self, value: Any) -> bool:
        """Whether a value of the field is one of these."""
        if self.kind == "choice":
            return value in self.values
        return bool(self.values[0] <= value <= self.values[1])

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.field}={','.join(map(_text, self.values))}"
        return f"{self.field}={self.values[0]}:{self.values[1]}{':log' * self.log}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(texts: Iterable[str], recipe: Recipe) -> tuple[Range, ...]:
    """The ranges of fields of `recipe` that these texts describe.

    Raises ValueError, saying what is allowed, for another form, an unknown field or one that is named twice, a range
    that is empty, and ends or choices that the recipe does not take, alone or two of them together.
    """
    parsed = tuple(_range(text, recipe) for text in texts)
    if not parsed:
        raise ValueError(f"a sweep varies fields of the recipe: name them with `vary=` {FORMS}")
    for first, second in combinations(parsed, 2):
        if first.field == second.field:
            raise ValueError(f"`vary=` names {first.field} twice; name each field once")
        for values in product(first.values, second.values):
            try:
                replace(recipe, **dict(zip((first.field, second.field), values, strict=True)))
            except ValueError as error:
                words = " with ".join(
                    f"{varied.field}={_text(value)}" for varied, value in zip((first, second), values, strict=True)
                )
                raise ValueError(f"`vary=` allows {words}, and then {error}") from None
    return parsed


def _range(text: str, recipe: Recipe) -> Range:
    name, _, values = text.partition("=")
    field = ALIASES.get(name, name)
    if not values:
        raise ValueError(f"`vary=` takes {FORMS}, not {text!r}")
    allowed = [known for known in SETTABLE if known not in FIXED]
    if field not in allowed:
        what = "cannot be varied" if field in FIXED else "is no field of a recipe"
        raise ValueError(f"{field} {what}; allowed are: {', '.join(allowed)}")

    def value(part: str) -> Any:
        try:
            return getattr(recipes.with_settings(recipe, [f"{field}={part}"]), field)
        except ValueError as error:
            if field in str(error):
                raise
            raise ValueError(f"`vary=` allows {field}={part}, and then {error}") from None

    parts = values.split(":")
    if len(parts) == 1:
        choices = tuple(map(value, values.split(",")))
        if len(set(choices)) < max(2, len(choices)):
            raise ValueError(f"`vary=` {text}: give at least two choices, each once")
        return Range(field, "choice", choices)
    if field == "image_size":
        raise ValueError(f"`vary=` {text}: models take some sizes only, give choices: image_size=24,32")
    if field == "channels":
        raise ValueError(f"`vary=` {text}: give choices: channels=1,3")
    if SETTABLE[field] not in ("int", "float"):
        raise ValueError(f"`vary=` {text}: {field} is no number, give choices: {field}=A,B")
    if len(parts) > 3 or parts[2:] not in ([], ["log"]):
        raise ValueError(f"`vary=` takes {FORMS}, not {text!r}")
    low, high = map(value, parts[:2])
    if not low < high:
        raise ValueError(f"`vary=` {text}: the first end must be below the second")
    if parts[2:] and low <= 0:
        raise ValueError(f"`vary=` {text}: a range by logarithm lies above 0")
    return Range(field, SETTABLE[field], (low, high), log=bool(parts[2:]))
