"""`Recipe`, one frozen flat dataclass, the named recipes, and recipes as TOML files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tinycifar import models
from tinycifar.augment import AUGMENTATIONS
from tinycifar.models import LEAST_WIDTH, MODELS, MOST_WIDTH, Classifier

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGE = 10**15  # integers may be larger than a float can be

# Of a field's annotation: the types that a value may have, and how they are called.
KINDS = {
    "int": ({"int"}, "a whole number"),
    "float": ({"int", "float"}, "a number"),
    "float | None": ({"int", "float", "NoneType"}, "a number"),
    "bool": ({"bool"}, "true or false"),
    "str": ({"str"}, "a name"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes, apart from data, seed and machine.

    Raises ValueError, saying what is allowed, if a value is out of range or a name is unknown.
    """

    name: str
    """What its runs and records are called."""
    model: str
    """One of `tinycifar.models.MODELS`, in any case of letters."""
    epochs: int
    """Passes over the training images; the learning rates are scheduled over all of them."""
    augmentation: str
    """How training images are changed at random, one of `tinycifar.augment.AUGMENTATIONS`."""

    width: float = 1.0
    """A factor on the model's channels; parameters grow with about its square."""
    image_size: int = 32
    """Pixels a side that every image is resized to."""

    batch_size: int = 128
    """Images a step; what is left over at the end of an epoch is a smaller batch, unless easy images are left out."""
    label_smoothing: float = 0.0
    """The part of each target that is spread evenly over all classes."""
    class_weights: str = "none"
    """By what the losses of images are multiplied: "none" by nothing, "balanced" by weights inverse to the images of
    their class, whose mean over the training images is 1."""
    skip_easiest: float = 0.0
    """Part of the images that an epoch after the first leaves out: those with the least loss when last trained on. The
    rest is cut to whole batches."""
    precision: str = "float32"
    """Of convolutions and matrix products: "float32", "bfloat16" (autocast), or "auto", which is bfloat16 on machines
    that multiply it natively and float32 on others."""

    teacher: str = ""
    """A recipe. With one the targets are not the labels but the softened mean logits of models trained by it
    (distillation, Hinton et al. 2015, arXiv:1503.02531); then `label_smoothing` does nothing."""
    teacher_views: int = 16
    """How many augmented forms of each image the teacher answers to; epoch after epoch takes the next of them, so that
    each is answered to once only."""
    teacher_temperature: float = 2.0
    """By what the logits of teacher and student are divided."""

    optimizer: str = "sgd"
    """Either "sgd" for all parameters, or "muon" for the convolutions' filters and SGD for the rest."""
    muon_learning_rate: float = 0.1
    """Muon's learning rate at the height of the schedule."""
    muon_momentum: float = 0.7
    """Muon's momentum, the same at every step."""
    nesterov: bool = False
    """Whether SGD looks ahead along its momentum."""
    weight_decay: float = 5e-4
    """Added to the gradient, as a part of each value; not of what Muon trains, whose norms are fixed."""
    max_learning_rate: float = 0.02
    """SGD's learning rate at the height of the schedule."""
    anneal: str = "cosine"
    """The shape of rise and fall: "cosine" or "linear"."""
    warmup_fraction: float = 0.3
    """The part of all steps in which the learning rate rises."""
    hold_fraction: float = 0.0
    """The part of all steps, after the rise, in which the learning rate stays at its largest."""
    div_factor: float = 25.0
    """The first learning rate is the largest divided by this."""
    final_div_factor: float = 1000.0
    """The last learning rate is the first divided by this."""
    base_momentum: float = 0.85
    """SGD's momentum at the height of the schedule."""
    max_momentum: float = 0.95
    """SGD's momentum at its ends."""

    validation_images: int = 0
    """Training images held out from the end of the training set; with any, the test set is not looked at."""
    watch_test: bool = False
    """Evaluate the test set after every epoch, as the reference did; else it is opened once, at the end."""

    target_accuracy: float = 0.85
    """The accuracy that the recipe is meant to reach on the images opened for evaluation, a fraction."""
    expected_accuracy: float | None = None
    """Mean accuracy of the recipe's records in `results/`, a fraction, on the test images, or on those held out where
    there are `validation_images`; None where none was measured."""
    expected_minutes: float | None = None
    """Mean training time of those records in minutes, on the machine that they name."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (kinds, told) = getattr(self, item.name), KINDS[str(item.type)]
            if type(value).__name__ not in kinds:
                raise ValueError(f"{item.name} takes {told}, not {value!r}")
        _choice("model", self.model.lower(), MODELS)
        _choice("augmentation", self.augmentation, AUGMENTATIONS)
        _choice("precision", self.precision, ("float32", "bfloat16", "auto"))
        _choice("optimizer", self.optimizer, ("sgd", "muon"))
        _choice("class_weights", self.class_weights, ("none", "balanced"))
        _choice("anneal", self.anneal, ("cosine", "linear"))
        models.check_image_size(self.model, self.image_size)
        for field, low, high in (
            ("epochs", 1, 100_000),
            ("width", LEAST_WIDTH, MOST_WIDTH),
            ("batch_size", 2, 50_000),
            ("label_smoothing", 0, 0.9),
            ("skip_easiest", 0, 0.9),
            ("teacher_views", 1, 1000),
            ("teacher_temperature", 0.1, 100),
            ("muon_learning_rate", 1e-9, 100),
            ("muon_momentum", 0, 0.9999),
            ("weight_decay", 0, 1),
            ("max_learning_rate", 1e-9, 100),
            ("warmup_fraction", 0.01, 0.99),
            ("hold_fraction", 0, 0.99 - self.warmup_fraction),
            ("div_factor", 1, 1e9),
            ("final_div_factor", 1, 1e9),
            ("base_momentum", 0, 0.9999),
            ("max_momentum", 0, 0.9999),
            ("validation_images", 0, 49_000),
            ("target_accuracy", 0, 1),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                told = "one with as many digits" if isinstance(value, int) and abs(value) > LARGE else f"{value:g}"
                raise ValueError(f"{field} must lie between {low:g} and {high:g}, not {told}")
        if self.nesterov and not (self.base_momentum and self.max_momentum):
            raise ValueError("nesterov needs base_momentum and max_momentum above 0")

    def build(self, num_classes: int = 10) -> Classifier:
        """Construct its model, with weights drawn from torch's own generator."""
        return models.build(self.model, num_classes, image_size=self.image_size, width=self.width)


