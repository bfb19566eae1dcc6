"""Timings, side by side in one run: what a training step costs, and a whole training beside the reference's steps."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from tinycifar import augment, machine, memory, models, recipes, training
from tinycifar.data import Dataset
from tinycifar.epochs import epoch_generator
from tinycifar.summary import summarize

IMAGES = 50_000  # as in CIFAR-10's training set: enough that the rows of a batch are not in any cache
WARM_UP_STEPS = 3  # the first ones choose kernels and fill the heap
PEAK_REPEATS = 5


@dataclass(frozen=True)
class StepBench:
    """What `bench_step` measured.

    Times are medians over the steps, in milliseconds a step of `batch_size` images; `data_percent` is the part of
    `data_ms` in `step_ms`, in percent. `images_per_second` and `bare_images_per_second` are those of the whole step and
    of the bare loop, and `loop_to_bare_ratio` is the first over the second. `achieved_gflops` counts 3 x 2 x MACs an
    image over the whole step; `peak_gflops` is the best that a matrix product or a convolution reached, in float32.
    """

    model: str
    augmentation: str
    batch_size: int
    steps: int
    images_per_second: float
    data_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    step_ms: float
    data_percent: float
    achieved_gflops: float
    peak_gflops: float
    bare_images_per_second: float
    loop_to_bare_ratio: float
    threads: int
    torch_version: str
    device: str
    instruction_set: str


def bench_step(
    model_name: str,
    *,
    augmentation: str = "reference-as-run",
    batch_size: int = 128,
    steps: int = 30,
) -> StepBench:
    """Time training steps with augmentation on the CPU, in turn with steps of a bare loop.

    Neither is the loop of `training.train`: it also computes the gradient's norm and keeps the losses; `bench_train`
    times a whole training. A step with augmentation takes random rows of 50,000 random uint8 images, augments them, and
    trains on them with SGD; its data part is indexing, augmentation and its share of the epoch's random draws. The bare
    loop trains a second copy of the model on random float images that lie in memory. A step of each is taken in turn,
    so that what else the machine does hits both alike. A training step counts as 3 forward passes of 2 x MACs
    operations an image: the backward pass computes gradients for inputs and for weights.

    Raises ValueError for an unknown model or augmentation, or for steps or batch size outside their range (at least 1;
    at most 50,000 images a batch).
    """
    if steps < 1 or not 1 <= batch_size <= IMAGES:
        raise ValueError(f"steps and batch size must be at least 1, and a batch at most {IMAGES} images")
    memory.keep_freed()
    real, bare = (_Learner(model_name) for _ in range(2))
    macs = summarize(real.model).macs

    generator = epoch_generator(0, 0)
    images = torch.randint(0, 256, (IMAGES // 10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = images.repeat(10, 1, 1, 1)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    bare_images = torch.rand(batch_size, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    batches = _Batches(images, labels, augmentation, batch_size, generator)

    real_seconds, bare_seconds = [], []
    for _ in range(WARM_UP_STEPS + steps):
        inputs, targets, data_seconds = batches.next()
        real_seconds.append([data_seconds, *real.step(inputs, targets)])
        bare_seconds.append(sum(bare.step(bare_images, targets)))
    peak = max(_best_rate(*work) for work in _peak_work())

    real_seconds, bare_seconds = real_seconds[WARM_UP_STEPS:], bare_seconds[WARM_UP_STEPS:]
    data, forward, backward, optimizer = (median(part) for part in zip(*real_seconds, strict=True))
    whole = median(sum(parts) for parts in real_seconds)
    rate, bare_rate = batch_size / whole, batch_size / median(bare_seconds)
    return StepBench(
        model=model_name.lower(),
        augmentation=augmentation,
        batch_size=batch_size,
        steps=steps,
        images_per_second=rate,
        data_ms=data * 1e3,
        forward_ms=forward * 1e3,
        backward_ms=backward * 1e3,
        optimizer_ms=optimizer * 1e3,
        step_ms=whole * 1e3,
        data_percent=100 * data / whole,
        achieved_gflops=3 * 2 * macs * rate / 1e9,
        peak_gflops=peak / 1e9,
        bare_images_per_second=bare_rate,
        loop_to_bare_ratio=rate / bare_rate,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        device=machine.device_name(torch.device("cpu")),
        instruction_set=machine.instruction_set(),
    )


def render(bench: StepBench) -> str:
    """Lay a measurement out as lines of text."""
    parts = {name: getattr(bench, f"{name}_ms") for name in ("data", "forward", "backward", "optimizer", "step")}
    return "\n".join(
        [
            f"{bench.model}, batches of {bench.batch_size}, augmentation {bench.augmentation}, "
            f"{bench.threads} threads, torch {bench.torch_version}, {bench.device}, {bench.instruction_set}; "
            f"medians of {bench.steps} steps",
            f"{bench.images_per_second:,.0f} images/s; a bare loop in turn with it {bench.bare_images_per_second:,.0f} "
            f"(ratio {bench.loop_to_bare_ratio:.3f})",
            *(f"{name:>10} {ms:8.2f} ms {ms / bench.step_ms:6.1%}" for name, ms in parts.items()),
            f"{bench.achieved_gflops:,.0f} of {bench.peak_gflops:,.0f} GFLOP/s "
            f"({bench.achieved_gflops / bench.peak_gflops:.0%} of this machine's float32 peak)",
        ]
    )


@dataclass(frozen=True)
class TrainBench:
    """What `bench_train` measured, in seconds on the same cores, in the same process and in turn.

    `train_seconds` is the mean of whole trainings, from the preparation of the model to the last step; loading and
    evaluation are left out. `reference_seconds` has by precision what all of the reference's steps take at the median
    of those timed, and `ratios` how many times as long as `train_seconds` that is; `ratio` is the one of the
    precision that the reference's recipe has. `reference_error_percent` is half of the 95% interval of that median,
    the larger one. `runs` are the trainings: `seed`, `train_seconds`, `wall_seconds` (with evaluation),
    `test_accuracy`. `processor` is as `machine.processor` names it.
    """

    ratio: float
    ratios: dict[str, float]
    reference_seconds: dict[str, float]
    train_seconds: float
    reference_steps: int
    reference_error_percent: float
    reference: str
    recipe: str
    precision: str
    runs: list[dict[str, Any]]
    wall_seconds: float
    processor: str
    threads: int
    torch_version: str
    device: str
    instruction_set: str
    git_revision: str | None
    date: str


class Stopped(Exception):  # noqa: N818  (no error)
    """A benchmark that a signal, of that number, ended."""

    def __init__(self, signal: int) -> None:
        super().__init__("stopped; nothing was recorded")
        self.signal = signal
        self.exit_code = 128 + signal


def timed_recipe(name: str) -> recipes.Recipe:
    """The recipe of that name; ValueError unless a run goes from the reference's images and labels to test accuracy."""
    recipe = recipes.get(name)
    if recipe.teacher or recipe.validation_images:
        raise ValueError(f"{recipe.name} has a teacher or validation images: the benchmark is of time to test accuracy")
    if (recipe.image_size, recipe.channels) != (32, 3):
        raise ValueError(f"{recipe.name} has images other than the reference's, of image_size 32 and 3 channels")
    return recipe


