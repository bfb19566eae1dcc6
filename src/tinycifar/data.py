"""Images in memory: CIFAR-10 as uint8 tensors, its classes and statistics, and what the draws of an epoch come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinycifar import cifar10

SAMPLE = {"train.bin": (400, "fc0944f3738fba067151134e9410c27b"), "test.bin": (200, "5e4f2b92f766dc3ab440b9d40000c15c")}


NAMES = ("cifar10", "sample")  # what `load` takes besides paths


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Dataset:
    """Images as uint8 (N, 3, 32, 32) tensors of RGB, labels as int64 (N,), indices into `classes`.

    The validation fields are None until `split` fills them.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None

    def limit(self, count: int) -> Dataset:
        """Keep the first `count` training images, and all others; ValueError outside 1 to their number."""
        if not 1 <= count <= len(self.train_labels):
            raise ValueError(f"cannot keep {count} training images: allowed are 1 to {len(self.train_labels)}")
        return replace(self, train_images=self.train_images[:count], train_labels=self.train_labels[:count])

    def split(self, validation_images: int) -> Dataset:
        """Hold out the last `validation_images` training images; 0 holds out none.

        Raises ValueError if that leaves nothing to train on, or if images are held out already.
        """
        if self.validation_images is not None:
            raise ValueError("this data set has validation images already")
        kept = len(self.train_labels) - validation_images
        if validation_images < 0 or kept < 1:
            raise ValueError(
                f"cannot hold out {validation_images} images: allowed are 0 to {len(self.train_labels) - 1}"
            )
        if validation_images == 0:
            return self
        return replace(
            self,
            train_images=self.train_images[:kept],
            train_labels=self.train_labels[:kept],
            validation_images=self.train_images[kept:],
            validation_labels=self.train_labels[kept:],
        )


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
    kept = torch.zeros(len(losses), dtype=torch.bool)
    kept[losses.argsort(stable=True)[len(losses) - count :]] = True
    return order[kept[order]]


def load(source: str | Path | None = None, cache: Path | None = None) -> Dataset:
    """Load CIFAR-10 into memory, every byte checked against the published digests.

    `source` is "sample" for the packaged sample, "cifar10" or None for the cache, which is filled first if files are
    missing, or the path of a folder or archive. Raises `cifar10.DataError`, also for a damaged file in the cache.
    """
    if source == "sample":
        return sample()
    return _dataset("cifar10", cifar10.read(None if source == "cifar10" else source, cache))


def sample() -> Dataset:
    """Load the packaged sample: the first 400 training and 200 test images of CIFAR-10, for trials and tests."""
    folder = Path(__file__).parent / "sample"
    found = [cifar10.examine(folder / name, records, md5) for name, (records, md5) in SAMPLE.items()]
    for state, _ in found:
        if not state.ok:
            raise cifar10.DataError(f"{folder / state.name}: {state.problem}. Install tinycifar again")
    return _dataset("sample", [data for _, data in found])


def _dataset(name: str, parts: Sequence[bytes]) -> Dataset:
    """Turn the contents of binary files, the last one the test set, into tensors."""
    records = [np.frombuffer(part, np.uint8).reshape(-1, cifar10.RECORD_BYTES) for part in parts]
    tensors = []
    for half in (records[:-1], records[-1:]):
        tensors.append(torch.from_numpy(np.concatenate([r[:, 1:] for r in half])).view(-1, 3, 32, 32))
        tensors.append(torch.from_numpy(np.concatenate([r[:, 0] for r in half])).long())
    return Dataset(name, cifar10.CLASSES, *tensors)
