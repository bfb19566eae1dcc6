"""Own data: folders of pictures by class, with or without folders for the splits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinycifar.data import contents, pictures
from tinycifar.data.contents import Contents, few, named
from tinycifar.data.pictures import MOST_BYTES, SUFFIXES
from tinycifar.data.trees import Tree
from tinycifar.words import counted, is_printable, printable

LAYOUT = f"train/CLASS/*{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])})"


@dataclass
class _Split:
    """The folder of a split: its pictures by class, both by name, and how many other things lie in it."""

    folder: str
    classes: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        return sum(map(len, self.classes.values()))


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(SUFFIXES)


def holds_picture(tree: Tree, name: str) -> bool:
    """Whether a file is a picture by its name or, whatever that is, by how it begins."""
    if is_picture(name):
        return True
    try:
        tree.size(name)
        with tree.open(name) as file:
            return pictures.begins_as_picture(file.read(32))
    except (OSError, ValueError):
        return False


def recognises(tree: Tree) -> bool:
    """Whether a tree has a folder of a split with classes in it, or at least two folders with pictures in them."""
    names = tree.names("", "folder")
    splits = [name for name in names if contents.split_of(name)]
    if any(contents.split_of(name) == "train" or tree.names(name, "folder") for name in splits):
        return True
    return not splits and len(_with_pictures(tree, names)) > 1


def misplaced(tree: Tree) -> str:
    """What is wrong with a tree that has pictures, but no folders of classes that are known; "" without pictures."""
    folders = tree.names("", "folder")
    loose = sum(map(is_picture, tree.names("", "file")))
    if loose and not folders:
        return f"has {counted(loose, 'picture')}, but no folders of classes and no table of labels"
    with_pictures = _with_pictures(tree, folders)
    if len(with_pictures) == 1 and len(folders) == 1:
        return f"has pictures of one class alone, {printable(with_pictures[0])}, and no folder train"
    splits = [name for name in folders if contents.split_of(name)]
    if splits:
        return f"has {few(splits)}, but no folder train"
    if loose or with_pictures:
        return "has pictures, but no folder train"
    return f"has pictures two folders deep, as in {nested}" if (nested := _nested(tree, folders)) else ""


def _nested(tree: Tree, names: list[str]) -> str:
    """A folder in one of these folders that has pictures directly in it; "" if there is none."""
    inner = [f"{name}/{folder}" for name in names for folder in tree.names(name, "folder")]
    return printable(next(iter(_with_pictures(tree, inner)), ""))


def _with_pictures(tree: Tree, names: list[str]) -> list[str]:
    """Which of the folders have pictures directly in them."""
    return [name for name in names if any(map(is_picture, tree.names(name, "file")))]


def read(tree: Tree, group: str = "") -> Contents:
    """Find the pictures of a tree by split and class; `group` is as in `with_groups`.

    A class whose name is written in several normal forms of Unicode is one class, in the composed form.
    Raises ValueError for two folders of one split, a training folder without a picture of each class, a class that the
    training folder lacks, and a class whose name cannot be printed.
    """
    splits: dict[str, _Split] = {}
    notes = []
    entries = tree.entries()
    for entry in entries:
        split = contents.split_of(entry.name)
        if split is None:
            continue
        where = tree.where(entry.name)
        if entry.kind != "folder":
            if entry.name in contents.SPLITS[split]:
                raise ValueError(f"{where} is no folder of pictures; remove or mend it")
            continue
        if split in splits:
            raise ValueError(
                f"{tree.path} has two folders of {split} images, {splits[split].folder} and {entry.name}; "
                "join them or rename one"
            )
        splits[split] = _list(tree, entry.name)
    splits = {split: splits[split] for split in contents.SPLITS if split in splits}
    root = not splits
    if root:
        splits = {"train": _list(tree, "")}
    for split, part in list(splits.items()):
        if split != "train" and not part.pictures:
            loose = part.left_out["picture outside a class"]
            if not loose:
                raise ValueError(f"{tree.where(part.folder)} holds no pictures in folders of classes, as in {LAYOUT}")
            notes.append(
                f"{tree.where(part.folder)} holds {loose:,} pictures without classes: it is left out; "
                "`tinycifar predict` takes them"
            )
            del splits[split]
    classes = _classes(tree, splits)
    if not root:
        others = [entry.name for entry in entries if entry.kind == "folder" and not contents.split_of(entry.name)]
        notes += [f"Left out in {tree.path}: {few(others)} (only train, val and test are read)"] if others else []
    notes += _notes(tree, splits, classes)
    if not splits:
        raise ValueError(f"{tree.path} has no pictures in folders of classes, as in {LAYOUT}")
    names: list[str] = []
    labels: list[int] = []
    rows = {}
    for split, part in splits.items():
        first = len(names)
        for label, kind in enumerate(classes):
            names += part.classes.get(kind, [])
            labels += [label] * (len(names) - len(labels))
        rows[split] = np.arange(first, len(names))
    shown = ", ".join(f"{part.folder}/" for part in splits.values())
    layout = "folders of classes" + ("" if root else f" in {shown}")
    whole = Contents(
        tree.path,
        layout,
        classes,
        names,
        np.array(labels, np.int64),
        rows,
        lambda index: tree.read(names[index], MOST_BYTES),
        contents.picture_decoder(),
        notes=tuple(notes),
        by_path=not tree.is_archive,
    )
    return with_groups(whole, group)


def _list(tree: Tree, folder: str) -> _Split:
    """What lies in the folder of a split. ValueError for a class whose name cannot be printed."""
    split = _Split(folder)
    forms: dict[str, list[str]] = {}
    for entry in tree.entries(folder):
        if entry.kind != "folder":
            kind = "picture outside a class" if is_picture(entry.name) else "file outside a class"
            split.left_out[kind if entry.kind == "file" else entry.kind] += 1
            continue
        if not is_printable(entry.name):
            raise ValueError(
                f"{tree.where(folder)} has a class '{printable(entry.name)}', whose name cannot be printed; rename it"
            )
        kind = unicodedata.normalize("NFC", entry.name)
        forms.setdefault(kind, []).append(entry.name)
        files = split.classes.setdefault(kind, [])
        class_folder = f"{folder}/{entry.name}".lstrip("/")
        for file in tree.entries(class_folder):
            name = f"{class_folder}/{file.name}"
            if file.kind == "folder":
                split.left_out["folder in a class"] += 1
            elif holds_picture(tree, name) or file.kind != "file":
                files.append(name)
            else:
                split.left_out[f"{Path(file.name).suffix.lower() or 'unnamed'} file"] += 1
    if joined := [kind for kind, names in forms.items() if len(names) > 1]:
        split.notes.append(f"{tree.where(folder)} has {named(joined)} in two Unicode normal forms; they are one class")
    return split


def _classes(tree: Tree, splits: dict[str, _Split]) -> tuple[str, ...]:
    """The classes, sorted; ValueError if a split has others, or the training folder lacks pictures of one."""
    train = splits.get("train")
    if train is None:
        return tuple(sorted({kind for split in splits.values() for kind, files in split.classes.items() if files}))
    where = tree.where(train.folder)
    if not train.pictures:
        if loose := train.left_out["picture outside a class"]:
            raise ValueError(f"{where} has {loose:,} pictures, but none in a folder of a class, as in {LAYOUT}")
        nested = _nested(tree, [f"{train.folder}/{kind}".lstrip("/") for kind in train.classes])
        deeper = f", but two folders deep, as in {nested}" if nested else ""
        raise ValueError(f"{where} holds no pictures in folders of classes, as in {LAYOUT}{deeper}")
    classes = tuple(sorted(train.classes))
    if empty := [kind for kind in classes if not train.classes[kind]]:
        other = sum(count for what, count in train.left_out.items() if what.endswith(" file"))
        skipped = f" ({other:,} files in {where} are of another kind)" if other else ""
        raise ValueError(
            f"{where} has no picture of {named(empty)}; add some ({', '.join(SUFFIXES)}), or remove the folder{skipped}"
        )
    for split in splits.values():
        if unknown := sorted(set(split.classes) - set(classes)):
            raise ValueError(f"{tree.where(split.folder)} has {named(unknown)}, which {where} has not")
    return classes


def _notes(tree: Tree, splits: dict[str, _Split], classes: tuple[str, ...]) -> list[str]:
    notes = []
    for name, split in splits.items():
        where = tree.where(split.folder)
        notes += split.notes
        if split.left_out:
            counts = ", ".join(f"{count:,} x {what}" for what, count in sorted(split.left_out.items()))
            notes.append(f"Left out in {where}: {counts}")
        if missing := [kind for kind in classes if not split.classes.get(kind)]:
            notes.append(f"{where} has no picture of {named(missing)}")
        if name == "train" and (single := [kind for kind in classes if len(split.classes[kind]) == 1]):
            notes.append(f"{where} has a single picture of {named(single)}")
    return notes


def with_groups(whole: Contents, pattern: str, names: Sequence[str] = ()) -> Contents:
    """The contents with the groups that a pattern finds in the `names` of files; a file it does not match is its own.

    Raises ValueError for a pattern that is none, has no group in parentheses, or matches no file.
    """
    if not pattern:
        return whole
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`group=` {pattern!r} is no regular expression: {error}") from None
    if not expression.groups:
        raise ValueError(f"`group=` {pattern!r} needs a part in parentheses, which names the group, as in '(.*)_\\d+'")
    files = [Path(name).name for name in names or whole.names]
    matches = [expression.search(file) for file in files]
    if not any(matches):
        raise ValueError(f"`group=` {pattern!r} matches no file, for example not {printable(files[0])!r}")
    groups = [
        "|".join(part or "" for part in match.groups()) if match else f"file {name}"
        for name, match in zip(whole.names, matches, strict=True)
    ]
    return contents.grouped(whole, groups, len(groups) - sum(match is not None for match in matches))
