"""`search`: which values of a recipe's fields give the best validation accuracy, by several processes and machines.

A study is a folder. `study.json` says what is searched, `study.journal` is Optuna's record of every trial, and a trial
is a run directory, `trials/N`, trained by `training.train` as every run. A process holds the lock of its
trial, so that a trial whose process died is known by its free lock, and the next process resumes it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tinycifar import data, signals
from tinycifar.data import Dataset
from tinycifar.scale import jobs as processes
from tinycifar.sweep import study as sweep_study
from tinycifar.sweep.study import Study, Trial
from tinycifar.sweep.trials import Stopped as Stopped
from tinycifar.sweep.trials import entries as entries
from tinycifar.sweep.trials import open_study as open_study
from tinycifar.sweep.trials import work

POLL_SECONDS = 0.5


class WorkersDied(Exception):  # noqa: N818  (the others continue)
    """Some of the processes of a search ended before its end."""


def search(
    study: Study,
    dataset: Dataset,
    *,
    trials: int,
    jobs: int = 1,
    source: str | None = None,
    device: str = "auto",
) -> Iterator[Trial]:
    """Train until the study has that many trials, and give each as in `entries` when it has ended, in whatever process.

    With several jobs each is a process with its part of torch's threads. Raises Stopped at a signal, when all processes
    have stopped, and WorkersDied at the end if some of them failed.
    """
    stored = open_study(study)
    reported = {entry.number for entry in entries(study, stored) if entry.state != "running"}

    def new_entries() -> Iterator[Trial]:
        for entry in entries(study, stored):
            if entry.state != "running" and entry.number not in reported:
                reported.add(entry.number)
                yield entry

    try:
        if jobs == 1:
            for _ in work(study, dataset, trials=trials, source=source, device=device):
                yield from new_entries()
            return
        arguments = {"folder": str(study.folder), "trials": trials, "source": source, "device": device}
        threads = max(1, torch.get_num_threads() // jobs)
        with processes.Processes("tinycifar.sweep.search:worker") as workers, signals.StopSignal() as stop:
            for number in range(1, jobs + 1):
                workers.start(number, **arguments, threads=threads)
            problems: list[str] = []
            while workers.running:
                yield from new_entries()
                if stop.received:
                    workers.stop()
                for ended in workers.ended():
                    if ended.code not in (0, 128 + signal.SIGTERM):
                        problems.append(f"worker {ended.index} ended with {ended.code}: {ended.problem}")
                time.sleep(POLL_SECONDS)
        yield from new_entries()
        if stop.received and sum(entry.state != "running" for entry in entries(study, stored)) < trials:
            raise Stopped(stop.received)
        if problems:
            raise WorkersDied("; ".join(problems))
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    except SystemExit as ended:  # SIGTERM's, as the command raises it
        if not isinstance(ended.code, int) or ended.code <= 128:
            raise
        raise Stopped(ended.code - 128) from None


def worker(folder: str, trials: int, source: str | None, device: str, threads: int) -> None:
    """What a child process does: train trials until the study in the folder has that many."""
    torch.set_num_threads(threads)
    study = sweep_study.read(Path(folder))
    dataset = data.load(source, **vars(study.recipe.form))
    try:
        for _ in work(study, dataset, trials=trials, source=source, device=device):
            pass
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)
