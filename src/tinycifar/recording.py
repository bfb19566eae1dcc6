"""The output of a training: progress, checkpoints, weights, metrics, evaluation, and its record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinycifar import checkpoint, inference, labels, metrics, run, trained, typed
from tinycifar.job import Job
from tinycifar.scale import live
from tinycifar.scores import Scores
from tinycifar.words import counted

HARDEST = 50  # training images that a run lists
WORTH_KEEPING = 0.01  # of accuracy, better than the last epoch


@dataclass(frozen=True)
class Result:
    """The result of a run: its directory, its record (as in `results/`), and whether it is complete.

    `stopped_by` is the number of the signal that stopped it, if one did; a run in its last step may still be complete.
    """

    directory: Path
    record: dict[str, Any]
    complete: bool
    stopped_by: int | None
    warnings: tuple[str, ...] = ()
    """Reasons why the results may differ, such as a resume on another number of threads."""


class Recorder:
    """Writes and shows the progress of a run, and keeps its clock; of several processes only the first writes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        steps = job.plan.steps
        self._tasks = (
            job.display.add_task("Whole run", total=sum(steps[: job.last_epoch]), completed=job.state.step),
            job.display.add_task("Epoch", total=steps[0]),
        )
        self._saved_at = time.monotonic()
        self._epoch_start = 0.0

    def start_epoch(self) -> None:
        """Start the clock of an epoch, less the seconds that it took before an interruption."""
        self._epoch_start = time.perf_counter() - self._job.state.epoch_seconds

    def show_epoch(self, description: str) -> None:
        """Show how far the epoch is, under a description."""
        state = self._job.state
        total = self._job.plan.steps[state.epoch]
        self._job.display.reset(self._tasks[1], total=total, completed=state.batch, description=description)

    def show_step(self, loss: float, learning_rate: float) -> None:
        """Show that a step is done."""
        step = self._job.state.step
        if step % live.STEPS == 0:
            self._job.events.add(step, step_loss=loss, learning_rate=learning_rate)
        for task in self._tasks:
            self._job.display.advance(task)

    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint before the epoch's last step is done; the first process decides."""
        state, options = self._job.state, self._job.options
        before_last = state.batch + 1 < self._job.plan.steps[state.epoch]
        return before_last and time.monotonic() - self._saved_at >= options.checkpoint_seconds and self._job.ranks.first

    def save_within_epoch(self) -> None:
        """Write a checkpoint between two steps; the clock of the epoch stops meanwhile."""
        state = self._job.state
        state.epoch_seconds = time.perf_counter() - self._epoch_start
        self._save()
        self.start_epoch()

    def finish_epoch(self, images: int) -> None:
        """Score the validation images (or a watched test set), then write checkpoint, metrics and a line of the log."""
        recipe, state, ranks = self._job.recipe, self._job.state, self._job.ranks
        entry = {
            "epoch": state.epoch + 1,
            "learning_rate": self._job.plan.schedule(state.step)[0] * recipe.max_learning_rate,
            "train_loss": state.epoch_loss.item() / images,  # .item() waits for a GPU to finish
            "train_accuracy": state.epoch_correct.item() / images,
            "train_seconds": time.perf_counter() - self._epoch_start,
        }
        split, held_images, held_labels = inference.evaluation_split(self._job.dataset)
        if ranks.first and (recipe.watch_test or split == "validation"):
            scores = metrics.summarize(inference.logits(self._job.model, held_images), held_labels)
            _check_finite(f"loss on the {split} images", scores.loss, self._job)
            entry |= {f"{split}_loss": scores.loss, f"{split}_accuracy": scores.accuracy}
        entry = ranks.exchange(entry)[0]
        state.next_epoch(entry)
        if recipe.keep_best and best_epoch(state.history) == state.epoch:
            state.best = {name: tensor.detach().clone() for name, tensor in self._job.model.state_dict().items()}
        self._save()
        if ranks.first:
            with checkpoint.saving(state.step):
                run.append_metrics(self._job.directory, entry)
            shown = {name: value for name, value in entry.items() if name != "learning_rate"}
            self._job.events.add(state.step, **shown)
        self._job.display.console.print(log_line(entry, recipe.epochs))

    def out_of_patience(self) -> bool:
        """Whether the validation accuracy has not improved for as many epochs as the recipe allows."""
        patience, history = self._job.recipe.patience, self._job.state.history
        return bool(patience and history) and len(history) - best_epoch(history) >= patience

    def finish(self) -> Result:
        """Evaluate a complete run, if requested, and return its result."""
        evaluate = self._job.options.evaluate
        ranks, state, console = self._job.ranks, self._job.state, self._job.display.console
        complete = state.epoch == self._job.last_epoch or self.out_of_patience()
        if complete and evaluate:
            if state.best:
                self._job.model.load_state_dict(state.best)
            for line in _closing_lines(self._job):
                console.print(line)
            if ranks.first:
                with checkpoint.saving(state.step):
                    run.write_hardest(self._job.directory, labels.hardest(state.last_losses, HARDEST))
        scores: Scores | None = None
        if complete and evaluate and ranks.first:
            evaluation = inference.evaluate(self._job.model, self._job.dataset)
            scores = evaluation.scores
            _check_finite(f"loss on the {scores.split} images", scores.loss, self._job)
            with checkpoint.saving(state.step):
                evaluation.save(self._job.directory)
                self._save_weights(scores.temperature, scores.kept or ())
                if state.epoch == self._job.recipe.epochs or self.out_of_patience():
                    checkpoint.remove_views(self._job.directory)
        scores, stopped_by = ranks.exchange(scores)[0], ranks.signal(self._job.stop)
        for task in self._tasks:
            self._job.display.remove_task(task)
        return Result(self._job.directory, _record(self._job, scores), complete, stopped_by, tuple(self._job.warnings))

    def _save(self) -> None:
        """Write a checkpoint and the weights, if they are finite; all processes wait until they are on the disk."""
        state, ranks = self._job.state, self._job.ranks
        for name, tensor in self._job.model.state_dict().items():
            if tensor.is_floating_point():
                _check_finite(f"largest value of {name}", tensor.abs().max().item(), self._job)
        state.wall_seconds = time.perf_counter() - self._job.wall_start
        generators = ranks.exchange(checkpoint.generators(self._job.device))
        if ranks.first:
            with checkpoint.saving(state.step):
                checkpoint.save(
                    self._job.directory, self._job.model, self._job.optimizers, state, self._job.device, generators
                )
                self._save_weights()
        ranks.exchange()
        self._saved_at = time.monotonic()

    def _save_weights(self, temperature: float | None = None, kept: Sequence[float] = ()) -> None:
        recipe, dataset = self._job.recipe, self._job.dataset
        trained.save_weights(
            self._job.directory / "model.safetensors",
            self._job.model,
            model_name=recipe.model,
            width=recipe.width,
            **vars(recipe.form),
            recipe=recipe.name,
            classes=dataset.classes,
            data=self._job.data_name,
            data_digest=self._job.environment.data_digest,
            validation_images=recipe.validation_images,
            temperature=temperature,
            kept=kept,
        )


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """The first epoch, counted from 1, with the best validation accuracy; 0 without any."""
    accuracies = [entry.get("validation_accuracy", 0.0) for entry in history]
    return 1 + accuracies.index(max(accuracies)) if accuracies else 0


