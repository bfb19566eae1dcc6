"""Images in memory: uint8 tensors with labels, class names and a digest of where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tinycifar import cifar10

NAMES = ("cifar10", "sample")  # data that is known by name; all other is known by the digest of its content


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Dataset:
    """Images as uint8 (N, 3, S, S) tensors of RGB, labels as int64 (N,), indices into `classes`.

    The validation fields are None until `split` fills them, or from the start where the data brings its own. `digest`
    is the SHA-256 of own data's content, hexadecimal, computed from the tensors if it is not given; "" for CIFAR-10 and
    the sample, which `name` names. `path` is where own data lies, absolute, "" for data made in memory. `notes` are
    lines that say what was decided when it was read. `names` has by split ("train", "validation", "test") what each
    image is called, where that is known.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None
    digest: str = ""
    path: str = ""
    notes: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.digest and not self.path and self.name not in NAMES:
            object.__setattr__(self, "digest", self._digest())

    def _digest(self) -> str:
        found = hashlib.sha256("\0".join(self.classes).encode())
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            found.update(part.contiguous().numpy().data)
        return found.hexdigest()

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.train_images.shape[-1]

    def limit(self, count: int) -> Dataset:
        """Keep the first `count` training images, and all others; ValueError outside 1 to their number."""
        if not 1 <= count <= len(self.train_labels):
            raise ValueError(f"cannot keep {count} training images: allowed are 1 to {len(self.train_labels)}")
        names = {**self.names, "train": self.names["train"][:count]} if "train" in self.names else self.names
        return replace(
            self, train_images=self.train_images[:count], train_labels=self.train_labels[:count], names=names
        )

    def split(self, validation_images: int) -> Dataset:
        """Hold out the last `validation_images` training images; 0 changes nothing.

        Raises ValueError if that leaves nothing to train on, or if images are held out already.
        """
        if validation_images == 0:
            return self
        if self.validation_images is not None:
            raise ValueError(
                f"this data has {len(self.validation_images):,} validation images already; "
                "leave validation_images at 0 for it"
            )
        kept = len(self.train_labels) - validation_images
        if validation_images < 0 or kept < 1:
            raise ValueError(
                f"cannot hold out {validation_images} images: allowed are 0 to {len(self.train_labels) - 1}"
            )
        names = self.names
        if "train" in names:
            names = {**names, "train": names["train"][:kept], "validation": names["train"][kept:]}
        return replace(
            self,
            train_images=self.train_images[:kept],
            train_labels=self.train_labels[:kept],
            validation_images=self.train_images[kept:],
            validation_labels=self.train_labels[kept:],
            names=names,
        )

    def statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of the training images by channel, in [0, 1]; CIFAR-10's are its known ones.

        A channel in which all pixels are alike has a deviation of one grey level, so that it can be divided by.
        """
        if not self.digest:
            return cifar10.MEAN, cifar10.STD
        count = self.train_images[:, 0].numel()
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in range(3):
            shares = torch.bincount(self.train_images[:, channel].reshape(-1), minlength=256).double() / count
            mean = (shares * levels).sum()
            means.append(mean.item())
            deviations.append(max((shares * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
        return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def ranks(labels: Tensor, seed: int) -> Tensor:
    """The place (N,) of each image among those of its class, from 0, shuffled: a function of (labels, seed) only."""
    return _ranks(labels, seed)[0]


def stratified(labels: Tensor, seed: int) -> Tensor:
    """Indices (N,) that put images into an order of which every part has each class in proportion, shuffled else.

    The first and the last images of any number have, to within an image or so, each class's share.
    """
    places, draws = _ranks(labels, seed)
    counts = np.bincount(labels.numpy())
    return torch.from_numpy(np.lexsort((draws, (places.numpy() + 0.5) / counts[labels.numpy()])))


def _ranks(labels: Tensor, seed: int) -> tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """Places as of `ranks`, and the draws they come from: raw ones, as only those are promised to stay the same."""
    draws = np.random.PCG64(seed).random_raw(len(labels))
    by_class = np.lexsort((draws, labels.numpy()))
    counts = np.bincount(labels.numpy())
    places = np.empty(len(labels), np.int64)
    places[by_class] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    return torch.from_numpy(places), draws
