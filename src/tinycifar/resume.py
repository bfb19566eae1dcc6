"""What a run was begun with, so that it can be gone on with from wherever its data and models are now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinycifar import data, run, trained
from tinycifar.data import sources
from tinycifar.recipes import Recipe
from tinycifar.trained import Trained


@dataclass(frozen=True)
class Begun:
    """A run as its first process began it; `threads` are those that it computed with."""

    directory: Path
    recipe: Recipe
    seed: int
    limit: int | None
    threads: int
    _environment: dict[str, Any]

    def source(self) -> str:
        """Where its data was, as `tinycifar.data.load` takes it; ValueError if that is gone."""
        source = str(self._environment["data"])
        if source not in data.NAMES and not sources.exists(source):
            raise ValueError(
                f"{source} does not exist. {self.directory} was trained on it: say where it is now with --data"
            )
        return source

    def teachers(self, device: str) -> list[Trained]:
        """The models that it learned from; ValueError, saying how to name them, if one is gone."""
        found = self._environment.get("teachers") or []
        return [self._model(of, device, "learned from", "--teacher") for of in found]

    def init(self, device: str) -> Trained | None:
        """The model whose weights it started from, if any; ValueError, saying how to name it, if it is gone."""
        found = self._environment.get("init")
        return self._model(found, device, "started from", "--init") if found else None

    def revision(self) -> str:
        """The commit of the source that began it, as `machine.git_revision` tells it."""
        return str(self._environment.get("git_revision"))

    def _model(self, of: dict[str, Any], device: str, what: str, option: str) -> Trained:
        try:
            return trained.load(str(of.get("source")), device)
        except ValueError as error:
            raise ValueError(f"{error}. {self.directory} {what} it; say where it is now with {option}") from None


def read(directory: Path) -> Begun:
    """What a run directory says of its beginning; ValueError, naming what is wrong, if it holds no run or several."""
    if several := run.seeds(directory):
        raise ValueError(
            f"{directory} holds several seeds; go on with the command that began them and --out {directory}, or resume "
            f"one, for example {several[-1]}"
        )
    environment = run.read_environment(directory)
    return Begun(
        directory,
        run.read_recipe(directory),
        environment.get("seed", 0),
        environment.get("limit"),
        environment["threads"],
        environment,
    )
