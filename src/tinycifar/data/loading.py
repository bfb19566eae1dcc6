"""Where images come from: CIFAR-10, its sample, own data; and what the draws of an epoch come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from tinycifar.data import cifar10, folders, idx, pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.data.dataset import NAMES as NAMES
from tinycifar.data.dataset import Dataset as Dataset

SAMPLE = {"train.bin": (400, "fc0944f3738fba067151134e9410c27b"), "test.bin": (200, "5e4f2b92f766dc3ab440b9d40000c15c")}


def load(
    source: str | Path | None = None,
    cache: Path | None = None,
    *,
    image_size: int = 32,
    display: Progress | None = None,
) -> Dataset:
    """Load images into memory, resized to `image_size` pixels a side.

    `source` is "cifar10" or None for CIFAR-10 from the cache, which is filled first if files are missing, "sample" for
    the packaged sample of it, or a path: a folder of pictures, `train/CLASS/*.png` (see `tinycifar.data.folders`), a
    folder of IDX files as MNIST's (`tinycifar.data.idx`), or CIFAR-10's binary folder or archive. Every byte of
    CIFAR-10 is checked against the published digests. `display` shows the progress of slow steps. Raises ValueError for
    data that cannot be used, of which `cifar10.DataError` is the kind for damaged data; OSError if the disk fails.
    """
    if source == "sample":
        return sample(image_size)
    if source not in (None, "cifar10"):
        path = Path(str(source))
        for recognises, load_own in ((folders.recognises, folders.load), (idx.recognises, idx.load)):
            if recognises(path):
                return load_own(path, cifar10.cache_directory() if cache is None else cache, image_size, display)
        _check_cifar10(path)
    return _dataset("cifar10", cifar10.read(None if source == "cifar10" else source, cache), image_size)


def _check_cifar10(path: Path) -> None:
    """Raise DataError, with what is allowed, for a path that has nothing of CIFAR-10, whose reader judges the rest."""
    known = {cifar10.FOLDER, *cifar10.FILES, *cifar10.PICKLED}
    if path.is_file() or (path.is_dir() and known & {path.name, *(inside.name for inside in path.iterdir())}):
        return
    if path.is_dir() and folders.misplaced(path):
        raise cifar10.DataError(f"{path} has pictures, but no folder train; what it needs is {folders.LAYOUT}")
    problem = "holds no images that are known here" if path.exists() else "does not exist"
    raise cifar10.DataError(
        f"{path} {problem}; allowed are cifar10, sample, a folder with {folders.LAYOUT}, one with the four files of an "
        f"MNIST ({idx.FILES['train'][0]}, ...), and CIFAR-10's folder {cifar10.FOLDER} or its archive"
    )


def sample(image_size: int = 32) -> Dataset:
    """Load the packaged sample: the first 400 training and 200 test images of CIFAR-10, for trials and tests."""
    folder = Path(__file__).parent / "sample"
    found = [cifar10.examine(folder / name, records, md5) for name, (records, md5) in SAMPLE.items()]
    for state, _ in found:
        if not state.ok:
            raise cifar10.DataError(f"{folder / state.name}: {state.problem}. Install tinycifar again")
    return _dataset("sample", [data for _, data in found], image_size)


def _dataset(name: str, parts: Sequence[bytes], image_size: int) -> Dataset:
    """Turn the contents of binary files, the last one the test set, into tensors."""
    records = [np.frombuffer(part, np.uint8).reshape(-1, cifar10.RECORD_BYTES) for part in parts]
    halves: list[tuple[Tensor, Tensor]] = []
    for half in (records[:-1], records[-1:]):
        images = torch.from_numpy(np.concatenate([r[:, 1:] for r in half])).view(-1, 3, 32, 32)
        labels = torch.from_numpy(np.concatenate([r[:, 0] for r in half])).long()
        halves.append((pictures.resized(images, image_size), labels))
    return Dataset(name, CLASSES, *halves[0], *halves[1])
