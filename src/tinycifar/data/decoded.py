"""Decoded pictures, kept in the cache: an entry is found by the content it was made from, and verified when read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from tinycifar import atomic
from tinycifar.data import workers
from tinycifar.data.pictures import Pixels
from tinycifar.words import printable

FOLDER = "decoded"
VERSION = 3  # of what is in an entry; another number leaves all older entries unused
ENTRIES = 5  # kept, those that were used last
CHUNK = 8 << 20  # bytes that are hashed together
NAMED = 5  # problems that are named
DAY = 86_400.0


@dataclass
class Loaded:
    """Images (N, 3, S, S), uint8, by name why others could not be decoded, and how many had each remark."""

    images: Tensor
    notes: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)


def digest(contents: Iterable[tuple[str, str]]) -> str:
    """The SHA-256 of data, hexadecimal, from the name of each file and the SHA-256 of its bytes."""
    hashed = hashlib.sha256()
    for entry in contents:
        hashed.update(json.dumps(entry).encode() + b"\n")
    return hashed.hexdigest()


def load(
    path: Path,
    names: Sequence[str],
    decode: Callable[[int], tuple[Pixels, str]],
    *,
    content: str,
    image_size: int,
    cache: Path,
    display: Progress | None,
    fit: str = "crop",
    by_path: bool = False,
) -> Loaded:
    """Images of the N `names`: from the cache, else by `decode(index)`, which gives pixels and a remark, "" for none.

    `content` is the digest of the data, which lies at `path`. With `by_path` images may be decoded by processes, which
    share no open file. Several processes may ask in parallel: each has all images, from the cache or from its own work.
    Pictures for which `decode` raised ValueError or OSError are `unreadable`; then nothing is kept.
    """
    shape = (len(names), 3, image_size, image_size)
    key = hashlib.sha256(json.dumps([VERSION, content, image_size, fit, list(names)]).encode()).hexdigest()
    entry = cache / FOLDER / f"{key}.npy"
    notes: list[str] = []
    try:
        images, remarks = _read(entry, shape)
        return Loaded(torch.from_numpy(images), remarks=remarks)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        notes.append(f"{entry} could not be used ({reason}): the pictures were decoded again")
    images = np.empty(shape, np.uint8)
    problems: dict[str, str] = {}
    counts: Counter[str] = Counter()

    def store(index: int, pixels: Pixels | None, remark: str) -> None:
        if pixels is None:
            problems[names[index]] = remark
        else:
            images[index] = pixels
            if remark:
                counts[remark] += 1

    def attempt(index: int) -> tuple[Pixels | None, str]:
        try:
            return decode(index)
        except (OSError, ValueError) as error:
            return None, getattr(error, "strerror", None) or str(error)

    workers.run(attempt, len(names), store, "Decoding pictures", display, by_path)
    if problems:
        return Loaded(torch.from_numpy(images), notes, dict(sorted(problems.items())), dict(counts))
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures may be private
        atomic.write_json(_facts(entry), {"sha256": _checksum(images), "remarks": dict(counts)})
        atomic.write_bytes(entry, _header(shape), images.reshape(-1).data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        notes.append(f"The decoded pictures could not be kept in {entry.parent} ({reason}): each start decodes them")
    _remove_old(entry.parent)
    return Loaded(torch.from_numpy(images), notes, remarks=dict(counts))


def unreadable_path(cache: Path, content: str) -> Path:
    """Where the list of the pictures of a data set that cannot be read is written."""
    return cache / FOLDER / f"unreadable-{content[:16]}.txt"


def write_unreadable(cache: Path, content: str, unreadable: dict[str, str]) -> Path | None:
    """Write the complete list, a line each, beside it as JSON; gives its path, or None if it cannot be written."""
    path = unreadable_path(cache, content)
    lines = "".join(f"{printable(name)}: {problem}\n" for name, problem in sorted(unreadable.items()))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.write_bytes(path, lines.encode())
        # In ASCII, as names of files may have bytes that are no UTF-8.
        atomic.write_bytes(
            path.with_suffix(".json"), json.dumps({"content": content, "unreadable": unreadable}).encode()
        )
    except (OSError, ValueError):
        return None
    return path


def read_unreadable(cache: Path, content: str) -> dict[str, str]:
    """What `write_unreadable` wrote of this very content; nothing if there is none."""
    try:
        known = atomic.read_json(unreadable_path(cache, content).with_suffix(".json"))
        if known["content"] == content:
            return {str(name): str(problem) for name, problem in known["unreadable"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return {}


def describe_unreadable(path: Path, unreadable: dict[str, str], count: int, listed: Path | None) -> str:
    """An error's message for pictures that cannot be read: how many of how many, the first ones, and what to do."""
    first = [f"{printable(name)}: {problem}" for name, problem in sorted(unreadable.items())[:NAMED]]
    more = f"; and {len(unreadable) - NAMED:,} more" if len(unreadable) > NAMED else ""
    where = f" (all of them: {listed})" if listed else ""
    return (
        f"{len(unreadable):,} of {count:,} pictures in {path} cannot be used: {'; '.join(first)}{more}{where}. Repair "
        "or remove them, or leave them out with `skip_unreadable=`; nothing was used"
    )


def _facts(entry: Path) -> Path:
    return entry.with_suffix(".json")


def _header(shape: tuple[int, ...]) -> bytes:
    """What NumPy's file begins with; the pixels are written from where they are, as `numpy.save` would write them."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()


def _read(entry: Path, shape: tuple[int, ...]) -> tuple[Pixels, dict[str, int]]:
    """An entry's images and remarks; FileNotFoundError if there is none, ValueError if it is not as it was written."""
    if entry.stat().st_size != len(_header(shape)) + np.prod(shape, dtype=np.int64):
        raise ValueError("its size is wrong")
    with entry.open("rb") as file:
        if file.read(len(_header(shape))) != _header(shape):
            raise ValueError("its header is wrong")
    facts = atomic.read_json(_facts(entry))
    images = np.load(entry, allow_pickle=False)
    try:
        remarks = {str(remark): int(count) for remark, count in facts["remarks"].items()}
        known = facts["sha256"]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("its checksum is missing") from None
    if _checksum(images) != known:
        raise ValueError("its checksum is wrong")
    with contextlib.suppress(OSError):  # a cache that is read-only serves too
        os.utime(entry)
    return images, remarks


def _checksum(images: Pixels) -> str:
    """The SHA-256 of the SHA-256 digests of chunks, which threads compute in parallel, hexadecimal."""
    pixels = images.reshape(-1).data
    with ThreadPoolExecutor(workers.THREADS) as pool:
        parts = pool.map(
            lambda first: hashlib.sha256(pixels[first : first + CHUNK]).digest(), range(0, len(pixels), CHUNK)
        )
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _remove_old(folder: Path) -> None:
    """Keep the entries that were used last, and remove what processes that were killed had begun to write."""
    with contextlib.suppress(OSError):  # another process may do the same
        newest_first = sorted(folder.glob("*.npy"), key=lambda entry: -entry.stat().st_mtime)
        unfinished = [path for path in folder.glob(".*") if path.stat().st_mtime < time.time() - DAY]
        earlier = folder.glob("*.safetensors")  # as earlier versions wrote them
        for path in (*newest_first[ENTRIES:], *map(_facts, newest_first[ENTRIES:]), *unfinished, *earlier):
            path.unlink(missing_ok=True)
