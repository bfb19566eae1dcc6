"""The arguments of a training, completed from the run that it resumes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tinycifar import data, distill, recipes, run, trained
from tinycifar.data import Dataset, sources
from tinycifar.environment import Environment, UsedModel
from tinycifar.job import Arguments, Options
from tinycifar.recipes import Recipe
from tinycifar.scale import distributed
from tinycifar.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Request(Arguments):
    """The arguments of a training, from the command or from Python.

    None means the value of the resumed run, else the default. `recipe` is a name, a TOML file or a
    Recipe, and `changes` are values of its fields. `distill.load` takes `init` and each of `teachers`.
    """

    recipe: str | Recipe | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    data: str | Dataset | None = None
    init: str | None = None
    teachers: tuple[str, ...] | None = None
    seed: int | None = None
    threads: int | None = None
    record: bool = False

    def to_json(self) -> dict[str, Any]:
        """The request for a child process; its data must not be in memory."""
        return {**asdict(self), "out": self.out and str(self.out), "resume": self.resume and str(self.resume)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Request:
        """The request that `to_json` wrote, as JSON returns it."""
        paths = {name: content[name] and Path(content[name]) for name in ("out", "resume")}
        teachers = content["teachers"] and tuple(content["teachers"])
        return cls(**{**content, **paths, "recipe": Recipe(**content["recipe"]), "teachers": teachers})


@dataclass(frozen=True)
class Start:
    """A completed request, with loaded models. Without `threads`, torch decides."""

    recipe: Recipe
    data: str | Dataset | None
    threads: int | None
    options: Options


def merged(request: Request) -> Start:
    """Complete a request from the run that it resumes, if any, and from the defaults.

    Raises ValueError for arguments that exclude each other, for a directory that is no run or holds several seeds, and
    if the data or a model of the run is no longer where it was.
    """
    if request.max_parameters is not None and "width" in request.changes:
        raise ValueError("`max_parameters=` finds the width: leave out the field width, or `max_parameters=`")
    if request.resume is not None and request.out is not None:
        raise ValueError("a run is resumed in its own directory: leave out `resume=` or `out=`")
    device = distributed.here().device(request.device)
    recipe, directory = request.recipe, request.resume
    environment: Environment | None = None
    if directory is not None:
        if several := run.seeds(directory):
            raise ValueError(
                f"{directory} holds several seeds; resume them by their command with `out=` {directory}, or one of "
                f"them, for example {several[-1]}"
            )
        run.check_is_run(directory)
        environment = run.read_environment(directory)
        recipe = run.read_recipe(directory) if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        recipe = recipes.get(recipe or recipes.DEFAULT_RECIPE)
    recipe = replace(recipe, **request.changes)

    source, threads = request.data, request.threads
    if environment is not None and source is None:
        source = environment.data
        if source not in data.NAMES and not Path(sources.parse(source).path).exists():
            raise ValueError(
                f"{source} does not exist. {directory} was trained on it: say where it is now with `data=`"
            )
    if environment is not None and threads is None and environment.threads <= (os.cpu_count() or 1):
        threads = environment.threads  # another number would give other bits
    if request.teachers is not None:
        teachers = [teacher for name in request.teachers for teacher in distill.load(name, device)]
    else:
        known = environment.teachers if environment is not None else ()
        teachers = [_earlier(directory, teacher, device, "learned from", "`teacher=`") for teacher in known]
    init = None if request.init is None else trained.load(request.init, device)
    if init is None and environment is not None and environment.init is not None:
        init = _earlier(directory, environment.init, device, "started from", "`init=`")
    seed, limit = (0, None) if environment is None else (environment.seed, environment.limit)
    arguments = {item.name: getattr(request, item.name) for item in fields(Arguments)} | {
        "device": device,
        "limit": limit if request.limit is None else request.limit,
        "seed": seed if request.seed is None else request.seed,
    }
    return Start(recipe, source, threads, Options(**arguments, teachers=teachers, init=init))


def _earlier(directory: Path | None, model: UsedModel, device: str, verb: str, option: str) -> Trained:
    """Load a model that a run used when it started."""
    try:
        return trained.load(model.source, device)
    except ValueError as error:
        raise ValueError(f"{error}. {directory} {verb} it; say where it is now with {option}") from None
