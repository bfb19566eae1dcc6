"""The named recipes, and recipes as TOML files and as settings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tinycifar import catalog
from tinycifar.catalog import LEAST_WIDTH, MOST_WIDTH
from tinycifar.recipe import Recipe as Recipe
from tinycifar.recipe import check_name
from tinycifar.typed import check_choice

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# OneCycleLR's settings, the batch size and the weight decay are `Recipe`'s defaults: those of the reference's text and,
# where the text is silent, those that give all 70 learning rates that its two logs print.
_TEXT = Recipe("reference-30", model="c1c2c3c4o", epochs=30, augmentation="reference", watch_test=True)
_AS_RUN = replace(_TEXT, augmentation="reference-as-run")

_MINUTE = Recipe(
    "minute",
    model="minutenet",
    epochs=4,
    augmentation="translate",
    batch_size=128,
    label_smoothing=0.05,
    skip_easiest=0.55,
    small_fraction=0.5,
    precision="auto",
    optimizer="muon",
    muon_learning_rate=0.075,
    muon_momentum=0.8,
    nesterov=True,
    weight_decay=0.0,
    max_learning_rate=0.35,
    anneal="linear",
    warmup_fraction=0.05,
    hold_fraction=0.2,
    div_factor=20.0,
    final_div_factor=50.0,
    base_momentum=0.85,
    max_momentum=0.85,
    expected_accuracy=0.8568,
    expected_minutes=1.6,
)

_LONG = replace(
    _MINUTE,
    augmentation="translate-hole",
    batch_size=250,
    muon_learning_rate=0.1,
    muon_momentum=0.7,
    max_learning_rate=0.5,
    label_smoothing=0.0,
    skip_easiest=0.0,
    small_fraction=0.0,
    expected_accuracy=None,
    expected_minutes=None,
)
_TEACHER = replace(_LONG, name="teacher", model="teachernet", epochs=20, validation_images=5_000, target_accuracy=0.93)
_STUDENT = replace(_LONG, teacher="teacher", muon_learning_rate=0.05)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _MINUTE,
        replace(
            _STUDENT,
            name="micro",
            model="micronet",
            epochs=160,
            augmentation="translate",
            teacher_views=12,
            muon_learning_rate=0.1,
            target_accuracy=0.885,
            expected_accuracy=0.8861,
            expected_minutes=119.2,
        ),
        replace(
            _STUDENT,
            name="nano",
            model="nanonet32",
            teacher="teacher+large-teacher",
            teacher_views=15,
            epochs=45,
            batch_size=125,
            target_accuracy=0.915,
            expected_accuracy=0.9216,
            expected_minutes=65.1,
        ),
        replace(
            _STUDENT,
            name="accurate",
            model="accuratenet",
            epochs=240,
            target_accuracy=0.92,
            expected_accuracy=0.9234,
            expected_minutes=66.5,
        ),
        replace(_TEACHER, expected_accuracy=0.9283, expected_minutes=26.1),
        replace(
            _TEACHER,
            name="large-teacher",
            model="largeteachernet",
            epochs=22,
            target_accuracy=0.94,
            expected_accuracy=0.9326,
            expected_minutes=103.2,
        ),
        replace(_TEXT, name="reference-30", expected_accuracy=0.8414, expected_minutes=31.9),
        replace(_TEXT, name="reference-40", epochs=40),
        replace(_AS_RUN, name="reference-30-as-run", expected_accuracy=0.8542, expected_minutes=39.2),
        replace(_AS_RUN, name="reference-40-as-run", epochs=40, expected_accuracy=0.8617, expected_minutes=50.7),
    )
}
DEFAULT_RECIPE = "minute"
SETTABLE = {  # the fields that say what a recipe does, not what it is called and gave; with their types
    field.name: str(field.type) for field in fields(Recipe) if field.name != "name" and field.name[:9] != "expected_"
}


def get(name: str) -> Recipe:
    """The recipe of that name, or that in a file if the name ends in `.toml`; ValueError if there is none."""
    if name.endswith(".toml"):
        return read(Path(name))
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; allowed are: {', '.join(RECIPES)}, or a file that ends in .toml")
    return RECIPES[name]


def list_recipes() -> list[str]:
    """The names of the recipes that `train` takes, the default first."""
    return list(RECIPES)


def architectures() -> dict[str, dict[str, Any]]:
    """What can be trained, the most accurate first: parameters, MACs and recipes of each architecture.

    `written_out` counts the parameters of mirrored filters twice. `test_accuracy` is the best mean of its recipes on
    test images, None if none was measured.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, size in catalog.ARCHITECTURES.items():
        trained_by = [recipe for recipe in RECIPES.values() if recipe.model == name]
        tested = [recipe.expected_accuracy or 0.0 for recipe in trained_by if not recipe.validation_images]
        rows[name] = {
            "parameters": size.parameters,
            "written_out": size.written_out,
            "macs": size.macs,
            "test_accuracy": max(tested, default=0.0) or None,
            "recipes": [recipe.name for recipe in trained_by],
        }
    return dict(sorted(rows.items(), key=lambda row: -(row[1]["test_accuracy"] or 0.0)))


