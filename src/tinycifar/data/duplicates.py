"""Near-duplicates: images on both sides of a split that a perceptual hash takes for the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HASH_SIDE = 32  # pixels a side from which a hash is computed
LOW = 8  # frequencies a side that it keeps: 64 bits
MOST_DISTANCE = 6  # bits in which near-duplicates differ at most
ROWS = 1_000  # images that are compared together


def perceptual_hashes(images: Tensor) -> Tensor:
    """64 signs (N, 64), float32, -1 or 1, of uint8 images (N, C, S, S): pHash, as the library ImageHash computes it.

    Of the grey image's discrete cosine transform it has the 8 x 8 lowest frequencies, each compared with their median
    (Zauner 2010). It is written out here, as the library takes pictures one by one and needs two more packages.
    """
    from scipy.fft import dctn  # a quarter of a second to load

    parts = []
    for part in torch.split(images, ROWS):
        grey = (part.expand(-1, 3, -1, -1).float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
        if grey.shape[-1] != HASH_SIDE:
            grey = torch.nn.functional.interpolate(grey[:, None], HASH_SIDE, mode="bilinear", antialias=True)[:, 0]
        low = dctn(grey.numpy(), axes=(1, 2))[:, :LOW, :LOW].reshape(len(part), -1)
        parts.append(np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.float32))
    return torch.from_numpy(np.concatenate(parts))


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N images the bits (N,) in which it differs from the most similar of `others`, and which (N,)."""
    own, known = perceptual_hashes(images), perceptual_hashes(others)
    distances, indices = [], []
    for part in torch.split(own, ROWS):
        most, index = (part @ known.T).max(1)
        distances.append(((own.shape[1] - most) / 2).round().long())
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def near_duplicates(images: Tensor, others: Tensor) -> int:
    """How many of `images` differ from some image of `others` in at most `MOST_DISTANCE` of 64 bits."""
    return int((nearest(images, others)[0] <= MOST_DISTANCE).sum())
