"""Own data: NumPy's .npz files in MedMNIST's format, `train_images`, `train_labels` and so on, or in Keras's."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tinycifar.data import arrays
from tinycifar.data.arrays import MOST_BYTES, Arrays, Bytes
from tinycifar.data.contents import Contents, Labels
from tinycifar.data.trees import Tree, ZipTree

NAMES = {  # by split, those of images and labels
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
LAYOUT = "train_images, train_labels, and optionally val_images, val_labels, test_images and test_labels"


def read(path: Path) -> Contents:
    """Read images, uint8 (N, H, W) in grey or (N, H, W, 3) in RGB, and labels, whole numbers (N,) or (N, 1).

    Nothing is unpickled. Raises ValueError for other arrays, damaged ones, and those of more than `MOST_BYTES`.
    """
    tree = ZipTree(path)
    members = tree.names("", "file")
    parts: dict[str, Arrays] = {}
    values: dict[str, Labels] = {}
    for split, choices in NAMES.items():
        for images_name, labels_name in choices:
            given = [name for name in (images_name, labels_name) if f"{name}.npy" in members]
            if len(given) == 1:
                raise ValueError(f"{path} has {given[0]}, but not both {images_name} and {labels_name}")
            if given and split in parts:
                raise ValueError(f"{path} has {parts[split].name} and {images_name}; keep one of them")
            if given:
                images = _array(tree, images_name)
                if images.dtype != np.uint8:
                    raise ValueError(f"{path}: {images_name} is of {images.dtype}; allowed is uint8, 0 to 255")
                values[split] = _labels(path, labels_name, _array(tree, labels_name))
                parts[split] = Arrays(images_name, images, values[split])
    if not parts:
        shown = ", ".join(name.removesuffix(".npy") for name in members[:8]) or "nothing"
        raise ValueError(f"{path} holds {shown}; expected are {LAYOUT}")
    known = np.unique(np.concatenate(list(values.values())))
    parts = {
        split: Arrays(part.name, part.images, np.searchsorted(known, part.labels)) for split, part in parts.items()
    }
    shape = next(iter(parts.values())).images.shape[1:]
    size = f"{'grey' if len(shape) == 2 else 'RGB'} {'x'.join(map(str, shape[:2]))}"
    return arrays.contents(path, f"NumPy arrays, {size}", tuple(str(value) for value in known.tolist()), parts)


def _labels(path: Path, name: str, labels: Bytes) -> Labels:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(f"{path}: {name} has {labels.shape[1]} labels an image; allowed is one")
    if labels.dtype.kind not in "ui" or labels.ndim not in (1, 2):
        raise ValueError(
            f"{path}: {name} is {labels.dtype} {labels.shape}; allowed are whole numbers of the shape (N,) or (N, 1)"
        )
    if labels.size and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{path}: {name} has a label {labels.max()}; allowed are labels below 2**63")
    return labels.reshape(-1).astype(np.int64)


def _array(tree: Tree, name: str) -> Bytes:
    """An array of an archive, whose header is checked before its content is read."""
    member = f"{name}.npy"
    try:
        with tree.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version == (3, 0):
                raise ValueError("it is in version 3.0 of NumPy's format; allowed are 1.0 and 2.0")
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header[version](file)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or size > MOST_BYTES:
                raise ValueError(f"{dtype} {shape}, {size:,} bytes; allowed are {MOST_BYTES:,} bytes of plain numbers")
        with tree.open(member) as file:
            array: Bytes = np.lib.format.read_array(file, allow_pickle=False)
    except (KeyError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{tree.path}: {name} cannot be used: {' '.join(str(error).split())[:200]}") from None
    return array
