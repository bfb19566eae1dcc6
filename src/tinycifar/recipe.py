"""`Recipe`, one frozen flat dataclass: its fields with their help texts, ranges and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tinycifar import catalog
from tinycifar.catalog import FITS, LEAST_WIDTH, MOST_WIDTH, Form
from tinycifar.typed import check_choice

if TYPE_CHECKING:
    from tinycifar.models import Classifier

LARGE = 10**15  # integers may be larger than a float can be
NAME = r"[\w-][\w.-]{0,99}"

# By a field's annotation: the types that a value may have, and how they are called.
KINDS = {
    "int": ({"int"}, "a whole number"),
    "float": ({"int", "float"}, "a number"),
    "float | None": ({"int", "float", "NoneType"}, "a number"),
    "bool": ({"bool"}, "true or false"),
    "str": ({"str"}, "a name"),
}


@dataclass(frozen=True)
class Info:
    """What a recipe field means and which values it takes: a range, choices, or `note`, in words."""

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    note: str = ""

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        span = "" if self.low is None else f"{self.low:g} to {self.high:g}"
        return self.note or ", ".join(self.choices) or span or "true or false"


def _info(*arguments: Any, **options: Any) -> Mapping[str, Info]:
    return {"info": Info(*arguments, **options)}


def _setting(default: Any, *arguments: Any, **options: Any) -> Any:
    """A field with a default, whose `Info` has these arguments."""
    return field(default=default, metadata=_info(*arguments, **options))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes, apart from data, seed and machine.

    Raises ValueError, naming the allowed values, if a value is out of range or a name is unknown.
    """

    name: str = field(
        metadata=_info("Name of the recipe's runs and records.", note="1 to 100 letters, digits, `-`, `_` and `.`")
    )
    model: str = field(
        metadata=_info(
            "Architecture, a key of `tinycifar.models.MODELS`; case does not matter.",
            choices=tuple(catalog.ARCHITECTURES),
        )
    )
    epochs: int = field(
        metadata=_info("Passes over the training images; the learning-rate schedule spans all of them.", 1, 100_000)
    )
    augmentation: str = field(
        metadata=_info(
            "Random changes to training images, a key of `tinycifar.augment.AUGMENTATIONS`.",
            choices=catalog.AUGMENTATIONS,
        )
    )

    width: float = _setting(
        1.0, "Factor on the model's channels; parameters grow with about its square.", LEAST_WIDTH, MOST_WIDTH
    )
    image_size: int = _setting(
        32,
        "Side in pixels to which every image is resized.",
        note="17 to 64 for `c1c2c3c4o`; 16 to 64 in steps of 8 for the other models",
    )
    fit: str = _setting(
        "crop",
        "What becomes of a picture that is not square: crop keeps its central square, pad adds grey, squash "
        "resizes both sides to `image_size`.",
        choices=FITS,
    )
    channels: int = _setting(
        3,
        "Channels of an image: 3 for red, green and blue, or 1 for grey, with which the first layer has a third of "
        "the weights. Pictures with colours become grey.",
        note="1 or 3",
    )

    batch_size: int = _setting(
        128,
        "Images per step. The rest of an epoch is a smaller batch; less than a quarter is spread over the others.",
        2,
        50_000,
    )
    label_smoothing: float = _setting(0.0, "Fraction of each target that is spread evenly over all classes.", 0, 0.9)
    class_weights: str = _setting(
        "none",
        "Weights of the losses by class: none, or balanced, which is inverse to the images of a class, with a mean "
        "of 1 over the training images.",
        choices=("none", "balanced"),
    )
    skip_easiest: float = _setting(
        0.0,
        "Fraction of the images that every epoch after the first skips: those with the lowest loss when "
        "last trained on, or random ones if the model contradicts labels. The rest is cut to whole batches.",
        0,
        0.9,
    )
    small_fraction: float = _setting(
        0.0,
        "Fraction of the first epoch's steps, its first ones, that see reduced images, which takes less time: of the "
        "largest side that the model takes up to three quarters of theirs, 24 for 32 pixels (progressive resizing, "
        "Tan & Le 2021, arXiv:2104.00298).",
        0,
        1,
    )
    precision: str = _setting(
        "float32",
        "Precision of convolutions and matrix products: float32, bfloat16 (autocast), or auto, which is "
        "bfloat16 on machines that are faster with it and float32 on others.",
        choices=("float32", "bfloat16", "auto"),
    )

    teacher: str = _setting(
        "",
        "Recipe of the teachers, or several of them joined by +. If set, the targets are not the labels but the "
        "softened mean logits of models trained by these recipes (distillation, Hinton et al. 2015, "
        "arXiv:1503.02531), and `label_smoothing` has no effect.",
        note="recipes' names joined by +, or empty",
    )
    teacher_views: int = _setting(
        16,
        "Augmented forms of each image that the teachers answer. Each epoch takes the next one, so "
        "each is answered only once.",
        1,
        1000,
    )
    teacher_temperature: float = _setting(2.0, "Divisor of the logits of teacher and student.", 0.1, 100)

    optimizer: str = _setting(
        "sgd", "sgd for all parameters, or muon for convolution filters and SGD for the rest.", choices=("sgd", "muon")
    )
    muon_learning_rate: float = _setting(0.1, "Muon's learning rate at the peak of the schedule.", 1e-9, 100)
    muon_momentum: float = _setting(0.7, "Muon's momentum, constant.", 0, 0.9999)
    nesterov: bool = _setting(False, "Use Nesterov momentum in SGD.")
    weight_decay: float = _setting(
        5e-4,
        "Fraction of each value that is added to its gradient. Muon's filters have fixed norms and no weight decay.",
        0,
        1,
    )
    max_learning_rate: float = _setting(0.02, "SGD's learning rate at the peak of the schedule.", 1e-9, 100)
    anneal: str = _setting("cosine", "Shape of the schedule's rise and fall.", choices=("cosine", "linear"))
    warmup_fraction: float = _setting(0.3, "Fraction of all steps in which the learning rate rises.", 0.01, 0.99)
    hold_fraction: float = _setting(
        0.0,
        "Fraction of all steps, after the rise, in which the learning rate stays at its peak.",
        0,
        0.99,
        note="0 to 0.99 less `warmup_fraction`",
    )
    div_factor: float = _setting(25.0, "Peak learning rate divided by the first one.", 1, 1e9)
    final_div_factor: float = _setting(1000.0, "First learning rate divided by the last one.", 1, 1e9)
    base_momentum: float = _setting(0.85, "SGD's momentum at the peak of the schedule.", 0, 0.9999)
    max_momentum: float = _setting(0.95, "SGD's momentum at the ends of the schedule.", 0, 0.9999)

    validation_images: int = _setting(
        0,
        "Training images held out from the end of the training set. If there are any, the test set stays closed.",
        0,
        49_000,
    )
    keep_best: bool = _setting(
        False, "Keep the weights of the epoch with the best validation accuracy instead of the last ones."
    )
    patience: int = _setting(
        0, "Stop if the validation accuracy has not improved for this many epochs; 0 never stops early.", 0, 100_000
    )
    watch_test: bool = _setting(
        False, "Evaluate the test set after every epoch, as the reference did; otherwise it is opened once, at the end."
    )

    target_accuracy: float = _setting(
        0.85, "Accuracy that the recipe is meant to reach on the images opened for evaluation, a fraction.", 0, 1
    )
    expected_accuracy: float | None = _setting(
        None,
        "Mean accuracy of the recipe's records in `results/`, a fraction, on the test images, or on the "
        "held-out images if there are `validation_images`; None if not measured.",
        note="measured, not set",
    )
    expected_minutes: float | None = _setting(
        None, "Mean training time of those records in minutes, on the machine that they name.", note="measured, not set"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (kinds, described) = getattr(self, item.name), KINDS[str(item.type)]
            if type(value).__name__ not in kinds:
                raise ValueError(f"{item.name} takes {described}, not {value!r}")
        check_name(self.name)
        if not all(re.fullmatch(NAME, name) for name in self.teachers):
            raise ValueError(f"teacher takes recipes' names joined by +, or nothing, not {self.teacher!r}")
        catalog.check_channels(self.channels)
        _check_names(self)
        for name, info in INFO.items():
            value = getattr(self, name)
            if info.choices and name not in ("model", "augmentation"):
                check_choice(name, value, info.choices)
            if info.low is None or info.high is None:
                continue
            high = 0.99 - self.warmup_fraction if name == "hold_fraction" else info.high
            if not info.low <= value <= high:
                shown = "one with as many digits" if isinstance(value, int) and abs(value) > LARGE else f"{value:g}"
                raise ValueError(f"{name} must lie between {info.low:g} and {high:g}, not {shown}")
        if self.nesterov and not (self.base_momentum and self.max_momentum):
            raise ValueError("nesterov needs base_momentum and max_momentum above 0")

    @property
    def teachers(self) -> tuple[str, ...]:
        """The recipes of its teachers."""
        return tuple(self.teacher.split("+")) if self.teacher else ()

    @property
    def form(self) -> Form:
        """Side, `fit` and channels of its model's images."""
        return Form(self.image_size, self.fit, self.channels)

    def build(self, num_classes: int = 10) -> Classifier:
        """Build the recipe's model, with weights drawn from torch's global generator."""
        from tinycifar import models

        return models.build(
            self.model, num_classes, image_size=self.image_size, width=self.width, channels=self.channels
        )


INFO: dict[str, Info] = {item.name: item.metadata["info"] for item in fields(Recipe)}


def _check_names(recipe: Recipe) -> None:
    """Check model, image size and augmentation; torch is loaded only for names that the package does not define."""
    known = catalog.ARCHITECTURES.get(recipe.model.lower())
    if known is not None:
        catalog.check_image_size(recipe.model, known.image_sizes, recipe.image_size)
    else:
        from tinycifar import models

        check_choice("model", recipe.model.lower(), models.MODELS)
        catalog.check_image_size(recipe.model, models.image_sizes(recipe.model), recipe.image_size)
    if recipe.augmentation not in catalog.AUGMENTATIONS:
        from tinycifar.augment import AUGMENTATIONS

        check_choice("augmentation", recipe.augmentation, AUGMENTATIONS)


def check_name(name: object) -> None:
    """Raise ValueError unless `name` can name a folder, and a recipe in a TOML file."""
    if not (isinstance(name, str) and re.fullmatch(NAME, name)):
        raise ValueError(f"name takes letters, digits, -, _ and ., at most 100 of them, not {name!r}")
