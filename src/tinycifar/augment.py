"""Batch -> batch transforms, each with its randomness drawn beforehand, and the reference's pipeline built of them.

An `Augmentation` first draws the parameters of all images of an epoch, then applies them a batch at a time. What
becomes of an image depends on that image and its own row of parameters alone, so neither the batch it falls into nor a
resume in mid-epoch changes it.

The reference's pipeline (horizontal flip, shift-scale-rotate, coarse dropout) exists twice: on Albumentations 2.0.8
itself, and as tensor operations that follow the same distribution. The tests compare the two.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinycifar.data.dataset import MEAN

IMAGE_SIZE = 32  # pixels a side of the images that the distances here are for; those for others are in proportion

# The probabilities that the reference's text gives.
FLIP_RATE = 0.5
WARP_RATE = 0.7
HOLE_RATE = 0.5

# Not in its text; both backends read them here and nowhere else.
SHIFT_LIMIT = 0.0625  # of the side, in x and in y
SCALE_LIMIT = 0.1  # either side of 1, in x and in y
ROTATE_LIMIT = 15  # degrees either way

Parameters = dict[str, Tensor]
"""What an augmentation drew: every value has first dimension N, one row an image."""


class Augmentation(Protocol):
    """A random change of training images in two steps: draw once an epoch, apply once a batch."""

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """Draw the parameters of `count` images from a CPU generator; they lie on the CPU."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8, and their B rows of parameters -> float32 in [0, 1] on the images' device."""


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right the images (N, C, H, W) for which `flipped` (N,), bool, is true."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def reduced(images: Tensor, side: int) -> Tensor:
    """Resample float images (N, C, H, W) to (N, C, side, side) with a filter that keeps them free of aliasing."""
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample float images (N, C, H, W) bilinearly through one matrix each; what comes from outside is 0.

    `matrices` (N, 2, 3) take output positions to input positions, both (x, y) with the image spanning [-1, 1]: the
    convention of `torch.nn.functional.affine_grid`. The identity gives pixels back within float32 rounding.
    """
    height, width = images.shape[-2:]
    x = (2 * torch.arange(width, device=images.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=images.device)[:, None] + 1) / height - 1
    by_x, by_y, offset = matrices[..., None, None].unbind(2)
    # Elementwise, as the matrix product in `affine_grid` may round differently in another batch (and to TF32 on a GPU).
    grid = by_x * x + by_y * y + offset
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)


def fill_holes(images: Tensor, holes: Tensor, fill: Tensor) -> Tensor:
    """Paint rectangles of images (N, C, H, W) in the colour `fill` (C,), which has the images' unit.

    `holes` (N, K, 4), integers, are top, left, bottom, right in pixels; bottom and right are the first pixel outside,
    so that a row of zeros is no hole. Holes may overlap.
    """
    height, width = images.shape[-2:]
    top, left, bottom, right = holes[..., None].unbind(2)
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    in_rows = (top <= row) & (row < bottom)
    in_columns = (left <= column) & (column < right)
    inside = (in_rows[:, :, :, None] & in_columns[:, :, None, :]).any(1, keepdim=True)
    return torch.where(inside, fill[:, None, None], images)


def draw_matrices(count: int, generator: torch.Generator, image_size: int = IMAGE_SIZE) -> Tensor:
    """Draw matrices (N, 2, 3), float32, for `affine`, distributed as in `ShiftScaleRotate(p=WARP_RATE)`.

    Scales in x and y, shifts in x and y and the angle are independent and uniform within their limits; shifts are cut
    towards 0 to whole pixels. An image is scaled, then rotated (a positive angle turns it anticlockwise), then shifted,
    about its centre.
    """
    scale = 1 + _uniform(-SCALE_LIMIT, SCALE_LIMIT, generator, count, 2)
    shift = (_uniform(-SHIFT_LIMIT, SHIFT_LIMIT, generator, count, 2) * image_size).trunc()
    angle = _uniform(-ROTATE_LIMIT, ROTATE_LIMIT, generator, count).deg2rad()
    warped = _uniform(0, 1, generator, count) < WARP_RATE

    cos, sin = angle.cos(), angle.sin()
    rotate_back = torch.stack([cos, -sin, sin, cos], dim=-1).view(count, 2, 2)
    linear = rotate_back / scale[:, :, None]
    offset = -linear @ (shift * 2 / image_size)[:, :, None]
    matrices = torch.cat([linear, offset], dim=-1).float()
    return torch.where(warped[:, None, None], matrices, torch.eye(2, 3))


def draw_holes(
    count: int,
    generator: torch.Generator,
    most: int,
    size_range: tuple[float, float],
    image_size: int = IMAGE_SIZE,
) -> Tensor:
    """Draw holes (N, most, 4), int64, for `fill_holes`, distributed as in `CoarseDropout(p=HOLE_RATE)`.

    An image with holes has 1 to `most` of them, each number as likely. Heights and widths are independent and uniform
    within `size_range` in pixels, then cut to whole ones; every place that is wholly inside the image is as likely.
    """
    size = _uniform(*size_range, generator, count, most, 2).long()
    start = (_uniform(0, 1, generator, count, most, 2) * (image_size - size + 1)).long()
    number = torch.randint(1, most + 1, (count, 1), generator=generator)
    number[_uniform(0, 1, generator, count) >= HOLE_RATE] = 0
    present = torch.arange(most) < number
    return torch.cat([start, start + size], dim=-1) * present[:, :, None]


def _uniform(low: float, high: float, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform float64 in [low, high): in float32 a product with a whole number may round up to the excluded end."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


class NoAugmentation:
    """Images as they are, divided by 255."""

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """Nothing is drawn, and the generator does not move."""
        return {}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8 -> float32 in [0, 1]."""
        return images / 255


