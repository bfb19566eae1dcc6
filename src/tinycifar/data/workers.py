"""Decode pictures by several processes: Python's interpreter lock leaves threads little to do in parallel."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
from PIL import Image
from rich.progress import Progress

from tinycifar.data.pictures import Pixels

if sys.platform == "linux":
    import fcntl

FEWEST = 1_000  # pictures for which starting processes is worth its time
PIPE_BYTES = 1 << 20  # as many as Linux lets everybody have
TOGETHER = 16  # pictures that a process sends at a time
PROCESSES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Slots:
    """A counting lock that processes share which were forked after it was made."""

    def __init__(self, count: int) -> None:
        self._reader, self._writer = os.pipe()
        os.write(self._writer, b"." * count)

    def __enter__(self) -> None:
        while not os.read(self._reader, 1):
            pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._writer, b".")

    def __del__(self) -> None:
        for descriptor in (self._reader, self._writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@contextlib.contextmanager
def bar(display: Progress | None, what: str, count: int) -> Iterator[Callable[[int], None]]:
    """A bar named `what` that grows to `count`; gives a function that takes how many more are done."""
    if display is None:
        yield lambda _: None
        return
    task = display.add_task(what, total=count)
    try:
        yield lambda done: display.advance(task, done)
    finally:
        display.remove_task(task)


def worthwhile(count: int) -> bool:
    """Whether so many pictures are decoded by processes: on Linux, where a process may be forked beside threads."""
    return count >= FEWEST and PROCESSES > 1 and sys.platform == "linux"


def run(
    attempt: Callable[[int], tuple[Pixels | None, str]],
    count: int,
    shape: tuple[int, ...],
    store: Callable[[int, Pixels | None, str], None],
    what: str,
    display: Progress | None,
) -> None:
    """Call `attempt` with 0 to `count` - 1 in processes, and `store` here with each result; with a bar named `what`.

    What `attempt` raises ends it all as a RuntimeError, running out of memory as a MemoryError. The processes end with
    this one, however it ends: they are forked, decode pictures and touch nothing else.
    """
    Image.init()  # no process needs to import decoders
    children: dict[int, int] = {}  # process by the end of its pipe
    with bar(display, what, count) as advance:
        try:
            for number in range(PROCESSES):
                reader, writer = os.pipe()
                with contextlib.suppress(OSError):  # room for many pictures, so that a process hardly waits here
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of forking beside threads, of which the children use none
                    process = os.fork()
                if process == 0:
                    _work(attempt, range(number, count, PROCESSES), [reader, *children], writer)
                os.close(writer)
                children[reader] = process
            _collect(children, count, shape, store, advance)
        finally:
            for reader, process in children.items():
                os.close(reader)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


def _work(attempt: Callable[[int], tuple[Pixels | None, str]], rows: range, readers: list[int], writer: int) -> None:
    """What a process does until it ends; it returns nowhere."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
        for reader in readers:  # else no process would notice that the first one has ended
            os.close(reader)
        warnings.simplefilter("ignore")
        for first in range(0, len(rows), TOGETHER):
            results = [(index, *attempt(index)) for index in rows[first : first + TOGETHER]]
            _send(writer, [(index, pixels is not None, remark) for index, pixels, remark in results])
            _write(writer, b"".join(pixels.tobytes() for _, pixels, _ in results if pixels is not None))
        code = 0
    except BaseException as error:
        kind = type(error).__name__
        with contextlib.suppress(BaseException):
            _send(writer, {"error": kind if isinstance(error, MemoryError) else f"{kind}: {error}"})
    finally:
        os._exit(code)  # without what the first process would do at its end


def _send(writer: int, message: object) -> None:
    content = json.dumps(message).encode()
    _write(writer, len(content).to_bytes(4, "little") + content)


def _write(writer: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(writer, view) :]


def _collect(
    children: dict[int, int],
    count: int,
    shape: tuple[int, ...],
    store: Callable[[int, Pixels | None, str], None],
    advance: Callable[[int], None],
) -> None:
    """Take results from the processes until all `count` are there."""
    size = int(np.prod(shape))
    waiting, done = set(children), 0
    poll = select.poll()
    for reader in waiting:
        poll.register(reader, select.POLLIN | select.POLLHUP)
    while waiting:
        for reader, _ in poll.poll():
            head = _exactly(reader, 4)
            if not head:
                poll.unregister(reader)
                waiting.discard(reader)
                continue
            message = json.loads(_exactly(reader, int.from_bytes(head, "little")))
            if isinstance(message, dict):
                if message["error"] == "MemoryError":
                    raise MemoryError
                raise RuntimeError(message["error"])
            for index, decoded, remark in message:
                pixels = np.frombuffer(_exactly(reader, size), np.uint8).reshape(shape) if decoded else None
                store(index, pixels, remark)
            done += len(message)
            advance(len(message))
    if done != count:
        raise RuntimeError("a process that decoded pictures was ended, perhaps for lack of memory")


def _exactly(reader: int, size: int) -> bytes:
    """So many bytes of a pipe; fewer at its end."""
    content = bytearray()
    while len(content) < size:
        part = os.read(reader, size - len(content))
        if not part:
            break
        content += part
    return bytes(content)