def _choice(field: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {field} {value!r}; allowed are: {', '.join(choices)}")


# OneCycleLR's settings, the batch size and the weight decay are the defaults above: those of the reference's text and,
# where the text is silent, those that give all 70 learning rates that its two logs print.
_TEXT = Recipe("reference-30", model="c1c2c3c4o", epochs=30, augmentation="reference", watch_test=True)
_AS_RUN = replace(_TEXT, augmentation="reference-as-run")

_MINUTE = Recipe(
    "minute",
    model="whitenet",
    epochs=4,
    augmentation="translate",
    batch_size=256,
    label_smoothing=0.05,
    skip_easiest=0.55,
    precision="auto",
    optimizer="muon",
    muon_learning_rate=0.1,
    muon_momentum=0.7,
    nesterov=True,
    weight_decay=0.0,
    max_learning_rate=0.5,
    anneal="linear",
    warmup_fraction=0.05,
    hold_fraction=0.2,
    div_factor=20.0,
    final_div_factor=50.0,
    base_momentum=0.85,
    max_momentum=0.85,
    expected_accuracy=0.8583,
    expected_minutes=0.4,
)

_LONG = replace(
    _MINUTE,
    augmentation="translate-hole",
    batch_size=250,
    label_smoothing=0.0,
    skip_easiest=0.0,
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
            name="nano",
            model="nanonet",
            epochs=240,
            target_accuracy=0.9,
            expected_accuracy=0.9125,
            expected_minutes=50.6,
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
        replace(_TEACHER, expected_accuracy=0.9289, expected_minutes=15.7),
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


def same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes train alike: whether they are equal but for what their records gave."""
    told = {"expected_accuracy": None, "expected_minutes": None}
    return replace(one, **told) == replace(other, **told)  # type: ignore[arg-type]


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
        model = models.build(recipe.model, num_classes, image_size=recipe.image_size, width=hundredths / 100)
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
    lines = ["# Change what you like, the name too, and train it: tinycifar train FILE.toml", f'name = "{recipe.name}"']
    lines += [f"{name} = {json.dumps(getattr(recipe, name))}" for name in SETTABLE]
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
        found = re.search(
            rf"^[ \t]*[\"\']?{re.escape(field)}[\"\']?[ \t]*[=.\]]|^[ \t]*\[+[ \t]*{re.escape(field)}\b", text, re.M
        )
        return f"{path}, line {text.count(chr(10), 0, found.start()) + 1}" if found else str(path)

    known = {"name": "str", **SETTABLE}
    for field in content:
        if field not in known:
            raise ValueError(f"{at(field)}: unknown recipe field {field!r}; allowed are: {', '.join(known)}")
    name = content.setdefault("name", path.stem)
    if not (isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]{0,99}", name)):
        raise ValueError(f"{at('name')}: name takes letters, digits, - and _, at most 100 of them, not {name!r}")
    required = [field.name for field in fields(Recipe)[:4] if field.name not in content]
    if required:
        raise ValueError(f"{path}: a recipe needs {', '.join(required)} too")
    original = RECIPES.get(name)
    try:
        recipe = Recipe(**content)
    except ValueError as error:
        # Which field it is about is its first word that is one; where two must agree, the one named first.
        named = [word for word in re.findall(r"\w+", str(error)) if word in content]
        raise ValueError(f"{at(named[0]) if named else path}: {error}") from None
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
        _choice("recipe field", name, SETTABLE)
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