def bench_train(
    dataset: Dataset,
    *,
    recipe_name: str = "minute",
    reference_name: str = "reference-30-as-run",
    runs: int = 3,
    steps: int = 20,
    console: Console | None = None,
) -> TrainBench:
    """Train a recipe in full `runs` times, with real reference steps before, between and after, all on the CPU.

    Each time `steps` of them are timed after a few that are not, in the reference's precision and, if the recipe
    trains in another one, in that too, so that the gain of the precision is known separately. They train the reference
    on the same images with its augmentation, as its recipe does. The trainings have seeds 0, 1, ... and open the test
    set at their end. Raises ValueError for fewer than 1 run or 2 steps, and Stopped if a signal ends a training.
    """
    if runs < 1 or steps < 2:
        raise ValueError("at least 1 run and 2 steps are needed")
    wall_start = time.perf_counter()
    console = console or Console(quiet=True)
    memory.keep_freed()
    recipe, reference = timed_recipe(recipe_name), recipes.get(reference_name)
    cpu = torch.device("cpu")
    precision = machine.select_precision(recipe.precision, cpu)
    own_precision = machine.select_precision(reference.precision, cpu)
    learners = {name: _Learner(reference.model, name) for name in dict.fromkeys((own_precision, precision))}
    batches = _Batches(
        dataset.train_images, dataset.train_labels, reference.augmentation, reference.batch_size, epoch_generator(0, 0)
    )
    seconds: dict[str, list[float]] = {name: [] for name in learners}

    def time_reference() -> None:
        for step in range(WARM_UP_STEPS + steps):
            for name, learner in learners.items():
                inputs, targets, data_seconds = batches.next()
                whole = data_seconds + sum(learner.step(inputs, targets))
                if step >= WARM_UP_STEPS:
                    seconds[name].append(whole)

    trainings = []
    time_reference()
    for seed in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            result = training.train(recipe, dataset, out=Path(folder) / "run", seed=seed, device="cpu")
        if result.stopped_by:
            raise Stopped(result.stopped_by)
        record = result.record
        trainings.append({name: record[name] for name in ("seed", "train_seconds", "wall_seconds", "test_accuracy")})
        console.print(f"Seed {seed}: {record['train_seconds']:.1f} s, test accuracy {record['test_accuracy']:.2%}")
        time_reference()

    steps_in_all = reference.epochs * len(dataset.train_labels) / reference.batch_size
    reference_seconds = {name: median(values) * steps_in_all for name, values in seconds.items()}
    train_seconds = mean(training["train_seconds"] for training in trainings)
    ratios = {name: whole / train_seconds for name, whole in reference_seconds.items()}
    return TrainBench(
        ratio=ratios[own_precision],
        ratios=ratios,
        reference_seconds=reference_seconds,
        train_seconds=train_seconds,
        reference_steps=len(seconds[own_precision]),
        reference_error_percent=max(map(median_error_percent, seconds.values())),
        reference=reference_name,
        recipe=recipe_name,
        precision=precision,
        runs=trainings,
        wall_seconds=time.perf_counter() - wall_start,
        processor=machine.processor(),
        **machine.measured_on(cpu),
    )


