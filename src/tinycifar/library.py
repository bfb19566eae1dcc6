"""The public functions of `tinycifar`: each does what the command of that name does.

They raise ValueError for a value that is not allowed, TypeError for one of another type, OSError if the disk fails, and
FloatingPointError if a training diverges.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar import atomic, catalog, inference, predictions, recipes, run, trained, typed
from tinycifar.data import Dataset, loading, sources
from tinycifar.data.pictures import find as find_pictures
from tinycifar.evaluation.outside import chosen as chosen_threshold
from tinycifar.models import Classifier
from tinycifar.predictions import Picture
from tinycifar.recipes import Recipe
from tinycifar.recording import Result
from tinycifar.resume import Request
from tinycifar.scale import distributed
from tinycifar.trained import Trained

if TYPE_CHECKING:
    from tinycifar.formats.c_source import ExportedC
    from tinycifar.formats.parity import Exported
    from tinycifar.report.compare import Comparison
    from tinycifar.seeds import Several

Source = str | Path | Result
"""A trained model: the name of a shipped one, a run directory, a weights file, or the result of `train`."""


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
    teacher: Source | list[Source] | tuple[Source, ...] | None = None,
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
    `Dataset` in memory. `teacher` is a model or a directory of several seeds, or a list of these; `teacher=""` learns
    from the labels. The other arguments are those of `tinycifar.training.train`. With `resume`, recipe, data, seed,
    limit, threads, teachers and init are those the run was started with, unless given.

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
    from tinycifar import seeds as train_seeds  # not before: it loads matplotlib

    if teacher == "":  # the recipe field has the name of the argument
        teacher, settings = None, {"teacher": "", **settings}
    for name in settings:
        typed.check_choice("recipe field", name, recipes.SETTABLE)
    seeds, parallel = typed.whole_number("seeds", seeds, 1), typed.whole_number("jobs", jobs, 1)
    if parallel != 1 and seeds is None:
        raise ValueError("jobs is the number of seeds to train in parallel: give seeds too")
    if not isinstance(data, Dataset | None):
        sources.parse(data)  # TypeError for anything that is no path
    request = Request(
        recipe=recipe if isinstance(recipe, Recipe | None) else str(recipe),
        changes={name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()},
        data=data if isinstance(data, Dataset | None) else os.fspath(data),
        out=None if out is None else typed.path("`out=`", out),
        resume=None if resume is None else typed.path("`resume=`", resume),
        init=None if init is None else str(_source(init)),
        teachers=None
        if teacher is None
        else tuple(str(_source(one)) for one in (teacher if isinstance(teacher, (list, tuple)) else [teacher])),
        seed=typed.whole_number("seed", seed, 0),
        device=str(device),
        threads=typed.whole_number("threads", threads, 1, os.cpu_count() or 1),
        max_parameters=typed.whole_number("max_parameters", max_parameters, 1),
        limit=typed.whole_number("limit", limit, 1),
        tensorboard=tensorboard,
    )
    console = Console(  # in a notebook too it prints lines, for which Rich would want widgets
        quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True, force_jupyter=False
    )
    display = Progress(console=console, transient=True, disable=quiet or not console.file.isatty())
    with display:
        if seeds is not None:
            several = train_seeds.train_several(request, seeds, parallel or 1, display)
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
    """Load a trained model as an `nn.Module` in evaluation mode: images (N, 3, S, S) in [0, 1] -> logits (N, C).

    A model of grey images takes (N, 1, S, S).

    `model` is the name of a shipped model, a run directory, a weights file, or the result of `train`. The module has
    `image_size` (S), `classes` (C names) and `temperature`: divide logits by it before the softmax; it is 1.0 if none
    was fitted. Images must be floating-point numbers; divide uint8 images by 255. Integers raise TypeError.
    """
    return trained.load(_source(model), device).model


def evaluate(
    model: Source,
    data: str | Path | Dataset | None = None,
    *,
    test: bool = False,
    outside: str | Path | None = None,
    keep: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score a trained model; returns the content of an `evaluation.json` and writes nothing.

    `data` is a folder, another source of `tinycifar.data.load`, or a `Dataset` in memory; by default it is the data
    that the model was trained on. If that data has validation images, the model is scored on these, unless `test`
    opens the test images.

    `outside` are pictures of none of its classes, a folder or another source: the entry `outside` says how many are
    rejected at the `threshold`, or at that which keeps the share `keep` of right answers, 0.95 by default.
    """
    evaluation = inference.evaluate_model(
        trained.load(_source(model), device), source=data, test=test, others=outside, keep=keep, threshold=threshold
    )
    content: dict[str, Any] = typed.to_json(evaluation.scores)
    return content


