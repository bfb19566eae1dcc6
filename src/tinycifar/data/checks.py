"""What is suspicious about own images: no contrast, all alike, one picture under two labels or on both sides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tinycifar.data.dataset import ROWS, SPLITS, Dataset, pixel_digests
from tinycifar.words import counted

LEAST_CONTRAST = 4  # levels between the darkest and the lightest sample of an image
NAMED = 3


class UntrainableError(ValueError):
    """Data that can be read, but has too few classes or images, or no two that differ, to be trained on."""


def check(dataset: Dataset) -> list[str]:
    """Warnings about the images of a data set; UntrainableError if all training images are the same."""
    pixels = {
        split: pixel_digests(images.numpy()).view("V32")[:, 0]
        for split in SPLITS
        if (images := dataset.images(split)) is not None
    }
    if len(pixels["train"]) > 1 and (pixels["train"] == pixels["train"][0]).all():
        raise UntrainableError(
            f"all {len(pixels['train']):,} training images are the same once decoded, among them "
            f"{_names(dataset, 'train', np.arange(len(pixels['train'])))}: nothing can be learned from them"
        )
    return [*_without_contrast(dataset), *_labels(dataset, pixels), *_copies(dataset, pixels)]


def _without_contrast(dataset: Dataset) -> Iterator[str]:
    for split in SPLITS:
        images = dataset.images(split)
        if images is not None and len(rows := _flat(images)):
            yield (
                f"Warning: {len(rows):,} of {counted(len(images), f'{split} image')} have a single colour "
                f"(less than {LEAST_CONTRAST} levels of contrast): {_names(dataset, split, rows)}"
            )


def _flat(images: Tensor) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Indices of the images whose channels hardly vary."""
    spreads = [part.amax((2, 3)).int() - part.amin((2, 3)).int() for part in torch.split(images, ROWS)]
    return np.flatnonzero((torch.cat(spreads) < LEAST_CONTRAST).all(1).numpy())


def _labels(dataset: Dataset, pixels: dict[str, np.ndarray]) -> Iterator[str]:
    """Pictures that have several labels within a split."""
    for split, keys in pixels.items():
        labels = dataset.labels(split)
        assert labels is not None
        rows = _contradicting(keys, labels.numpy())
        if len(rows):
            yield (
                f"Warning: {len(rows):,} {split} images are the same picture in several classes, of which all but one "
                f"are wrong: {_names(dataset, split, rows)}"
            )


def _contradicting(keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of the images (N,) whose pixels occur under several labels."""
    _, inverse = np.unique(keys, return_inverse=True)
    lowest = np.full(inverse.max() + 1, np.iinfo(np.int64).max)
    highest = np.full(inverse.max() + 1, -1)
    np.minimum.at(lowest, inverse, labels)
    np.maximum.at(highest, inverse, labels)
    return np.flatnonzero((lowest != highest)[inverse])


def _copies(dataset: Dataset, pixels: dict[str, np.ndarray]) -> Iterator[str]:
    """Held-out images that are training images too, of the same class or of another."""
    keys = pixels["train"].tolist()
    known, trained = set(keys), set(zip(keys, dataset.train_labels.tolist(), strict=True))
    for split in SPLITS[1:]:
        labels = dataset.labels(split)
        if labels is None:
            continue
        pairs = list(zip(pixels[split].tolist(), labels.tolist(), strict=True))
        copies = [row for row, pair in enumerate(pairs) if pair in trained]
        others = [row for row, pair in enumerate(pairs) if pair[0] in known and pair not in trained]
        if others:
            yield (
                f"Warning: {len(others):,} {split} images are training images under another label, and count as "
                f"mistakes of a model that learned them: {_names(dataset, split, np.array(others))}"
            )
        if copies:
            yield (
                f"Warning: {len(copies):,} {split} images are copies of training images: scores will be optimistic: "
                f"{_names(dataset, split, np.array(copies))}"
            )


def _names(dataset: Dataset, split: str, rows: np.ndarray) -> str:
    """The first images of some, by name if they have names."""
    names = dataset.names.get(split)
    first = [names[row] if names else f"{split} image {row}" for row in rows[:NAMED].tolist()]
    return ", ".join(first) + ", ..." * (len(rows) > NAMED)
