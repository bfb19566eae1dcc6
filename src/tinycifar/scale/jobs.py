"""Child processes that each do a piece of work: several seeds or trials in parallel.

A child gets one JSON object on its standard input and answers with one on its standard output. It writes a
checkpoint and stops when its standard input ends, so none outlives the process that it works for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tinycifar import signals

POLL_SECONDS = 0.1
# Modules come from where this process has them; Python would take a `random.py` in the working folder first.
CHILD = "import sys; sys.path[:] = sys.argv[2:]; from tinycifar.scale import jobs; jobs.child()"
SPIN_COUNT = "10000"  # of GNU OpenMP, as in tinycifar.__main__: children are beside other busy processes


@dataclass(frozen=True)
class Ended:
    """A child that has ended: its number, its exit code, what its work returned, and why it failed ("" if not)."""

    index: int
    code: int
    result: dict[str, Any] | None
    problem: str


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]


class Processes:
    """Children that all do the same work, named "module:function"; those left at the end are killed.

    The function takes what `start` gives it as keyword arguments and returns an object that JSON can hold, or None.
    """

    def __init__(self, work: str) -> None:
        self._work = work
        self._running: dict[int, _Child] = {}

    def __enter__(self) -> Processes:
        return self

    def start(self, index: int, **arguments: Any) -> None:
        """Start a child that is called by this number."""
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  (closed by `_end`)
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, self._work, *sys.path],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env={"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ},
            start_new_session=True,  # a Ctrl-C at the terminal reaches this process alone
        )
        self._running[index] = _Child(process, out, err)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            process.stdin.write(json.dumps(arguments).encode() + b"\n")
            process.stdin.flush()

    @property
    def running(self) -> int:
        """How many children have not been given by `ended`."""
        return len(self._running)

    def stop(self) -> None:
        """Ask all children to write a checkpoint and stop."""
        for child in self._running.values():
            _close(child)

    def ended(self) -> list[Ended]:
        """The children that have ended since the last call."""
        done = [index for index, child in self._running.items() if child.process.poll() is not None]
        return [_end(index, self._running.pop(index)) for index in done]

    def __exit__(self, *exception: object) -> None:
        for child in self._running.values():
            child.process.kill()
        for index in list(self._running):
            _end(index, self._running.pop(index))


def run_all(work: str, requests: Sequence[dict[str, Any]], parallel: int, stop: signals.StopSignal) -> Iterator[Ended]:
    """Do `work` for each of the requests, `parallel` of them in parallel, and give each when it has ended.

    When `stop` receives a signal, those that run are asked to stop, and no others start.
    """
    waiting = list(enumerate(requests))
    with Processes(work) as processes:
        while processes.running or (waiting and not stop.received):
            while waiting and processes.running < parallel and not stop.received:
                index, request = waiting.pop(0)
                processes.start(index, **request)
            if stop.received:
                processes.stop()
            yield from processes.ended()
            time.sleep(POLL_SECONDS)


def child() -> None:
    """What a child does: the work that its command line names, with the arguments on its standard input.

    Prints {"result": ...} or {"problem": ...}, and exits with 0, with 2 for a ValueError or OSError, with 1 for a
    training that diverged, or with 143 if it was asked to stop before its work could handle that.
    """
    signal.signal(signal.SIGTERM, signals.end)
    with open(0, "rb", buffering=0, closefd=False) as file:  # unbuffered, as its end is waited for
        line = file.readline()
    if not line.endswith(b"\n"):
        sys.exit(128 + signal.SIGTERM)  # the parent has ended
    arguments = json.loads(line)
    _stop_with_parent()
    code, answer = 0, {}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            module, _, name = sys.argv[1].partition(":")
            function: Callable[..., Any] = getattr(importlib.import_module(module), name)
            answer = {"result": function(**arguments)}
        except FloatingPointError as error:
            code, answer = 1, {"problem": str(error)}
        except (ValueError, OSError) as error:
            code, answer = 2, {"problem": str(error)}
    print(json.dumps(answer, allow_nan=False))
    sys.exit(code)


def _stop_with_parent() -> None:
    """Have this process get a SIGTERM when its standard input ends: when the parent closes that pipe, or is dead."""

    def wait() -> None:
        os.read(0, 1)  # nothing more is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _close(child: _Child) -> None:
    if child.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.close()


def _end(index: int, child: _Child) -> Ended:
    """Wait for a child and read what it has printed."""
    code = child.process.wait()
    _close(child)
    printed = []
    for file in (child.out, child.err):
        file.seek(0)
        printed.append(file.read().decode(errors="backslashreplace").strip())
        file.close()
    try:
        answer = json.loads(printed[0].splitlines()[-1])
    except (ValueError, IndexError):
        answer = {}
    problem = answer.get("problem", "")
    if code and not problem:
        last = f": {printed[1].splitlines()[-1]}" if printed[1] else ""
        problem = f"it was killed by signal {-code}" if code < 0 else f"it ended with {code}{last}"
    return Ended(index, code, answer.get("result"), problem)
