import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar.data import decoded

SHAPE = (100, 3, 4, 4)


def image(index: int) -> tuple[np.ndarray, str]:
    return np.full(SHAPE[1:], index, np.uint8), ""


def never(index: int) -> tuple[np.ndarray, str]:
    raise AssertionError("it should have come from the cache")


def load(
    cache: Path,
    decode: Callable[[int], tuple[np.ndarray, str]] = image,
    content: str = "0" * 64,
    size: int = 4,
    display: Progress | None = None,
) -> tuple[torch.Tensor, list[str]]:
    names = [f"picture {index:02}" for index in range(SHAPE[0])]
    loaded = decoded.load(Path("own"), names, decode, content=content, image_size=size, cache=cache, display=display)
    found, notes = loaded.images, loaded.notes
    assert not loaded.unreadable
    assert torch.equal(found, torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(100, 3, size, size))
    return found, notes


def only(cache: Path) -> Path:
    (entry,) = (cache / "decoded").glob("*.npy")
    return entry


def test_pictures_are_decoded_once(tmp_path):
    assert load(tmp_path)[1] == []
    assert load(tmp_path, never)[1] == []
    load(tmp_path, content="1" * 64)
    load(tmp_path, lambda index: (np.full((3, 5, 5), index, np.uint8), ""), size=5)
    entries = sorted((tmp_path / "decoded").glob("*.npy"))
    assert len(entries) == 3
    content = io.BytesIO()
    np.save(content, np.load(entries[0], allow_pickle=False))
    assert content.getvalue() == entries[0].read_bytes()  # NumPy's own format, to the byte


def test_another_order_is_another_entry(tmp_path):
    def ask(names: list[str]) -> list[int]:
        options = {"content": "", "image_size": 4, "cache": tmp_path, "display": None}
        found = decoded.load(Path("own"), names, lambda index: image(int(names[index])), **options)
        return found.images[:, 0, 0, 0].tolist()

    assert ask(["1", "2"]) == [1, 2]
    assert ask(["2", "1"]) == [2, 1]
    assert ask(["1", "2"]) == [1, 2]


@pytest.mark.parametrize("damage", ["bit", "header", "short", "long", "empty", "folder"])
def test_a_damaged_entry_is_decoded_again_and_told(tmp_path, damage):
    load(tmp_path)
    entry = only(tmp_path)
    whole = entry.read_bytes()
    place = {"bit": len(whole) - 3, "header": 40}.get(damage, 0)
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    entry.write_bytes({"short": whole[:-1], "long": whole + b"0", "empty": b""}.get(damage, flipped))
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    notes = load(tmp_path)[1]
    assert "could not be used" in notes[0]
    if damage == "folder":
        assert "could not be kept" in notes[1]
    else:
        assert len(notes) == 1
        assert entry.read_bytes() == whole
        assert load(tmp_path, never)[1] == []


def test_every_flipped_bit_is_noticed(tmp_path):
    load(tmp_path)
    entry = only(tmp_path)
    whole = bytearray(entry.read_bytes())
    for place in range(0, len(whole), 7):
        whole[place] ^= 1 << place % 8
        entry.write_bytes(whole)
        with pytest.raises(ValueError, match=r"checksum|header"):
            decoded._read(entry, SHAPE)
        whole[place] ^= 1 << place % 8


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (note,) = load(tmp_path / "file")[1]
    assert "could not be kept" in note


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "(No space left on device): each start decodes them" in load(tmp_path)[1][0]
    assert list((tmp_path / "decoded").iterdir()) == []


def test_a_cache_that_is_read_only_still_serves(tmp_path, monkeypatch):
    load(tmp_path)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    assert load(tmp_path, never)[1] == []


