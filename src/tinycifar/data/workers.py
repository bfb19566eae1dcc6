"""Decode pictures in threads, or many of them in processes: Python's lock leaves threads little to do in parallel."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from PIL import Image
from rich.progress import Progress

if sys.platform == "linux":
    import fcntl

FEWEST = 1_000  # pictures for which starting processes is worth its time
PIPE_BYTES = 1 << 20  # as many as Linux lets everybody have
TOGETHER = 16  # pictures that a process sends at a time
AT_ONCE = 32  # pictures that a thread takes from the queue
Attempt = Callable[[int], tuple[Any, str]]  # what is made of a picture, by its index, and a remark
Store = Callable[[int, Any, str], None]
THREADS = min(8, os.cpu_count() or 1)
PROCESSES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Slots:
    """A counting lock that processes share which were forked after it was made."""

    def __init__(self, count: int) -> None:
        self._reader, self._writer = os.pipe()
        os.write(self._writer, b"." * count)

    def __enter__(self) -> None:
        while not os.read(self._reader, 1):
            pass

    def __exit__(self, *exception: object) -> None:
        os.write(self._writer, b".")

    def __del__(self) -> None:
        for descriptor in (self._reader, self._writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def run(attempt: Attempt, count: int, store: Store, what: str, display: Progress | None, by_path: bool = False) -> None:
    """Call `store` with each index from 0 to `count` - 1 and what `attempt` makes of it, with a bar named `what`.

    That is something that can be pickled, and a remark. With `by_path` many of them are made by processes, which
    share no open file, else all by threads. What `attempt` raises ends it all, as does Ctrl-C.
    """
    shown = display or Progress(disable=True)
    task = shown.add_task(what, total=count)
    work = _in_processes if by_path and worthwhile(count) else _in_threads
    try:
        work(attempt, count, store, lambda done: shown.advance(task, done))
    finally:
        shown.remove_task(task)


def worthwhile(count: int) -> bool:
    """Whether so many pictures are decoded by processes: on Linux, where a process may be forked beside threads.

    Not in a worker of a `multiprocessing.Pool`, which may start no processes.
    """
    is_worker = multiprocessing.current_process().daemon
    return count >= FEWEST and PROCESSES > 1 and sys.platform == "linux" and not is_worker


def _in_threads(attempt: Attempt, count: int, store: Store, advance: Callable[[int], None]) -> None:
    """Ctrl-C ends it after the pictures at hand."""
    stopped = threading.Event()

    def some(first: int) -> int:
        indices = range(first, min(first + AT_ONCE, count))
        for index in indices:
            if stopped.is_set():
                break
            store(index, *attempt(index))
        return len(indices)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here, as the threads' own filters undo each other's
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done in pool.map(some, range(0, count, AT_ONCE)):
                advance(done)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _in_processes(attempt: Attempt, count: int, store: Store, advance: Callable[[int], None]) -> None:
    """What `attempt` raises becomes a RuntimeError, running out of memory a MemoryError.

    The processes end with this one, however it ends: they are forked, decode pictures and touch nothing else.
    """
    Image.init()  # no process needs to import decoders
    context = multiprocessing.get_context("fork")
    children: dict[Connection, BaseProcess] = {}
    try:
        for number in range(PROCESSES):
            reader, writer = context.Pipe(duplex=False)
            with contextlib.suppress(OSError):  # room for many pictures, so that a process hardly waits here
                fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            rows = range(number, count, PROCESSES)
            process = context.Process(target=_work, args=(attempt, rows, [reader, *children], writer))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of forking beside threads, of which the children use none
                process.start()
            writer.close()
            children[reader] = process
        _collect(children, count, store, advance)
    finally:
        for reader, child in children.items():
            reader.close()
            child.kill()
            child.join()


def _work(attempt: Attempt, rows: range, readers: list[Connection], writer: Connection) -> None:
    """What a process does until it ends; it returns nowhere."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
        for reader in readers:  # else no process would notice that the first one has ended
            reader.close()
        warnings.simplefilter("ignore")
        for first in range(0, len(rows), TOGETHER):
            writer.send([(index, *attempt(index)) for index in rows[first : first + TOGETHER]])
        code = 0
    except BaseException as error:
        kind = type(error).__name__
        with contextlib.suppress(BaseException):
            writer.send(kind if isinstance(error, MemoryError) else f"{kind}: {error}")
    finally:
        os._exit(code)  # without what the first process would do at its end


def _collect(children: Iterable[Connection], count: int, store: Store, advance: Callable[[int], None]) -> None:
    """Take results from the processes until all `count` are there."""
    waiting, done = set(children), 0
    while waiting:
        ready: list[Any] = connection.wait(waiting)
        for reader in ready:
            try:
                results = reader.recv()
            except (EOFError, OSError):  # it has ended
                waiting.discard(reader)
                continue
            if results == "MemoryError":
                raise MemoryError
            if isinstance(results, str):
                raise RuntimeError(results)
            for result in results:
                store(*result)
            done += len(results)
            advance(len(results))
    if done != count:
        raise RuntimeError("a process that decoded pictures was ended, perhaps for lack of memory")
