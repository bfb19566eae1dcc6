"""Own data: pictures whose labels a CSV or TSV file gives."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tinycifar.data import contents, folders
from tinycifar.data.contents import Contents, few, split_of
from tinycifar.data.pictures import MOST_BYTES
from tinycifar.data.trees import Tree
from tinycifar.words import counted, printable

MOST_TABLE_BYTES = 200_000_000
MOST_DEPTH = 4  # of folders that are searched for the pictures
COLUMNS = {  # names that columns may have, in small letters and without other characters, the likeliest first
    "file": ("file", "filename", "filepath", "path", "image", "imagepath", "imagename", "imageid", "img", "picture"),
    "label": ("label", "labels", "class", "classid", "classname", "category", "target", "species", "diagnosis", "dx"),
    "split": ("split", "subset", "partition", "set"),
    "group": ("group", "groupid", "patient", "patientid", "subject", "subjectid", "lesionid"),
}
NEEDED = ("file", "label")


@dataclass(frozen=True)
class Row:
    """A line of a table: the name of a file as it stands there, its class, and its split and group if known."""

    file: str
    label: str
    split: str
    group: str


def find(tree: Tree, columns: str = "") -> list[str]:
    """The tables with labels of pictures at the top of a tree: labels.csv alone if there is one, else all others.

    Tables without such columns are of something else. One that cannot be read is reported if there is nothing else.
    """
    names = [name for name in tree.names("", "file") if name.lower().endswith((".csv", ".tsv"))]
    named = [name for name in names if name.lower().rpartition(".")[0] == "labels"]
    if named:
        return named[:1]
    tables, problems, chosen = [], [], _chosen(columns)
    for name in names:
        try:
            header = next(_cells(tree, name))
            if all(_column(header, kind, chosen) is not None for kind in NEEDED):
                tables.append(name)
        except ValueError as error:
            problems.append(error)
    if problems and not tables and (columns or not folders.recognises(tree)):
        raise problems[0]
    return tables


def read(tree: Tree, tables: list[str], columns: str = "", group: str = "") -> Contents:
    """Read tables of one picture a line, of which several must be named for splits: train.csv, test.csv.

    `columns` says which columns are meant, as "file=Path,label=ClassId"; else they are known by their names. A file is
    found by its path from the table's folder, else by its name anywhere within it, with or without its suffix. Raises
    ValueError for missing columns, files that are not there or there twice, and splits of other names.
    """
    if len(tables) > 1 and (other := [name for name in tables if _split_of_table(name) is None]):
        raise ValueError(
            f"{tree.path} has {len(tables)} tables of labels, {few(tables)}; keep one, called labels.csv, or name each "
            f"for its split, unlike {other[0]}"
        )
    index = _Index(tree)
    names: dict[str, Row] = {}
    skipped: Counter[str] = Counter()
    missing = []
    lines = [
        row
        for table in tables
        for row in _rows(tree, table, columns, _split_of_table(table) if len(tables) > 1 else None)
    ]
    # pandas writes a missing number as nan, and the others then as 1.0.
    numeric = all(re.fullmatch(r"-?\d+(\.\d*)?|nan|", row.label.lower()) for row in lines)
    for row in lines:
        if not row.file:
            skipped["line without a file"] += 1
            continue
        if not row.label or (numeric and row.label.lower() == "nan"):
            skipped["line without a label"] += 1
            continue
        if numeric:
            row = replace(row, label=re.sub(r"\.0*$", "", row.label))
        file = index.find(row.file, row.split)
        if file is None:
            missing.append(row.file)
            continue
        if file in names and (names[file].label, names[file].split) != (row.label, row.split):
            raise ValueError(f"{tree.path}: {printable(file)} is listed twice, with different labels or splits")
        skipped["repeated line"] += file in names
        names[file] = row
    where = tree.where(tables[0])
    if missing:
        raise ValueError(
            f"{where} lists {counted(len(missing), 'file')} that {tree.path} does not have, or has more than once: "
            f"{few(missing)}"
        )
    if not names:
        raise ValueError(f"{where} lists no picture with a label")
    rows = list(names.values())
    numbers = all(re.fullmatch(r"-?\d{1,9}", row.label) for row in rows)
    classes = tuple(sorted({row.label for row in rows}, key=(lambda label: (int(label), label)) if numbers else None))
    label_of = {kind: label for label, kind in enumerate(classes)}
    splits = {
        split: np.array([number for number, row in enumerate(rows) if row.split == split], np.int64)
        for split in contents.SPLITS
    }
    splits = {split: part for split, part in splits.items() if len(part)}
    unlisted = len(index.files) - len(names)
    skipped["picture that is not listed"] = unlisted
    counts = ", ".join(f"{count:,} x {what}" for what, count in sorted(skipped.items()) if count)
    files = list(names)
    result = Contents(
        tree.path,
        f"pictures with labels from {', '.join(map(printable, tables))}",
        classes,
        files,
        np.array([label_of[row.label] for row in rows], np.int64),
        splits,
        lambda index: tree.read(files[index], MOST_BYTES),
        contents.picture_decoder(),
        notes=(f"Left out in {tree.path}: {counts}",) if counts else (),
    )
    if not group and any(row.group for row in rows):
        groups = [row.group or f"file {name}" for name, row in names.items()]
        return contents.grouped(result, groups, sum(not row.group for row in rows))
    return folders.with_groups(result, group)


class _Index:
    """The pictures of a tree by path, by name, and by name without suffix."""

    def __init__(self, tree: Tree) -> None:
        self.files = list(_pictures(tree, "", MOST_DEPTH))
        self._exact = set(self.files)
        self._by_name: dict[str, list[str]] = {}
        for file in self.files:
            name = file.rpartition("/")[2]
            for key in {name, name.rpartition(".")[0]}:
                self._by_name.setdefault(key, []).append(file)

    def find(self, name: str, split: str) -> str | None:
        """The picture that a table calls `name`; of several of one name that in the split's folder; None if unclear."""
        name = name.replace("\\", "/").removeprefix("./")
        if name in self._exact:
            return name
        matching = [file for file in self._by_name.get(name.rpartition("/")[2], []) if _fits(file, name)]
        if len(matching) > 1:
            matching = [file for file in matching if split_of(file.partition("/")[0]) == split]
        return matching[0] if len(matching) == 1 else None


