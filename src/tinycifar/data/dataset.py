"""Images in memory: uint8 tensors with labels, class names and a digest of where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

Draws = np.ndarray[tuple[int], np.dtype[np.uint64]]
MOST_CLASSES = 1_000
NAMED = 5  # classes in a note
CLASSES: tuple[str, ...] = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of the training images, by channel, in [0, 1]
STD = (0.2470, 0.2435, 0.2616)
NAMES = ("cifar10", "sample")  # data that is known by name; all other is known by the digest of its content


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Dataset:
    """Images as uint8 (N, 3, S, S) tensors of RGB, labels as int64 (N,), indices into `classes`.

    The validation fields are None until `split` fills them, or from the start where the data brings its own. `digest`
    is the SHA-256 of own data's content, hexadecimal, computed from the tensors if it is not given; "" for CIFAR-10 and
    the sample, which `name` names. `path` is where own data lies, absolute, "" for data made in memory. `notes` are
    lines that say what was decided when it was read. `names` has by split ("train", "validation", "test") what each
    image is called, where that is known. `groups` (N,) are numbers that training images of one group share, which lie
    together; None where each is its own.

    Raises ValueError, saying what is wrong, for tensors that do not fit each other or this, and for fewer than two
    classes, or names of them that are no text, cannot be printed or are there twice.
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
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        self._check()
        if not self.digest and not self.path and self.name not in NAMES:
            object.__setattr__(self, "digest", self._digest())

    def _digest(self) -> str:
        found = hashlib.sha256("\0".join(self.classes).encode())
        parts = [self.train_images, self.train_labels, self.test_images, self.test_labels]
        if self.validation_images is not None and self.validation_labels is not None:
            parts += [self.validation_images, self.validation_labels]
        for part in parts:
            found.update(part.contiguous().numpy().data)
        return found.hexdigest()

    def _check(self) -> None:
        for name in (self.name, *self.classes):
            if not (isinstance(name, str) and name and name.isprintable()):
                raise ValueError(f"names of data and classes must be text that can be printed, not {name!r}")
        if not 2 <= len(self.classes) <= MOST_CLASSES or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"allowed are 2 to {MOST_CLASSES:,} classes of different names, not {len(self.classes):,}")
        known = self.name in NAMES and not self.digest and not self.path
        if known and self.classes != CLASSES:
            raise ValueError(f"{self.name} is the name of data that comes with the package; give another")
        parts = {"train": (self.train_images, self.train_labels), "test": (self.test_images, self.test_labels)}
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError("validation images and labels belong together: give both or neither")
        if self.validation_images is not None and self.validation_labels is not None:
            parts["validation"] = self.validation_images, self.validation_labels
        for name, (images, labels) in parts.items():
            if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4):
                raise ValueError(f"{name} images must be a tensor of uint8, (N, 3, S, S), not {_about(images)}")
            if not (isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1):
                raise ValueError(f"{name} labels must be a tensor of int64, (N,), not {_about(labels)}")
            side = self.train_images.shape[-1]
            if len(images) < 1 or images.shape[1:] != (3, side, side):
                raise ValueError(
                    f"{name} images must be one at least, in three colours, square, and all of one size, not "
                    f"{tuple(images.shape)}"
                )
            if len(images) != len(labels):
                raise ValueError(f"there are {len(images):,} {name} images, but {len(labels):,} labels of them")
            if not (labels.min() >= 0 and labels.max() < len(self.classes)):
                raise ValueError(f"{name} labels must be 0 to {len(self.classes) - 1}, the places of the classes")

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.train_images.shape[-1]

    def limit(self, count: int) -> Dataset:
        """Keep the first `count` training images, and all others; ValueError outside 1 to their number."""
        if not 1 <= count <= len(self.train_labels):
            raise ValueError(f"cannot keep {count} training images: allowed are 1 to {len(self.train_labels)}")
        names = {**self.names, "train": self.names["train"][:count]} if "train" in self.names else self.names
        kept = self.train_labels[:count]
        return replace(
            self,
            train_images=self.train_images[:count],
            train_labels=kept,
            names=names,
            groups=None if self.groups is None else self.groups[:count],
            notes=(*self.notes, *self._lost("Training", self.train_labels, kept)),
        )

    def _lost(self, part: str, before: Tensor, now: Tensor) -> list[str]:
        """A line that says which classes have no image any more, if any."""
        lost = sorted(set(before.tolist()) - set(now.tolist()))
        named = ", ".join(self.classes[label] for label in lost[:NAMED]) + ", ..." * (len(lost) > NAMED)
        count = f"{len(lost):,} class{'es' * (len(lost) > 1)}"
        return [f"{part} images lack {count} of {len(set(before.tolist())):,}: {named}"] if lost else []

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
        kept = self._between_groups(kept)
        names = self.names
        if "train" in names:
            names = {**names, "train": names["train"][:kept], "validation": names["train"][kept:]}
        lost = [
            line
            for part, labels in (("Training", self.train_labels[:kept]), ("Validation", self.train_labels[kept:]))
            for line in self._lost(part, self.train_labels, labels)
        ]
        return replace(
            self,
            notes=(*self.notes, *lost),
            train_images=self.train_images[:kept],
            train_labels=self.train_labels[:kept],
            validation_images=self.train_images[kept:],
            validation_labels=self.train_labels[kept:],
            names=names,
            groups=None if self.groups is None else self.groups[:kept],
        )

    def _between_groups(self, kept: int) -> int:
        """The number of images nearest to `kept` after which another group begins; ValueError if there is one group."""
        if self.groups is None:
            return kept
        starts = (self.groups.diff().nonzero()[:, 0] + 1).tolist()
        if not starts:
            raise ValueError("cannot hold out validation images: all training images are of one group")
        return int(min(starts, key=lambda start: abs(start - kept)))

    def statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of the training images by channel, in [0, 1]; CIFAR-10's are its known ones.

        A channel in which all pixels are alike has a deviation of one grey level, so that it can be divided by.
        """
        if not self.digest:
            return MEAN, STD
        count = self.train_images[:, 0].numel()
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in range(3):
            shares = torch.bincount(self.train_images[:, channel].reshape(-1), minlength=256).double() / count
            mean = (shares * levels).sum()
            means.append(mean.item())
            deviations.append(max((shares * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
        return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def _about(value: object) -> str:
    """A tensor or another thing in a few words."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def ranks(labels: Tensor, draws: Draws) -> Tensor:
    """The place (N,) of each image among those of its class, from 0, by the `draws` (N,) of the images."""
    by_class = np.lexsort((draws, labels.numpy()))
    counts = np.bincount(labels.numpy())
    places = np.empty(len(labels), np.int64)
    places[by_class] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    return torch.from_numpy(places)


def stratified(labels: Tensor, draws: Draws) -> Tensor:
    """Indices (N,) that put images into an order of which every part has each class in proportion, by `draws` else.

    The first and the last images of any number have, to within an image or so, each class's share.
    """
    places, counts = ranks(labels, draws).numpy(), np.bincount(labels.numpy())
    return torch.from_numpy(np.lexsort((draws, (places + 0.5) / counts[labels.numpy()])))
