"""Files by name, wherever they lie: in a folder, a zip archive or a tar archive."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import threading
import weakref
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tinycifar.words import printable

MOST_MEMBERS = 2_000_000  # of a zip archive
MOST_TAR_MEMBERS = 1_000
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
HIDDEN = (".", "__MACOSX")
UTF_8_NAME = 0x800  # the flag of a zip archive's member whose name is UTF-8


@dataclass(frozen=True)
class Entry:
    """A file or folder in a folder of a tree; `kind` is "file", "folder" or what else it is."""

    name: str
    kind: str


class Tree(ABC):
    """Files by their names within `path`, such as `train/cat/1.png`; the top folder is ""."""

    def __init__(self, path: Path) -> None:
        self.path = path

    is_archive = True  # one open file for all that is read, which processes cannot share

    @abstractmethod
    def entries(self, folder: str = "") -> list[Entry]:
        """What lies in a folder, sorted by name, without hidden entries; nothing if there is no such folder."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file to read its bytes; OSError or ValueError if it cannot be read."""

    @abstractmethod
    def size(self, name: str) -> int:
        """The bytes of a file, as they are or as the archive states them; ValueError for what is no plain file."""

    def where(self, name: str) -> Path:
        """The path of an entry, for messages."""
        return self.path / name if name else self.path

    def names(self, folder: str, kind: str) -> list[str]:
        """The names of the entries of a kind in a folder."""
        return [entry.name for entry in self.entries(folder) if entry.kind == kind]

    def read(self, name: str, most_bytes: int) -> bytes:
        """The bytes of a file of at most `most_bytes`; ValueError for a larger one and for what is no plain file."""
        size = self.size(name)
        if size > most_bytes:
            raise ValueError(f"{size:,} bytes, allowed are {most_bytes:,}")
        with self.open(name) as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(f"more than the {most_bytes:,} bytes that are allowed")
        return content