def median_error_percent(values: list[float]) -> float:
    """Half of the 95% interval of the median, from binomial ranks of the sorted values, in per cent of the median."""
    ordered = sorted(values)
    middle, reach = len(values) / 2, 0.98 * len(values) ** 0.5
    low, high = max(0, math.floor(middle - reach)), min(len(values), math.ceil(middle + reach)) - 1
    return float(100 * (ordered[high] - ordered[low]) / 2 / median(values))


def render_train(bench: TrainBench) -> str:
    """Lay a comparison of trainings out as lines of text."""
    trainings = ", ".join(f"{training['train_seconds']:.1f}" for training in bench.runs)
    accuracy = mean(training["test_accuracy"] for training in bench.runs)
    return "\n".join(
        [
            f"{bench.processor}, {bench.threads} threads, torch {bench.torch_version}",
            f"{bench.recipe} in {bench.precision}: {bench.train_seconds:.1f} s ({trainings}), "
            f"test accuracy {accuracy:.2%}",
            *(
                f"{bench.reference} in {name}: {seconds:,.0f} s, {bench.ratios[name]:.1f} times as long"
                for name, seconds in bench.reference_seconds.items()
            ),
            f"Reference seconds follow from {bench.reference_steps} steps in each precision around the trainings; "
            f"their median is known within {bench.reference_error_percent:.1f}%. All of this took "
            f"{bench.wall_seconds:.0f} s",
            f"Ratio: {bench.ratio:.1f}",
        ]
    )


class _Batches:
    """Augmented batches in random order, each with the seconds it took and its share of those that the draws took."""

    def __init__(
        self, images: Tensor, labels: Tensor, augmentation: str, batch_size: int, generator: torch.Generator
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.augmentation = augment.build(augmentation)
        start = time.perf_counter()
        self.order = torch.randperm(len(images), generator=generator)
        self.drawn = self.augmentation.draw(len(images), generator)
        self.draw_seconds = (time.perf_counter() - start) * batch_size / len(images)
        self.taken = 0

    def next(self) -> tuple[Tensor, Tensor, float]:
        """Inputs, labels and seconds of the next batch; from the last image on it continues with the first."""
        start = time.perf_counter()
        rows = self.order[torch.arange(self.taken, self.taken + self.batch_size) % len(self.order)]
        drawn = {name: values[rows] for name, values in self.drawn.items()}
        inputs = self.augmentation.apply(self.images[rows], drawn).contiguous(memory_format=torch.channels_last)
        targets = self.labels[rows]
        self.taken += self.batch_size
        return inputs, targets, self.draw_seconds + time.perf_counter() - start


class _Learner:
    """A model and its optimizer, so that two can be trained in turn, one bare step at a time."""

    def __init__(self, model_name: str, precision: str = "float32") -> None:
        self.precision = precision
        self.model: nn.Module = models.build(model_name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float, float]:
        """Train once; seconds of forward pass with loss, backward pass, and optimizer."""
        times = [time.perf_counter()]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), labels)
        times.append(time.perf_counter())
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def _peak_work() -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """Large work that comes close to what the machine can do: operations (a MAC counts as two), and the call."""
    side = 2048
    left, right = torch.rand(2, side, side).unbind()
    yield 2 * side**3, lambda: left @ right
    channels, size = 128, 56
    images = torch.rand(16, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    operations = 2 * 16 * size**2 * channels**2 * 9
    yield operations, lambda: functional.conv2d(images, weight, padding=1)


def _best_rate(operations: int, call: Callable[[], Tensor]) -> float:
    """Operations a second of the fastest of some calls, the first not counted."""
    call()
    seconds = []
    for _ in range(PEAK_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return operations / min(seconds)
