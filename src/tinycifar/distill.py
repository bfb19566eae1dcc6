"""Distillation: a model learns from the logits of teachers (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tinycifar import catalog, checkpoint, inference, recipes, run, trained, typed
from tinycifar.augment import Parameters
from tinycifar.data import Dataset
from tinycifar.environment import UsedModel
from tinycifar.job import Job
from tinycifar.recipes import Recipe
from tinycifar.trained import Trained
from tinycifar.words import counted


def load(source: str | Path, device: str = "auto") -> list[Trained]:
    """Load what `trained.load` takes, or all runs of a directory that `tinycifar train --seeds` filled.

    Raises ValueError as `trained.load` does, and for an interrupted run.
    """
    runs: list[Path] = []
    if source not in catalog.shipped():
        directory = typed.path("the name of a teacher", source)
        runs = run.seeds(directory) or [directory]
    for directory in runs:
        if directory.is_dir() and not (directory / "evaluation.json").exists():
            raise ValueError(f"{directory} is not finished: run `tinycifar train --resume {directory}`")
    return [trained.load(directory, device) for directory in runs] or [trained.load(source, device)]


def about(teacher: Trained) -> UsedModel:
    """Recipe, source and digest of a teacher; of a run also how it was trained, and its accuracy."""
    training: dict[str, Any] = {}
    directory = teacher.run
    if directory is not None:
        environment, history = run.read_environment(directory), run.read_metrics(directory)
        evaluation = run.read_evaluation(directory)
        training = {name: getattr(environment, name) for name in ("seed", "data", "limit", "git_revision")}
        training |= {"split": evaluation.split, "accuracy": evaluation.accuracy}
        training |= {"epochs": len(history), "train_seconds": math.fsum(entry["train_seconds"] for entry in history)}
    return UsedModel(recipe=teacher.recipe, source=teacher.source, sha256=teacher.sha256, training=training)


def check(recipe: Recipe, teachers: Sequence[Trained]) -> None:
    """Raise ValueError unless these are the teachers that the recipe needs: at least one of each recipe."""
    for teacher in teachers:
        if teacher.recipe not in recipe.teachers:
            wanted = f"one of recipe {' or '.join(recipe.teachers)}" if recipe.teacher else "no teacher"
            raise ValueError(f"{recipe.name} learns from {wanted}, and {teacher.name} is of recipe {teacher.recipe}")
    for missing in recipe.teachers:
        if missing not in {teacher.recipe for teacher in teachers}:
            recipes.get(missing)
            raise ValueError(
                f"{recipe.name} learns from a teacher of recipe {missing}: train one with `tinycifar train {missing}` "
                "and name its run with `teacher=` RUN; or learn from the labels with `teacher=''`"
            )


def check_data(recipe: Recipe, teachers: Sequence[Trained], dataset: Dataset) -> list[str]:
    """Raise ValueError unless the teachers fit classes, image size and channels, and saw no validation images.

    Returns a warning for each teacher that has seen a few of them, or test images.
    """
    warnings = []
    for teacher in teachers:
        if teacher.classes != dataset.classes:
            raise ValueError(f"the teacher {teacher.name} has other classes than the data")
        if teacher.image_size != recipe.image_size:
            raise ValueError(
                f"the teacher {teacher.name} takes an image_size of {teacher.image_size}, not {recipe.image_size}"
            )
        if teacher.channels != recipe.channels:
            raise ValueError(
                f"the teacher {teacher.name} takes images of {counted(teacher.channels, 'channel')}, and {recipe.name} "
                f"has channels={recipe.channels}"
            )
        if teacher.fit != recipe.fit and dataset.data_digest:
            raise ValueError(f"the teacher {teacher.name} takes pictures with fit={teacher.fit}, not {recipe.fit}")
        warnings += trained.check_unseen(teacher, "teacher", dataset)
    return warnings


def check_record(recipe: Recipe, teachers: Sequence[Trained]) -> None:
    """Raise ValueError unless the teachers are whole runs of an unchanged recipe, from committed source."""
    for teacher in teachers:
        known, directory = about(teacher).training, Path(teacher.source).parent
        revision = str(known.get("git_revision"))
        if not (
            "epochs" in known
            and recipes.same(run.read_recipe(directory), named := recipes.get(teacher.recipe))
            and known["epochs"] == named.epochs
            and (known["data"], known["limit"]) == ("cifar10", None)
            and not revision.endswith(("None", "-dirty"))
        ):
            raise ValueError(
                f"`record=` needs teachers that are whole runs of the unchanged recipe {teacher.recipe} on all of "
                f"CIFAR-10, from committed source; {teacher.name} is none"
            )


class Views:
    """The teachers' logits for the views of the training images, each computed when an epoch first needs it.

    A view is one augmentation of all images; epoch after epoch takes the next of `recipe.teacher_views`, then the first
    again. They are kept with the checkpoints, so that a resume does not ask the teachers again.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._logits: dict[int, Tensor] = {}

    def targets(self, epoch: int, parameters: Parameters) -> Tensor | None:
        """The logits (N, num_classes) of an epoch's view, augmented by `parameters`; None after a signal."""
        job, view = self._job, epoch % self._job.recipe.teacher_views
        if view not in self._logits:
            logits = checkpoint.read_view(job.directory, view)
            if logits is None:
                logits = self._ask(parameters)
                if logits is None:
                    return None
                if job.ranks.first:
                    with checkpoint.saving(job.state.step):
                        checkpoint.save_view(job.directory, view, logits)
            self._logits[view] = logits.to(job.device)
        return self._logits[view]

    @torch.no_grad()
    def _ask(self, parameters: Parameters) -> Tensor | None:
        """The mean of the teachers' logits for all images; batches are always the same. None after a signal."""
        job, parts = self._job, []
        for rows in torch.split(torch.arange(len(job.images)), 500):
            if job.stop.received:
                return None
            drawn = {name: values[rows].to(job.device) for name, values in parameters.items()}
            augmented = job.augmentation.apply(job.images[rows.to(job.device)], drawn)
            with torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
                logits = [inference.logits(teacher.model, augmented) for teacher in job.options.teachers]
                parts.append(torch.stack(logits).mean(0))
        return torch.cat(parts)


def losses(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropies (N,) of logits (N, C) and a teacher's, `targets` (N, C), both divided by the temperature.

    They are multiplied by its square, so that gradients are as large as at a temperature of 1.
    """
    soft = (targets / temperature).softmax(1)
    return functional.cross_entropy(logits / temperature, soft, reduction="none") * temperature**2
