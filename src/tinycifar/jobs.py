"""Several trainings at once, each a process of its own with its share of the threads."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tinycifar import run

POLL_SECONDS = 0.1
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
            f"{self.jobs} at once, {threads_told(self.threads // self.jobs)} each, train {self.at_once:,.0f} images/s; "
            f"one alone with {threads_told(self.threads)} {self.alone:,.0f}. At once takes {change} one after the "
            f"other{advice}"
        )


def threads_told(threads: int) -> str:
    """So many threads, in words."""
    return f"{threads} thread{'s' * (threads != 1)}"


def run_all(commands: Sequence[Sequence[str]], at_once: int, stop: run.StopSignal) -> Iterator[Ended]:
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
                        [sys.executable, "-m", "tinycifar", *words],
                        stdin=subprocess.DEVNULL,
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


def compare(words: Sequence[str], *, images: int, threads: int, jobs: int, stop: run.StopSignal) -> Speed | None:
    """Train on a few images alone with all threads, then by several processes at once with their shares.

    `words` are those of a `tinycifar train` without run directory, threads and limit. None where a signal came. Raises
    ValueError, with what it said, if one fails.
    """

    def images_per_second(count: int) -> float:
        found = 0.0
        with tempfile.TemporaryDirectory() as folder:
            few = ["--limit", str(images), "--stop-after-epoch", "1", "--json", "--threads", str(threads // count)]
            commands = [[*words, *few, "--out", str(Path(folder, str(number)))] for number in range(count)]
            for ended in run_all(commands, count, stop):
                if stop.received:
                    continue
                if ended.code:
                    raise ValueError(last_line(ended))
                found += float(json.loads(ended.out)["images_per_second"])
        return found

    alone = images_per_second(1)
    at_once = 0.0 if stop.received else images_per_second(jobs)
    return None if stop.received else Speed(alone, at_once, jobs, threads)


def last_line(ended: Ended) -> str:
    """What a process said last, without the command's name."""
    lines = ended.err.strip().splitlines() or [f"it ended with {ended.code}"]
    return lines[-1].removeprefix("tinycifar: ")
