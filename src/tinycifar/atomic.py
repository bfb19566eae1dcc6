"""Files that are written whole or not at all, and JSON in them."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

if sys.platform == "darwin":
    import fcntl


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, `path` holds either its old content or all of the new one.

    The new content is that of the parts, one behind the other. Raises ValueError for what exists and is no file: a
    folder, or a device, which the new file would replace.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} exists and is not a file; name a file to write")
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            _sync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                _sync(folder)  # else a power cut may undo the renaming
            finally:
                os.close(folder)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def file_path(out: str | Path) -> Path:
    """The path of a file to write; ValueError for a text that is empty or ends as a folder's name does."""
    if not str(out) or str(out).endswith(("/", os.sep)):
        raise ValueError(f"{out or 'an empty name'} names a folder; name a file to write")
    return Path(out)


def check_suffix(path: str | Path, suffix: str) -> None:
    """Raise ValueError unless the name of a file to write ends in `suffix`, case ignored, as what is written does."""
    if not str(path).lower().endswith(suffix):
        raise ValueError(f"{path} does not end in {suffix}; the file is written as {suffix[1:].upper()}")


def check_new(path: Path, overwrite: bool = False) -> None:
    """Raise ValueError if a file is there already, unless `overwrite` is set: nothing is overwritten silently."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already; name another output, or pass `overwrite=` to replace it")


def _sync(descriptor: int) -> None:
    """Have what was written reach the disk; macOS's fsync leaves it in the drive's own memory."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def is_unfinished(path: Path) -> bool:
    """Whether this is a temporary file that a killed process left behind in `write_bytes`."""
    return bool(re.fullmatch(r"\..+\.(bin|safetensors|json|jsonl|npy|png|html)\.[a-z0-9_]{8}", path.name))


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed process left behind in a folder."""
    for path in folder.glob(".*"):
        if is_unfinished(path):
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError naming it if it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not valid JSON") from None
