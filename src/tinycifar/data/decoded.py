"""Decoded pictures, kept in the cache: an entry is found by the content it was made from, and verified when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from tinycifar import atomic
from tinycifar.data.pictures import Pixels
from tinycifar.words import printable

FOLDER = "decoded"
VERSION = 1  # of what is in an entry; another number leaves all older entries unused
ENTRIES = 5  # kept, those that were used last
THREADS = min(8, os.cpu_count() or 1)
AT_ONCE = 32  # pictures that a thread takes from the queue
TOLD = 5  # problems that are named
DAY = 86_400.0


def each(work: Callable[[int], None], count: int, what: str, display: Progress | None) -> None:
    """Call `work` with 0 to `count` - 1 in threads, with a bar named `what`; what it raises ends it all.

    Ctrl-C ends it too, after the pictures at hand.
    """
    stopped = threading.Event()

    def some(first: int) -> int:
        last = min(first + AT_ONCE, count)
        for index in range(first, last):
            if stopped.is_set():
                break
            work(index)
        return last

    task = None if display is None else display.add_task(what, total=count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here, as the threads' own filters undo each other's
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done in pool.map(some, range(0, count, AT_ONCE)):
                if display is not None and task is not None:
                    display.update(task, completed=done)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            if display is not None and task is not None:
                display.remove_task(task)


def digest(contents: Iterable[tuple[str, str]]) -> str:
    """The SHA-256 of data, hexadecimal, from the name of each file and the SHA-256 of its bytes."""
    found = hashlib.sha256()
    for entry in contents:
        found.update(json.dumps(entry).encode() + b"\n")
    return found.hexdigest()


def load(
    path: Path,
    names: Sequence[str],
    decode: Callable[[int], Pixels],
    *,
    content: str,
    image_size: int,
    cache: Path,
    display: Progress | None,
) -> tuple[Tensor, list[str]]:
    """Images (N, 3, S, S), uint8, of the N `names`, and lines to be told: from the cache, else by `decode(index)`.

    `content` is the digest of the data, which lies at `path`. Several processes may ask at once: each has all images,
    from the cache or from its own work. Raises ValueError that names the pictures for which `decode` raised ValueError
    or OSError; then nothing is kept.
    """
    shape = (len(names), 3, image_size, image_size)
    key = hashlib.sha256(json.dumps([VERSION, content, image_size, list(names)]).encode()).hexdigest()
    entry = cache / FOLDER / f"{key}.safetensors"
    notes: list[str] = []
    try:
        return torch.from_numpy(_read(entry, shape)), notes
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        notes.append(f"{entry} could not be used ({reason}): the pictures were decoded again")
    images = np.empty(shape, np.uint8)
    problems: dict[str, str] = {}

    def work(index: int) -> None:
        try:
            images[index] = decode(index)
        except (OSError, ValueError) as error:
            problems[names[index]] = getattr(error, "strerror", None) or str(error)

    each(work, len(names), "Decoding pictures", display)
    if problems:
        told = [f"{printable(name)}: {problem}" for name, problem in sorted(problems.items())[:TOLD]]
        more = f"; and {len(problems) - TOLD:,} more" if len(problems) > TOLD else ""
        raise ValueError(
            f"{len(problems):,} of {len(names):,} pictures in {path} cannot be used: {'; '.join(told)}{more}. "
            "Repair or remove them; nothing was used"
        )
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures may be private
        pixels = images.reshape(-1).data
        atomic.write_bytes(entry, _header(shape, hashlib.sha256(pixels).hexdigest()), pixels)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        notes.append(f"The decoded pictures could not be kept in {entry.parent} ({reason}): each start decodes them")
    _remove_old(entry.parent)
    return torch.from_numpy(images), notes


def _header(shape: tuple[int, ...], sha256: str) -> bytes:
    """What a safetensors file begins with; written here, as the library would hold all bytes a second time."""
    tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, int(np.prod(shape, dtype=np.int64))]}
    words = json.dumps({"__metadata__": {"sha256": sha256}, "images": tensor}).encode()
    words += b" " * (-len(words) % 8)
    return len(words).to_bytes(8, "little") + words


def _read(entry: Path, shape: tuple[int, ...]) -> Pixels:
    """The images of an entry; FileNotFoundError if there is none, ValueError if it is not as it was written."""
    with entry.open("rb") as file:
        expected = len(_header(shape, "0" * 64))
        if os.fstat(file.fileno()).st_size != expected + np.prod(shape, dtype=np.int64):
            raise ValueError("its size is wrong")
        header, images = file.read(expected), np.empty(shape, np.uint8)
        pixels = images.reshape(-1).data
        file.readinto(pixels)
    if header != _header(shape, hashlib.sha256(pixels).hexdigest()):
        raise ValueError("its checksum is wrong")
    with contextlib.suppress(OSError):  # a cache that is read-only serves too
        os.utime(entry)
    return images


def _remove_old(folder: Path) -> None:
    """Keep the entries that were used last, and remove what processes that were killed had begun to write."""
    with contextlib.suppress(OSError):  # another process may do the same
        found = sorted(folder.glob("*.safetensors"), key=lambda entry: -entry.stat().st_mtime)
        begun = [path for path in folder.glob(".*") if path.stat().st_mtime < time.time() - DAY]
        for path in (*found[ENTRIES:], *begun):
            path.unlink(missing_ok=True)
