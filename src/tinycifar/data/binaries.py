"""The binary versions of CIFAR-100 and STL-10, as folders or archives."""

from __future__ import annotations

import numpy as np

from tinycifar.data import arrays
from tinycifar.data.arrays import Arrays, Bytes
from tinycifar.data.contents import Contents, Labels
from tinycifar.data.trees import Tree

MOST_BYTES = 1 << 30  # of a file
CIFAR100 = "cifar-100-binary"
CIFAR100_RECORD = 2 + 3 * 32 * 32  # the coarse label, the fine one, then red, green and blue planes
CIFAR100_CLASSES = {"fine": 100, "coarse": 20}
STL10 = "stl10_binary"
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
STL10_SHAPE = (3, 96, 96)


def top(tree: Tree, folder: str, file: str) -> str | None:
    """The folder of a tree that has `file`, its top or `folder`; None if neither has it."""
    return next((f"{base}/".lstrip("/") for base in ("", folder) if file in tree.names(base, "file")), None)


def read_cifar100(tree: Tree, base: str, labels: str) -> Contents:
    """Read CIFAR-100's `train.bin` and `test.bin` with their "fine" or "coarse" labels.

    Raises ValueError for files of other sizes, labels that there are not, and names that cannot be used.
    """
    kind = labels or "fine"
    count, column = CIFAR100_CLASSES[kind], ("coarse", "fine").index(kind)
    classes = _class_names(tree, base, f"{kind}_label_names.txt", count) or tuple(map(str, range(count)))
    parts = {}
    for split in ("train", "test"):
        if f"{split}.bin" in tree.names(base.rstrip("/"), "file"):
            records = _bytes(tree, f"{base}{split}.bin", CIFAR100_RECORD).reshape(-1, CIFAR100_RECORD)
            values = records[:, column].astype(np.int64)
            _check_labels(tree, f"{base}{split}.bin", values, 0, count - 1)
            images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            parts[split] = Arrays(split, images, values)
    return arrays.contents(tree.path, f"CIFAR-100's binary version, {kind} labels", classes, parts)


def read_stl10(tree: Tree, base: str) -> Contents:
    """Read STL-10's `train_X.bin`, `train_y.bin`, `test_X.bin` and `test_y.bin`; `unlabeled_X.bin` is left out.

    Its pixels are stored column by column. Raises ValueError for files of other sizes and labels outside 1 to 10.
    """
    parts = {}
    names = tree.names(base.rstrip("/"), "file")
    for split in ("train", "test"):
        files = [f"{split}_X.bin", f"{split}_y.bin"]
        if missing := [name for name in files if name not in names]:
            if len(missing) == 1:
                raise ValueError(f"{tree.path} has no {missing[0]}; {' and '.join(files)} belong together")
            continue
        pixels = _bytes(tree, f"{base}{files[0]}", int(np.prod(STL10_SHAPE)))
        values = _bytes(tree, f"{base}{files[1]}", 1).astype(np.int64)
        _check_labels(tree, f"{base}{files[1]}", values, 1, len(STL10_CLASSES))
        parts[split] = Arrays(split, pixels.reshape(-1, *STL10_SHAPE).transpose(0, 3, 2, 1), values - 1)
    notes = ("unlabeled_X.bin is left out",) if "unlabeled_X.bin" in names else ()
    return arrays.contents(tree.path, "STL-10's binary version", STL10_CLASSES, parts, notes)


def _bytes(tree: Tree, name: str, record: int) -> Bytes:
    """The bytes of a file of whole records."""
    try:
        content = tree.read(name, MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"{tree.where(name)} cannot be used: {error}") from None
    if not content or len(content) % record:
        raise ValueError(f"{tree.where(name)} has {len(content):,} bytes, which are not records of {record:,} bytes")
    return np.frombuffer(content, np.uint8)


def _check_labels(tree: Tree, name: str, labels: Labels, least: int, most: int) -> None:
    if labels.min() < least or labels.max() > most:
        wrong = labels.min() if labels.min() < least else labels.max()
        raise ValueError(f"{tree.where(name)} has a label {wrong}; allowed are {least} to {most}")


def _class_names(tree: Tree, base: str, name: str, count: int) -> tuple[str, ...] | None:
    """The lines of a file with the names of classes; None if there is none."""
    if name not in tree.names(base.rstrip("/"), "file"):
        return None
    lines = tree.read(f"{base}{name}", 100_000).decode("utf-8", "replace").split()
    if len(lines) != count or len(set(lines)) != count:
        raise ValueError(f"{tree.where(f'{base}{name}')} has {len(set(lines))} different names; expected are {count}")
    return tuple(lines)
