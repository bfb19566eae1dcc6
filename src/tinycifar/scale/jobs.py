"""Several trainings at once, each a process of its own with its share of the threads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tinycifar import signals
from tinycifar.words import counted

POLL_SECONDS = 0.1
CHILD = "from tinycifar.scale import jobs; jobs.child()"
TRIED_STEPS = 40  # by which speeds are compared: some seconds


@dataclass(frozen=True)
class Ended:
    """A process that has ended: which of the commands it was, its exit code, and what it printed."""

    index: int
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Speed:
    """Images a second: of one process with all `threads`, and of several `at_once` with their shares, together."""

    alone: float
    at_once: float
    jobs: int
    threads: int

    def told(self) -> str:
        """What it means for the time that all seeds take, as a line."""
        ratio = self.alone / self.at_once
        change = f"{abs(1 - ratio):.0%} {'more' if ratio > 1 else 'less'} time than"
        advice = ": leave out --jobs to be faster" if ratio > 1 else ""
        return (
            f"{self.jobs} at once, {counted(self.threads // self.jobs, 'thread')} each, train {self.at_once:,.0f} "
            f"images/s; one alone with {counted(self.threads, 'thread')} {self.alone:,.0f}. At once takes {change} "
            f"one after the other{advice}"
        )


def run_all(commands: Sequence[Sequence[str]], at_once: int, stop: signals.StopSignal) -> Iterator[Ended]:
    """Run commands of `tinycifar`, given by their words, so many at once, and give each when it has ended.

    When `stop` receives a signal, those that run are asked to end, as they do in order, and no others begin.
    """
    waiting = list(enumerate(commands))
    running: dict[int, tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]] = {}
    asked = False
    with contextlib.ExitStack() as files:
        try:
            while running or (waiting and not stop.received):
                while waiting and len(running) < at_once and not stop.received:
                    index, words = waiting.pop(0)
                    out: IO[bytes] = files.enter_context(tempfile.TemporaryFile())
                    err: IO[bytes] = files.enter_context(tempfile.TemporaryFile())
                    process = subprocess.Popen(
                        [sys.executable, "-c", CHILD, *words],
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,  # a Ctrl-C at the terminal reaches this process alone
                    )
                    running[index] = process, out, err
                if stop.received and not asked:
                    asked = True
                    for process, _, _ in running.values():
                        process.terminate()
                for index in [index for index, (process, _, _) in running.items() if process.poll() is not None]:
                    process, *files_of = running.pop(index)
                    _close(process)
                    printed = []
                    for file in files_of:
                        file.seek(0)
                        printed.append(file.read().decode(errors="backslashreplace"))
                        file.close()
                    yield Ended(index, process.returncode, *printed)
                time.sleep(POLL_SECONDS)
        finally:  # a second signal, or nobody asks for the rest
            for process, _, _ in running.values():
                process.kill()
                process.wait()
                _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def child() -> None:
    """What a process of `run_all` does: the command with the words behind `-c`; it ends in order with its parent."""
    from tinycifar.__main__ import main

    end_with_parent()
    sys.argv[0] = "tinycifar"
    main()


def end_with_parent() -> None:
    """Have this process get a SIGTERM when its standard input ends: when the parent closes that pipe, or is dead."""

    def wait() -> None:
        os.read(0, 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def compare(words: Sequence[str], *, images: int, threads: int, jobs: int, stop: signals.StopSignal) -> Speed | None:
    """Train on a few images alone with all threads, then by several processes at once with their shares.

    `words` are those of a `tinycifar train` without run directory, threads and limit. None where a signal came or one
    failed, as some do that diverge. Raises ValueError, with what it said, if one is refused.
    """

    def images_per_second(count: int) -> float | None:
        found: float | None = 0.0
        with tempfile.TemporaryDirectory() as folder:
            few = ["--limit", str(images), "--stop-after-epoch", "1", "--json", "--threads", str(threads // count)]
            commands = [[*words, *few, "--out", str(Path(folder, str(number)))] for number in range(count)]
            for ended in run_all(commands, count, stop):
                if ended.code == 2:
                    raise ValueError(reason(ended))
                content = None if stop.received or ended.code else printed_json(ended)
                if content is None or found is None:
                    found = None
                else:
                    found += float(content["images_per_second"])
        return found

    alone = images_per_second(1)
    at_once = None if alone is None else images_per_second(jobs)
    return None if alone is None or at_once is None else Speed(alone, at_once, jobs, threads)


def reason(ended: Ended) -> str:
    """Why a process ended: its own line of it, without the command's name, else what ended it."""
    lines = [line for line in ended.err.splitlines() if line.startswith("tinycifar: ")]
    if lines:
        return lines[-1].removeprefix("tinycifar: ")
    return f"it was killed by signal {-ended.code}" if ended.code < 0 else f"it ended with {ended.code}"


def printed_json(ended: Ended) -> dict[str, Any] | None:
    """The JSON object that a process printed; None where it was ended before that."""
    try:
        content: dict[str, Any] = json.loads(ended.out)
    except ValueError:
        return None
    return content
