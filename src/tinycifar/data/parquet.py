"""Own data: parquet files with pictures, as the Hugging Face hub holds image data sets. Needs the extra `parquet`."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from tinycifar.data import contents, folders
from tinycifar.data.contents import Contents, split_of
from tinycifar.data.pictures import MOST_BYTES
from tinycifar.data.trees import Tree
from tinycifar.words import counted, printable

MOST_FILE_BYTES = 2 << 30  # of all files: the pictures, as they are packed, are held in memory
IMAGES = ("image", "img", "picture")
LABELS = {"fine": ("label", "labels", "fine_label", "class", "target"), "coarse": ("coarse_label",)}


def find(tree: Tree) -> list[str]:
    """The parquet files of a folder, or of its folder `data`, where the hub has them."""
    files: list[str] = []
    for folder in ("", "data"):
        names = [name for name in tree.names(folder, "file") if name.lower().endswith(".parquet")]
        files = files or [f"{folder}/{name}".lstrip("/") for name in names]
    return files


def read(tree: Tree, files: list[str], labels: str = "", group: str = "") -> Contents:
    """Read parquet files with a column of pictures, a struct with `bytes` or the bytes alone, and one of labels.

    Labels are whole numbers, which the schema may name, or texts. A file's split is what its name begins with, as
    train-00000-of-00002.parquet; one file alone is the training images. Raises ValueError for other columns, for more
    than `MOST_FILE_BYTES`, and if pyarrow is missing.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{tree.path} needs pyarrow, which reads parquet: pip install 'tinycifar[parquet]'") from None
    if tree.is_archive:
        raise ValueError(f"{tree.path} holds parquet files, which are packed already: unpack it and name the folder")
    size = sum(map(tree.size, files))
    if size > MOST_FILE_BYTES:
        raise ValueError(f"{tree.path} has {size:,} bytes of parquet files; allowed are {MOST_FILE_BYTES:,}")
    pictures: list[Any] = []
    values: list[Any] = []
    names: list[str] = []
    file_names: list[str] = []
    rows: dict[str, list[int]] = {}
    class_names: list[str] = []
    for file in files:
        where = tree.where(file)
        split = split_of(re.split(r"[^A-Za-z]", where.stem)[0])
        if split is None and len(files) > 1:
            raise ValueError(f"{where} is not named for a split, as train-*.parquet, val-*.parquet or test-*.parquet")
        try:
            schema = parquet.read_schema(where)
            image, label = _columns(where, schema, labels)
            table = parquet.read_table(where, columns=[image, label], partitioning=None)
        except (ArrowException, OSError) as error:
            raise ValueError(
                f"{where} is no parquet file that can be read: {' '.join(str(error).split())[:200]}"
            ) from None
        known_names = _class_names(schema, label)
        if class_names and known_names and known_names != class_names:
            raise ValueError(f"{where} has other names of classes in its schema than {tree.where(files[0])}")
        class_names = class_names or known_names
        rows.setdefault(split or "train", []).extend(range(len(names), len(names) + len(table)))
        for number, (picture, value) in enumerate(zip(table[image].to_pylist(), table[label].to_pylist(), strict=True)):
            content = picture["bytes"] if isinstance(picture, dict) else picture
            if not isinstance(content, bytes) or value is None:
                raise ValueError(f"{where}, row {number}, has no picture or no label")
            path = picture.get("path") if isinstance(picture, dict) else None
            names.append(f"{where.stem} {number}" + (f" {path}" if path else ""))
            file_names.append(path or names[-1])
            pictures.append(content)
            values.append(value)
    if not names:
        raise ValueError(f"{tree.path} has no rows in its parquet files")
    classes, numbers = _classes(tree.where(files[0]), values, class_names)

    def content_of(index: int) -> bytes:
        content: bytes = pictures[index]
        if len(content) > MOST_BYTES:
            raise ValueError(f"{len(content):,} bytes, allowed are {MOST_BYTES:,}")
        return content

    whole = Contents(
        tree.where(files[0]) if len(files) == 1 and tree.path == tree.where(files[0]).parent else tree.path,
        f"{counted(len(files), 'parquet file')}, labels from {label}",
        classes,
        names,
        numbers,
        {split: np.array(rows[split], np.int64) for split in contents.SPLITS if split in rows},
        content_of,
        contents.picture_decoder(),
    )
    return folders.with_groups(whole, group, file_names)


def _columns(file: Path, schema: Any, labels: str) -> tuple[str, str]:
    """The columns of pictures and labels."""
    known = {name.lower(): name for name in schema.names}
    image = next((known[name] for name in IMAGES if name in known), None)
    label = next((known[name] for name in LABELS[labels or "fine"] if name in known), None)
    if image is None or label is None or not _holds_pictures(schema.field(image).type):
        raise ValueError(
            f"{file} has the columns {', '.join(map(printable, schema.names))}; expected are image, a struct with "
            f"bytes or the bytes alone, and {LABELS[labels or 'fine'][0]}"
        )
    return image, label


def _holds_pictures(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(part.name == "bytes" for part in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(schema: Any, label: str) -> list[str]:
    """The names of classes that the Hugging Face hub's writers put into a schema; none if it has none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in about["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _classes(path: Path, values: list[Any], names: list[str]) -> tuple[tuple[str, ...], contents.Labels]:
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        if values and max(values) >= 1 << 63:
            raise ValueError(f"{path} has a label {max(values)}; allowed are labels below 2**63")
        numbers = np.array(values, np.int64)
        if names:
            if outside := [value for value in values if not 0 <= value < len(names)]:
                raise ValueError(f"{path}: {outside[0]} is no label of the {len(names)} classes that its schema names")
            return tuple(unicodedata.normalize("NFC", name) for name in names), numbers
        known = np.unique(numbers)
        return tuple(map(str, known.tolist())), np.searchsorted(known, numbers)
    if all(isinstance(value, str) for value in values):
        values = [unicodedata.normalize("NFC", value) for value in values]
        texts = sorted(set(values))
        labels = {name: index for index, name in enumerate(texts)}
        return tuple(texts), np.array([labels[value] for value in values], np.int64)
    kinds = ", ".join(sorted({type(value).__name__ for value in values}))
    raise ValueError(f"{path}: all labels must be whole numbers or all texts, not {kinds}")
