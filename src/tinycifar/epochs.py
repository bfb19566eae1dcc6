"""Which images an epoch takes, in which order, and at which rates: functions of (recipe, seed, epoch) alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinycifar import models
from tinycifar.augment import Augmentation, Parameters
from tinycifar.recipes import Recipe
from tinycifar.words import counted

LEAST_LAST_BATCH = 0.25  # of a batch; with smaller ones accuracy suffers (docs/LOG.md, 2026-11-29)
SMALL = 0.75  # of the side: what images are reduced to in the first steps of a recipe with `small_fraction`
LEAST_SHARE = 2  # images of a batch for each process: batch normalisation needs more than one


class Plan(NamedTuple):
    """How many images each epoch has, in batches of which sizes, and the schedule.

    `schedule` maps a step, counted over all epochs, to the learning rate as a fraction of its maximum and the momentum.
    The first `small_steps` steps see images reduced to `small_side` pixels a side.
    """

    images: list[int]
    batches: list[list[int]]
    schedule: Callable[[int], tuple[float, float]]
    small_steps: int
    small_side: int

    @property
    def steps(self) -> list[int]:
        """Steps of each epoch."""
        return [len(sizes) for sizes in self.batches]


def plan(recipe: Recipe, images: int, ranks: int = 1) -> Plan:
    """The plan of a training of `recipe` on so many images by `ranks` processes.

    The epochs after the first have the part of the images that `skip_easiest` leaves, in whole batches. Raises
    ValueError if an epoch has too few images for training, or a batch too few for each process.
    """
    least = LEAST_SHARE * ranks
    later_images = max(images - int(recipe.skip_easiest * images), min(images, least))
    if recipe.skip_easiest and later_images > recipe.batch_size:
        later_images -= later_images % recipe.batch_size
    images_by_epoch = [images] + [later_images] * (recipe.epochs - 1)
    batches = [batch_sizes(count, recipe.batch_size, least) for count in images_by_epoch]
    if (smallest := min(min(sizes) for sizes in batches)) < least:
        if ranks == 1:
            raise ValueError(
                f"an epoch of {counted(smallest, 'image')} is too small to train on: batch normalisation needs 2"
            )
        raise ValueError(
            f"{ranks} processes cannot share a batch of {counted(smallest, 'image')}: each needs at least "
            f"{LEAST_SHARE}; start fewer processes"
        )
    schedule = partial(
        one_cycle,
        total_steps=sum(map(len, batches)),
        warmup_fraction=recipe.warmup_fraction,
        hold_fraction=recipe.hold_fraction,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
        base_momentum=recipe.base_momentum,
        max_momentum=recipe.max_momentum,
        anneal=recipe.anneal,
    )
    side = small_side(recipe)
    small_steps = int(recipe.small_fraction * len(batches[0])) if side < recipe.image_size else 0
    return Plan(images_by_epoch, batches, schedule, small_steps, side)


def small_side(recipe: Recipe) -> int:
    """The side in pixels of reduced images: the largest that the model takes up to `SMALL`; if none, the whole one."""
    sides = [side for side in models.image_sizes(recipe.model) if side <= SMALL * recipe.image_size]
    return max(sides, default=recipe.image_size)


def batch_sizes(images: int, batch_size: int, least: int = LEAST_SHARE) -> list[int]:
    """Sizes of an epoch's batches: `batch_size`, and what is left over as the last batch.

    A small last batch would make a full step from few images. If less than a quarter of a batch, or fewer than `least`
    images, would be left over, they are spread over the other batches instead, which then differ by one at most.
    """
    whole, last = divmod(images, batch_size)
    if whole and last < max(LEAST_LAST_BATCH * batch_size, least):
        size, larger = divmod(images, whole)
        return [size + 1] * larger + [size] * (whole - larger)
    return [batch_size] * whole + [last] * bool(last)


def one_cycle(
    step: int,
    total_steps: int,
    *,
    warmup_fraction: float,
    div_factor: float,
    final_div_factor: float,
    base_momentum: float,
    max_momentum: float,
    hold_fraction: float = 0.0,
    anneal: str = "cosine",
) -> tuple[float, float]:
    """Learning rate, as a fraction of its maximum, and momentum of update `step` (0-based) under the one-cycle policy.

    The rate rises from 1 / `div_factor` to 1 over the first `warmup_fraction` of the steps, stays there for
    `hold_fraction` of them, and falls to its initial value divided by `final_div_factor`; the momentum moves the
    opposite way between `max_momentum` and `base_momentum`. Both move along a half cosine, or along a straight line
    where `anneal` is "linear". Without a hold equal to `torch.optim.lr_scheduler.OneCycleLR` (after Smith & Topin 2017,
    arXiv:1708.07120) at every step, also at `step == total_steps`, which is what a log line after the last epoch shows.

    Raises ValueError if `step` lies outside [0, total_steps].
    """
    if not 0 <= step <= total_steps:
        raise ValueError(f"step must lie between 0 and {total_steps}, not {step}")
    move = _cosine if anneal == "cosine" else _linear
    initial = 1 / div_factor
    final = initial / final_div_factor
    peak = warmup_fraction * total_steps - 1
    if step <= peak:
        fraction = step / peak if peak > 0 else 1.0
        return move(initial, 1.0, fraction), move(max_momentum, base_momentum, fraction)
    held = peak + hold_fraction * total_steps
    fraction = min(1.0, max(0.0, (step - held) / (total_steps - 1 - held)))
    return move(1.0, final, fraction), move(base_momentum, max_momentum, fraction)


def draw_epoch(
    recipe: Recipe, augmentation: Augmentation, images: int, seed: int, epoch: int
) -> tuple[Tensor, Parameters]:
    """The order (N,) of the training images in an epoch, and the parameters of their augmentation.

    With a teacher the parameters recur every `teacher_views` epochs, so that its answers serve again.
    """
    generator = epoch_generator(seed, epoch)
    order = torch.randperm(images, generator=generator)
    if recipe.teacher:
        generator = epoch_generator(seed, recipe.epochs + epoch % recipe.teacher_views)  # no epoch's order uses it
    return order, augmentation.draw(images, generator)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Give the CPU generator that every draw of one epoch comes from, a function of (seed, epoch) only.

    NumPy's SeedSequence mixes the two, so that neighbouring seeds and epochs share no stream (seed + epoch would);
    its algorithm is covered by NumPy's promise of stable streams. Both are at least 0, else ValueError.
    """
    state = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def hardest(order: Tensor, losses: Tensor, count: int) -> Tensor:
    """Those rows of `order` (N,) whose images have the `count` largest of `losses` (N,), in the same order.

    Leaving out what is learned already is from selective backpropagation (Jiang et al. 2019, arXiv:1910.00762); here
    the losses are those of an image's last time in training, which cost nothing.
    """
    is_hardest = torch.zeros(len(losses), dtype=torch.bool)
    is_hardest[losses.argsort(stable=True)[len(losses) - count :]] = True
    return order[is_hardest[order]]


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _linear(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction
