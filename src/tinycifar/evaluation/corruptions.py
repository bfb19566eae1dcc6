"""Seventeen of the CIFAR-10-C corruptions, five severities each, computed here instead of downloaded.

Parameters are those of Hendrycks & Dietterich (2019, arXiv:1903.12261) for 32x32 images, from their `make_cifar_c.py`.
Frost, which needs photographs, and spatter, which needs a further image library, are left out. Draws are our own, so
figures compare closely with those on their files, but are not the same to the image.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from tinycifar.data.dataset import to_grey
from tinycifar.typed import check_choice

SEVERITIES = (1, 2, 3, 4, 5)

Pixels = NDArray[np.float64]
"""Images (N, 3, H, W) in [0, 1]."""


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt images (N, 3, H, W) or grey ones (N, 1, H, W), uint8, square; the same seed gives the same images.

    Grey ones are corrupted as pictures in three channels, and become grey again.
    Raises ValueError for an unknown name, listing the known ones, and for a severity outside 1 to 5.
    """
    check_choice("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"a severity lies between 1 and 5, not {severity}")
    if images.shape[1] == 1:
        return to_grey(corrupt(images.expand(-1, 3, -1, -1).contiguous(), name, severity, seed))
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name), severity])
    function, parameters = CORRUPTIONS[name]
    corrupted = function(images.numpy() / 255, parameters[severity - 1], rng)
    # Cut to whole levels, as the published files are.
    return torch.from_numpy((np.clip(corrupted, 0, 1) * 255).astype(np.uint8))


def _gaussian_noise(x: Pixels, scale: float, rng: Generator) -> Pixels:
    return x + rng.normal(scale=scale, size=x.shape)


def _shot_noise(x: Pixels, photons: float, rng: Generator) -> Pixels:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Pixels, amount: float, rng: Generator) -> Pixels:
    drawn = rng.random(x.shape)
    return np.where(drawn < amount / 2, 0.0, np.where(drawn < amount, 1.0, x))


def _speckle_noise(x: Pixels, scale: float, rng: Generator) -> Pixels:
    return x + x * rng.normal(scale=scale, size=x.shape)


def _blur(x: Pixels, sigma: float) -> Pixels:
    blurred: Pixels = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest")
    return blurred


def _gaussian_blur(x: Pixels, sigma: float, rng: Generator) -> Pixels:
    return _blur(x, sigma)


def _glass_blur(x: Pixels, parameters: tuple[float, int, int], rng: Generator) -> Pixels:
    sigma, reach, rounds = parameters
    x = np.floor(_blur(x, sigma) * 255) / 255
    image = np.arange(len(x))
    side = x.shape[2]
    for _ in range(rounds):
        for row in range(side - reach, reach, -1):
            for column in range(side - reach, reach, -1):
                down, right = rng.integers(-reach, reach, size=(2, len(x)))
                # A copy: the published code means to swap, but its second assignment reads what the first has written.
                x[:, :, row, column] = x[image, :, row + down, column + right]
    return _blur(x, sigma)


def _defocus_blur(x: Pixels, parameters: tuple[float, float], rng: Generator) -> Pixels:
    radius, sigma = parameters
    reach = 3  # of the largest disk and its soft edge
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets**2 + offsets[:, None] ** 2 <= radius**2).astype(float)
    edge = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(edge, edge) / edge.sum() ** 2, mode="mirror")
    weight = torch.from_numpy(kernel).expand(3, 1, -1, -1)
    padded = functional.pad(torch.from_numpy(x), [reach] * 4, mode="reflect")
    return functional.conv2d(padded, weight, groups=3).numpy()


def _motion_blur(x: Pixels, parameters: tuple[int, float], rng: Generator) -> Pixels:
    return _smear(x, *parameters, rng.uniform(-45, 45, size=len(x)))


def _smear(x: Pixels, radius: int, sigma: float, degrees: NDArray[np.float64]) -> Pixels:
    # ImageMagick's: a one-sided Gaussian along a line, each of its steps rounded to a whole pixel, the border repeated.
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angles = np.deg2rad(degrees)
    side = x.shape[2]
    positions, image = np.arange(side), np.arange(len(x))[:, None, None]
    blurred = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        down, right = (np.ceil(step * part - 0.5).astype(int) for part in (np.sin(angles), np.cos(angles)))
        rows = np.clip(positions + down[:, None], 0, side - 1)[:, :, None]
        columns = np.clip(positions + right[:, None], 0, side - 1)[:, None, :]
        blurred += weight * x[image, :, rows, columns].transpose(0, 3, 1, 2)
    return blurred


def _zoom_blur(x: Pixels, largest: float, rng: Generator) -> Pixels:
    factors = np.arange(1, largest, 0.01)
    total: Pixels = x.copy()
    for factor in factors:
        total += _zoom(x, factor)
    total /= len(factors) + 1
    return total


def _zoom(x: Pixels, factor: float) -> Pixels:
    """The middle of each image (N, C, H, W), magnified to the size of the whole."""
    side = x.shape[2]
    cut = int(np.ceil(side / factor))
    start = (side - cut) // 2
    part = torch.from_numpy(x[:, :, start : start + cut, start : start + cut])
    part = functional.interpolate(part, size=round(cut * factor), mode="bilinear", align_corners=True)
    start = (part.shape[2] - side) // 2
    zoomed: Pixels = part[:, :, start : start + side, start : start + side].numpy()
    return zoomed


def _snow(x: Pixels, parameters: tuple[float, float, float, float, int, float, float], rng: Generator) -> Pixels:
    mean, deviation, zoom, least, radius, sigma, keep = parameters
    side = x.shape[2]
    flakes = _zoom(rng.normal(mean, deviation, size=(len(x), 1, side, side)), zoom)
    flakes = np.floor(np.clip(np.where(flakes < least, 0, flakes), 0, 1) * 255) / 255  # as published, by way of a file
    flakes = _smear(flakes, radius, sigma, rng.uniform(-135, -45, size=len(x)))
    grey = (x * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(axis=1, keepdims=True)
    whitened: Pixels = keep * x + (1 - keep) * np.maximum(x, grey * 1.5 + 0.5)
    return whitened + flakes + flakes[:, :, ::-1, ::-1]


def _fog(x: Pixels, parameters: tuple[float, float], rng: Generator) -> Pixels:
    amount, decay = parameters
    largest: Pixels = x.max(axis=(1, 2, 3), keepdims=True)
    clouds = _plasma(len(x), x.shape[2], decay, rng)[:, None]
    return (x + amount * clouds) * largest / (largest + amount)


def _plasma(count: int, side: int, decay: float, rng: Generator) -> Pixels:
    """Clouds (count, side, side) in [0, 1] by the diamond-square algorithm, cut from those of a power of two."""
    step, wobble = 1 << (side - 1).bit_length(), 100.0
    height = np.zeros((count, step, step))

    def mean_of(corners: Pixels) -> Pixels:
        return corners / 4 + wobble * rng.uniform(-wobble, wobble, corners.shape)

    while step >= 2:
        half = step // 2
        corner = height[:, ::step, ::step]
        pairs = corner + np.roll(corner, -1, 1)
        height[:, half::step, half::step] = mean_of(pairs + np.roll(pairs, -1, 2))
        middle = height[:, half::step, half::step]
        height[:, ::step, half::step] = mean_of(middle + np.roll(middle, 1, 1) + corner + np.roll(corner, -1, 2))
        height[:, half::step, ::step] = mean_of(middle + np.roll(middle, 1, 2) + corner + np.roll(corner, -1, 1))
        step, wobble = half, wobble / decay
    height = height[:, :side, :side]
    height -= height.min(axis=(1, 2), keepdims=True)
    clouds: Pixels = height / height.max(axis=(1, 2), keepdims=True)
    return clouds


def _brightness(x: Pixels, amount: float, rng: Generator) -> Pixels:
    value: Pixels = x.max(axis=1, keepdims=True)
    brighter = np.clip(value + amount, 0, 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-12), brighter)  # hue and saturation stay


