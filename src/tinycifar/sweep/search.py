"""`search`: which values of a recipe's fields give the best validation accuracy, by several processes and machines.

A study is a folder. `study.json` says what is searched, `study.journal` is Optuna's record of every trial, and a trial
is a run directory, `trials/N`, trained by `training.train` as every run. A process holds the lock of the trial that it
is at, so that a trial whose process died is known by its free lock, and the next process goes on with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

from tinycifar import data, signals
from tinycifar.data import Dataset
from tinycifar.scale import jobs as processes
from tinycifar.sweep import study as sweep_study
from tinycifar.sweep.study import Study
from tinycifar.sweep.trials import Stopped as Stopped
from tinycifar.sweep.trials import entries as entries
from tinycifar.sweep.trials import open_study as open_study
from tinycifar.sweep.trials import work

POLL_SECONDS = 0.5


class WorkersDied(Exception):  # noqa: N818  (the others went on)
    """Some of the processes of a search ended before its end."""


def search(
    study: Study,
    dataset: Dataset,
    *,
    trials: int,
    jobs: int = 1,
    source: str | None = None,
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """Train until the study has so many trials, and give each as in `entries` when it has ended, wherever it was.

    With several jobs each is a process with its part of torch's threads. Raises Stopped at a signal, when all processes
    have ended in order, and WorkersDied at the end if some of them ended in disorder.
    """
    kept = open_study(study)
    told = {of["number"] for of in entries(study, kept) if of["state"] != "running"}

    def news() -> Iterator[dict[str, Any]]:
        for entry in entries(study, kept):
            if entry["state"] != "running" and entry["number"] not in told:
                told.add(entry["number"])
                yield entry

    try:
        if jobs == 1:
            for _ in work(study, dataset, trials=trials, source=source, device=device):
                yield from news()
            return
        arguments = {"folder": str(study.folder), "trials": trials, "source": source, "device": device}
        arguments["threads"] = max(1, torch.get_num_threads() // jobs)
        with _Workers(arguments, jobs) as workers, signals.StopSignal() as stop:
            while workers.running():
                yield from news()
                if stop.received:
                    workers.stop()
                time.sleep(POLL_SECONDS)
        yield from news()
        if stop.received and sum(of["state"] != "running" for of in entries(study, kept)) < trials:
            raise Stopped(stop.received)
        if workers.problems:
            raise WorkersDied("; ".join(workers.problems))
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    except SystemExit as ended:  # SIGTERM's, as the command has it
        if not isinstance(ended.code, int) or ended.code <= 128:
            raise
        raise Stopped(ended.code - 128) from None


class _Workers:
    """Processes at a study. One whose standard input ends stops in order, so none outlives the process it is for."""

    def __init__(self, arguments: dict[str, Any], jobs: int) -> None:
        self.problems: list[str] = []
        self._said: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        command = [sys.executable, "-c", "from tinycifar.sweep import search; search.worker()", json.dumps(arguments)]
        for _ in range(jobs):
            self._said.append(tempfile.TemporaryFile())  # noqa: SIM115  (closed in __exit__)
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said[-1],
                    start_new_session=True,  # a Ctrl-C at the terminal reaches the parent alone
                )
            )

    def __enter__(self) -> _Workers:
        return self

    def running(self) -> bool:
        """Whether one of them is."""
        return any(process.poll() is None for process in self._processes)

    def stop(self) -> None:
        """Have all end after their step, with a checkpoint."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for number, (process, said) in enumerate(zip(self._processes, self._said, strict=True), 1):
            if process.poll() is None:  # a second signal came, or something is wrong: their trials can be gone on with
                process.kill()
            code = process.wait()
            said.seek(0)
            lines = said.read().decode(errors="backslashreplace").strip().splitlines()
            said.close()
            if code not in (0, 128 + signal.SIGTERM):
                self.problems.append(f"worker {number} ended with {code}{f': {lines[-1]}' if lines else ''}")


def worker() -> None:
    """What a process of `_Workers` does; its arguments are JSON in the command's first word."""
    asked = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _terminate)
    processes.end_with_parent()
    torch.set_num_threads(asked.pop("threads"))
    study = sweep_study.read(Path(asked.pop("folder")))
    dataset = data.load(asked["source"], image_size=study.recipe.image_size)
    try:
        for _ in work(study, dataset, **asked):
            pass
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