class FolderTree(Tree):
    """A folder; links to folders and files are followed."""

    is_archive = False

    def entries(self, folder: str = "") -> list[Entry]:
        inside = []
        if not self.where(folder).is_dir():
            return []
        with os.scandir(self.where(folder)) as entries:
            for entry in entries:
                if not entry.name.startswith(HIDDEN):
                    inside.append(Entry(entry.name, _kind(entry)))
        return sorted(inside, key=lambda entry: entry.name)

    def size(self, name: str) -> int:
        status = self.where(name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no file")  # reading from a pipe would wait
        return status.st_size

    def open(self, name: str) -> IO[bytes]:
        return self.where(name).open("rb")

    def read(self, name: str, most_bytes: int) -> bytes:
        """As `Tree.read`, with as few calls of the system as there can be: data may be of 100,000 small files."""
        file = os.open(f"{self.path}/{name}", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("no file")  # a pipe, which is not waited for
            if status.st_size > most_bytes:
                raise ValueError(f"{status.st_size:,} bytes, allowed are {most_bytes:,}")
            parts, left = [], status.st_size
            while left and (part := os.read(file, left)):
                parts.append(part)
                left -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(file)


def _kind(entry: os.DirEntry[str]) -> str:
    """The kind of an entry of a folder, or of what it links to; a link to itself is a broken link."""
    if not entry.is_symlink():
        return "folder" if entry.is_dir() else "file"
    return "folder" if Path(entry.path).is_dir() else "file" if Path(entry.path).is_file() else "broken link"


class _Archive(Tree):
    """An archive with an index of its plain files; members with unsafe names are refused."""

    def __init__(self, path: Path, members: Iterator[str]) -> None:
        super().__init__(path)
        self._folders: dict[str, dict[str, str]] = {"": {}}
        for name in members:
            parts = PurePosixPath(name).parts
            if "\\" in name or name.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
                raise ValueError(f"{path} is refused: its member {name[:80]!r} points elsewhere")
            if not parts or any(part.startswith(HIDDEN) for part in parts):
                continue
            for depth in range(len(parts)):
                folder, last = "/".join(parts[:depth]), depth == len(parts) - 1
                kind = "file" if last and not name.endswith("/") else "folder"
                if self._folders.setdefault(folder, {}).setdefault(parts[depth], kind) != kind:
                    raise ValueError(f"{path} is refused: {name[:80]!r} is both a file and a folder")
                if kind == "folder":
                    self._folders.setdefault("/".join(parts[: depth + 1]), {})

    def entries(self, folder: str = "") -> list[Entry]:
        return [Entry(name, kind) for name, kind in sorted(self._folders.get(folder, {}).items())]


class ZipTree(_Archive):
    """A zip archive, read in place: nothing is unpacked to disk. ValueError if it cannot be read or is unsafe."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ValueError(f"{path} is no zip archive that can be read: {error}") from None
        members = self._zip.infolist()
        if len(members) > MOST_MEMBERS:
            raise ValueError(f"{path} has {len(members):,} members; allowed are {MOST_MEMBERS:,}")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            name = _name_in_zip(member)
            if name in self._members and not name.endswith("/"):
                raise ValueError(f"{path} is refused: it has two members {printable(name)[:80]!r}")
            if member.flag_bits & 1:
                raise ValueError(f"{path} is encrypted; unpack it and name the folder")
            if not stat.S_ISLNK(member.external_attr >> 16):  # a link would be read as the text of its target
                self._members[name] = member
        super().__init__(path, iter(self._members))

    def size(self, name: str) -> int:
        return self._members[name].file_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._zip.open(self._members[name]) as file:
                yield file
        except (OSError, ValueError):
            raise
        except Exception as error:  # BadZipFile, zlib.error, lzma.LZMAError and others, which mean the same here
            raise ValueError(f"it cannot be unpacked: {error}") from None


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """The name of a member; macOS's Finder writes UTF-8 without the flag that says so."""
    if not member.flag_bits & UTF_8_NAME:
        with contextlib.suppress(UnicodeError):
            return _plain(member.filename.encode("cp437").decode())
    return _plain(member.filename)


def _plain(name: str) -> str:
    """A member's name without "." and repeated slashes in its path; that of a folder keeps its "/" at the end."""
    return f"{PurePosixPath(name)}{'/' * name.endswith('/')}"


class TarTree(_Archive):
    """A tar archive of few files, as data sets of binary files are published; ValueError for others."""

    def __init__(self, path: Path) -> None:
        self._members: dict[str, tarfile.TarInfo] = {}
        self._lock = threading.Lock()  # all members share one position in the file
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115 (stays open to read members)
            weakref.finalize(self, self._tar.close)
            for member in self._tar:
                if len(self._members) == MOST_TAR_MEMBERS:
                    raise ValueError(
                        f"{path} has more than {MOST_TAR_MEMBERS:,} members; tar archives of pictures are not read: "
                        "unpack it and name the folder, or make a zip archive"
                    )
                if member.isfile():
                    self._members[_plain(member.name)] = member
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path} cannot be read as a tar archive: {str(error).partition(':')[0]}") from None
        super().__init__(path, iter(self._members))

    def size(self, name: str) -> int:
        return self._members[name].size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._lock:
                yield self._tar.extractfile(self._members[name]) or io.BytesIO()
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"it cannot be unpacked: {error}") from None


class InnerTree(Tree):
    """What lies in a folder of another tree."""

    def __init__(self, tree: Tree, folder: str) -> None:
        super().__init__(tree.path)
        self._tree, self._folder = tree, folder
        self.is_archive = tree.is_archive

    def entries(self, folder: str = "") -> list[Entry]:
        return self._tree.entries(f"{self._folder}/{folder}".rstrip("/"))

    def size(self, name: str) -> int:
        return self._tree.size(f"{self._folder}/{name}")

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return self._tree.open(f"{self._folder}/{name}")

    def where(self, name: str) -> Path:
        return self._tree.where(f"{self._folder}/{name}".rstrip("/"))


def open_tree(path: Path) -> Tree | None:
    """The files of a folder or archive; None for any other file. ValueError for an archive that cannot be used."""
    if path.is_dir():
        return FolderTree(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipTree(path)
    if path.is_file() and path.name.lower().endswith(TAR_SUFFIXES):
        return TarTree(path)
    return None