@dataclass(frozen=True)
class Translation:
    """Shifts by up to `most` whole pixels either way in x and y, the border reflected."""

    most: int

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """`shift` (N, 2), int64, in y and x, each uniform from -most to most."""
        return {"shift": torch.randint(-self.most, self.most + 1, (count, 2), generator=generator)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8, and their rows of parameters -> float32 in [0, 1]."""
        count, _, height, width = images.shape
        padded = F.pad(images.float() / 255, [self.most] * 4, mode="reflect")
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 * most + 1, 2 * most + 1, H, W), a view
        top, left = (parameters["shift"] + self.most).unbind(1)
        return windows[torch.arange(count, device=images.device), :, top, left]


@dataclass(frozen=True)
class TranslationWithHole(Translation):
    """A translation, then one hole of `side` pixels in the colour `fill`, a value of 0-255 for each channel.

    The hole's centre is any of the `image_size` x `image_size` pixels, so that part of it may lie outside the image, as
    in Cutout (DeVries & Taylor 2017, arXiv:1708.04552).
    """

    side: int
    fill: tuple[int, ...]
    image_size: int = IMAGE_SIZE

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """`shift` (N, 2) as in a translation, and `holes` (N, 1, 4) for `fill_holes`."""
        shift = super().draw(count, generator)
        start = torch.randint(self.image_size, (count, 1, 2), generator=generator) - self.side // 2
        return shift | {"holes": torch.cat([start, start + self.side], dim=-1).clamp(0, self.image_size)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8, and their rows of parameters -> float32 in [0, 1]."""
        fill = torch.tensor(self.fill, device=images.device) / 255
        return fill_holes(super().apply(images, parameters), parameters["holes"], fill)


@dataclass(frozen=True)
class ReferenceAugmentation:
    """The reference's pipeline as tensor operations on any device.

    `most_holes` and `hole_size_range` (pixels) are those of `draw_holes`; `fill` has a value of 0-255 by channel.
    """

    most_holes: int
    hole_size_range: tuple[float, float]
    fill: tuple[int, ...]
    image_size: int = IMAGE_SIZE

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """`flipped` (N,), `matrices` (N, 2, 3) and `holes` (N, K, 4) for `flip`, `affine` and `fill_holes`."""
        return {
            "flipped": _uniform(0, 1, generator, count) < FLIP_RATE,
            "matrices": draw_matrices(count, generator, self.image_size),
            "holes": draw_holes(count, generator, self.most_holes, self.hole_size_range, self.image_size),
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8, and their rows of parameters -> float32 in [0, 1]."""
        flipped = flip(images, parameters["flipped"]).float()
        # Rounded since Albumentations gives whole levels; it also makes what is not warped exactly the pixels it was.
        warped = affine(flipped, parameters["matrices"]).round_()
        fill = torch.tensor(self.fill, dtype=torch.float32, device=images.device)
        return fill_holes(warped, parameters["holes"], fill).div_(255)


class AlbumentationsAugmentation:
    """The reference's pipeline on Albumentations 2.0.8, an image at a time on the CPU.

    `coarse_dropout` are the arguments of its `CoarseDropout`; none of them means that version's defaults. Raises
    `ValueError` where Albumentations 2.0.8 is not installed.
    """

    def __init__(self, **coarse_dropout: Any) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version at import
        advice = "pip install albumentations==2.0.8 opencv-python-headless"
        try:
            import albumentations as A
        except ImportError as error:
            raise ValueError(f"this augmentation needs Albumentations: {advice}") from error
        if A.__version__ != "2.0.8":  # others take other arguments, and only warn about those they ignore
            raise ValueError(f"this augmentation needs Albumentations 2.0.8, not {A.__version__}: {advice}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ShiftScaleRotate is a special case", UserWarning)
            shift_scale_rotate = A.ShiftScaleRotate(SHIFT_LIMIT, SCALE_LIMIT, ROTATE_LIMIT, p=WARP_RATE)
        self.pipeline = A.Compose(
            [A.HorizontalFlip(p=FLIP_RATE), shift_scale_rotate, A.CoarseDropout(**coarse_dropout, p=HOLE_RATE)]
        )

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """`seed` (N,), int64: what Albumentations draws for an image follows from it."""
        return {"seed": torch.randint(2**63 - 1, (count,), generator=generator)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8, and their seeds -> float32 in [0, 1]."""
        augmented = []
        for image, seed in zip(images.permute(0, 2, 3, 1).cpu().numpy(), parameters["seed"].tolist(), strict=True):
            # Not `set_random_seed`: it gives every transform the same stream, so that an image with a hole would
            # always be a flipped and warped one too. One stream that all of them share keeps them independent.
            self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
            augmented.append(self.pipeline(image=np.ascontiguousarray(image))["image"])
        levels = torch.from_numpy(np.stack(augmented)).to(images.device)
        return levels.permute(0, 3, 1, 2).contiguous() / 255


def _translate(image_size: int, mean: Sequence[float]) -> Augmentation:
    return Translation(most=_pixels(2, image_size))


def _translate_hole(image_size: int, mean: Sequence[float]) -> Augmentation:
    most, side = _pixels(4, image_size), _pixels(8, image_size)
    return TranslationWithHole(most, side, _levels(mean), image_size)


def _text(image_size: int, mean: Sequence[float]) -> Augmentation:
    side = _pixels(16, image_size)
    return ReferenceAugmentation(1, (side, side), _levels(mean), image_size)


def _as_run(image_size: int, mean: Sequence[float]) -> Augmentation:
    # CoarseDropout's defaults in 2.0.8: one or two holes, 0.1 to 0.2 of the side, black.
    return ReferenceAugmentation(2, (0.1 * image_size, 0.2 * image_size), (0,) * len(mean), image_size)


def _albumentations_text(image_size: int, mean: Sequence[float]) -> Augmentation:
    side = _pixels(16, image_size)
    return AlbumentationsAugmentation(
        num_holes_range=(1, 1),
        hole_height_range=(side, side),
        hole_width_range=(side, side),
        fill=tuple(255 * value for value in mean),
    )


def _pixels(count: int, image_size: int) -> int:
    """So many pixels of a 32x32 image, in one of another size; at least one."""
    return max(1, round(count * image_size / IMAGE_SIZE))


def _levels(mean: Sequence[float]) -> tuple[int, ...]:
    """A colour in [0, 1], cut, not rounded, to whole levels, as Albumentations does with it on uint8 images."""
    return tuple(int(255 * value) for value in mean)


AUGMENTATIONS: dict[str, Callable[[int, Sequence[float]], Augmentation]] = {
    "none": lambda image_size, mean: NoAugmentation(),
    "translate": _translate,
    "translate-hole": _translate_hole,
    "reference": _text,
    "reference-as-run": _as_run,
    "albumentations": _albumentations_text,
    "albumentations-as-run": lambda image_size, mean: AlbumentationsAugmentation(),
}
"""What `build` makes: `reference` follows the reference's text, `as-run` what its logged runs did (their CoarseDropout
arguments were ignored, so the defaults held); `albumentations` are the same two on Albumentations itself."""


def build(name: str, image_size: int = IMAGE_SIZE, mean: Sequence[float] = MEAN) -> Augmentation:
    """Make the augmentation called `name` for images of `image_size` pixels a side, whose mean colour is in [0, 1].

    Raises ValueError for an unknown name or where Albumentations is missing.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}; choose from {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name](image_size, mean)
