"""`train`: the only training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from tinycifar import (
    augment,
    checkpoint,
    data,
    distill,
    inference,
    machine,
    memory,
    metrics,
    models,
    optim,
    recipes,
    run,
    signals,
    trained,
)
from tinycifar.checkpoint import State
from tinycifar.data import Dataset
from tinycifar.epochs import epoch_generator, hardest, plan
from tinycifar.recipes import Recipe
from tinycifar.scale import distributed, live
from tinycifar.summary import summarize
from tinycifar.trained import Trained
from tinycifar.words import counted

FEW_STEPS = 200  # of a run whose result is likely to get better with more of them


@dataclass(frozen=True)
class Result:
    """What a run leaves: its directory, its record (as in `results/`), and whether it came to its end.

    `stopped_by` is the number of the signal that came, if one did; a run that was nearly done may be complete still.
    """

    directory: Path
    record: dict[str, Any]
    complete: bool
    stopped_by: int | None


@distributed.as_one
def train(
    recipe: Recipe,
    dataset: Dataset | str | Path | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    teachers: Sequence[Trained] = (),
    init: Trained | None = None,
    seed: int = 0,
    device: str = "auto",
    max_parameters: int | None = None,
    limit: int | None = None,
    stop_after_epoch: int | None = None,
    checkpoint_seconds: float = 60.0,
    evaluate: bool = True,
    tensorboard: bool = False,
    display: Progress | None = None,
) -> Result:
    """Train `recipe` on `dataset` and fill a run directory with weights, metrics and evaluation.

    `dataset` is a Dataset or a source as in `tinycifar.data.load` (default: CIFAR-10 from the cache). `out` is the run
    directory, which must be new or empty (default: a dated one under `runs/`). A recipe with a teacher learns from the
    mean of the `teachers`' logits. Weights are those of `init` at first, if given, of which the head is new where the
    classes differ. With `max_parameters` the recipe is trained at the largest width that has no more. `limit` keeps the
    first training images only. `stop_after_epoch` ends the run early while the schedule stays that of the whole recipe;
    without `evaluate` it is not evaluated then, as for a part of a run that goes on at once. Mean and deviation by
    which images are normalised are those of the training images. Progress goes to `display` and its console (default:
    nowhere), with `tensorboard` to event files too. Torch's global generator is seeded with `seed`.

    Weights and checkpoints are written after every epoch and every `checkpoint_seconds`. `resume` names a run directory
    in place of `out`: training goes on from its newest checkpoint, to the same bits as without the interruption if
    machine, thread count and torch are the same; where they differ, a warning is printed and the fact recorded. The
    first Ctrl-C, SIGTERM or SIGHUP ends the run after the step at hand with a checkpoint.

    Where torchrun started several processes, all of them call this with the same arguments, `out` or `resume` among
    them, and train as one: each takes its part of every batch, and that of rank 0 writes and prints (docs/SCALE.md).
    The result is the same on all.

    Raises ValueError for a folder in use, a teacher that the recipe does not name, a teacher or an `init` that has seen
    validation images, an `init` of another architecture, a budget that no width fits, images of another size, a device
    that is not there, a limit or stop out of range, and a run that cannot be resumed or was made otherwise than asked
    for, naming the fields; FloatingPointError, before the update, if loss or gradient is no longer finite;
    checkpoint.SaveError if the disk fails; distributed.LostRankError if another process of the run has ended.
    Checkpoints then stay as they were.
    """
    wall_start = time.perf_counter()
    if not 1 <= (stop_after_epoch or recipe.epochs) <= recipe.epochs or stop_after_epoch == 0:
        raise ValueError(f"a run stops after one of its epochs, 1 to {recipe.epochs}, not after {stop_after_epoch}")
    if not checkpoint_seconds >= 0:
        raise ValueError(f"the seconds between checkpoints must be at least 0, not {checkpoint_seconds}")
    if limit is not None and limit < 1:
        raise ValueError(f"a limit must be at least 1 image, not {limit}")
    ranks = distributed.here()
    if ranks.world > 1 and out is None and resume is None:
        raise ValueError("several processes need a run directory that all of them know: name it with --out or --resume")
    ranks.check_alike(
        out=str(out),
        resume=str(resume),
        seed=seed,
        limit=limit,
        stop_after_epoch=stop_after_epoch,
        max_parameters=max_parameters,
        init=init and init.sha256,
        teachers=[teacher.sha256 for teacher in teachers],
        **{f"recipe's {name}": value for name, value in asdict(recipe).items()},
    )
    if display is None or not ranks.first:
        display = Progress(console=Console(quiet=True), disable=True)
    console = display.console
    if tensorboard:
        live.check()
    place = machine.select_device(ranks.device(device))
    distill.check(recipe, teachers)
    if resume is not None and out is not None:
        raise ValueError("a run is resumed in its own directory: leave out resume, or out")
    if resume is not None and not (resume / "recipe.json").exists():
        raise ValueError(f"{resume} is no run directory: it holds no recipe.json")
    if resume is None and ranks.began(out):
        out, resume = None, out  # torchrun started all processes again after one had died
    if resume is None and ranks.first:
        run.check_unused(out)
    source = dataset
    with ranks.one_a_machine_first():
        dataset = (
            source if isinstance(source, Dataset) else data.load(source, image_size=recipe.image_size, display=display)
        )
    if dataset.image_size != recipe.image_size:
        raise ValueError(f"the images have {dataset.image_size} pixels a side, the recipe's {recipe.image_size}")
    whole = dataset.split(recipe.validation_images)
    dataset = whole if limit is None else whole.limit(limit)
    leaks = distill.check_data(recipe, teachers, whole)
    data_digest = whole.data_digest
    mean, std = (dataset if data_digest else whole).statistics()
    augmentation = augment.build(recipe.augmentation, recipe.image_size, mean)
    if max_parameters is not None:
        recipe = recipes.widest(recipe, max_parameters, len(dataset.classes))
    memory.keep_freed()
    ranks.check_alike(data=data_digest, train_images=len(dataset.train_images))

    torch.manual_seed(seed)  # initial weights and dropout draw from torch's own generator
    model = recipe.build(len(dataset.classes))
    ranks.reseed(seed)
    start = ""
    if init is not None:
        leaks += trained.check_unseen(init, "model", whole)
        same_classes = trained.start_from(model, init, dataset.classes)
        start = f"Starting from the weights of {init.name}{'' if same_classes else ', with a new head'}"
    size = summarize(model)
    model = model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    precision = ranks.exchange(machine.select_precision(recipe.precision, place))[0]
    optimizers = optim.build(
        model,
        recipe.optimizer,
        learning_rate=recipe.max_learning_rate,
        momentum=recipe.max_momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        muon_learning_rate=recipe.muon_learning_rate,
        muon_momentum=recipe.muon_momentum,
    )

    split, held_images, held_labels = inference.evaluation_split(dataset)
    data_name = whole.known or dataset.name
    named = isinstance(source, Dataset) or source in (None, *data.NAMES)
    place_of_data = dataset.path or (data_name if named else str(Path(str(source)).absolute()))
    trained_on = {"data": place_of_data, "data_digest": data_digest, "limit": limit}
    images, labels = dataset.train_images.to(place), dataset.train_labels.to(place)
    environment = machine.environment(place) | {"ranks": ranks.world, "precision": precision, "seed": seed} | trained_on
    environment |= {"train_images": len(images), "teachers": list(map(distill.about, teachers)), "resumes": []}
    environment["torchrun"] = sorted({*ranks.exchange(ranks.launch)} - {""})
    environment["init"] = {"name": init.name, **distill.about(init)} if init else None
    epochs = stop_after_epoch or recipe.epochs
    images_by_epoch, steps_by_epoch, schedule = plan(recipe, len(images), ranks.world)
    state = State.at_start(len(images), place)
    directory = resume or out or run.place(None, recipe.name)
    if resume is None and ranks.first:
        run.create(directory, recipe.name, size.parameters)

    with (
        run.only_one(directory) if ranks.first else nullcontext(),
        signals.StopSignal(quiet=not ranks.first) as stop,
        live.View(directory if tensorboard and ranks.first else None, console.print) as shown_live,
    ):
        if resume is not None:
            run.check_same(directory, recipe, environment)
        console.print(f"{recipe.name}, seed {seed}: {size.parameters:,} parameters, {len(images):,} images")
        processes = f"{ranks.world} processes of " if ranks.world > 1 else ""
        console.print(f"{environment['device']}, {processes}{counted(environment['threads'], 'thread')}, {precision}")
        console.print(f"Run directory: {directory}")
        if max_parameters is not None:
            console.print(f"Width {recipe.width:g} is the largest with at most {max_parameters:,} parameters")
        for line in (*dataset.notes, *([start] if start else []), *leaks):
            console.print(line)
        if data_digest and isinstance(model, models.MirroredNet):
            console.print(
                f"{recipe.model} answers an image and its mirror image alike; for classes that differ in nothing else "
                "train reference-30 --set augmentation=translate"
            )
        if (steps := sum(steps_by_epoch)) < FEW_STEPS:
            console.print(f"{steps:,} steps are few for so few images: more --epochs may help")
        if recipe.watch_test and split == "test":
            console.print("Val is the test set, watched after every epoch as the reference did")
        sources = [dataset.digests("train"), *(model.seen() for model in (*teachers, *([init] if init else [])))]
        seen = [digests for digests in sources if digests is not None]
        if resume is None and ranks.first:
            run.start(directory, recipe, environment)
        elif resume is not None:
            found, problems = checkpoint.latest(directory) if ranks.first else (None, [])
            newest = ranks.exchange(found.path if found else None)[0]
            if newest is not None:
                found = found or checkpoint.read(directory / checkpoint.FOLDER / newest.name)
                state = checkpoint.restore(found, model, optimizers, place, ranks.rank)
            if state.step != sum(steps_by_epoch[: state.epoch]) + state.batch:
                raise ValueError(
                    f"{directory} has come to step {state.step:,}, and {ranks.world} processes would not have by then, "
                    "as they leave out other images of last batches; resume it with as many processes as it had"
                )
            if (state.epoch, state.batch) > (epochs, 0):
                raise ValueError(f"{directory} is past epoch {epochs} already, it cannot stop after it")
            if ranks.first:
                environment, changed = run.resumed(directory, environment, state.step)
                run.rewrite_metrics(directory, state.history)
                for warning in (*problems, *changed):
                    console.print(f"Warning: {warning}")
            console.print(f"Going on after step {state.step:,} of {sum(steps_by_epoch[:epochs]):,}")
            wall_start -= state.wall_seconds
        if ranks.first:
            run.write_seen(directory, seen)
        environment = ranks.exchange(environment)[0]
        if state.step == 0:
            preparation_start = time.perf_counter()
            if init is None:
                model.mean.copy_(torch.tensor(mean).view(3, 1, 1))
                model.std.copy_(torch.tensor(std).view(3, 1, 1))
                model.prepare(images)
            state.epoch_seconds = time.perf_counter() - preparation_start
        parallel = ranks.parallel(model)

        def save(temperature: float | None = None) -> None:
            trained.save_weights(
                directory / "model.safetensors",
                model,
                model_name=recipe.model,
                width=recipe.width,
                image_size=recipe.image_size,
                recipe=recipe.name,
                classes=dataset.classes,
                data=data_name,
                data_digest=data_digest,
                validation_images=recipe.validation_images,
                temperature=temperature,
            )

        def save_all() -> None:
            state.wall_seconds = time.perf_counter() - wall_start
            generators = ranks.exchange(checkpoint.generators(place))
            if ranks.first:
                with checkpoint.saving(state.step):
                    checkpoint.save(directory, model, optimizers, state, place, generators)
                    save()
            ranks.exchange()

        taught: dict[int, Tensor] = {}  # the teachers' logits for each view; after a resume they are computed again
        whole_task = display.add_task("Whole run", total=sum(steps_by_epoch[:epochs]), completed=state.step)
        epoch_task = display.add_task("Epoch", total=steps_by_epoch[0])
        saved_at = time.monotonic()
        while state.epoch < epochs:
            epoch = state.epoch
            epoch_start = time.perf_counter() - state.epoch_seconds
            generator = epoch_generator(seed, epoch)
            order = torch.randperm(len(images), generator=generator)
            if teachers:
                view = epoch % recipe.teacher_views
                generator = epoch_generator(seed, recipe.epochs + view)  # what no epoch's order comes from
            parameters = augmentation.draw(len(images), generator)
            if teachers and view not in taught:
                display.update(epoch_task, description=f"Teacher, view {view + 1}/{recipe.teacher_views}")
                targets_of_view = distill.teacher_logits(teachers, images, augmentation, parameters, precision, stop)
                if not all(ranks.exchange(targets_of_view is not None)):
                    state.epoch_seconds = time.perf_counter() - epoch_start
                    save_all()
                    break
                assert targets_of_view is not None
                taught[view] = targets_of_view
            if epoch > 0 and recipe.skip_easiest:
                order = hardest(order, state.losses_before.cpu(), images_by_epoch[epoch])
            order = order[: images_by_epoch[epoch]]
            display.reset(
                epoch_task,
                total=steps_by_epoch[epoch],
                completed=state.batch,
                description=f"Epoch {epoch + 1}/{recipe.epochs}",
            )
            model.train()
            for rows in torch.split(order, recipe.batch_size)[state.batch :]:
                own = rows[ranks.rank :: ranks.world]  # what this process computes: all of the batch, if it is alone
                drawn = {name: values[own].to(place) for name, values in parameters.items()}
                rows, own = rows.to(place), own.to(place)
                inputs = augmentation.apply(images[own], drawn).contiguous(memory_format=torch.channels_last)
                targets = labels[own]

                with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    logits = parallel(inputs)
                if teachers:
                    losses = distill.losses(logits.float(), taught[view][own], recipe.teacher_temperature)
                else:
                    losses = functional.cross_entropy(
                        logits.float(), targets, label_smoothing=recipe.label_smoothing, reduction="none"
                    )
                rate, momentum = schedule(state.step)
                optim.set_rates(optimizers, rate, momentum)
                model.zero_grad()
                # Several processes average their gradients: with the factor that is the gradient of the batch's mean.
                (losses.mean() * (len(own) * ranks.world / len(rows))).backward()  # type: ignore[no-untyped-call]
                gradient_norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
                logits, losses = logits.detach(), losses.detach()
                shown = losses  # what is told is of the labels, so that it can be held against the held-out images
                if teachers:
                    shown = functional.cross_entropy(logits.float(), targets, reduction="none")
                due = int(time.monotonic() - saved_at >= checkpoint_seconds and state.batch + 1 < steps_by_epoch[epoch])
                # From here on all processes know of the whole batch, and act alike.
                (losses, shown, right), (signal, due) = ranks.gather(
                    len(rows),
                    (losses, shown, logits.argmax(1) == targets),
                    (stop.received or 0, due if ranks.first else 0),
                )
                loss = losses.mean().item()
                for name, value in (("loss", loss), ("gradient's norm", gradient_norm.item())):
                    if not math.isfinite(value):
                        raise FloatingPointError(
                            f"the {name} is {value} at step {state.step + 1:,} (epoch {epoch + 1}, learning rate "
                            f"{rate * recipe.max_learning_rate:.6f}): stopped before the update. Weights and "
                            f"checkpoints in {directory} are those before"
                        )
                for optimizer in optimizers:
                    optimizer.step()

                state.step += 1
                state.batch += 1
                if state.step % live.STEPS == 0:
                    shown_live.add(state.step, step_loss=loss, learning_rate=rate * recipe.max_learning_rate)
                state.images_seen += len(rows)
                state.last_losses[rows] = losses
                state.epoch_loss += shown.sum()
                state.epoch_correct += right.sum()
                display.advance(epoch_task)
                display.advance(whole_task)
                if signal:
                    break
                if due:
                    state.epoch_seconds = time.perf_counter() - epoch_start
                    save_all()
                    saved_at, epoch_start = time.monotonic(), time.perf_counter() - state.epoch_seconds
            entry = {
                "epoch": epoch + 1,
                "learning_rate": schedule(state.step)[0] * recipe.max_learning_rate,
                "train_loss": state.epoch_loss.item() / len(order),  # .item() waits for a GPU to finish
                "train_accuracy": state.epoch_correct.item() / len(order),
                "train_seconds": time.perf_counter() - epoch_start,
            }
            if state.batch < steps_by_epoch[epoch]:
                state.epoch_seconds = entry["train_seconds"]
                save_all()
                break

            if ranks.first and (recipe.watch_test or split == "validation"):
                held_out = metrics.summarize(inference.logits(model, held_images), held_labels)
                entry |= {f"{split}_loss": held_out["loss"], f"{split}_accuracy": held_out["accuracy"]}
            entry = ranks.exchange(entry)[0]
            state.next_epoch(entry)
            save_all()
            saved_at = time.monotonic()
            if ranks.first:
                with checkpoint.saving(state.step):
                    run.append_metrics(directory, entry)
                shown_live.add(state.step, **{name: entry[name] for name in entry if name != "learning_rate"})
            console.print(log_line(entry, recipe.epochs))
            if ranks.signal(stop):
                break

        evaluation: dict[str, Any] = {}
        complete = state.epoch == epochs
        if complete and evaluate and ranks.first:
            scored = inference.evaluate(model, whole)
            evaluation = scored.content
            with checkpoint.saving(state.step):
                scored.save(directory)
                save(evaluation["temperature"])
        evaluation, stopped_by = ranks.exchange(evaluation)[0], ranks.signal(stop)
    for task in (whole_task, epoch_task):
        display.remove_task(task)

    history, train_seconds = state.history, state.train_seconds
    of_split = {evaluation.get("split"): evaluation}
    validation, test = of_split.get("validation", {}), of_split.get("test", {})
    watched = [entry["test_accuracy"] for entry in history if "test_accuracy" in entry]
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
        "test_subsets": {name: found["accuracy"] for name, found in test.get("subsets", {}).items()},
        "best_test_accuracy": max(watched, default=None),
        "test_loss": test.get("loss"),
        "train_seconds": train_seconds,
        "wall_seconds": time.perf_counter() - wall_start,
        "images_per_second": state.images_seen / train_seconds if state.images_seen else None,
        **{name: environment[name] for name in ("device", "instruction_set", "threads", "precision", "torch_version")},
        "teachers": [{name: of[name] for name in of if name != "source"} for of in environment["teachers"]],
        **{name: environment[name] for name in ("git_revision", "date", "resumes")},
        "history": history,
    }
    return Result(directory, record, complete, stopped_by)


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
