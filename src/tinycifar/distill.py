"""Distillation: a model learns from the answers of teachers (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tinycifar import inference, recipes, run
from tinycifar.augment import Augmentation, Parameters
from tinycifar.recipes import Recipe
from tinycifar.trained import Trained


def check(recipe: Recipe, teachers: Sequence[Trained], classes: Sequence[str]) -> None:
    """Raise ValueError unless these are what the recipe asks for, know its classes and saw no validation images."""
    if recipe.teacher and not teachers:
        recipes.get(recipe.teacher)
        raise ValueError(
            f"{recipe.name} learns from a teacher: train one with `tinycifar train {recipe.teacher}` and name its run "
            "with --teacher RUN; or learn from the labels with --set teacher="
        )
    for teacher in teachers:
        if teacher.recipe != recipe.teacher:
            wanted = f"one of recipe {recipe.teacher}" if recipe.teacher else "no teacher"
            raise ValueError(f"{recipe.name} learns from {wanted}, and {teacher.name} is of recipe {teacher.recipe}")
        if tuple(teacher.classes) != tuple(classes):
            raise ValueError(f"the teacher {teacher.name} knows other classes than those of the data")
        if teacher.validation_images < recipe.validation_images:
            raise ValueError(
                f"the teacher {teacher.name} was trained with {teacher.validation_images} validation images held out, "
                f"fewer than the {recipe.validation_images} of this run: it has seen what the run is to be judged on"
            )


@torch.no_grad()
def answers(
    teachers: Sequence[Trained],
    images: Tensor,
    augmentation: Augmentation,
    parameters: Parameters,
    precision: str,
    stop: run.StopSignal,
) -> Tensor | None:
    """The mean of the teachers' logits (N, num_classes) for images (N, 3, H, W), uint8, augmented by `parameters`.

    Batches are always the same ones, so that the answers have the same bits after a resume. None if a signal came.
    """
    parts = []
    for rows in torch.split(torch.arange(len(images)), 500):
        if stop.received:
            return None
        drawn = {name: values[rows].to(images.device) for name, values in parameters.items()}
        augmented = augmentation.apply(images[rows.to(images.device)], drawn)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            parts.append(torch.stack([inference.logits(of.model, augmented) for of in teachers]).mean(0))
    return torch.cat(parts).to(images.device)


def losses(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Cross-entropies (N,) of logits (N, C) and a teacher's, `taught` (N, C), both divided by the temperature.

    They are multiplied by its square, so that gradients are as large as at a temperature of 1.
    """
    soft = (taught / temperature).softmax(1)
    return functional.cross_entropy(logits / temperature, soft, reduction="none") * temperature**2
