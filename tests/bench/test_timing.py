"""The benchmarks: that their figures hang together, on a clock of the test's own where times matter."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tinycifar import data, recipes
from tinycifar.bench import timing
from tinycifar.bench.timing import StepBench, TrainBench, bench_step, bench_train, render, render_train
from tinycifar.models import build
from tinycifar.summary import summarize

BATCH = 16


def no_large_work() -> Iterator[Any]:
    small = torch.rand(64, 64)
    yield 2 * 64**3, lambda: small @ small


@pytest.fixture(scope="module")
def measured() -> StepBench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_peak_work", no_large_work)
        return bench_step("c1c2c3c4o", steps=1, batch_size=BATCH)


def test_the_figures_of_a_step_hang_together_and_are_in_its_text(measured):
    figures = {name: value for name, value in asdict(measured).items() if isinstance(value, (int, float))}
    assert {name: value for name, value in figures.items() if not 0 < value < math.inf} == {}
    assert (measured.model, measured.batch_size, measured.steps) == ("c1c2c3c4o", BATCH, 1)
    assert (measured.threads, measured.torch_version) == (torch.get_num_threads(), torch.__version__)
    parts = measured.data_ms, measured.forward_ms, measured.backward_ms, measured.optimizer_ms
    assert sum(parts) == pytest.approx(measured.step_ms)
    assert measured.images_per_second == pytest.approx(BATCH / measured.step_ms * 1000)
    assert measured.data_percent == pytest.approx(measured.data_ms / measured.step_ms * 100)
    macs = summarize(build("c1c2c3c4o")).macs
    assert measured.achieved_gflops == pytest.approx(6 * macs * measured.images_per_second / 1e9)
    ratio = measured.images_per_second / measured.bare_images_per_second
    assert measured.loop_to_bare_ratio == pytest.approx(ratio)
    text = render(measured)
    for figure in (
        f"{measured.images_per_second:,.0f} images/s",
        f"ratio {ratio:.3f}",
        *(f"{part:.2f} ms" for part in parts),
        f"{measured.peak_gflops:,.0f} GFLOP/s",
    ):
        assert figure in text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the clock: it moves only when a part of the step, replaced by one of known length, says so."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(timing, "_peak_work", no_large_work)
    monkeypatch.setattr(timing, "_best_rate", lambda operations, call: 1e12)
    return clock


def test_drawing_and_augmenting_count_as_data_and_only_in_the_real_loop(clock, monkeypatch):
    class Pipeline:
        def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
            clock.now += count * 1e-3
            return {"row": torch.arange(count)}

        def apply(self, images: Tensor, parameters: dict[str, Tensor]) -> Tensor:
            assert images.dtype == torch.uint8
            assert len(images) == len(parameters["row"]) == BATCH
            clock.now += 0.5
            return images / 255

    class Learner:
        def __init__(self, model_name: str) -> None:
            self.model = build(model_name)

        def step(self, images: Tensor, labels: Tensor) -> tuple[float, float, float]:
            return 0.1, 0.2, 0.05

    monkeypatch.setattr(timing.augment, "build", lambda name: Pipeline())
    monkeypatch.setattr(timing, "_Learner", Learner)
    measured = bench_step("c1c2c3c4o", steps=2, batch_size=BATCH)
    assert measured.data_ms == pytest.approx(500 + BATCH)  # a millisecond an image drawn
    assert (measured.forward_ms, measured.backward_ms, measured.optimizer_ms) == pytest.approx((100, 200, 50))
    assert measured.bare_images_per_second == pytest.approx(BATCH / 0.35)
    assert measured.peak_gflops == pytest.approx(1000)


def test_a_learner_times_its_parts_in_order_and_learns(clock):
    torch.manual_seed(0)
    learner = timing._Learner("c1c2c3c4o")
    before = [p.detach().clone() for p in learner.model.parameters()]

    def forward(*_: Any) -> None:
        clock.now += 1.0

    def backward(gradient: Tensor) -> None:
        clock.now += 2.0

    learner.model.register_forward_hook(forward)
    next(learner.model.parameters()).register_hook(backward)
    learner.optimizer.register_step_post_hook(lambda *_: setattr(clock, "now", clock.now + 4.0))
    assert learner.step(torch.rand(4, 3, 32, 32), torch.arange(4)) == (1.0, 2.0, 4.0)
    assert all(not torch.equal(p, b) for p, b in zip(learner.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in learner.model.parameters())


def test_the_peak_counts_the_operations_of_what_it_times():
    from torch.utils.flop_counter import FlopCounterMode

    for operations, call in timing._peak_work():
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == operations


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 50_001}, "at most 50000 images"),
        ({"model_name": "resnet152"}, "unknown model"),
        (
            {"augmentation": "mirrors"},
            "unknown augmentation 'mirrors'; choose from none, translate, translate-hole",
        ),
    ],
)
def test_a_step_that_cannot_be_timed_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        bench_step(**{"model_name": "c1c2c3c4o"} | wrong)


def test_a_learner_in_bfloat16_computes_in_it_and_keeps_its_weights_in_float32():
    learner = timing._Learner("c1c2c3c4o", "bfloat16")
    seen = []
    learner.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    learner.step(torch.rand(4, 3, 32, 32), torch.arange(4))
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}


@pytest.fixture
def trained(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> TrainBench:
    """A benchmark whose reference steps take 3 s in float32 and 2 s in bfloat16, and whose trainings 40 s and 60 s."""
    events = []

    class Learner:
        def __init__(self, model_name: str, precision: str) -> None:
            self.seconds = {"float32": 3.0, "bfloat16": 2.0}[precision]

        def step(self, images: Tensor, labels: Tensor) -> tuple[float, float, float]:
            events.append(self.seconds)
            return self.seconds / 2, self.seconds / 4, self.seconds / 4

    def train(recipe: recipes.Recipe, dataset: data.Dataset, *, seed: int, **_: Any) -> SimpleNamespace:
        events.append(seed)
        record = {
            "seed": seed,
            "train_seconds": 40.0 + 20 * seed,
            "wall_seconds": 65,
            "test_accuracy": 0.8 + seed / 100,
        }
        return SimpleNamespace(record=record, stopped_by=None)

    monkeypatch.setattr(timing, "_Learner", Learner)
    monkeypatch.setattr(timing.training, "train", train)
    monkeypatch.setattr(timing.machine, "select_precision", lambda name, device: {"auto": "bfloat16"}.get(name, name))
    measured = bench_train(data.sample(), runs=2, steps=3)
    block = [3.0, 2.0] * (timing.WARM_UP_STEPS + 3)
    assert events == [*block, 0, *block, 1, *block], "precisions in turn, trainings between blocks of reference steps"
    return measured


def test_the_ratio_is_that_of_the_reference_as_its_recipe_has_it_to_the_mean_training(trained):
    steps = 30 * len(data.sample().train_labels) / 128
    assert trained.reference_seconds == pytest.approx({"float32": 3 * steps, "bfloat16": 2 * steps})
    assert trained.train_seconds == pytest.approx(50)
    assert trained.ratios == pytest.approx({"float32": 3 * steps / 50, "bfloat16": 2 * steps / 50})
    assert trained.ratio == trained.ratios["float32"]
    assert trained.reference_steps == 9
    assert trained.reference_error_percent == pytest.approx(0, abs=1e-6)
    assert [training["seed"] for training in trained.runs] == [0, 1]
    text = render_train(trained)
    for figure in (
        "50.0 s",
        "40.0, 60.0",
        "80.50%",
        f"Ratio: {trained.ratio:.1f}",
        *(f"{seconds:,.0f} s" for seconds in trained.reference_seconds.values()),
        *(f"{ratio:.1f} times" for ratio in trained.ratios.values()),
    ):
        assert figure in text


def test_the_error_of_a_median_follows_from_its_neighbours_and_not_from_outliers():
    # Of 100 sorted values the 41st to the 60th bracket the median (Conover 1999, Practical Nonparametric Statistics).
    spread = [float(value) for value in range(1, 101)]
    assert timing.median_error_percent(spread) == pytest.approx(100 * (60 - 41) / 2 / 50.5)
    assert timing.median_error_percent([*spread[:-1], 1e6]) == timing.median_error_percent(spread)


def test_a_signal_during_a_training_ends_the_benchmark(clock, monkeypatch):
    stopped = SimpleNamespace(record={"test_accuracy": None}, stopped_by=15)
    monkeypatch.setattr(timing.training, "train", lambda *_, **__: stopped)
    monkeypatch.setattr(timing._Learner, "step", lambda *_: (1.0, 1.0, 1.0))
    with pytest.raises(timing.Stopped, match="nothing was recorded") as ended:
        bench_train(data.sample(), runs=1, steps=2)
    assert ended.value.signal == 15


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"steps": 1}])
def test_too_few_trainings_or_reference_steps_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 run and 2 steps"):
        bench_train(data.sample(), **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("image_size = 24", "mine has images other than the reference's"),
        ("channels = 1", "mine has images other than the reference's"),
        ("validation_images = 5000", "mine has a teacher or validation images"),
    ],
)
def test_a_recipe_that_cannot_be_compared_with_the_reference_is_refused(change, message):
    Path("mine.toml").write_text(f'model = "whitenet"\nepochs = 1\naugmentation = "none"\n{change}\n')
    with pytest.raises(ValueError, match=message):
        timing.timed_recipe("mine.toml")
