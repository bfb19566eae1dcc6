"""`train`: the only training loop."""

from __future__ import annotations

import ctypes
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional

from tinycifar import augment, inference, metrics, models, optim, run
from tinycifar.data import Dataset, epoch_generator
from tinycifar.recipes import Recipe
from tinycifar.summary import summarize


@dataclass(frozen=True)
class Result:
    """What a run leaves: its directory, its record (as in `results/`), and the signal that stopped it, if one did."""

    directory: Path
    record: dict[str, Any]
    stopped_by: int | None


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    limit: int | None = None,
    stop_after_epoch: int | None = None,
    console: Console | None = None,
) -> Result:
    """Train `recipe` on `dataset` and fill a run directory with weights, metrics and evaluation.

    `out` is the run directory, which must be new or empty (default: a dated one under `runs/`). `limit` keeps the first
    training images only. `stop_after_epoch` ends the run early while the schedule stays that of the whole recipe.
    Progress goes to `console` (default: nowhere). The first Ctrl-C or SIGTERM ends the run after the step at hand; what
    was learned so far is saved.
    Raises ValueError for a folder in use, a device that is not there, or a stop outside the recipe's epochs.
    """
    wall_start = time.perf_counter()
    if stop_after_epoch is not None and not 1 <= stop_after_epoch <= recipe.epochs:
        raise ValueError(
            f"stop_after_epoch must lie between 1 and the recipe's {recipe.epochs}, not {stop_after_epoch}"
        )
    console = console or Console(quiet=True)
    keep_freed_memory()
    place = run.select_device(device)
    dataset = dataset.split(recipe.validation_images)
    if limit is not None:
        dataset = dataset.limit(limit)
    augmentation = augment.build(recipe.augmentation)

    torch.manual_seed(seed)  # initial weights and dropout draw from torch's own generator
    model = models.build(recipe.model, num_classes=len(dataset.classes))
    size = summarize(model)
    model = model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.0, weight_decay=recipe.weight_decay)

    split, held_images, held_labels = inference.evaluation_split(dataset)
    environment = run.environment(place) | {"seed": seed, "data": dataset.name}
    directory = run.create(out, recipe.name)
    run.start(directory, recipe, environment)
    console.print(
        f"Training {recipe.name} ({size.parameters:,} parameters), seed {seed}, into {directory}", soft_wrap=True
    )
    console.print(f"{environment['device']}, {environment['threads']} threads", soft_wrap=True)
    if split == "test" and recipe.watch_test:
        console.print("Val is the test set, watched after every epoch as the reference did")

    images, labels = dataset.train_images.to(place), dataset.train_labels.to(place)
    steps_per_epoch = -(-len(images) // recipe.batch_size)
    schedule = partial(
        optim.one_cycle,
        total_steps=recipe.epochs * steps_per_epoch,
        max_learning_rate=recipe.max_learning_rate,
        warmup_fraction=recipe.warmup_fraction,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
        base_momentum=recipe.base_momentum,
        max_momentum=recipe.max_momentum,
    )
    history: list[dict[str, Any]] = []
    step = images_seen = 0
    train_seconds = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    with run.StopSignal() as stop, bar:
        for epoch in range(stop_after_epoch or recipe.epochs):
            epoch_start = time.perf_counter()
            generator = epoch_generator(seed, epoch)
            order = torch.randperm(len(images), generator=generator)
            parameters = augmentation.draw(len(images), generator)
            train_loss = torch.zeros((), device=place)
            train_correct = torch.zeros((), device=place)
            model.train()
            task = bar.add_task(f"Epoch {epoch + 1}/{recipe.epochs}", total=steps_per_epoch)
            for rows in torch.split(order, recipe.batch_size):
                drawn = {name: values[rows].to(place) for name, values in parameters.items()}
                rows = rows.to(place)
                inputs = augmentation.apply(images[rows], drawn).contiguous(memory_format=torch.channels_last)
                targets = labels[rows]

                logits = model(inputs)
                loss = functional.cross_entropy(logits, targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                learning_rate, momentum = schedule(step)
                for group in optimizer.param_groups:
                    group["lr"], group["momentum"] = learning_rate, momentum
                optimizer.step()

                step += 1
                images_seen += len(rows)
                train_loss += loss.detach() * len(rows)
                train_correct += (logits.detach().argmax(1) == targets).sum()
                bar.advance(task)
                if stop.received:
                    break
            entry = {
                "epoch": epoch + 1,
                "learning_rate": schedule(step)[0],
                "train_loss": train_loss.item() / len(images),  # .item() waits for a GPU to finish
                "train_accuracy": train_correct.item() / len(images),
                "train_seconds": time.perf_counter() - epoch_start,
            }
            train_seconds += entry["train_seconds"]
            bar.remove_task(task)
            if stop.received:
                break

            if recipe.watch_test or split == "validation":
                held_out = metrics.summarize(inference.logits(model, held_images), held_labels)
                entry |= {f"{split}_loss": held_out["loss"], f"{split}_accuracy": held_out["accuracy"]}
            history.append(entry)
            run.append_metrics(directory, entry)
            console.print(log_line(entry, recipe.epochs), soft_wrap=True)

    weights = directory / "model.safetensors"
    run.save_weights(weights, model, model_name=recipe.model, recipe=recipe.name, classes=dataset.classes)
    evaluation: dict[str, Any] = {}
    if not stop.received:
        evaluation = inference.evaluate(model, dataset)
        run.write_json(directory / "evaluation.json", evaluation)

    of_split = {evaluation.get("split"): evaluation}
    validation, test = of_split.get("validation", {}), of_split.get("test", {})
    record = {
        "recipe": recipe.name,
        "seed": seed,
        "epochs": len(history),
        "model": recipe.model,
        "parameters": size.parameters,
        "macs": size.macs,
        "train_images": len(images),
        "train_accuracy": history[-1]["train_accuracy"] if history else None,
        "validation_accuracy": validation.get("accuracy"),
        "test_accuracy": test.get("accuracy"),
        "test_accuracy_tta": test.get("accuracy_tta"),
        "best_test_accuracy": max(
            (entry["test_accuracy"] for entry in history if "test_accuracy" in entry), default=None
        ),
        "test_loss": test.get("loss"),
        "train_seconds": train_seconds,
        "wall_seconds": time.perf_counter() - wall_start,
        "images_per_second": images_seen / train_seconds,
        **{name: environment[name] for name in ("device", "threads", "torch_version", "git_revision", "date")},
        "history": history,
    }
    return Result(directory, record, stop.received)


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks of this process for the next step instead of giving them back to the system.

    A step frees and asks for hundreds of megabytes of activations. By default each large block is mapped anew, and the
    kernel zeroes it page by page: 28,000 page faults and a sixth of a step's time for the reference on two cores
    (docs/LOG.md), against 20 to 30 MB more memory. Does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: and the heap's end is not given back


def log_line(entry: dict[str, Any], epochs: int) -> str:
    """One epoch in the format of the reference's log; its "Val" is the test set where the recipe watches that."""
    line = (
        f"Epoch {entry['epoch']}/{epochs} | LR(s): [{entry['learning_rate']:.6f}] | "
        f"Train loss {entry['train_loss']:.4f} acc {entry['train_accuracy']:.4f}"
    )
    for split in ("validation", "test"):
        if f"{split}_loss" in entry:
            line += f" | Val loss {entry[f'{split}_loss']:.4f} acc {entry[f'{split}_accuracy']:.4f}"
    return line
