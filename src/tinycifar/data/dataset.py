"""Images in memory: uint8 tensors with labels and class names, and the identity that follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinycifar.catalog import check_channels
from tinycifar.words import is_printable

Draws = np.ndarray[tuple[int], np.dtype[np.uint64]]
Digests = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
"""SHA-256 digests of images, (N, 32)."""
MOST_CLASSES = 1_000
NAMED = 5  # classes in a note
ROWS = 4_096  # images that are computed on together
CLASSES: tuple[str, ...] = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, by channel, in [0, 1]
STD = (0.2470, 0.2435, 0.2616)
NAMES = ("cifar10", "sample")
SPLITS = ("train", "validation", "test")
KNOWN = {  # digests of the data that is known by name
    "ecae167889d6dedd9344db0e65d426c46bd871b92360c19955f551aa134173fd": "cifar10",
    "466fc5a74d398744449d9f7374dd35df37d940fd4babc98b7a91313940c5dd6b": "sample",
}


@dataclass(frozen=True, eq=False)
class Origin:
    """Digests (N, 32) of what a loader decoded `images` from, such as the bytes of files.

    They are the same at any image size. They hold for this very tensor as it is now, and for no other.
    """

    images: Tensor
    digests: Digests
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", _version(self.images))

    def is_of(self, images: Tensor | None) -> bool:
        """Whether `images` is the tensor that the loader made, unchanged since."""
        return images is self.images and _version(images) == self.version


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Dataset:
    """Images as uint8 tensors (N, C, S, S), C being 3 for RGB or 1 for grey, labels as int64 (N,), from 0 to classes.

    The validation fields are None until `split` fills them, or from the start if the data brings its own. `path` is the
    absolute path of own data, "" for data made in memory. `notes` are lines that say what was decided when it was
    read. `names` has by split ("train", "validation", "test") what each image is called, if that is known. `origins`
    has by split what a loader decoded the images from; an origin of other tensors is dropped. `skipped` counts files
    that could not be read and were left out, by problem. `groups` (N,) are numbers that training images of one group
    share, which lie together; None if each image is its own group.

    What the data is follows from its content alone: `digest` is computed from the tensors, never copied.

    Data that is only to be scored may have no training images. Raises ValueError, saying what is wrong, for tensors
    that do not fit each other or this, and for fewer than two classes, or names of them that are no text, cannot be
    printed or are there twice.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None
    path: str = ""
    notes: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Tensor | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict, repr=False)
    skipped: Mapping[str, int] = field(default_factory=dict)
    _computed: dict[str, tuple[object, Digests]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        self._check()
        valid = {split: origin for split, origin in self.origins.items() if origin.is_of(self.images(split))}
        object.__setattr__(self, "origins", valid)

    def images(self, split: str) -> Tensor | None:
        """The images of "train", "validation" or "test"; None for validation images that there are not."""
        return {"train": self.train_images, "validation": self.validation_images, "test": self.test_images}[split]

    def labels(self, split: str) -> Tensor | None:
        """The labels that belong to `images`."""
        return {"train": self.train_labels, "validation": self.validation_labels, "test": self.test_labels}[split]

    def digests(self, split: str) -> Digests:
        """Digests (N, 32) of the images of a split: of what they were decoded from, else of their pixels."""
        images, origin = self.images(split), self.origins.get(split)
        if images is None:
            return np.empty((0, 32), np.uint8)
        if origin is not None and origin.is_of(images):
            return origin.digests
        state = (id(images), _version(images))
        known, digests = self._computed.get(split, (None, None))
        if digests is None or known != state:
            digests = pixel_digests(images.numpy())
            self._computed[split] = state, digests
        return digests

    @property
    def digest(self) -> str:
        """The SHA-256, hexadecimal, of classes, images and labels in their order; holding images out does not matter.

        It is the same for a folder of pictures that was moved, and at every image size. CIFAR-10 takes 0.2 seconds.
        """
        content = hashlib.sha256(json.dumps(self.classes).encode())
        for splits in (("train", "validation"), ("test",)):
            labels = [labels for split in splits if (labels := self.labels(split)) is not None]
            content.update(f"{sum(map(len, labels))} images".encode())
            for split in splits:
                content.update(self.digests(split).tobytes())
            for part in labels:
                content.update(part.numpy().astype("<i8").tobytes())
        return content.hexdigest()

    @property
    def known(self) -> str:
        """The name "cifar10" or "sample" if this is that data, whatever it is called; "" for all other."""
        return KNOWN.get(self.digest, "")

    @property
    def data_digest(self) -> str:
        """What runs store to recognise their data: its digest, or "" for data that is `known` by name."""
        digest = self.digest
        return "" if digest in KNOWN else digest

    def _check(self) -> None:
        for name in (self.name, *self.classes):
            if not (isinstance(name, str) and name and is_printable(name)):
                raise ValueError(f"names of data and classes must be text that can be printed, not {name!r}")
        if not 2 <= len(self.classes) <= MOST_CLASSES or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"allowed are 2 to {MOST_CLASSES:,} classes of different names, not {len(self.classes):,}")
        if self.name in NAMES and not self.path and self.classes != CLASSES:
            raise ValueError(f"{self.name} is the name of data that comes with the package; give another")
        parts = {"train": (self.train_images, self.train_labels), "test": (self.test_images, self.test_labels)}
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError("validation images and labels belong together: give both or neither")
        if self.validation_images is not None and self.validation_labels is not None:
            parts["validation"] = self.validation_images, self.validation_labels
        for name, (images, labels) in parts.items():
            if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4):
                raise ValueError(f"{name} images must be a tensor of uint8, (N, C, S, S), not {_about(images)}")
            if not (isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1):
                raise ValueError(f"{name} labels must be a tensor of int64, (N,), not {_about(labels)}")
            shape = (self.channels, self.image_size, self.image_size)
            if (len(images) < 1 and name != "train") or images.shape[1:] != shape or self.channels not in (1, 3):
                raise ValueError(
                    f"{name} images must be one at least, in three colours or one channel of grey, square, and all of "
                    f"one size, not {tuple(images.shape)}"
                )
            if len(images) != len(labels):
                raise ValueError(f"there are {len(images):,} {name} images, but {len(labels):,} labels of them")
            if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
                raise ValueError(f"{name} labels must be 0 to {len(self.classes) - 1}, the places of the classes")

        if self.groups is not None and not (
            len(self.groups) == len(self.train_labels)
            and len(set(self.groups.tolist())) == int((self.groups.diff() != 0).sum()) + 1
        ):
            raise ValueError("groups must be a number for each training image, and those of one group lie together")

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.train_images.shape[-1]

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for red, green and blue."""
        return self.train_images.shape[1]

    def with_channels(self, channels: int) -> Dataset:
        """The same images in one channel, grey as Pillow's "L" has it, or in three that are alike; ValueError else.

        It is still the same data: its digests stay. A note says so if there were colours.
        """
        check_channels(channels)
        if channels == self.channels:
            return self
        before = {split: part for split in SPLITS if (part := self.images(split)) is not None}
        images = {
            split: to_grey(part) if channels == 1 else part.expand(-1, 3, -1, -1).contiguous()
            for split, part in before.items()
        }
        colours = channels == 1 and not all(map(is_grey, before.values()))
        note = ("The pictures have colours; channels=1 converts them to grey",) if colours else ()
        return replace(
            self,
            train_images=images["train"],
            validation_images=images.get("validation"),
            test_images=images["test"],
            origins={split: Origin(part, self.digests(split)) for split, part in images.items()},
            notes=(*self.notes, *note),
        )

    def limit(self, count: int) -> Dataset:
        """Keep the first `count` training images, and all others; ValueError outside 1 to their number."""
        if not 1 <= count <= len(self.train_labels):
            raise ValueError(f"cannot keep {count} training images: allowed are 1 to {len(self.train_labels)}")
        return self._part("train", slice(count))

    def _part(self, split: str, rows: slice) -> Dataset:
        """The same data with these rows of the training images as those of `split`, "train" or "validation"."""
        images, labels = self.train_images[rows], self.train_labels[rows]
        changes: dict[str, Any] = {f"{split}_images": images, f"{split}_labels": labels}
        if "train" in self.names:
            changes["names"] = {**self.names, split: self.names["train"][rows]}
        if "train" in self.origins and self.origins["train"].is_of(self.train_images):
            changes["origins"] = {**self.origins, split: Origin(images, self.origins["train"].digests[rows])}
        if split == "train" and self.groups is not None:
            changes["groups"] = self.groups[rows]
        before = set(self.train_labels.tolist())
        if lost := sorted(before - set(labels.tolist())):
            first = ", ".join(self.classes[label] for label in lost[:NAMED]) + ", ..." * (len(lost) > NAMED)
            count = f"{len(lost):,} class{'es' * (len(lost) > 1)}"
            part = {"train": "Training", "validation": "Validation"}[split]
            changes["notes"] = (*self.notes, f"{part} images lack {count} of {len(before):,}: {first}")
        return replace(self, **changes)

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
        first = len(self.train_labels) - validation_images
        if validation_images < 0 or first < 1:
            raise ValueError(
                f"cannot hold out {validation_images} images: allowed are 0 to {len(self.train_labels) - 1}"
            )
        first = self._between_groups(first)
        return self._part("validation", slice(first, None))._part("train", slice(first))

    def _between_groups(self, wanted: int) -> int:
        """The number nearest to `wanted` after which another group begins; ValueError if there is one group."""
        if self.groups is None:
            return wanted
        starts = (self.groups.diff().nonzero()[:, 0] + 1).tolist()
        if not starts:
            raise ValueError("cannot hold out validation images: all training images are of one group")
        return int(min(starts, key=lambda start: abs(start - wanted)))

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the training images by channel, in [0, 1]; CIFAR-10's are its known ones.

        A channel in which all pixels are alike has a deviation of one grey level, so that it can be divided by.
        """
        if self.channels == 3 and self.known:
            return MEAN, STD
        counts = torch.zeros(self.channels, 256, dtype=torch.int64)
        for images in torch.split(self.train_images, ROWS):  # in parts, as all at once would be copied
            for channel in range(self.channels):
                counts[channel] += torch.bincount(images[:, channel].reshape(-1), minlength=256)
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for shares in counts.double() / counts[0].sum():
            mean = (shares * levels).sum()
            means.append(mean.item())
            deviations.append(max((shares * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
        return tuple(means), tuple(deviations)


def to_grey(images: Tensor) -> Tensor:
    """Images uint8 (N, 1, H, W), grey as Pillow's "L" has it, from uint8 (N, 3, H, W)."""
    grey = images.new_empty(len(images), 1, *images.shape[2:])
    for start in range(0, len(images), ROWS):
        red, green, blue = images[start : start + ROWS].int().unbind(1)
        grey[start : start + ROWS, 0] = (19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16
    return grey


def is_grey(images: Tensor) -> bool:
    """Whether the three channels of all images (N, 3, H, W) are alike."""
    return all(bool((part[:, :1] == part[:, 1:]).all()) for part in torch.split(images, ROWS))


def pixel_digests(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Digests:
    """The SHA-256 (N, 32) of the pixels of each image of uint8 (N, ...)."""
    rows = np.ascontiguousarray(images)
    return np.frombuffer(b"".join(hashlib.sha256(row.data).digest() for row in rows), np.uint8).reshape(-1, 32)


def _version(images: Tensor) -> int:
    """A number that grows whenever a tensor is changed in place."""
    return 0 if images.is_inference() else images._version


def _about(value: object) -> str:
    """A tensor or another thing in a few words."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def ranks(labels: Tensor, draws: Draws) -> Tensor:
    """The place (N,) of each image among those of its class, from 0, by the `draws` (N,) of the images."""
    by_class = np.lexsort((draws, labels.numpy()))
    counts = np.bincount(labels.numpy())
    positions = np.empty(len(labels), np.int64)
    positions[by_class] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    return torch.from_numpy(positions)


def stratified(labels: Tensor, draws: Draws) -> Tensor:
    """Indices (N,) that put images into an order of which every part has each class in proportion, by `draws` else.

    The first and the last images of any number have, to within an image or so, each class's share.
    """
    positions, counts = ranks(labels, draws).numpy(), np.bincount(labels.numpy())
    return torch.from_numpy(np.lexsort((draws, (positions + 0.5) / counts[labels.numpy()])))
