"""How an exported model compares with the model it was made from, and how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinycifar import data
from tinycifar.data import Dataset
from tinycifar.trained import Trained

CALIBRATION_IMAGES, COMPARED_IMAGES = 400, 200  # at most; as many as the sample has


class ParityError(Exception):
    """An exported model that disagrees with its original; it is not written."""

    exit_code = 1


@dataclass(frozen=True)
class Parity:
    """How exported logits compare with the expected ones on `images` images.

    `same_class` images have the same most probable class. For `undecided` others the expected logits of the two classes
    differ by less than three times the root mean square of all differences. `largest_difference` is that of any logit.
    `relative_error` is the root mean square of the differences, relative to that of the expected logits around their
    image's mean.
    """

    images: int
    same_class: int
    undecided: int
    largest_difference: float
    relative_error: float


@dataclass(frozen=True)
class Exported:
    """A file that was written: its size in bytes, what it is, and how it compares with its model in `runtime`."""

    path: Path
    size: int
    form: str
    runtime: str
    parity: Parity


def compare(expected: Tensor, exported: Tensor) -> Parity:
    """Compare logits, each (N, num_classes)."""
    difference = expected - exported
    spread = (expected - expected.mean(1, keepdim=True)).square().mean().sqrt()
    error = difference.square().mean().sqrt()
    top, other = expected.argmax(1, keepdim=True), exported.argmax(1, keepdim=True)
    margin = (expected.gather(1, top) - expected.gather(1, other)).flatten()
    same = (top == other).flatten()
    return Parity(
        images=len(expected),
        same_class=int(same.sum()),
        undecided=int((~same & (margin < 3 * error)).sum()),
        largest_difference=float(difference.abs().max()),
        relative_error=float(error / spread) if spread > 0 or error != 0 else 0.0,
    )


@dataclass(frozen=True)
class Tolerance:
    """How far logits may be off. Both limits must hold.

    `classes` is the least share of images that keep their class; undecided ones count as kept. `logits` is the largest
    relative error.
    """

    classes: float
    logits: float

    def check(self, expected: Tensor, exported: Tensor, what: str) -> Parity:
        """Compare logits, each (N, num_classes); ParityError, naming `what` disagrees, unless both limits hold."""
        parity = compare(expected, exported)
        agreeing = (parity.same_class + parity.undecided) / parity.images
        if not (agreeing >= self.classes and parity.relative_error <= self.logits):  # not a number fails too
            raise ParityError(
                f"{what}: {parity.images - parity.same_class} of {parity.images} images get another class, "
                f"{parity.undecided} of them undecided; logits differ by up to {parity.largest_difference:.2g}, "
                f"{parity.relative_error:.2%} root mean square ({self.logits:.2%} allowed); it is not written"
            )
        return parity


FLOAT = Tolerance(classes=1.0, logits=1e-4)
INT8 = Tolerance(classes=0.97, logits=0.1)


def known_data(trained: Trained, dataset: Dataset | None = None) -> Dataset:
    """The images on which a model's exports are compared: `dataset`, or its own data, or the sample for CIFAR-10.

    The training images of its own data are those that it was trained on. Raises ValueError if the data is gone or has
    changed, and for images of another size.
    """
    if dataset is None:
        dataset = trained.dataset() if trained.data_digest else data.sample(trained.image_size)
    if dataset.image_size != trained.image_size:
        raise ValueError(
            f"{trained.name} takes images of {trained.image_size} pixels a side, those of {dataset.name} have "
            f"{dataset.image_size}"
        )
    dataset = dataset.with_channels(trained.channels)
    own = trained.data_digest and trained.trained_on(dataset) and dataset.validation_images is None
    return dataset.split(trained.validation_images) if own else dataset


def metadata(trained: Trained, preprocessing: str, outputs: str) -> dict[str, object]:
    """What a file says of its model; `preprocessing` is the layout and range of pixels of the model's size."""
    colours = "RGB" if trained.channels == 3 else "grey (Pillow's L: 0.299 R + 0.587 G + 0.114 B)"
    return {
        "model": trained.model_name,
        "recipe": trained.recipe,
        "data": trained.data,
        **vars(trained.form),
        "classes": trained.classes,
        "preprocessing": f"{colours}, {trained.image_size}x{trained.image_size} pixels, {preprocessing}",
        "temperature": trained.temperature,
        "kept": trained.kept,
        "outputs": outputs,
        "weights_sha256": trained.sha256,
    }


def spread_out(rows: Tensor, most: int) -> Tensor:
    """At most that many of the rows (N, ...), evenly spread: images of a folder are in the order of classes."""
    count = min(most, len(rows))
    return rows[torch.arange(count) * len(rows) // count]
