"""What `import tinycifar` offers: train, load, evaluate and predict in a line each.

`train`, `evaluate` and `predict` do what the commands of these names do, only that `evaluate` writes no file; `load`
gives the model itself. They raise what the commands report: ValueError for what is not allowed,
OSError where the disk fails, FloatingPointError for a training that diverges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tinycifar import distill, inference, recipes, trained, training
from tinycifar import resume as resuming
from tinycifar.data import Dataset, pictures
from tinycifar.models import Classifier
from tinycifar.recipes import Recipe
from tinycifar.report import plots, run_page
from tinycifar.scale import distributed
from tinycifar.training import Result

Source = str | Path | Result
"""A trained model: the name of a shipped one, a run directory, a weights file, or what `train` gave."""


def train(
    recipe: str | Recipe | None = None,
    data: str | Path | Dataset | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init: Source | None = None,
    teacher: Source | None = None,
    seed: int | None = None,
    device: str = "auto",
    max_parameters: int | None = None,
    limit: int | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train a recipe and give its run, whose `directory` holds weights, metrics, evaluation, plots and `report.html`.

    `recipe` is a name (default: minute), a TOML file or a `Recipe`, of which `settings` change fields: `train("minute",
    epochs=8)`. `data` is a folder of pictures or another source of `tinycifar.data.load` (default: CIFAR-10), or a
    `Dataset` in memory. The rest is as in `tinycifar.training.train`, `teacher` also a directory of several seeds. What
    is left out of a run that is resumed, recipe, data, seed, limit, teachers and init, is as it was begun. What happens
    is told on standard output unless `quiet`. Torch's generator is the process's own: of trainings in several threads
    none can be repeated.
    """
    begun = None
    if resume is not None:
        if out is not None:
            raise ValueError("a run is resumed in its own directory: leave out resume, or out")
        begun = resuming.read(Path(resume))
    if recipe is None:
        chosen = recipes.get(recipes.DEFAULT_RECIPE) if begun is None else begun.recipe
    else:
        chosen = recipe if isinstance(recipe, Recipe) else recipes.get(str(recipe))
    for name in settings:
        if name not in recipes.SETTABLE:
            raise ValueError(f"unknown recipe field {name!r}; allowed are: {', '.join(recipes.SETTABLE)}")
    if max_parameters is not None and "width" in settings:
        raise ValueError("max_parameters finds the width: leave out width, or max_parameters")
    settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    teachers, start = [], None
    if begun is not None:
        data = begun.source() if data is None else data
        seed, limit = begun.seed if seed is None else seed, begun.limit if limit is None else limit
        teachers = begun.teachers(device) if teacher is None else []
        start = begun.init(device) if init is None else None
    console = Console(  # in a notebook too it prints lines, for which Rich would want widgets
        quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True, force_jupyter=False
    )
    display = Progress(console=console, transient=True, disable=quiet or not console.file.isatty())
    with display:
        result = training.train(
            replace(chosen, **settings),
            data,
            out=None if out is None else Path(out),
            resume=None if resume is None else Path(resume),
            teachers=teachers if teacher is None else distill.load(_place(teacher), device),
            init=start if init is None else trained.load(_place(init), device),
            seed=seed or 0,
            device=device,
            max_parameters=max_parameters,
            limit=limit,
            tensorboard=tensorboard,
            display=display,
        )
    if distributed.here().first:
        plots.save_curves(result.directory)
        run_page.write(result.directory, data if isinstance(data, Dataset) else None)
    return result


def load(model: Source, device: str = "cpu") -> Classifier:
    """Load a trained model as an `nn.Module` in evaluation mode, from images (N, 3, S, S) in [0, 1] to logits (N, C).

    Its `image_size` is S, `classes` are the C names and `temperature` is what logits are to be divided by before
    probabilities are told, 1.0 where none was fitted.
    """
    return trained.load(_place(model), device).model


def evaluate(
    model: Source, data: str | Path | Dataset | None = None, *, test: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Score a trained model, by default on the images that its own data opens: the content of an `evaluation.json`.

    `data` is a folder, another source of `tinycifar.data.load`, or a `Dataset` in memory. Nothing is written. Of data
    with validation images these are opened, unless `test` opens the test images.
    """
    return inference.evaluate_model(trained.load(_place(model), device), source=data, test=test).content


def predict(
    model: Source, paths: str | Path | Sequence[str | Path], *, top: int = 3, device: str = "auto"
) -> list[dict[str, Any]]:
    """The `top` most probable classes of pictures: files (PNG, JPEG, WebP) of any size, or folders of them.

    Gives for each a dict with its path as `file` and `classes`, each a `class` and its `probability`; or, where the
    file is no picture, the reason as `problem`.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    names = [paths] if isinstance(paths, str | Path) else paths
    return list(inference.predict(trained.load(_place(model), device), pictures.find(names), top))


def _place(model: Source) -> str | Path:
    return model.directory if isinstance(model, Result) else model
