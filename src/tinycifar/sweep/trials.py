"""The trials of a sweep: what Optuna keeps of them, and how one is trained."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from tinycifar import checkpoint, data, run, training
from tinycifar.data import Dataset
from tinycifar.recipes import Recipe
from tinycifar.sweep.ranges import Range
from tinycifar.sweep.study import Study

MOST_STARTS = 3  # of a trial whose process was killed each time in one epoch: perhaps it wants more memory
# The worst quarter at a check is pruned. While the learning rate is high, accuracies say little of where trials end:
# with half of them, as Optuna has it, `minute` as it is would have been pruned after its second epoch (docs/LOG.md).
KEPT_PERCENT = 75.0
PRUNING_CHECKS = 10  # of a trial, about; each costs a start of the training loop
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class Stopped(Exception):  # noqa: N818  (no error)
    """A search that a signal, of that number, ended; what it was at is checkpointed."""

    def __init__(self, signal: int) -> None:
        super().__init__("stopped")
        self.signal = signal


class _JournalLock:
    """The journal's lock as a file lock, which is free as soon as its process is dead (Optuna's own stays 30 s)."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_study(study: Study) -> optuna.Study:
    """Optuna's side of a study, with trial 0, the recipe as it is, in waiting if there is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = study.folder / "study.journal"
    lock = _JournalLock(study.folder / ".journal.lock")
    lock.acquire()
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):  # a full disk leaves half a line; what came after it would be lost
        os.truncate(path, content.rfind(b"\n") + 1)
    lock.release()
    with FileLock(study.folder / ".lock"):
        found = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),  # type: ignore[arg-type]
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.PercentilePruner(KEPT_PERCENT),
        )
        if not found.get_trials(deepcopy=False):
            as_it_is = study.as_it_is()
            inside = all(of.contains(as_it_is[of.field]) for of in study.ranges)
            found.enqueue_trial(as_it_is if inside else {})
    return found


def _sampler(study: Study, number: int) -> optuna.samplers.TPESampler:
    """A sampler whose draws follow from the study's seed, the trial's number, and the trials before it."""
    seed = np.random.SeedSequence(study.seed, spawn_key=(number,)).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna 4 says so of constant_liar
        return optuna.samplers.TPESampler(seed=int(seed), constant_liar=True)


def _suggest(trial: optuna.Trial, of: Range) -> Any:
    if of.kind == "choice":
        return trial.suggest_categorical(of.field, of.values)
    suggest = trial.suggest_int if of.kind == "int" else trial.suggest_float
    return suggest(of.field, *of.values, log=of.log)


@dataclass(frozen=True)
class _Begun:
    """A trial that this process is at, and holds the lock of; `reported` are the epochs that the study knows of."""

    trial: optuna.Trial
    lock: FileLock
    directory: Path
    values: dict[str, Any]
    reported: frozenset[int]


def _begin(study: Study, kept: optuna.Study, trials: int) -> _Begun | None:
    """Take a trial whose process died, or else a new one; None where the study has as many as it shall have."""
    with FileLock(study.folder / ".lock"):
        found = kept.get_trials(deepcopy=False)
        for of in found:
            lock = _lock_of(study, of.number) if of.state == TrialState.RUNNING else None
            if lock is None:
                continue
            trial, directory = optuna.Trial(kept, of._trial_id), _directory(study, of.number)
            if of.user_attrs.get("starts", 0) < MOST_STARTS or _epochs(directory) > of.user_attrs.get("epochs", 0):
                break
            trial.set_user_attr("problem", f"its process was killed {MOST_STARTS} times")
            kept.tell(trial, state=TrialState.FAIL)
            lock.release()
        else:
            if sum(of.state != TrialState.WAITING for of in found) >= trials:
                return None
            trial = kept.ask()
            lock = _lock_of(study, trial.number)
            assert lock is not None
        directory = _directory(study, trial.number)
        before, epochs = trial.user_attrs, _epochs(directory)
        trial.set_user_attr("starts", 1 + (before.get("starts", 0) if epochs == before.get("epochs", 0) else 0))
        trial.set_user_attr("epochs", epochs)  # finished before this start
        as_it_is = study.as_it_is()
        if trial.number == 0 and not all(of.contains(as_it_is[of.field]) for of in study.ranges):
            values = as_it_is  # nothing that the sampler could learn from
        else:
            kept.sampler = _sampler(study, trial.number)
            values = {of.field: _suggest(trial, of) for of in study.ranges}
        reported = kept.get_trials(deepcopy=False)[trial.number].intermediate_values
    return _Begun(trial, lock, directory, values, frozenset(reported))


def _directory(study: Study, number: int) -> Path:
    return study.folder / "trials" / str(number)


def _epochs(directory: Path) -> int:
    """How many epochs of a trial are checkpointed; its metrics, which a crash may leave half, are made to fit."""
    if not (directory / "recipe.json").exists():
        return 0
    try:
        found, _ = checkpoint.latest(directory)
    except ValueError:  # no checkpoint is whole, as the training will say
        return 0
    history: list[dict[str, Any]] = [] if found is None else found.about["state.history"]
    run.rewrite_metrics(directory, history)
    return len(history)


def _lock_of(study: Study, number: int) -> FileLock | None:
    """The lock of a trial, which this process now holds; None if another does."""
    (study.folder / ".locks").mkdir(exist_ok=True)
    lock = FileLock(study.folder / ".locks" / str(number))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def entries(study: Study, kept: optuna.Study) -> list[dict[str, Any]]:
    """Each trial that was begun: its number, parameters, state, validation accuracy, epochs, seconds, run, problem.

    The state is "complete", "pruned" (ended early, as three quarters of those before were better then), "diverged",
    "failed" or "running"; the accuracy is that after the last epoch, None before the first.
    """
    return [_entry(study, of) for of in kept.get_trials(deepcopy=False) if of.state != TrialState.WAITING]


def _entry(study: Study, of: FrozenTrial) -> dict[str, Any]:
    problem = of.user_attrs.get("problem")
    state = "diverged" if of.state == TrialState.PRUNED and problem else STATES[of.state]
    epochs = max(of.intermediate_values, default=0)
    return {
        "number": of.number,
        "parameters": dict(of.params) if of.number else study.as_it_is(),
        "state": state,
        "validation_accuracy": of.value if state == "complete" else of.intermediate_values.get(epochs),
        "epochs": epochs,
        "train_seconds": of.user_attrs.get("train_seconds"),
        "run": str(study.folder / "trials" / str(of.number)),
        "problem": problem,
    }


# --- trials -------------------------------------------------------------------------------------------------------


def work(study: Study, dataset: Dataset, *, trials: int, source: str | None, device: str) -> Iterator[int]:
    """Train trial after trial until the study has so many, and give the number of each that ended.

    `dataset` is the data as it was read from `source` for the recipe's image size. Raises Stopped at a signal.
    """
    kept = open_study(study)
    datasets = {(dataset.image_size, study.recipe.fit, dataset.channels): dataset}
    while (begun := _begin(study, kept, trials)) is not None:
        try:
            try:
                recipe = study.trained(begun.values)
            except ValueError as error:
                _fail(kept, begun, error)  # a value between two that the recipe takes, perhaps
            else:
                seen_as = size, fit, channels = recipe.image_size, recipe.fit, recipe.channels
                if seen_as not in datasets:
                    datasets[seen_as] = data.load(source, image_size=size, fit=fit, channels=channels)
                _train(study, kept, begun, recipe, datasets[seen_as], device)
        except (Stopped, KeyboardInterrupt, SystemExit):
            if kept.get_trials(deepcopy=False)[begun.trial.number].state == TrialState.RUNNING:
                starts = begun.trial.user_attrs["starts"]
                begun.trial.set_user_attr("starts", starts - 1)  # it ended in order
            raise
        finally:
            begun.lock.release()
        yield begun.trial.number


def _train(study: Study, kept: optuna.Study, begun: _Begun, recipe: Recipe, dataset: Dataset, device: str) -> None:
    """Train a trial to its end, or until it is pruned; a run directory that was begun is gone on with."""
    trial, directory, reported = begun.trial, begun.directory, set(begun.reported)
    varied_epochs = any(of.field == "epochs" for of in study.ranges)
    for stop in [recipe.epochs] if trial.number == 0 or varied_epochs else stops(recipe.epochs):
        stopped_by = None
        if stop == recipe.epochs or begun.trial.user_attrs["epochs"] < stop:
            begun_before = (directory / "recipe.json").exists()
            try:
                result = training.train(
                    recipe,
                    dataset,
                    out=None if begun_before else directory,
                    resume=directory if begun_before else None,
                    seed=study.seed,
                    device=device,
                    stop_after_epoch=stop,
                    evaluate=stop == recipe.epochs,
                )
            except (FloatingPointError, torch.OutOfMemoryError) as error:
                trial.set_user_attr("problem", str(error).splitlines()[0])
                _tell(kept, begun, TrialState.PRUNED)  # the sampler passes over what failed, and learns from this
                return
            except ValueError as error:
                if not begun_before:
                    raise
                _fail(kept, begun, error)  # what it left cannot be gone on with
                return
            if not result.complete:
                raise Stopped(result.stopped_by or signal.SIGTERM)
            stopped_by = result.stopped_by
        for entry in run.read_metrics(directory):
            if entry["epoch"] not in reported:
                trial.report(entry["validation_accuracy"], entry["epoch"])
                reported.add(entry["epoch"])
        if stop == recipe.epochs:
            _tell(kept, begun, TrialState.COMPLETE, result.record["validation_accuracy"])
        elif trial.should_prune():
            _tell(kept, begun, TrialState.PRUNED)
            stop = recipe.epochs
        if stopped_by:
            raise Stopped(stopped_by)
        if stop == recipe.epochs:
            return


def _fail(kept: optuna.Study, begun: _Begun, error: ValueError) -> None:
    begun.trial.set_user_attr("problem", str(error).splitlines()[0])
    kept.tell(begun.trial, state=TrialState.FAIL)


def _tell(kept: optuna.Study, begun: _Begun, state: TrialState, value: float | None = None) -> None:
    history = run.read_metrics(begun.directory)
    begun.trial.set_user_attr("train_seconds", sum(entry["train_seconds"] for entry in history))
    kept.tell(begun.trial, value, state)


def stops(epochs: int) -> list[int]:
    """After which epochs a trial of so many is held against the others, from a third of them on, and the last one."""
    first = -(-epochs // 3)
    return [*range(first, epochs, max(1, (epochs - first) // PRUNING_CHECKS)), epochs]
