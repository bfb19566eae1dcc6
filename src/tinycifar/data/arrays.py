"""Own data: images as arrays of bytes, as IDX, NumPy and CIFAR-like files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinycifar.data.contents import Contents, Labels, pixel_decoder

MOST_BYTES = 4 << 30  # of an array, unpacked
MOST_PIXELS = 512  # a side
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Arrays:
    """Images of a split, uint8 (N, H, W) in grey or (N, H, W, 3) in RGB, and labels (N,) from 0; `name` is theirs."""

    name: str
    images: Bytes
    labels: Labels


def contents(
    path: Path, layout: str, classes: tuple[str, ...], parts: Mapping[str, Arrays], notes: tuple[str, ...] = ()
) -> Contents:
    """The contents of arrays by split, all of one size; their order is kept.

    Raises ValueError for splits without images, of different sizes, or whose images and labels differ in number.
    """
    shape: tuple[int, ...] | None = None
    for split, part in parts.items():
        images = part.images
        size = images.shape[1:]
        if not (len(size) in (2, 3) and min(size[:2]) >= 1 and max(size[:2]) <= MOST_PIXELS and size[2:] in ((), (3,))):
            raise ValueError(
                f"{path}: {part.name} has the shape {images.shape}; allowed are (N, H, W) and (N, H, W, 3), of 1 to "
                f"{MOST_PIXELS} pixels a side"
            )
        if len(images) != len(part.labels):
            raise ValueError(f"{path} has {len(images):,} {split} images, but {len(part.labels):,} labels of them")
        if shape not in (None, size):
            raise ValueError(f"{path} has images of {shape} and of {size}; all must have one size")
        shape = size
        if not len(images):
            raise ValueError(f"{path} has no {split} images in {part.name}")
    assert shape is not None  # there is a part
    starts = np.cumsum([0, *(len(part.images) for part in parts.values())])
    arrays = [part.images for part in parts.values()]

    def read(index: int) -> bytes:
        part = int(np.searchsorted(starts, index, "right")) - 1
        return bytes(arrays[part][index - starts[part]].tobytes())

    return Contents(
        path,
        layout,
        classes,
        [f"{part.name} {index}" for part in parts.values() for index in range(len(part.images))],
        np.concatenate([part.labels for part in parts.values()]).astype(np.int64),
        {split: np.arange(starts[k], starts[k + 1]) for k, split in enumerate(parts)},
        read,
        pixel_decoder(shape),
        ordered=True,
        notes=notes,
    )