def predict(
    model: Source,
    pictures: Picture | Iterable[Picture],
    *,
    top: int = 3,
    keep: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Classify pictures; returns a dict for each, in their order.

    `pictures` is one picture or a list of them: a path to a PNG, JPEG or WebP file or to a folder of such files, the
    bytes of a file, a PIL image, an array, or a tensor. Arrays and tensors are uint8 in 0..255 or floating point in
    [0, 1], in RGB, of the shape (H, W, 3) or (3, H, W), or batches (N, H, W, 3) or (N, 3, H, W); grey ones have 1 in
    the place of 3. If both orders are possible, an array has its channels last and a tensor first. Pictures are fitted
    and resized like files; floating-point pictures of the model's own shape are used as they are, others are rounded to
    8 bits.

    Each dict has `file`, the path or None, and `classes`, a list of the `top` most probable ones, each with `class` and
    `probability`. For a file that cannot be read there is `problem`, the reason, instead of `classes`.

    With `threshold`, or with `keep`, the share of right answers that is to be kept, each dict also has `score`, how far
    the largest logit lies above the mean of all, and `none_of_these`: whether the score lies below the threshold.
    `keep` is from 0.5 to 0.99, for models that were trained with validation images, and shipped ones.

    Raises TypeError for another type of pictures or numbers, ValueError for another shape or range, a path that does
    not exist, and a folder without pictures.
    """
    shown = typed.whole_number("top", top, 1) or 1
    given = predictions.listed(pictures)
    loaded = trained.load(_source(model), device)
    limit = chosen_threshold(loaded.kept, keep, threshold, loaded.name)
    return list(inference.predict(loaded, given, shown, limit))


def explain(
    model: Source,
    pictures: str | Path | Sequence[str | Path],
    *,
    out: str | Path = "explanations",
    class_name: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Draw a Grad-CAM heat map over each picture: which parts speak for its most probable class, or for `class_name`.

    `pictures` are files or folders, as in `predict`. Writes `NAME-explained.png` for each into the folder `out`.
    Returns a dict for each picture with its `file`, the `picture` drawn, the `class` and its `probability`; for a file
    that cannot be read with `problem` instead of the last three. Raises ValueError for an unknown class, and for a file
    in `out` that exists already, unless `overwrite` is set.
    """
    from tinycifar.report import explanations

    files = find_pictures([pictures] if isinstance(pictures, (str, Path)) else pictures)
    with torch.inference_mode(False):  # a heat map needs gradients
        loaded = trained.load(_source(model), device)
        return list(explanations.explain_files(loaded, files, typed.path("`out=`", out), class_name, overwrite))


def export(
    model: Source,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    data: str | Path | Dataset | None = None,
    int8: str | None = None,
    overwrite: bool = False,
) -> Exported | ExportedC:
    """Write a model in a form that runs without PyTorch, and check that it gives the same results.

    `format` is "onnx" (float32), "onnx-int8" (8-bit convolutions), "tflite" or "tflite-float" (TFLite with int8 or
    float input and output), "c" (C99 source, a folder) or "web" (a page that runs the model in the browser, a folder).
    `out` is the file or folder (default: `exports/NAME` and the format's ending). `data` provides images for the check
    and for the ranges of 8-bit values (default: the model's own data, or the packaged sample for CIFAR-10). `int8` is
    for "onnx-int8": the types of activations and weights, "u8s7" (the fastest, the default), "u8u8" (8 bits of weights;
    the default for a model that does not agree in 7 bits) or "s8s8" (no zero points).

    Returns the paths, sizes and parity of what was written. Raises ValueError for an unknown format, for a file
    whose name does not end as the format's do, and for an output that exists already, unless `overwrite` is set;
    ParityError, writing nothing, if the results differ.
    """
    typed.check_choice("format", format, catalog.FORMATS)
    if int8 is not None and format != "onnx-int8":
        raise ValueError("`int8=` is for the format onnx-int8")
    loaded = trained.load(_source(model), "cpu")
    if out is None:
        path = Path("exports", output_name(loaded) + catalog.FORMATS[format])
    else:
        path = typed.path("`out=`", out) if format in catalog.FOLDERS else atomic.file_path(out)
    if path.resolve() == Path(loaded.source):
        raise ValueError(f"`out=` names the weights themselves, {path}; name another file")
    if path.exists() and path.is_dir() != (format in catalog.FOLDERS):
        raise ValueError(
            f"`out=` {path} must be a {'folder' if format in catalog.FOLDERS else 'file'} for the format {format}"
        )
    if format not in catalog.FOLDERS:
        atomic.check_suffix(path, Path(f"model{catalog.FORMATS[format]}").suffix)
    from tinycifar.formats import c_source, onnx_file, tflite, web

    for file in c_source.paths(path, loaded.name) if format == "c" else [] if format == "web" else [path]:
        atomic.check_new(file, overwrite)
    if data is not None and not isinstance(data, Dataset):
        data = loading.load(data, **vars(loaded.form))
    if format == "onnx":
        return onnx_file.to_onnx(loaded, path, data)
    if format == "onnx-int8":
        return onnx_file.to_int8(loaded, path, data, variant=int8)
    if format in ("tflite", "tflite-float"):
        return tflite.to_tflite(loaded, path, data, int8=format == "tflite")
    if format == "c":
        return c_source.export_c(loaded, path, data)
    return web.write(loaded, path, data, overwrite=overwrite)


def output_name(model: Trained) -> str:
    """The name of files made from a model: the model's own, with the folder's in front for one of several seeds."""
    source = Path(model.source)
    one_of_seeds = source.name == "model.safetensors" and source.parent in run.seeds(source.parent.parent)
    return f"{source.parent.parent.name}-{model.name}" if one_of_seeds else model.name


def compare(runs: Sequence[Source | Several], out: str | Path | None = None, *, overwrite: bool = False) -> Comparison:
    """Compare evaluated runs: accuracies with intervals, curves, and whether they differ by more than noise.

    Runs of the same recipe and data, and the runs in a directory of several seeds, are compared as one contender. The
    result has `contenders` and `verdicts`; `lines()` is a report in text, `as_json()` plain values. `out` is an HTML
    page to write. Raises ValueError for a directory that is not an evaluated run, for an `out` that does not end in
    `.html`, and if it exists already, unless `overwrite` is set; TypeError for `runs` that are no list of runs.
    """
    from tinycifar.report import compare as comparing

    page = None if out is None else atomic.file_path(out)
    if page is not None:
        atomic.check_suffix(page, ".html")
        atomic.check_new(page, overwrite)
    if isinstance(runs, str | os.PathLike) or hasattr(runs, "directory"):
        raise TypeError("`runs` is a list of runs; put a single one into brackets: [run]")
    comparison = comparing.compare([typed.path("the name of a run", _source(run)) for run in runs])
    if page is not None:
        comparing.write(comparison, page)
    return comparison


def _source(model: Source | Several) -> str | Path:
    """What `trained.load` takes to find a model; TypeError, with what is allowed, for anything else."""
    directory = getattr(model, "directory", model)  # of one run, or of several seeds
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(
            "a model is the name of a shipped one, a run directory, a weights file, or what `train` returned, not "
            f"{type(model).__name__}"
        )
    return directory if isinstance(directory, str) else Path(directory)