def _closing_lines(job: Job) -> Iterator[str]:
    """Lines about which epochs' weights are kept, and about labels."""
    recipe, history, contradicted = job.recipe, job.state.history, job.state.contradicted
    if len(history) < recipe.epochs and job.last_epoch == recipe.epochs:
        yield f"Stopped early: validation accuracy did not improve for {counted(recipe.patience, 'epoch')}"
    best = best_epoch(history)
    if "validation_accuracy" in history[-1] and best < len(history):
        accuracy, last = (history[epoch - 1]["validation_accuracy"] for epoch in (best, len(history)))
        if recipe.keep_best:
            yield f"The weights of epoch {best} are kept: {accuracy:.2%} on the validation images"
        elif accuracy - last > WORTH_KEEPING:
            yield (
                f"Epoch {best} was better on the validation images ({accuracy:.2%}, the last {last:.2%}): "
                "keep_best=true keeps its weights"
            )
    if recipe.skip_easiest and labels.is_due(1, recipe.epochs) and contradicted > labels.MOST_CONTRADICTED:
        yield (
            f"The model contradicts the labels of {contradicted:.0%} of the images it is surest about: labels are "
            "wrong, or it has learned too little yet. It was trained on random images instead of the hardest. Check "
            "the hardest images in report.html first; skip_easiest=0 trains on all images, more epochs learn more"
        )


def _check_finite(name: str, value: float, job: Job) -> None:
    """Raise FloatingPointError, before anything is written, unless a value after an update is finite."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {name} is {value} after step {job.state.step:,}: the training diverged. Weights and checkpoints in "
            f"{job.directory} are those before"
        )


def log_line(entry: dict[str, Any], epochs: int) -> str:
    """One epoch in the format of the reference's log; its "Val" is the test set if the recipe watches that."""
    line = (
        f"Epoch {entry['epoch']}/{epochs} | LR(s): [{entry['learning_rate']:.6f}] | "
        f"Train loss {entry['train_loss']:.4f} acc {entry['train_accuracy']:.4f}"
    )
    for split in ("validation", "test"):
        if f"{split}_loss" in entry:
            line += f" | Val loss {entry[f'{split}_loss']:.4f} acc {entry[f'{split}_accuracy']:.4f}"
    return line


def _record(finished: Job, scores: Scores | None) -> dict[str, Any]:
    """The content of a record in `results/`."""
    state, environment, history = finished.state, finished.environment, finished.state.history
    validation, test = (scores if scores and scores.split == split else None for split in ("validation", "test"))
    watched = [entry["test_accuracy"] for entry in history if "test_accuracy" in entry]
    train_seconds = state.train_seconds
    return {
        "recipe": finished.recipe.name,
        "seed": finished.options.seed,
        "epochs": len(history),
        "model": finished.recipe.model,
        "parameters": finished.size.parameters,
        "macs": finished.size.macs,
        "train_images": len(finished.images),
        "train_accuracy": history[-1]["train_accuracy"] if history else None,
        "validation_accuracy": validation and validation.accuracy,
        "test_accuracy": test and test.accuracy,
        "test_accuracy_tta": test and test.accuracy_tta,
        "test_subsets": {name: subset.accuracy for name, subset in test.subsets.items()} if test else {},
        "best_test_accuracy": max(watched, default=None),
        "test_loss": test and test.loss,
        "train_seconds": train_seconds,
        "wall_seconds": time.perf_counter() - finished.wall_start,
        "images_per_second": state.images_seen / train_seconds if state.images_seen else None,
        **{name: getattr(environment, name) for name in ("device", "instruction_set", "threads", "precision")},
        "torch_version": environment.torch_version,
        "teachers": [
            {name: value for name, value in typed.to_json(teacher).items() if name != "source"}
            for teacher in environment.teachers
        ],
        "git_revision": environment.git_revision,
        "date": environment.date,
        "resumes": list(environment.resumes),
        "history": history,
    }