def same(first: Recipe, second: Recipe) -> bool:
    """Whether two recipes train alike: whether they differ at most in what their records measured."""
    measured = {"expected_accuracy": None, "expected_minutes": None}
    return replace(first, **measured) == replace(second, **measured)  # type: ignore[arg-type]


def changed(recipe: Recipe) -> dict[str, object]:
    """The fields in which a recipe differs from the named one that it is called after; none if there is no such one."""
    original = RECIPES.get(recipe.name, recipe)
    values = {name: getattr(recipe, name) for name in SETTABLE}
    return {name: value for name, value in values.items() if value != getattr(original, name)}


def widest(recipe: Recipe, max_parameters: int, num_classes: int = 10) -> Recipe:
    """The recipe at the largest width, in hundredths, whose model has at most `max_parameters` parameters.

    Raises ValueError, saying how many the narrowest has, if none fits.
    """

    def parameters(hundredths: int) -> int:
        model = replace(recipe, width=hundredths / 100).build(num_classes)
        return sum(parameter.numel() for parameter in model.parameters())

    low, high = round(100 * LEAST_WIDTH), round(100 * MOST_WIDTH) + 1  # what fits, and what does not
    if (least := parameters(low)) > max_parameters:
        raise ValueError(
            f"{recipe.model} has at least {least:,} parameters with {num_classes} classes, more than {max_parameters:,}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= max_parameters else (low, middle)
    return replace(recipe, width=low / 100)


# --- as files -----------------------------------------------------------------------------------------------------


def to_toml(recipe: Recipe) -> str:
    """A recipe as the content of a TOML file, which `read` takes."""
    lines = ["# Change what you like, the name too, and train it: tinycifar train FILE.toml"]
    lines += [f"{name} = {json.dumps(getattr(recipe, name), ensure_ascii=False)}" for name in ("name", *SETTABLE)]
    return "\n".join(lines) + "\n"


def read(path: Path) -> Recipe:
    """The recipe in a TOML file; what it leaves out has the default of its field.

    Raises ValueError, naming file, line and field, for a file that is missing or no TOML, a field that is unknown or
    missing, and a value that is not allowed.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Windows' Notepad begins a file with a mark
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; `tinycifar recipes show NAME > {path}` writes one to start from"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no TOML file: it is not in UTF-8") from None
    try:
        content = tomllib.loads(text)
    except ValueError as error:  # a TOMLDecodeError, or of a number with thousands of digits
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is no recipe: its values are nested too deeply") from None

    def at(field: str) -> str:
        """Where a field is set: `FILE, line N`."""
        match = re.search(
            rf"^[ \t]*[\"\']?{re.escape(field)}[\"\']?[ \t]*[=.\]]|^[ \t]*\[+[ \t]*{re.escape(field)}\b", text, re.M
        )
        return f"{path}, line {text.count(chr(10), 0, match.start()) + 1}" if match else str(path)

    known = {"name": "str", **SETTABLE}
    for key in content:
        if key not in known:
            raise ValueError(f"{at(key)}: unknown recipe field {key!r}; allowed are: {', '.join(known)}")
    content.setdefault("name", path.stem)
    try:
        check_name(content["name"])
    except ValueError as error:
        raise ValueError(f"{at('name')}: {error}") from None
    required = [field.name for field in fields(Recipe)[:4] if field.name not in content]
    if required:
        raise ValueError(f"{path}: a recipe needs {', '.join(required)} too")
    try:
        recipe = Recipe(**content)
    except ValueError as error:
        # Which field it is about is its first word that is one; where two must agree, the one named first.
        named = [word for word in re.findall(r"\w+", str(error)) if word in content]
        raise ValueError(f"{at(named[0]) if named else path}: {error}") from None
    original = RECIPES.get(recipe.name)
    return original if original is not None and same(recipe, original) else recipe


# --- one field at a time ------------------------------------------------------------------------------------------


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with each `field=value` of `settings` applied; ValueError as `parse_settings` raises it."""
    return replace(recipe, **parse_settings(settings))  # type: ignore[arg-type]


def parse_settings(settings: Iterable[str]) -> dict[str, object]:
    """The values of settings written as `field=value`, read as the type of the field.

    Raises ValueError for an unknown field (listing the fields) and for a value that is none of the field's type.
    """
    changes: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting is field=value, not {setting!r}")
        check_choice("recipe field", name, SETTABLE)
        changes[name] = _parse(name, text, SETTABLE[name])
    return changes


def _parse(field: str, text: str, kind: str) -> object:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(f"{field} takes true or false, not {text!r}")
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ValueError(f"{field} takes {'a whole number' if kind == 'int' else 'a number'}, not {text!r}") from None
