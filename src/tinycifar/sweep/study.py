"""What a sweep searches: the folder of a study, and what its `study.json` says."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinycifar import atomic, typed
from tinycifar.data import Dataset
from tinycifar.recipes import Recipe
from tinycifar.sweep.ranges import Range
from tinycifar.words import differences


@dataclass(frozen=True)
class Study:
    """What is searched, on which data, and where it is stored.

    Of the training images the last `validation_images` are held out; 0 where the data brings its own. `scored_on` is
    how many images a trial is judged by. `data` is the digest of own data, or the name of known data.
    """

    folder: Path
    recipe: Recipe
    ranges: tuple[Range, ...]
    data: str
    validation_images: int
    scored_on: int
    seed: int

    def trained(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these values."""
        return replace(self.recipe, validation_images=self.validation_images, **values)

    def as_it_is(self) -> dict[str, Any]:
        """What the unchanged recipe has for the varied fields."""
        return {varied.field: getattr(self.recipe, varied.field) for varied in self.ranges}


@dataclass(frozen=True)
class Trial:
    """A trial that was started.

    The state is "complete", "pruned" (ended early, as three quarters of the earlier ones were better then), "diverged",
    "failed" or "running"; the accuracy is that after the last epoch, None before the first.
    """

    number: int
    parameters: Mapping[str, Any]
    state: str
    validation_accuracy: float | None
    epochs: int
    train_seconds: float | None
    run: str
    problem: str | None


def create(
    recipe: Recipe,
    varied: tuple[Range, ...],
    dataset: Dataset,
    *,
    out: Path | None = None,
    validation_images: int | None = None,
    seed: int = 0,
) -> Study:
    """Make a study's folder, `out` or a new dated one under `sweeps/`; if it holds this very study, that is resumed.

    `validation_images` is by default the recipe's own number, else 5,000 of CIFAR-10 and a tenth of other data; data
    that brings validation images is judged by those. Raises ValueError for a recipe with a teacher, where no validation
    image would be, and for a folder in use or with another study, naming what differs.
    """
    if recipe.teacher:
        raise ValueError(
            f"{recipe.name} learns from a teacher, and a sweep has none; learn from the labels with `teacher=''`"
        )
    if dataset.validation_images is None:
        if validation_images is None:
            tenth = max(1, len(dataset.train_labels) // 10)
            validation_images = recipe.validation_images or (5_000 if dataset.known == "cifar10" else tenth)
        if validation_images < 1:
            raise ValueError("a sweep chooses by validation images and opens no test image: hold out at least 1")
    split = dataset.split(validation_images or 0)
    assert split.validation_images is not None
    if out is None:
        out = Path("sweeps") / f"{recipe.name}-{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    study = Study(
        folder=out,
        recipe=recipe,
        ranges=varied,
        data=dataset.known or dataset.digest,
        validation_images=validation_images or 0,
        scored_on=len(split.validation_images),
        seed=seed,
    )
    study.trained({})  # the recipe takes that many validation images
    path = out / "study.json"
    if out.exists() and not (
        out.is_dir() and (path.exists() or all(inside.name[0] == "." for inside in out.iterdir()))
    ):
        raise ValueError(f"{out} is in use and holds no sweep; name a new or an empty folder with `out=`")
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        if path.exists():
            _check_same(study, read(out))
        else:
            content = typed.to_json(study)
            del content["folder"]
            atomic.write_json(path, content)
    return study


def read(folder: Path) -> Study:
    """The study that a folder holds; ValueError, naming the file, if it is missing or not of this version's."""
    path = folder / "study.json"
    content = atomic.read_json(path)
    try:
        varied = tuple(typed.from_json(Range, item, "ranges") for item in content.pop("ranges"))
        return Study(folder, Recipe(**content.pop("recipe")), varied, **content)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise ValueError(f"{path} is not a study of this version: {error}") from None


def _check_same(study: Study, stored: Study) -> None:
    """Raise ValueError, naming the fields, unless a stored study searches the same."""
    if words := differences(_identity(stored), _identity(study), "is"):
        raise ValueError(f"{study.folder} holds another sweep: {words}")


def _identity(study: Study) -> dict[str, Any]:
    """What must not change when a study is resumed, by name; expected values of recipes may."""
    left_out = ("expected_accuracy", "expected_minutes", "validation_images")
    fields = {name: value for name, value in asdict(study.recipe).items() if name not in left_out}
    return fields | {
        "data": study.data,
        "seed": study.seed,
        "validation images": study.scored_on,
        "`vary=`": " ".join(map(str, study.ranges)),
    }
