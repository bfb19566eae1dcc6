"""`begin`: everything that a training needs before its first step, new or resumed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch.optim import Optimizer

from tinycifar import (
    augment,
    checkpoint,
    data,
    distill,
    inference,
    machine,
    memory,
    models,
    optim,
    recipes,
    run,
    signals,
    trained,
)
from tinycifar.checkpoint import State
from tinycifar.data import Dataset
from tinycifar.data.dataset import Digests, is_grey
from tinycifar.environment import Environment
from tinycifar.epochs import plan
from tinycifar.job import Job, Options
from tinycifar.models import Classifier
from tinycifar.recipes import Recipe
from tinycifar.scale import distributed, live
from tinycifar.scale.distributed import Ranks
from tinycifar.summary import summarize
from tinycifar.words import counted, printable

IMBALANCED = 3  # times as many images of the most frequent class as of the rarest
FEW_STEPS = 200  # a run with fewer steps is likely to improve with more epochs


@contextlib.contextmanager
def begin(
    recipe: Recipe, source: Dataset | str | Path | None, options: Options, display: Progress | None
) -> Iterator[Job]:
    """Check everything, build model and optimizers, create or restore the run, and hold its lock while entered.

    Raises ValueError as `training.train` does; until the run directory is created nothing has been written.
    """
    wall_start = time.perf_counter()
    ranks = distributed.here()
    _check_options(recipe, options, ranks)
    if display is None or not ranks.first:
        display = Progress(console=Console(quiet=True), disable=True)
    device = machine.select_device(ranks.device(options.device))
    out, resume = _directory(options, ranks)
    dataset, training_set, leaks = _load(recipe, source, options, ranks, display)
    if resume is None:
        run.check_apart(out or Path("runs"), dataset)
    mean, std = (training_set if dataset.data_digest else dataset).statistics()
    if options.max_parameters is not None:
        recipe = recipes.widest(recipe, options.max_parameters, len(dataset.classes))

    torch.manual_seed(options.seed)  # initial weights and dropout draw from torch's own generator
    model = recipe.build(len(dataset.classes))
    ranks.reseed(options.seed)
    notes = list(training_set.notes)
    if options.init is not None:
        leaks += trained.check_unseen(options.init, "model", dataset)
        same_classes = trained.start_from(model, options.init, dataset.classes)
        new_head = "" if same_classes else ", with a new head"
        notes.append(f"Starting from the weights of {options.init.name}{new_head}")
    size = summarize(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = ranks.exchange(machine.select_precision(recipe.precision, device))[0]
    environment = _environment(device, precision, _data_source(source, dataset), dataset, options, ranks)
    images, labels = training_set.train_images.to(device), training_set.train_labels.to(device)
    epoch_plan = plan(recipe, len(images), ranks.world)
    if resume is None and ranks.first:
        if out is not None:
            run.check_same_seeds(out, recipe, environment)
        out = run.create(out, recipe.name, size.parameters)
    directory = resume or out
    assert directory is not None  # several processes have it from their command line

    warnings: list[str] = []

    def warn(line: str) -> None:
        warnings.append(line)
        display.console.print(f"Warning: {line}")

    with (
        memory.keeping_freed(),
        run.only_one(directory) if ranks.first else contextlib.nullcontext(),
        signals.StopSignal(quiet=not ranks.first) as stop,
        live.View(directory if options.tensorboard and ranks.first else None, warn) as events,
    ):
        if resume is not None:
            run.check_same(directory, recipe, environment)
        elif ranks.first:
            run.check_unused(directory)  # another process may have trained there while this one loaded its data
        job = Job(
            recipe=recipe,
            dataset=dataset,
            options=options,
            last_epoch=options.stop_after_epoch or recipe.epochs,
            plan=epoch_plan,
            augmentation=augment.build(recipe.augmentation, recipe.image_size, mean),
            images=images,
            labels=labels,
            device=device,
            precision=precision,
            model=model,
            size=size,
            forward=model,
            optimizers=_optimizers(model, recipe),
            state=State.at_start(len(images), device),
            directory=directory,
            data_name=dataset.known or dataset.name,
            environment=environment,
            ranks=ranks,
            stop=stop,
            events=events,
            display=display,
            warnings=warnings,
            wall_start=wall_start,
        )
        for line in (*_heading(job), *notes, *leaks, *_advice(job)):
            display.console.print(line)
        if resume is not None:
            job = _restored(job, warn)
        elif ranks.first:
            run.start(directory, recipe, environment)
        if ranks.first:
            run.write_seen(directory, _seen(training_set, options))
        if job.state.step == 0:
            preparation_start = time.perf_counter()
            if options.init is None:
                model.mean.copy_(torch.tensor(mean).view(-1, 1, 1))
                model.std.copy_(torch.tensor(std).view(-1, 1, 1))
                model.prepare(images)
            job.state.epoch_seconds = time.perf_counter() - preparation_start
        yield replace(job, environment=ranks.exchange(job.environment)[0], forward=ranks.parallel(model))


def _check_options(recipe: Recipe, options: Options, ranks: Ranks) -> None:
    """Check everything that can be checked before data is read."""
    stop = options.stop_after_epoch
    if stop is not None and not 1 <= stop <= recipe.epochs:
        raise ValueError(f"a run stops after one of its epochs, 1 to {recipe.epochs}, not after {stop}")
    if not options.checkpoint_seconds >= 0:
        raise ValueError(f"the seconds between checkpoints must be at least 0, not {options.checkpoint_seconds}")
    if ranks.world > 1 and options.out is None and options.resume is None:
        raise ValueError("several processes need a run directory in common: name it with `out=` or `resume=`")
    ranks.check_alike(
        out=str(options.out),
        resume=str(options.resume),
        seed=options.seed,
        limit=options.limit,
        stop_after_epoch=stop,
        max_parameters=options.max_parameters,
        init=options.init and options.init.sha256,
        teachers=[teacher.sha256 for teacher in options.teachers],
        **{f"recipe's {name}": value for name, value in asdict(recipe).items()},
    )
    if options.tensorboard:
        live.check()
    distill.check(recipe, options.teachers)


def _directory(options: Options, ranks: Ranks) -> tuple[Path | None, Path | None]:
    """The directory of a new run (None: a dated one), and that of the run to resume, if it is one."""
    out, resume = options.out, options.resume
    if resume is not None and out is not None:
        raise ValueError("a run is resumed in its own directory: leave out `resume=` or `out=`")
    if resume is not None:
        run.check_is_run(resume)
    if resume is None and ranks.began(out):
        return None, out  # torchrun started all processes again after one had died
    if resume is None and out is not None and ranks.first:
        run.check_unused(out)
    return out, resume


def _load(
    recipe: Recipe, source: Dataset | str | Path | None, options: Options, ranks: Ranks, display: Progress
) -> tuple[Dataset, Dataset, list[str]]:
    """The data set, split as the recipe says; the same with its training images limited; and warnings of leaks."""
    with ranks.one_a_machine_first():
        if isinstance(source, Dataset):
            dataset = source.with_channels(recipe.channels)
        else:
            dataset = data.load(source, **vars(recipe.form), display=display)
    if dataset.image_size != recipe.image_size:
        raise ValueError(f"the images have {dataset.image_size} pixels a side, the recipe's {recipe.image_size}")
    if not len(dataset.train_labels):
        raise ValueError(f"{dataset.name} has no training images")
    dataset = dataset.split(recipe.validation_images)
    if (recipe.keep_best or recipe.patience) and dataset.validation_images is None:
        raise ValueError(
            "keep_best and patience choose by validation images, and this data has none: hold some out with "
            "validation_images"
        )
    training_set = dataset if options.limit is None else dataset.limit(options.limit)
    leaks = distill.check_data(recipe, options.teachers, dataset)
    ranks.check_alike(data=dataset.data_digest, train_images=len(training_set.train_images))
    return dataset, training_set, leaks


def _seen(training_set: Dataset, options: Options) -> list[Digests]:
    """Digests of the images that the weights will come from: training images, and those of teachers and `init`."""
    models = [*options.teachers, *([options.init] if options.init else [])]
    sources = [training_set.digests("train"), *(model.seen() for model in models)]
    return [digests for digests in sources if digests is not None]


def _data_source(source: Dataset | str | Path | None, dataset: Dataset) -> str:
    """The argument with which `data.load` finds the data again: a name or an absolute path."""
    named = isinstance(source, Dataset) or source in (None, *data.NAMES)
    return dataset.path or (dataset.known or dataset.name if named else str(Path(str(source)).absolute()))


def _optimizers(model: Classifier, recipe: Recipe) -> list[Optimizer]:
    return optim.build(
        model,
        recipe.optimizer,
        learning_rate=recipe.max_learning_rate,
        momentum=recipe.max_momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        muon_learning_rate=recipe.muon_learning_rate,
        muon_momentum=recipe.muon_momentum,
    )


def _environment(
    device: torch.device, precision: str, data_source: str, dataset: Dataset, options: Options, ranks: Ranks
) -> Environment:
    return Environment(
        **vars(machine.current(device)),
        ranks=ranks.world,
        precision=precision,
        seed=options.seed,
        data=data_source,
        data_digest=dataset.data_digest,
        limit=options.limit,
        skipped_images=dict(dataset.skipped),
        train_images=len(dataset.train_images) if options.limit is None else options.limit,
        teachers=tuple(map(distill.about, options.teachers)),
        resumes=(),
        torchrun=tuple(sorted({*ranks.exchange(ranks.launch)} - {""})),
        init=replace(distill.about(options.init), name=options.init.name) if options.init else None,
    )


def _heading(job: Job) -> Iterator[str]:
    """Lines that say what is trained, and on which machine."""
    environment, ranks = job.environment, job.ranks
    yield f"{job.recipe.name}, seed {job.options.seed}: {job.size.parameters:,} parameters, {len(job.images):,} images"
    processes = f"{ranks.world} processes of " if ranks.world > 1 else ""
    yield f"{environment.device}, {processes}{counted(environment.threads, 'thread')}, {job.precision}"
    yield f"Run directory: {job.directory}"
    if job.options.max_parameters is not None:
        yield f"Width {job.recipe.width:g} is the largest with at most {job.options.max_parameters:,} parameters"


def _advice(job: Job) -> Iterator[str]:
    """Lines about what the user should know before this training starts."""
    if job.dataset.data_digest and isinstance(job.model, models.MirroredNet):
        yield (
            f"{job.recipe.model} gives an image and its mirror image the same scores; for classes that differ only in "
            "that, train reference-30 with augmentation=translate"
        )
    if job.recipe.channels == 3 and is_grey(job.dataset.train_images):
        yield "The pictures are grey: --set channels=1 saves two thirds of the first layer"
    counts = job.labels.bincount(minlength=len(job.dataset.classes)).tolist()
    rare, common = min(count for count in counts if count), max(counts)
    span = (
        f"{rare:,} ({printable(job.dataset.classes[counts.index(rare)])}) to {common:,} "
        f"({printable(job.dataset.classes[counts.index(common)])})"
    )
    if (weights := job.class_weights) is not None:
        yield (
            f"Classes of {span} training images have the same weight: the loss of an image is multiplied by "
            f"{weights[weights > 0].min().item():.3g} to {weights.max().item():.3g}"
        )
    elif common > IMBALANCED * rare:
        yield f"Classes have {span} training images; class_weights=balanced gives each class the same weight"
    if (steps := sum(job.plan.steps)) < FEW_STEPS:
        yield f"Only {counted(steps, 'step')}: with so few images, more epochs may help"
    if job.recipe.watch_test and inference.evaluation_split(job.dataset)[0] == "test":
        yield "Val is the test set, evaluated after every epoch as in the reference"


def _restored(job: Job, warn: Callable[[str], None]) -> Job:
    """The job with model, optimizers and state of the newest whole checkpoint; without one it starts over.

    Notes the resume in the run's `environment.json`.
    """
    directory, ranks, state, environment = job.directory, job.ranks, job.state, job.environment
    newest, problems = checkpoint.latest(directory) if ranks.first else (None, [])
    path = ranks.exchange(newest.path if newest else None)[0]
    if path is not None:
        newest = newest or checkpoint.read(directory / checkpoint.FOLDER / path.name)
        state = checkpoint.restore(newest, job.model, job.optimizers, job.device, ranks.rank)
    steps = sum(job.plan.steps[: state.epoch]) + state.batch
    images = sum(job.plan.images[: state.epoch]) + sum(
        sum(sizes[: state.batch]) for sizes in job.plan.batches[state.epoch :][:1]
    )
    if (state.step, state.images_seen) != (steps, images):
        raise ValueError(
            f"{directory} is at step {state.step:,} after {state.images_seen:,} images, which is not the end of "
            f"a batch with {ranks.world} process{'es' * (ranks.world > 1)} in this version: it was started by another "
            f"version or number of processes. Resume it with these, or start from its weights with `init=` {directory}"
        )
    if (state.epoch, state.batch) > (job.last_epoch, 0):
        raise ValueError(f"{directory} is past epoch {job.last_epoch} already and cannot stop there")
    if ranks.first:
        environment, changed = run.resumed(directory, environment, state.step)
        run.rewrite_metrics(directory, state.history)
        for warning in (*problems, *changed):
            warn(warning)
    job.display.console.print(f"Resuming after step {state.step:,} of {sum(job.plan.steps[: job.last_epoch]):,}")
    return replace(job, state=state, environment=environment, wall_start=job.wall_start - state.wall_seconds)
