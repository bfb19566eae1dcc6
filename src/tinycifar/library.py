"""What `import tinycifar` offers: train, load, evaluate and predict in a line each.

`train`, `evaluate` and `predict` do what the commands of these names do, only that `evaluate` writes no file; `load`
gives the model itself. They raise what the commands report: ValueError for what is not allowed,
OSError where the disk fails, FloatingPointError for a training that diverges.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tinycifar import inference, recipes, trained
from tinycifar import seeds as train_seeds
from tinycifar.data import Dataset, pictures
from tinycifar.models import Classifier
from tinycifar.recipes import Recipe
from tinycifar.recording import Result
from tinycifar.resume import Request
from tinycifar.scale import distributed
from tinycifar.seeds import Several

Source = str | Path | Result
"""A trained model: the name of a shipped one, a run directory, a weights file, or what `train` gave."""


@overload
def train(
    recipe: str | Recipe | None = ..., data: str | Path | Dataset | None = ..., *, seeds: None = ..., **options: Any
) -> Result: ...


@overload
def train(
    recipe: str | Recipe | None = ..., data: str | Path | Dataset | None = ..., *, seeds: int, **options: Any
) -> Several: ...


def train(
    recipe: str | Recipe | None = None,
    data: str | Path | Dataset | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init: Source | None = None,
    teacher: Source | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    device: str = "auto",
    threads: int | None = None,
    max_parameters: int | None = None,
    limit: int | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result | Several:
    """Train a recipe and return its run, whose `directory` holds weights, metrics, evaluation, plots and `report.html`.

    `recipe` is a name (default: minute), a TOML file or a `Recipe`; `settings` change its fields: `train("minute",
    epochs=8)`. `data` is a folder of pictures or another source of `tinycifar.data.load` (default: CIFAR-10), or a
    `Dataset` in memory. `teacher` is a model, or a directory of several seeds; `teacher=""` learns from the labels. The
    other arguments are those of `tinycifar.training.train`. With `resume`, recipe, data, seed, limit, threads, teachers
    and init are those the run was started with, unless given.

    With `seeds`, that many seeds are trained from `seed` on, `jobs` of them in parallel as processes of their own, and
    the result is a `Several`. Seeds that the folder `out` holds already are resumed.

    Progress is printed to standard output unless `quiet`. While it trains, torch uses `threads` threads (default: as
    many as now) and the C library keeps freed memory for the next step. Torch's generator is the process's own, so of
    trainings in several threads none can be repeated. If other processes keep the processor busy, set the environment
    variable GOMP_SPINCOUNT to 10000 before torch is imported, as the command does: GNU OpenMP's threads then wait for
    each other for a shorter time.

    The first Ctrl-C stops after the current step and writes a checkpoint; then KeyboardInterrupt is raised with the
    run's directory in its message (for SIGTERM and SIGHUP: SystemExit). Raises ValueError for what is not allowed,
    OSError if the disk fails, FloatingPointError if the training diverges.
    """
    if teacher == "":  # the recipe field has the name of the argument
        teacher, settings = None, {"teacher": "", **settings}
    for name in settings:
        if name not in recipes.SETTABLE:
            raise ValueError(f"unknown recipe field {name!r}; allowed are: {', '.join(recipes.SETTABLE)}")
    if not (jobs == 1 or seeds):
        raise ValueError("jobs is the number of seeds to train in parallel: give seeds too")
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {seeds}")
    request = Request(
        recipe=recipe if isinstance(recipe, Recipe | None) else str(recipe),
        changes={name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()},
        data=data if isinstance(data, Dataset | None) else str(data),
        out=None if out is None else Path(out),
        resume=None if resume is None else Path(resume),
        init=None if init is None else str(_place(init)),
        teachers=None if teacher is None else (str(_place(teacher)),),
        seed=seed,
        device=device,
        threads=threads,
        max_parameters=max_parameters,
        limit=limit,
        tensorboard=tensorboard,
    )
    console = Console(  # in a notebook too it prints lines, for which Rich would want widgets
        quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True, force_jupyter=False
    )
    display = Progress(console=console, transient=True, disable=quiet or not console.file.isatty())
    with display:
        if seeds is not None:
            several = train_seeds.train_several(request, seeds, jobs, display)
            _raise_interrupt(several.stopped_by, several.directory, f"out={str(several.directory)!r}")
            return several
        result = train_seeds.train(request, display)
        if distributed.here().first:
            train_seeds.write_report(result.directory, data if isinstance(data, Dataset) else None)
    _raise_interrupt(result.stopped_by, result.directory, f"resume={str(result.directory)!r}")
    return result


def _raise_interrupt(stopped_by: int | None, directory: Path, argument: str) -> None:
    """Pass on a signal that came during a training, so that it ends the program too."""
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt(f"the training in {directory} was interrupted; resume it with train({argument})")
    if stopped_by:
        raise SystemExit(128 + stopped_by)


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