def _contrast(x: Pixels, factor: float, rng: Generator) -> Pixels:
    mean: Pixels = x.mean(axis=(2, 3), keepdims=True)
    return (x - mean) * factor + mean


def _saturate(x: Pixels, parameters: tuple[float, float], rng: Generator) -> Pixels:
    factor, offset = parameters
    value: Pixels = x.max(axis=1, keepdims=True)
    chroma = value - x.min(axis=1, keepdims=True)
    saturation = np.where(value > 0, chroma / np.maximum(value, 1e-12), 0)
    target = np.clip(saturation * factor + offset, 0, 1)
    red = np.array([0.0, 1.0, 1.0])[:, None, None]  # the hue that grey has by convention
    distance = np.where(chroma > 0, (value - x) / np.maximum(chroma, 1e-12), red)
    return value * (1 - target * distance)


def _elastic(x: Pixels, parameters: tuple[float, float, float], rng: Generator) -> Pixels:
    amount, sigma, jitter = (x.shape[2] * parameter for parameter in parameters)
    count, side = len(x), x.shape[2]
    middle, reach = side // 2, side // 3
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-jitter, jitter, size=(count, 3, 2))
    # The affine map that takes each moved corner, (x, y, 1), back to where it was.
    back = np.linalg.solve(np.concatenate([moved, np.ones((count, 3, 1))], 2), np.broadcast_to(corners, moved.shape))
    row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    coordinates = np.stack([column, row, np.ones_like(row)], -1) @ back[:, None]
    warped = functional.grid_sample(
        torch.from_numpy(x),
        torch.from_numpy(coordinates * 2 / (side - 1) - 1),
        padding_mode="reflection",
        align_corners=True,
    )
    shifts = rng.uniform(-1, 1, size=(count, 2, side, side))
    shifts = ndimage.gaussian_filter(shifts, (0, 0, sigma, sigma), mode="reflect", truncate=3) * amount
    coordinates = np.stack([column, row], -1) + shifts.transpose(0, 2, 3, 1)
    grid = torch.from_numpy((2 * coordinates + 1) / side - 1)
    return functional.grid_sample(warped, grid, padding_mode="reflection", align_corners=False).numpy()


def _by_picture(change: Callable[[Image.Image, float], Image.Image]) -> Callable[[Pixels, float, Generator], Pixels]:
    """A corruption that Pillow computes, an image at a time."""

    def corruption(x: Pixels, parameter: float, rng: Generator) -> Pixels:
        levels = (x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        changed = [np.asarray(change(Image.fromarray(picture), parameter)) for picture in levels]
        stacked: Pixels = np.stack(changed).transpose(0, 3, 1, 2) / 255
        return stacked

    return corruption


def _pixelate(picture: Image.Image, factor: float) -> Image.Image:
    small = int(picture.width * factor)
    return picture.resize((small, small), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)


def _jpeg(picture: Image.Image, quality: float) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(quality))
    return Image.open(file)


CORRUPTIONS: dict[str, tuple[Callable[..., Pixels], tuple[object, ...]]] = {
    "gaussian-noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse-noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle-noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian-blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "glass-blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "defocus-blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion-blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "elastic": (_elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
    "pixelate": (_by_picture(_pixelate), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_by_picture(_jpeg), (80, 65, 58, 50, 40)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
}
"""Each corruption's function of images, parameter and generator, and its parameters from severity 1 to 5.

Draws depend on the place in this table: new ones go to its end.
"""
EXTRA = ("speckle-noise", "gaussian-blur", "saturate")
"""Those that CIFAR-10-C has beside its fifteen."""
