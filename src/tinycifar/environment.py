"""What a run depends on besides its recipe: the content of `environment.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinycifar.machine import Machine
from tinycifar.typed import OMIT_EMPTY, REST


@dataclass(frozen=True, kw_only=True)
class UsedModel:
    """A model that a run used when it started: a teacher, or the one whose weights it started from.

    `source` is what `trained.load` takes, `sha256` the digest of the file. `training` says how it was trained if it is
    a run: seed, data, limit, git_revision, split, accuracy, epochs, train_seconds. `name` is for weights only.
    """

    name: str = field(default="", metadata=OMIT_EMPTY)
    recipe: str = ""
    source: str
    sha256: str = ""
    training: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class Environment(Machine):
    """Machine, versions, data, seed, and the models that a run started from.

    `data` is what `data.load` takes, a name or an absolute path; `data_digest` is that of own data. `skipped_images`
    counts files that could not be read, by reason. `resumes` has for each resume its step, date and revision, and what
    differed from the first process. `torchrun` names the launches that the run is from.
    """

    ranks: int = 1
    precision: str
    seed: int
    data: str
    data_digest: str = ""
    limit: int | None = None
    skipped_images: Mapping[str, int] = field(default_factory=dict, metadata=OMIT_EMPTY)
    train_images: int
    teachers: tuple[UsedModel, ...] = ()
    resumes: tuple[Mapping[str, Any], ...]
    torchrun: tuple[str, ...] = ()
    init: UsedModel | None = None
