"""`train`: the only training loop.

`setup` prepares the inputs of the loop, `recording` writes its results.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from tinycifar import augment, distill, optim, recording, setup
from tinycifar.data import Dataset
from tinycifar.epochs import draw_epoch, hardest
from tinycifar.job import Job, Options
from tinycifar.labels import MOST_CONTRADICTED, PROBED, contradicted, is_due
from tinycifar.recipes import Recipe
from tinycifar.recording import Result as Result
from tinycifar.scale import distributed


@distributed.as_one
def train(
    recipe: Recipe,
    dataset: Dataset | str | Path | None = None,
    *,
    display: Progress | None = None,
    **options: Any,
) -> Result:
    """Train `recipe` on `dataset` and fill a run directory with weights, metrics and evaluation.

    `options` are the fields of `job.Options`, with their types and defaults.

    `dataset` is a Dataset or a source as in `tinycifar.data.load` (default: CIFAR-10 from the cache). `out` is the run
    directory, new or empty (default: a dated one under `runs/`). A recipe with a teacher learns from the mean of the
    `teachers`' logits. Training starts from the weights of `init`, if given, with a new head if the classes differ.
    `max_parameters` takes the largest width that fits, `limit` the first training images. `stop_after_epoch` stops
    early, on the schedule of the whole recipe; without `evaluate` the run is not evaluated then. Images are normalised
    by mean and deviation of the training images. Progress goes to `display` and its console (default: nowhere), with
    `tensorboard` to event files too. Torch's global generator is seeded with `seed`.

    Weights and checkpoints are written after every epoch and every `checkpoint_seconds`. `resume` names a run directory
    instead of `out`: training resumes from its newest checkpoint. On a CPU the result has the same bits as without the
    interruption if machine, thread count and torch are the same; on a GPU the same bits are not guaranteed, as some of
    its operations add in no fixed order. Differences are warned about and recorded. The first Ctrl-C, SIGTERM or SIGHUP
    stops the run after the current step with a checkpoint.

    If torchrun started several processes, all of them call this with the same arguments, `out` or `resume` among them,
    and train as one: each computes a part of every batch, and rank 0 writes and prints (docs/SCALE.md). The result is
    the same on all of them.

    Raises ValueError for a folder in use, a teacher that the recipe does not name, a teacher or an `init` that has seen
    validation images, an `init` of another architecture, a budget that no width fits, images of another size, a device
    that is not there, a limit or stop out of range, and a run that cannot be resumed or was started with other
    settings, naming the fields; FloatingPointError if loss or gradient is not finite before an update, or the weights
    after it; checkpoint.SaveError if the disk fails; distributed.LostRankError if another process of the run has ended.
    Checkpoints then stay as they were.
    """
    with setup.begin(recipe, dataset, Options(**options), display) as job:
        recipe, plan, state, ranks, teachers = job.recipe, job.plan, job.state, job.ranks, job.options.teachers
        model, optimizers, augmentation = job.model, job.optimizers, job.augmentation
        images, labels, to = job.images, job.labels, job.device
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        class_weights = job.class_weights
        views = distill.Views(job)
        recorder = recording.Recorder(job)

        while state.epoch < job.last_epoch and not recorder.out_of_patience():
            epoch = state.epoch
            recorder.start_epoch()
            order, parameters = draw_epoch(recipe, augmentation, len(images), job.options.seed, epoch)
            targets = None
            if teachers:
                recorder.show_epoch(f"Teacher, epoch {epoch + 1}/{recipe.epochs}")
                targets = views.targets(epoch, parameters)
                if ranks.signal(job.stop):
                    recorder.save_within_epoch()
                    break
            if epoch > 0 and recipe.skip_easiest and state.contradicted <= MOST_CONTRADICTED:
                order = hardest(order, state.losses_before.cpu(), plan.images[epoch])
            order = order[: plan.images[epoch]]
            recorder.show_epoch(f"Epoch {epoch + 1}/{recipe.epochs}")
            model.train()

            for rows in torch.split(order, plan.batches[epoch])[state.batch :]:
                own = ranks.share(rows)
                drawn = {name: values[own].to(to) for name, values in parameters.items()}
                rows, own = rows.to(to), own.to(to)
                inputs = augmentation.apply(images[own], drawn)
                if state.step < plan.small_steps:
                    inputs = augment.reduced(inputs, plan.small_side)
                inputs = inputs.contiguous(memory_format=torch.channels_last)

                with torch.autocast(to.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
                    logits = job.forward(inputs)
                losses, label_losses = _losses(recipe, logits.float(), labels[own], targets, own)
                if class_weights is not None:
                    losses = losses * class_weights[labels[own]]
                rate, momentum = plan.schedule(state.step)
                optim.set_rates(optimizers, rate, momentum)
                model.zero_grad()
                step = ranks.backward(
                    len(rows),
                    losses,
                    label_losses,
                    logits.argmax(1) == labels[own],
                    signal=job.stop.received,
                    checkpoint_due=recorder.checkpoint_due(),
                )
                gradient_norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
                loss, learning_rate = step.losses.mean().item(), rate * recipe.max_learning_rate
                _check_finite(job, loss, gradient_norm.item(), learning_rate)
                for optimizer in optimizers:
                    optimizer.step()

                state.add_batch(rows, step.losses, step.label_losses, step.correct)
                recorder.show_step(loss, learning_rate)
                if step.signal:
                    break
                if step.checkpoint_due:
                    recorder.save_within_epoch()

            if state.batch < plan.steps[epoch]:
                recorder.save_within_epoch()
                break
            if recipe.skip_easiest and state.contradicted > MOST_CONTRADICTED and is_due(epoch + 1, recipe.epochs):
                probed = order[:PROBED].to(to)
                state.contradicted = ranks.exchange(contradicted(model, images[probed], labels[probed]))[0]
            recorder.finish_epoch(len(order))
            if ranks.signal(job.stop):
                break
        return recorder.finish()


def _losses(
    recipe: Recipe, logits: Tensor, labels: Tensor, targets: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses (N,) to train on, and those of the labels, which can be compared with held-out images.

    `targets` are a teacher's logits for all training images, of which `rows` (N,) are those of the batch.
    """
    if targets is None:
        losses = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing, reduction="none")
        return losses, losses
    losses = distill.losses(logits, targets[rows], recipe.teacher_temperature)
    return losses, functional.cross_entropy(logits.detach(), labels, reduction="none")


def _check_finite(job: Job, loss: float, gradient_norm: float, learning_rate: float) -> None:
    """Raise FloatingPointError, before the update, unless loss and gradient are finite."""
    for name, value in (("loss", loss), ("gradient's norm", gradient_norm)):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value} at step {job.state.step + 1:,} (epoch {job.state.epoch + 1}, learning rate "
                f"{learning_rate:.6f}): stopped before the update. Weights and checkpoints in {job.directory} are "
                "those before"
            )