def _fits(file: str, name: str) -> bool:
    """Whether a path ends as the table has it, with or without its suffix."""
    return any(f"/{path}".endswith(f"/{name}") for path in (file, file.rpartition(".")[0]))


def _pictures(tree: Tree, folder: str, depth: int) -> Iterator[str]:
    for entry in tree.entries(folder):
        name = f"{folder}/{entry.name}".lstrip("/")
        if entry.kind == "folder" and depth > 1:
            yield from _pictures(tree, name, depth - 1)
        elif entry.kind == "file" and folders.holds_picture(tree, name):
            yield name


def _rows(tree: Tree, table: str, columns: str, of_table: str | None) -> Iterator[Row]:
    lines, chosen = _cells(tree, table), _chosen(columns)
    header = next(lines)
    if not any(header):
        raise ValueError(
            f"{tree.where(table)} has no heading; its first line must name the columns, for example file,label"
        )
    indices = {kind: _column(header, kind, chosen) for kind in COLUMNS}
    if lacking := [kind for kind in NEEDED if indices[kind] is None]:
        raise ValueError(
            f"{tree.where(table)} has the columns {few(header)}, none of which is known as {' or '.join(lacking)}; "
            "name them: `columns=` file=NAME,label=NAME"
        )
    for kind, column in indices.items():
        if column is not None and (count := header.count(header[column])) > 1:
            raise ValueError(
                f"{tree.where(table)} has {count} columns {header[column]!r}; rename all but that of the {kind}"
            )
    for number, cells in enumerate(lines, start=2):
        if any(cells[len(header) :]):
            raise ValueError(
                f"{tree.where(table)}, line {number}, has {len(cells)} cells, but the heading {len(header)}; put "
                "quotes around cells with separators"
            )
        values = {
            kind: cells[column] if column is not None and column < len(cells) else ""
            for kind, column in indices.items()
        }
        split = split_of(values["split"]) if values["split"] else of_table or "train"
        if split is None:
            allowed = ", ".join(name for names in contents.SPLITS.values() for name in names)
            raise ValueError(
                f"{tree.where(table)}, line {number}, has the split {printable(values['split'])!r}; allowed are "
                f"{allowed}"
            )
        if any(values.values()):
            label, group = (unicodedata.normalize("NFC", values[kind]) for kind in ("label", "group"))
            yield Row(values["file"], label, split, group)


def _cells(tree: Tree, table: str) -> Iterator[list[str]]:
    """The cells of the lines of a table, without spaces around them, the heading first; ValueError for no table."""
    text = _text(tree, table)
    delimiter = max(",;\t|", key=text.partition("\n")[0].count)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        yield [name.strip() for name in next(lines, [])]
        for cells in lines:
            yield [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(f"{tree.where(table)} cannot be read as a table: {error}") from None


def _split_of_table(name: str) -> str | None:
    """The split that a table is named for, as Train.csv or test_labels.csv."""
    return next((split for word in re.split(r"[^A-Za-z]+", name) if (split := split_of(word))), None)


def _text(tree: Tree, table: str) -> str:
    try:
        text = tree.read(table, MOST_TABLE_BYTES).decode("utf-8-sig").replace("\0", "")
        return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{tree.where(table)} is no text in UTF-8; save it as such") from None
    except ValueError as error:
        raise ValueError(f"{tree.where(table)} cannot be used: {error}") from None


def _chosen(columns: str) -> Mapping[str, str]:
    """The columns that an option names, by kind."""
    chosen = {}
    for part in columns.split(",") if columns else []:
        kind, mark, name = part.partition("=")
        if not mark or kind not in COLUMNS:
            raise ValueError(
                f"`columns=` takes KIND=NAME,KIND=NAME of the kinds {', '.join(COLUMNS)}, as "
                f"file=Path,label=ClassId, not {part!r}"
            )
        if kind in chosen:
            raise ValueError(f"`columns=` names the column of the {kind} twice; name it once")
        chosen[kind] = name
    return chosen


def _column(header: list[str], kind: str, chosen: Mapping[str, str]) -> int | None:
    """The column of a kind, None if there is none; ValueError if the one that was chosen is not there."""
    if kind in chosen:
        if not chosen[kind]:
            return None
        if chosen[kind] not in header:
            raise ValueError(f"there is no column {chosen[kind]!r}; the columns are {few(header)}")
        return header.index(chosen[kind])
    plain = [re.sub("[^a-z]", "", name.lower()) for name in header]
    return next((plain.index(name) for name in COLUMNS[kind] if name in plain), None)
