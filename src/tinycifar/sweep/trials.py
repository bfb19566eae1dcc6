"""The trials of a sweep: how Optuna stores them, and how one is trained."""

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
from tinycifar.sweep.study import Study, Trial

MOST_STARTS = 3  # of a trial whose process was killed each time in one epoch: perhaps it wants more memory
# The worst quarter at a check is pruned. While the learning rate is high, accuracies say little of where trials end:
# with half of them, as is Optuna's default, the unchanged `minute` would have been pruned after
# its second epoch (docs/LOG.md).
KEPT_PERCENT = 75.0
PRUNING_CHECKS = 10  # of a trial, about; each costs a start of the training loop
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class Stopped(Exception):  # noqa: N818  (no error)
    """A search that a signal, of that number, ended; its trial has a checkpoint."""

    def __init__(self, signal: int) -> None:
        super().__init__("stopped")
        self.signal = signal


def open_study(study: Study) -> optuna.Study:
    """Optuna's side of a study, with trial 0, the unchanged recipe, waiting if there is no trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = study.folder / "study.journal"
    lock = FileLock(study.folder / ".journal.lock")  # free as soon as its process is dead; Optuna's own stays 30 s
    with lock:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):  # a full disk leaves half a line; later lines would be lost
            os.truncate(path, content.rfind(b"\n") + 1)
    with FileLock(study.folder / ".lock"):
        stored = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),  # type: ignore[arg-type]
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.PercentilePruner(KEPT_PERCENT),
        )
        if not stored.get_trials(deepcopy=False):
            as_it_is = study.as_it_is()
            inside = all(varied.contains(as_it_is[varied.field]) for varied in study.ranges)
            stored.enqueue_trial(as_it_is if inside else {})
    return stored


def _sampler(study: Study, number: int) -> optuna.samplers.TPESampler:
    """A sampler whose draws follow from the study's seed, the trial's number, and the trials before it."""
    seed = np.random.SeedSequence(study.seed, spawn_key=(number,)).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna 4 says so of constant_liar
        return optuna.samplers.TPESampler(seed=int(seed), constant_liar=True)


def _suggest(trial: optuna.Trial, varied: Range) -> Any:
    if varied.kind == "choice":
        return trial.suggest_categorical(varied.field, varied.values)
    suggest = trial.suggest_int if varied.kind == "int" else trial.suggest_float
    return suggest(varied.field, *varied.values, log=varied.log)


@dataclass(frozen=True)
class _Started:
    """A trial that this process trains and has locked."""

    trial: optuna.Trial
    lock: FileLock
    directory: Path
    values: dict[str, Any]


def _begin(study: Study, stored: optuna.Study, trials: int) -> _Started | None:
    """Take a trial whose process died, or else a new one; None if the study has all its trials."""
    with FileLock(study.folder / ".lock"):
        trials_so_far = stored.get_trials(deepcopy=False)
        for known in trials_so_far:
            lock = _lock_of(study, known.number) if known.state == TrialState.RUNNING else None
            if lock is None:
                continue
            trial, directory = optuna.Trial(stored, known._trial_id), _directory(study, known.number)
            if known.user_attrs.get("starts", 0) < MOST_STARTS or _epochs(directory) > known.user_attrs.get(
                "epochs", 0
            ):
                break
            trial.set_user_attr("problem", f"its process was killed {MOST_STARTS} times")
            stored.tell(trial, state=TrialState.FAIL)
            lock.release()
        else:
            if sum(known.state != TrialState.WAITING for known in trials_so_far) >= trials:
                return None
            trial = stored.ask()
            lock = _lock_of(study, trial.number)
            assert lock is not None
        directory = _directory(study, trial.number)
        before, epochs = trial.user_attrs, _epochs(directory)
        trial.set_user_attr("starts", 1 + (before.get("starts", 0) if epochs == before.get("epochs", 0) else 0))
        trial.set_user_attr("epochs", epochs)  # finished before this start
        as_it_is = study.as_it_is()
        if trial.number == 0 and not all(varied.contains(as_it_is[varied.field]) for varied in study.ranges):
            values = as_it_is  # nothing that the sampler could learn from
        else:
            stored.sampler = _sampler(study, trial.number)
            values = {varied.field: _suggest(trial, varied) for varied in study.ranges}
    return _Started(trial, lock, directory, values)


def _directory(study: Study, number: int) -> Path:
    return study.folder / "trials" / str(number)


def _epochs(directory: Path) -> int:
    """How many epochs of a trial are checkpointed; its metrics, which a crash may have cut off, are made to match."""
    if not (directory / "recipe.json").exists():
        return 0
    try:
        newest, _ = checkpoint.latest(directory)
    except ValueError:  # no checkpoint is whole, as the training will say
        return 0
    history: list[dict[str, Any]] = [] if newest is None else newest.about["state.history"]
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


def entries(study: Study, stored: optuna.Study) -> list[Trial]:
    """Each trial that was started."""
    return [_entry(study, trial) for trial in stored.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def _entry(study: Study, trial: FrozenTrial) -> Trial:
    problem = trial.user_attrs.get("problem")
    state = "diverged" if trial.state == TrialState.PRUNED and problem else STATES[trial.state]
    epochs = max(trial.intermediate_values, default=0)
    return Trial(
        number=trial.number,
        parameters=dict(trial.params) if trial.number else study.as_it_is(),
        state=state,
        validation_accuracy=trial.value if state == "complete" else trial.intermediate_values.get(epochs),
        epochs=epochs,
        train_seconds=trial.user_attrs.get("train_seconds"),
        run=str(_directory(study, trial.number)),
        problem=problem,
    )


# --- trials -------------------------------------------------------------------------------------------------------


def work(study: Study, dataset: Dataset, *, trials: int, source: str | None, device: str) -> Iterator[int]:
    """Train trial after trial until the study has that many, and give the number of each that ended.

    `dataset` is the data as it was read from `source` for the recipe's image size. Raises Stopped at a signal.
    """
    stored = open_study(study)
    datasets = {study.recipe.form: dataset}
    while (started := _begin(study, stored, trials)) is not None:
        try:
            try:
                recipe = study.trained(started.values)
            except ValueError as error:
                _fail(stored, started, error)  # a value between two that the recipe takes, perhaps
            else:
                if recipe.form not in datasets:
                    datasets[recipe.form] = data.load(source, **vars(recipe.form))
                _train(study, stored, started, recipe, datasets[recipe.form], device)
        except (Stopped, KeyboardInterrupt, SystemExit):
            if stored.get_trials(deepcopy=False)[started.trial.number].state == TrialState.RUNNING:
                starts = started.trial.user_attrs["starts"]
                started.trial.set_user_attr("starts", starts - 1)  # it was stopped, not killed
            raise
        finally:
            started.lock.release()
        yield started.trial.number


def _train(
    study: Study, stored: optuna.Study, started: _Started, recipe: Recipe, dataset: Dataset, device: str
) -> None:
    """Train a trial to its end, or until it is pruned; a run directory that exists is resumed."""
    trial, directory = started.trial, started.directory
    reported = set(stored.get_trials(deepcopy=False)[trial.number].intermediate_values)
    varied_epochs = any(varied.field == "epochs" for varied in study.ranges)
    for stop in [recipe.epochs] if trial.number == 0 or varied_epochs else stops(recipe.epochs):
        stopped_by = None
        if stop == recipe.epochs or trial.user_attrs["epochs"] < stop:
            resumed = (directory / "recipe.json").exists()
            try:
                result = training.train(
                    recipe,
                    dataset,
                    out=None if resumed else directory,
                    resume=directory if resumed else None,
                    seed=study.seed,
                    device=device,
                    stop_after_epoch=stop,
                    evaluate=stop == recipe.epochs,
                )
            except (FloatingPointError, torch.OutOfMemoryError) as error:
                trial.set_user_attr("problem", str(error).splitlines()[0])
                _tell(stored, started, TrialState.PRUNED)  # the sampler passes over what failed, and learns from this
                return
            except ValueError as error:
                if not resumed:
                    raise
                _fail(stored, started, error)  # its directory cannot be resumed
                return
            if not result.complete:
                raise Stopped(result.stopped_by or signal.SIGTERM)
            stopped_by = result.stopped_by
        for entry in run.read_metrics(directory):
            if entry["epoch"] not in reported:
                trial.report(entry["validation_accuracy"], entry["epoch"])
                reported.add(entry["epoch"])
        if stop == recipe.epochs:
            _tell(stored, started, TrialState.COMPLETE, result.record["validation_accuracy"])
        elif trial.should_prune():
            _tell(stored, started, TrialState.PRUNED)
            stop = recipe.epochs
        if stopped_by:
            raise Stopped(stopped_by)
        if stop == recipe.epochs:
            return


def _fail(stored: optuna.Study, started: _Started, error: ValueError) -> None:
    started.trial.set_user_attr("problem", str(error).splitlines()[0])
    stored.tell(started.trial, state=TrialState.FAIL)


def _tell(stored: optuna.Study, started: _Started, state: TrialState, value: float | None = None) -> None:
    history = run.read_metrics(started.directory)
    started.trial.set_user_attr("train_seconds", sum(entry["train_seconds"] for entry in history))
    stored.tell(started.trial, value, state)


def stops(epochs: int) -> list[int]:
    """After which epochs a trial of that many is compared with the others: from a third of them on, and at the last."""
    first = -(-epochs // 3)
    return [*range(first, epochs, max(1, (epochs - first) // PRUNING_CHECKS)), epochs]
