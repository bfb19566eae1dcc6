"""What a training is asked for besides recipe and data, and what the loop has once it has begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer

from tinycifar import signals
from tinycifar.augment import Augmentation
from tinycifar.checkpoint import State
from tinycifar.data import Dataset
from tinycifar.environment import Environment
from tinycifar.epochs import Plan
from tinycifar.models import Classifier
from tinycifar.recipes import Recipe
from tinycifar.scale import live
from tinycifar.scale.distributed import Ranks
from tinycifar.summary import Summary
from tinycifar.trained import Trained
from tinycifar.typed import whole_number


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments that a training takes as they are given; `training.train` says what they mean."""

    out: Path | None = None
    resume: Path | None = None
    device: str = "auto"
    max_parameters: int | None = None
    limit: int | None = None
    stop_after_epoch: int | None = None
    checkpoint_seconds: float = 60.0
    evaluate: bool = True
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Options(Arguments):
    """All arguments of `training.train` other than recipe, data and display."""

    teachers: Sequence[Trained] = ()
    init: Trained | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("max_parameters", 1), ("limit", 1)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))


@dataclass(frozen=True, eq=False)
class Job:
    """A started training: the inputs of the loop, and where its results go.

    `recipe` has its final width, `dataset` is split, `images` (N, C, S, S) uint8 and `labels` (N,) are its training
    images on `device`, up to the limit. `last_epoch` is the one after which this call stops. `forward` is `model`, on
    several processes wrapped so that their gradients are averaged. `data_name` is what the weights call
    their data.
    """

    recipe: Recipe
    dataset: Dataset
    options: Options
    last_epoch: int
    plan: Plan
    augmentation: Augmentation
    images: Tensor
    labels: Tensor
    device: torch.device
    precision: str
    model: Classifier
    size: Summary
    forward: nn.Module
    optimizers: list[Optimizer]
    state: State
    directory: Path
    data_name: str
    environment: Environment
    ranks: Ranks
    stop: signals.StopSignal
    events: live.View
    display: Progress
    warnings: list[str]
    wall_start: float

    @property
    def class_weights(self) -> Tensor | None:
        """Factors for the loss of an image of each class, (C,) on `device`; None without class weights."""
        if self.recipe.class_weights == "none":
            return None
        return balanced_weights(self.labels, len(self.dataset.classes))


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights (C,) that are inverse to the images of a class, and whose mean over the images with `labels` (N,) is 1.

    A class without images has weight 0.
    """
    counts = labels.bincount(minlength=num_classes)
    shares = len(labels) / ((counts > 0).sum() * counts.clamp(min=1))
    return torch.where(counts > 0, shares, 0.0)