def test_pictures_that_cannot_be_decoded_are_listed_and_nothing_is_kept(tmp_path):
    def decode(index: int) -> tuple[np.ndarray, str]:
        if index % 12 == 3:
            raise ValueError("it is damaged")
        if index == 4:
            raise OSError(13, "Permission denied", "picture")
        return image(index)

    names = [f"picture {index:02}" for index in range(100)]
    found = decoded.load(Path("own"), names, decode, content="ab" * 32, image_size=4, cache=tmp_path, display=None)
    assert list(found.unreadable) == ["picture 03", "picture 04", *(f"picture {index}" for index in range(15, 100, 12))]
    assert found.unreadable["picture 04"] == "Permission denied"
    assert list(tmp_path.iterdir()) == []
    path = decoded.write_unreadable(tmp_path, "ab" * 32, found.unreadable)
    assert len(path.read_text().splitlines()) == 10
    assert decoded.read_unreadable(tmp_path, "ab" * 32) == found.unreadable
    assert decoded.read_unreadable(tmp_path, "ab" * 8 + "0" * 48) == {}


def test_only_the_entries_used_last_are_kept(tmp_path):
    begun, fresh = tmp_path / "decoded/.a.safetensors.abcdefgh", tmp_path / "decoded/.b.safetensors.abcdefgh"
    for number in range(decoded.ENTRIES):
        load(tmp_path, content=str(number))
    entries = {file.name: file for file in (tmp_path / "decoded").glob("*.npy")}
    for age, file in enumerate(entries.values()):
        os.utime(file, (1000 - age, 1000 - age))
    for file in (begun, fresh):
        file.write_bytes(b"")
    os.utime(begun, (1000, 1000))
    oldest = list(entries.values())[-1]
    for number in range(decoded.ENTRIES):
        load(tmp_path, never, str(number))  # which is a use of each
    os.utime(oldest, (1000, 1000))
    load(tmp_path, content="new")
    left = {file.name for file in (tmp_path / "decoded").iterdir()}
    assert len(left - {fresh.name}) == 2 * decoded.ENTRIES
    assert fresh.name in left
    assert not {begun.name, oldest.name} & left


def test_what_is_done_shows_as_one_bar_that_goes_away(tmp_path):
    display = Progress(console=Console(quiet=True))
    seen = []

    def decode(index: int) -> tuple[np.ndarray, str]:
        seen.extend((task.description, task.total) for task in display.tasks)
        return image(index)

    load(tmp_path, decode, display=display)
    assert set(seen) == {("Decoding pictures", 100)}
    assert display.tasks == []


def test_an_unexpected_error_ends_all_threads_and_keeps_nothing(tmp_path):
    display, calls = Progress(console=Console(quiet=True)), []

    def decode(index: int) -> tuple[np.ndarray, str]:
        calls.append(index)
        if index == 5:
            raise RuntimeError("a mistake")
        return image(index)

    with pytest.raises(RuntimeError, match="a mistake"):
        load(tmp_path, decode, display=display)
    assert display.tasks == []
    assert list(tmp_path.iterdir()) == []


ASK = """
import sys, time
from pathlib import Path
import numpy as np
from tinycifar.data import decoded

def decode(index):
    time.sleep({seconds})
    return np.full((3, 4, 4), index, np.uint8), ""

print("ready", flush=True)
loaded = decoded.load(
    Path("own"), [f"picture {{index:02}}" for index in range(100)], decode,
    content="0" * 64, image_size=4, cache=Path({cache!r}), display=None,
)
assert loaded.images[:, 0, 0, 0].tolist() == list(range(100)) and not loaded.notes, loaded.notes
"""


def start(cache: Path, seconds: float) -> subprocess.Popen[str]:
    code = ASK.format(cache=str(cache), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_leaves_nothing(tmp_path):
    process = start(tmp_path, 0.3)  # 15 seconds in all with two threads
    process.stdout.readline()
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_that_ask_at_once_all_get_the_pictures(tmp_path):
    processes = [start(tmp_path, 0.001) for _ in range(2)]
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert load(tmp_path, never)[1] == []
    assert only(tmp_path).suffix == ".npy"
