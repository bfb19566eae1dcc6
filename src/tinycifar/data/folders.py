"""Own data: folders of pictures, `train/CLASS/*.png` and, optionally, `val/` and `test/`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from tinycifar.data import decoded, pictures
from tinycifar.data.dataset import MOST_CLASSES, Dataset, Draws, ranks, stratified
from tinycifar.data.pictures import MOST_BYTES, SUFFIXES, Pixels
from tinycifar.words import printable

LAYOUT = f"train/CLASS/*{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])})"
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # by the name of a split that of its folder
FEWEST_CLASSES = 2
SEED = 0  # of the order of images, and of which are held out
TEST_SHARE = 5  # one image of so many of a class is held out where there is no test/
LARGE_AT_ONCE = 4  # pictures of more than pictures.MANY_PIXELS, of which decoding one may take 300 MB
NAMED = 5  # classes or folders in a note


@dataclass
class _Split:
    """The folder of a split: its pictures by class, both by name, and how many other things lie in it."""

    folder: Path
    classes: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def recognises(path: Path) -> bool:
    """Whether this is a folder with a folder `train` in it."""
    return (path / "train").is_dir()


def misplaced(path: Path) -> bool:
    """Whether a folder without `train` holds pictures or folders with pictures."""
    return any(file.suffix.lower() in SUFFIXES for pattern in ("*", "*/*") for file in path.glob(pattern))


def load(path: Path, cache: Path, image_size: int, display: Progress | None) -> Dataset:
    """Read the pictures of a folder, each as `tinycifar predict` reads it: its central square, `image_size` a side.

    Images of each split lie in a stratified order. Without `test/` a fifth of each class is held out as test images.
    Raises ValueError for another layout, fewer than 2 or more than 1,000 classes, one without a picture, or with a
    single one where some are to be held out, and for pictures that cannot be read, naming them.
    """
    path = path.absolute()
    if not str(path).isprintable():
        raise ValueError(f"{printable(str(path))} has a name that cannot be printed; rename it")
    for folder in SPLITS.values():
        if os.path.lexists(path / folder) and not (path / folder).is_dir():
            raise ValueError(f"{path / folder} is no folder of pictures; remove or mend it")
    found = {name: _list(path / folder) for name, folder in SPLITS.items() if (path / folder).is_dir()}
    classes = _checked_classes(found)
    notes = _notes(path, found, classes)

    parts: dict[str, tuple[list[str], Tensor]] = {}
    for name, split in found.items():
        files = [f"{SPLITS[name]}/{kind}/{file}" for kind in classes for file in split.classes.get(kind, [])]
        labels = [label for label, kind in enumerate(classes) for _ in split.classes.get(kind, [])]
        parts[name] = files, torch.tensor(labels)
    hash_of = _hashes(path, [file for part, _ in parts.values() for file in part], display)
    digest = decoded.digest(sorted(hash_of.items()))

    if "test" not in parts:
        whole, of_whole = parts["train"]
        held = ranks(of_whole, _draws(whole, hash_of)) < (of_whole.bincount() // TEST_SHARE).clamp(min=1)[of_whole]
        parts["train"], parts["test"] = _rows(whole, of_whole, ~held), _rows(whole, of_whole, held)
        notes.append(
            f"No test/ in {path}: a fifth of each class of train/ is held out as test images, {int(held.sum()):,} of "
            f"{len(whole):,}, the same ones each time"
        )
    parts = {
        name: _rows(files, labels, stratified(labels, _draws(files, hash_of)))
        for name, (files, labels) in parts.items()
    }
    trained_on = {hash_of[file] for file in parts["train"][0]}
    for name in ("validation", "test"):
        if name in parts and (copies := sum(hash_of[file] in trained_on for file in parts[name][0])):
            notes.append(f"{copies:,} of the {name} images are, byte for byte, training images too: scores flatter")

    files = [file for part, _ in parts.values() for file in part]
    paths = [path / file for file in files]
    large = threading.BoundedSemaphore(LARGE_AT_ONCE)

    def decode(index: int) -> Pixels:
        content = _content(paths[index])
        if hashlib.sha256(content).hexdigest() != hash_of[files[index]]:
            raise ValueError("it was changed while it was read")
        try:
            return pictures.decode(content, lambda: large, image_size)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("cannot read the picture: ")) from None

    images, told = decoded.load(
        path, files, decode, content=digest, image_size=image_size, cache=cache, display=display
    )
    of_split = dict(zip(parts, torch.split(images, [len(part) for part, _ in parts.values()]), strict=True))
    labels_of = {name: labels for name, (_, labels) in parts.items()}
    return Dataset(
        path.name,
        classes,
        of_split["train"],
        labels_of["train"],
        of_split["test"],
        labels_of["test"],
        of_split.get("validation"),
        labels_of.get("validation"),
        digest=digest,
        path=str(path),
        notes=(*notes, *told),
        names={name: tuple(map(printable, part)) for name, (part, _) in parts.items()},
    )


def _hashes(path: Path, files: list[str], display: Progress | None) -> dict[str, str]:
    """The SHA-256 of each file, hexadecimal; "" for what cannot be read, which is named when it is to be decoded."""
    hashes = [""] * len(files)

    def take(index: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            hashes[index] = hashlib.sha256(_content(path / files[index])).hexdigest()

    decoded.each(take, len(files), "Reading pictures", display)
    return dict(zip(files, hashes, strict=True))


def _draws(files: list[str], hash_of: dict[str, str]) -> Draws:
    """What orders pictures: drawn from (SEED, content), so that of others none moves where one is added or renamed."""
    drawn = (hashlib.sha256(f"{SEED} {hash_of[file]}".encode()).digest()[:8] for file in files)
    return np.frombuffer(b"".join(drawn), ">u8").astype(np.uint64)


def _rows(files: list[str], labels: Tensor, rows: Tensor) -> tuple[list[str], Tensor]:
    """Those that `rows` names, a mask or indices."""
    chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
    return [files[index] for index in chosen.tolist()], labels[chosen]


def _list(folder: Path) -> _Split:
    """What lies in the folder of a split. ValueError for a class whose name cannot be printed, and for no picture."""
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, and links to folders are not followed; link the folder around it")
    split = _Split(folder)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir(follow_symlinks=False):
            split.left_out["link to a folder" if entry.is_dir() else "file outside a class"] += 1
            continue
        if not entry.name.isprintable():
            raise ValueError(f"{folder} has a class {printable(entry.name)!r}, whose name cannot be printed; rename it")
        split.classes[entry.name] = files = []
        for file in os.scandir(entry.path):
            if file.name.startswith("."):
                continue
            if file.is_dir():
                split.left_out["link to a folder" if file.is_symlink() else "folder in a class"] += 1
            elif file.name.lower().endswith(SUFFIXES):
                files.append(file.name)
            else:
                split.left_out["file of another kind"] += 1
        files.sort()
    if not any(split.classes.values()):
        raise ValueError(f"{folder} holds no pictures in folders of classes, as in {LAYOUT}")
    return split


def _checked_classes(found: dict[str, _Split]) -> tuple[str, ...]:
    """The classes, sorted; ValueError if their number or that of their images does not do."""
    train = found["train"]
    classes = tuple(sorted(train.classes))
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        raise ValueError(
            f"{train.folder} has {len(classes):,} folder{'s' * (len(classes) != 1)} of classes; allowed are "
            f"{FEWEST_CLASSES} to {MOST_CLASSES:,}"
        )
    if empty := [kind for kind in classes if not train.classes[kind]]:
        other = train.left_out["file of another kind"]
        skipped = f" ({other:,} files in {train.folder} are of another kind)" if other else ""
        raise ValueError(
            f"{train.folder} has no picture of {_named(empty)}; add some ({', '.join(SUFFIXES)}), or remove the folder"
            f"{skipped}"
        )
    if "test" not in found and (single := [kind for kind in classes if len(train.classes[kind]) == 1]):
        raise ValueError(
            f"{train.folder} has a single picture of {_named(single)}, of which none can be held out; add pictures, or "
            "a folder test"
        )
    for split in found.values():
        if unknown := sorted(set(split.classes) - set(classes)):
            raise ValueError(f"{split.folder} has {_named(unknown)}, which {train.folder} has not")
    return classes


def _notes(path: Path, found: dict[str, _Split], classes: tuple[str, ...]) -> list[str]:
    notes = []
    others = [
        entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name not in SPLITS.values()
    ]  # a folder "validation" perhaps, which should not be missed in silence
    if shown := sorted(name for name in others if not name.startswith(".")):
        notes.append(f"Left out in {path}: {_few(shown)} (only train, val and test are read)")
    for name, split in found.items():
        if split.left_out:
            counts = ", ".join(f"{count:,} x {what}" for what, count in sorted(split.left_out.items()))
            notes.append(f"Left out in {split.folder}: {counts}")
        if missing := [kind for kind in classes if not split.classes.get(kind)]:
            notes.append(f"{split.folder} has no picture of {_named(missing)}")
        if name == "train" and (single := [kind for kind in classes if len(split.classes[kind]) == 1]):
            notes.append(f"{split.folder} has a single picture of {_named(single)}")
    return notes


def _named(classes: list[str]) -> str:
    return f"{'class' if len(classes) == 1 else f'{len(classes):,} classes:'} {_few(classes)}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(printable, names[:NAMED])) + more


def _content(path: Path) -> bytes:
    """The bytes of a regular file of at most `MOST_BYTES`; ValueError for others."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("no file")  # a pipe would be waited for
    if about.st_size > MOST_BYTES:
        raise ValueError(f"{about.st_size:,} bytes, allowed are {MOST_BYTES:,}")
    return path.read_bytes()
