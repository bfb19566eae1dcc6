import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import faults
from conftest import distance, float64, plain_loop, shown
from tinycifar import (
    augment,
    data,
    inference,
    models,
    optim,
    recipes,
    recording,
    run,
    trained,
    training,
)
from tinycifar.data.dataset import CLASSES
from tinycifar.epochs import hardest as hardest_of
from tinycifar.job import balanced_weights
from tinycifar.recipes import Recipe

SMALL = recipes.with_settings(recipes.get("reference-30"), ["epochs=2", "batch_size=32", "augmentation=none"])


def weights(result: training.Result) -> dict[str, torch.Tensor]:
    return load_file(result.directory / "model.safetensors")


def equal(first: training.Result, second: training.Result) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))


# Two loops in float64 are equal but for the order of additions: at most 3e-15 on an AMD EPYC with AVX-512, AVX2 and
# SSE4.1. Each loop is also run with one value off by a thousandth, which moves the weights by 1e-7 to 0.05.
EQUAL, NOTICED = 1e-11, 1e-8


def plain_sgd_loop(sample: data.Dataset, *, rate: float = 0.02, weight_decay: float = 5e-4) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model = models.build("c1c2c3c4o").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=6, pct_start=0.3, div_factor=25, final_div_factor=1000
    )

    def loss(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    plain_loop(model, sample, 2, loss, step)
    return model.state_dict()


def test_training_equals_a_plain_loop_with_torch_sgd_and_one_cycle_scheduler(tmp_path):
    sample, recipe = data.sample().limit(20), recipes.with_settings(SMALL, ["batch_size=8"])
    with float64():
        result = training.train(recipe, "sample", out=tmp_path / "run", seed=5, limit=20, evaluate=False)
        assert distance(weights(result), plain_sgd_loop(sample)) < EQUAL
        assert distance(weights(result), plain_sgd_loop(sample, rate=0.02002)) > NOTICED
        assert distance(weights(result), plain_sgd_loop(sample, weight_decay=5.005e-4)) > NOTICED


def with_minute_as_teacher(recipe: Recipe) -> tuple[Recipe, list[trained.Trained]]:
    """A recipe, if it has a teacher, with the shipped `minute` in its place; and the teacher."""
    if not recipe.teacher:
        return recipe, []
    return recipes.with_settings(recipe, ["teacher=minute"]), [trained.load("minute")]


MINUTE = recipes.with_settings(recipes.get("minute"), ["epochs=3", "batch_size=32", "precision=float32"])


def plain_muon_loop(
    sample: data.Dataset, recipe: Recipe, *, smoothing: float = 0.05, muon_momentum: float | None = None
) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model = models.build(recipe.model).to(memory_format=torch.channels_last)
    model.prepare(sample.train_images)
    filters = [p for p in model.parameters() if p.requires_grad and p.dim() == 4]
    rest = [p for p in model.parameters() if p.requires_grad and p.dim() != 4]
    sgd = torch.optim.SGD(rest, lr=recipe.max_learning_rate, momentum=0.85, nesterov=True)
    muon = optim.Muon(filters, lr=recipe.muon_learning_rate, momentum=muon_momentum or recipe.muon_momentum)
    clock = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        clock,
        1.0,
        total_steps=9,
        pct_start=recipe.warmup_fraction,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
        anneal_strategy="linear",
        cycle_momentum=False,
    )

    def loss(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def step() -> None:
        factor = scheduler.get_last_lr()[0]
        sgd.param_groups[0]["lr"] = recipe.max_learning_rate * factor
        muon.param_groups[0]["lr"] = recipe.muon_learning_rate * factor
        sgd.step()
        muon.step()
        clock.step()
        if scheduler.last_epoch < 8:
            scheduler.step()

    plain_loop(model, sample, 3, loss, step)
    return model.state_dict()


def test_label_smoothing_and_muon_equal_a_plain_loop(tmp_path):
    sample = data.sample().limit(20)
    recipe = recipes.with_settings(
        MINUTE, ["batch_size=8", "skip_easiest=0", "small_fraction=0", "augmentation=none", "hold_fraction=0"]
    )
    with float64():
        result = training.train(recipe, "sample", out=tmp_path / "run", seed=5, limit=20, evaluate=False)
        assert distance(weights(result), plain_muon_loop(sample, recipe)) < EQUAL
        assert distance(weights(result), plain_muon_loop(sample, recipe, smoothing=0.05005)) > NOTICED
        momentum = 1.001 * recipe.muon_momentum
        assert distance(weights(result), plain_muon_loop(sample, recipe, muon_momentum=momentum)) > NOTICED


def test_later_epochs_leave_out_the_images_with_the_least_loss_in_the_epoch_before(tmp_path, monkeypatch):
    seen: list[torch.Tensor] = []

    class Watching(augment.NoAugmentation):
        def draw(self, count: int, generator: torch.Generator) -> augment.Parameters:
            return {"row": torch.arange(count)}

        def apply(self, images: torch.Tensor, parameters: augment.Parameters) -> torch.Tensor:
            seen.append(parameters["row"])
            return super().apply(images, parameters)

    asked: list[torch.Tensor] = []
    real = hardest_of

    def watched(order: torch.Tensor, losses: torch.Tensor, count: int) -> torch.Tensor:
        asked.append(losses.clone())
        return real(order, losses, count)

    monkeypatch.setitem(augment.AUGMENTATIONS, "none", lambda *_: Watching())
    monkeypatch.setattr(training, "hardest", watched)
    monkeypatch.setattr(training, "contradicted", lambda *_: 0.0)  # as with right labels, which few images cannot show
    recipe = recipes.with_settings(MINUTE, ["skip_easiest=0.5", "augmentation=none"])
    record = training.train(recipe, data.sample(), out=tmp_path / "run", limit=80).record
    assert [len(rows) for rows in seen] == [32, 32, 16, 32, 32], "whole batches of the 40 hardest"
    assert sorted(torch.cat(seen[:3]).tolist()) == list(range(80))
    for losses, rows in zip(asked, seen[3:], strict=True):
        hardest = losses.argsort(stable=True)[48:]
        assert sorted(rows.tolist()) == sorted(hardest.tolist())
    left_out = torch.ones(80, dtype=torch.bool)
    left_out[seen[3]] = False
    assert torch.equal(asked[0][left_out], asked[1][left_out]), "what was not trained on keeps its loss"
    assert record["images_per_second"] == pytest.approx(144 / record["train_seconds"])


def test_the_first_steps_of_the_first_epoch_see_reduced_images_also_after_a_resume(tmp_path):
    sides: list[int] = []
    forward = models.Classifier.forward

    def watched(model: models.Classifier, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            sides.append(images.shape[-1])
        return forward(model, images)

    recipe = recipes.with_settings(MINUTE, ["epochs=2", "batch_size=20", "small_fraction=0.5", "skip_easiest=0"])
    with mock.patch.object(models.Classifier, "forward", watched):
        faults.interrupt(recipe, tmp_path / "run", 1, limit=80)
        training.train(recipe, "sample", resume=tmp_path / "run", limit=80)
    assert sides == [24, 24, 32, 32] + [32] * 4


def test_preparation_counts_as_training_time(tmp_path):
    with mock.patch.object(models.MinuteNet, "prepare", side_effect=lambda *_: time.sleep(0.2)):
        record = training.train(MINUTE, data.sample(), out=tmp_path / "run", limit=32).record
    assert record["history"][0]["train_seconds"] >= 0.2
    assert record["train_seconds"] == sum(entry["train_seconds"] for entry in record["history"])


def first_gradient(recipe: Recipe, out: Path, seed: int = 0) -> torch.Tensor:
    """The gradient of the filters in the first step, with which the momentum of Muon begins."""
    training.train(recipe, "sample", out=out, seed=seed, limit=64, stop_after_epoch=1, evaluate=False)
    stored = faults.newest(out)
    assert stored.about["state.step"] == 1
    return torch.cat([stored.tensors[name].flatten() for name in sorted(stored.tensors) if "optimizer.1" in name])


def test_in_bfloat16_the_weights_stay_float32_and_the_gradient_is_nearly_the_same(tmp_path):
    recipe = recipes.with_settings(MINUTE, ["batch_size=64"])
    low = recipes.with_settings(recipe, ["precision=bfloat16"])
    exact, rounded = first_gradient(recipe, tmp_path / "float32"), first_gradient(low, tmp_path / "bfloat16")
    learned = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in learned.values())
    assert run.read_environment(tmp_path / "bfloat16").precision == "bfloat16"
    difference = ((rounded - exact).norm() / exact.norm()).item()
    assert 1e-4 < difference < 0.2  # bfloat16 has 8 bits: 0.058 on an AMD EPYC with AVX-512, 0.059 with AVX2
    other = first_gradient(recipe, tmp_path / "other", seed=1)
    assert (other - exact).norm() > 0.5 * exact.norm()


# Models, optimizers and augmentations of these are those of others, or nearly.
LIKE_OTHERS = {"accurate", "teacher", "reference-30-as-run", "reference-40", "reference-40-as-run"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LIKE_OTHERS else ()) for name in recipes.RECIPES],
)
def test_every_recipe_gives_the_same_bits_from_the_same_seed(tmp_path, name):
    settings = ["epochs=2", *(["validation_images=16"] if recipes.get(name).validation_images else [])]
    recipe, teachers = with_minute_as_teacher(recipes.with_settings(recipes.get(name), settings))
    for number in range(2):
        training.train(recipe, "sample", out=tmp_path / str(number), seed=3, limit=40, teachers=teachers)
    assert faults.fingerprint(tmp_path / "0") == faults.fingerprint(tmp_path / "1")


@pytest.mark.parametrize("where", ["input", "loss", "gradient"])
def test_what_is_not_finite_stops_a_run_before_the_update_and_it_can_go_on_from_the_last_good_checkpoint(
    tmp_path, monkeypatch, where
):
    whole = training.train(SMALL, data.sample(), out=tmp_path / "whole", limit=64)
    steps = 0

    def spoil(values: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return values * math.inf if steps == 4 else values  # the second batch of the second epoch

    class Spoiled(augment.NoAugmentation):
        def apply(self, images: torch.Tensor, parameters: augment.Parameters) -> torch.Tensor:
            return spoil(super().apply(images, parameters))

    def spoiled_model(*arguments: Any, **settings: Any) -> models.Classifier:
        model = build(*arguments, **settings)
        next(model.parameters()).register_hook(spoil)
        return model

    build, cross_entropy = models.build, torch.nn.functional.cross_entropy
    with monkeypatch.context() as patch:
        if where == "input":
            patch.setitem(augment.AUGMENTATIONS, "none", lambda *_: Spoiled())
        elif where == "loss":
            patch.setattr(training.functional, "cross_entropy", lambda *a, **k: spoil(cross_entropy(*a, **k)))
        else:
            patch.setattr(models, "build", spoiled_model)
        recipe = recipes.with_settings(SMALL, ["watch_test=false"])
        pattern = r"(loss|gradient's norm) is (nan|inf) at step 4 \(epoch 2, learning rate 0\.\d+\): stopped before the"
        with pytest.raises(FloatingPointError, match=pattern):
            training.train(recipe, data.sample(), out=tmp_path / "run", limit=64)
    stored = faults.newest(tmp_path / "run")
    assert stored.about["state.step"] == 2
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(stored.tensors[f"model.{name}"], tensor) for name, tensor in kept.items())
    assert equal(training.train(recipe, data.sample(), resume=tmp_path / "run", limit=64), whole)


def test_stopping_after_an_epoch_keeps_the_schedule_of_the_whole_recipe(tmp_path):
    whole = training.train(SMALL, data.sample(), out=tmp_path / "whole", limit=64)
    part = training.train(SMALL, data.sample(), out=tmp_path / "part", limit=64, stop_after_epoch=1)
    assert part.record["epochs"] == 1
    assert faults.without_seconds(part.record["history"]) == faults.without_seconds(whole.record["history"][:1])


def test_with_validation_images_the_test_set_stays_shut(tmp_path):
    recipe = recipes.with_settings(SMALL, ["validation_images=50"])
    with mock.patch.object(inference, "logits", side_effect=inference.logits) as logits:
        record = training.train(recipe, "sample", out=tmp_path / "run", limit=64).record
    assert {len(call.args[1]) for call in logits.call_args_list} == {50}
    assert record["validation_accuracy"] is not None
    assert (record["test_accuracy"], record["best_test_accuracy"], record["test_loss"]) == (None, None, None)
    assert all("validation_accuracy" in entry and "test_accuracy" not in entry for entry in record["history"])
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["split"] == "validation"


def test_the_test_set_is_opened_once_where_the_recipe_does_not_watch_it(tmp_path):
    recipe = recipes.with_settings(SMALL, ["watch_test=false"])
    with mock.patch.object(inference, "logits", side_effect=inference.logits) as logits:
        record = training.train(recipe, data.sample(), out=tmp_path / "run", limit=64).record
    assert [call.kwargs for call in logits.call_args_list] == [{}, {"flip": True}]  # both after the last step
    assert record["best_test_accuracy"] is None
    assert record["test_accuracy"] is not None


def test_the_record_has_every_field_and_the_run_directory_every_file(tmp_path):
    result = training.train(SMALL, data.sample(), out=tmp_path / "run", seed=4, limit=64)
    record = result.record
    assert list(record) == [
        "recipe", "seed", "epochs", "model", "parameters", "macs", "train_images", "train_accuracy",
        "validation_accuracy", "test_accuracy", "test_accuracy_tta", "test_subsets",
        "best_test_accuracy", "test_loss", "train_seconds",
        "wall_seconds", "images_per_second", "device", "instruction_set", "threads", "precision",
        "torch_version", "teachers",
        "git_revision", "date", "resumes",
        "history",
    ]  # fmt: skip
    assert (record["recipe"], record["seed"], record["epochs"], record["train_images"]) == ("reference-30", 4, 2, 64)
    assert record["parameters"] == 195_946
    in_epochs = sum(entry["train_seconds"] for entry in record["history"])
    assert in_epochs <= record["train_seconds"] < record["wall_seconds"]
    assert record["images_per_second"] == pytest.approx(128 / record["train_seconds"])
    assert record["history"] == run.read_metrics(result.directory)
    evaluated = run.read_evaluation(result.directory)
    assert record["test_accuracy"] == record["history"][-1]["test_accuracy"] == evaluated.accuracy
    assert record["best_test_accuracy"] == max(entry["test_accuracy"] for entry in record["history"])
    names = {"recipe.json", "environment.json", "metrics.jsonl", "model.safetensors"}
    names |= {"evaluation.json", "evaluation.safetensors", "checkpoints", "seen.npy", "hardest.json", ".lock"}
    assert {path.name for path in result.directory.iterdir()} == names


def test_the_stored_logits_give_the_stored_figures(tmp_path):
    training.train(SMALL, data.sample(), out=tmp_path / "run", limit=64)
    stored = load_file(tmp_path / "run" / "evaluation.safetensors")
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert torch.equal(stored["labels"], data.sample().test_labels)
    for suffix in ("", "_tta"):
        accuracy = (stored[f"logits{suffix}"].argmax(1) == stored["labels"]).double().mean().item()
        assert content[f"accuracy{suffix}"] == accuracy
    assert [row["class"] for row in content["classes"]] == list(CLASSES)
    assert sum(map(sum, content["confusion"])) == sum(row["images"] for row in content["reliability"]) == 200


def test_a_temperature_is_fitted_to_validation_images_only(tmp_path):
    recipe = recipes.with_settings(SMALL, ["validation_images=100"])
    training.train(recipe, data.sample(), out=tmp_path / "held", limit=64)
    training.train(SMALL, data.sample(), out=tmp_path / "whole", limit=64)
    held, whole = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("held", "whole"))
    assert 0.05 < held["temperature"] < 20
    assert held["calibrated"].keys() == {"loss", "brier", "ece"}
    assert (whole["temperature"], whole["calibrated"]) == (None, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_what_was_learned_saved(tmp_path, number):
    faults.interrupt(SMALL, tmp_path / "run", 3, number, limit=64)  # the first batch of the second epoch
    assert len(run.read_metrics(tmp_path / "run")) == 1
    assert trained.load(tmp_path / "run").model_name == "c1c2c3c4o"
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_a_signal_in_the_last_evaluation_leaves_a_complete_run(tmp_path):
    evaluate = inference.evaluate

    def interrupted(*arguments: Any) -> inference.Evaluation:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    with mock.patch.object(inference, "evaluate", interrupted):
        result = training.train(SMALL, data.sample(), out=tmp_path / "run", limit=64)
    assert (result.complete, result.stopped_by) == (True, signal.SIGINT)
    assert result.record["test_accuracy"] is not None


def test_what_fails_after_an_epoch_leaves_the_weights_of_that_epoch(tmp_path):
    with mock.patch.object(recording, "log_line", side_effect=BrokenPipeError), pytest.raises(BrokenPipeError):
        training.train(SMALL, data.sample(), out=tmp_path / "run", limit=64)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    one_epoch = training.train(SMALL, data.sample(), out=tmp_path / "other", limit=64, stop_after_epoch=1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(one_epoch).items())


def test_what_can_be_refused_is_refused_before_any_data_is_loaded(tmp_path):
    (tmp_path / "used").write_text("")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"device": "tpu"}, "no device 'tpu' here"),
        ({"out": tmp_path / "used"}, "is in use"),
        ({"limit": 0}, "at least 1, not 0"),
        *(({"stop_after_epoch": epoch}, f"1 to 2, not after {epoch}") for epoch in (0, 3)),
    ]
    for options, message in wrong:
        with (
            mock.patch.object(data, "load", side_effect=AssertionError("the data was asked for")),
            pytest.raises(ValueError, match=message),
        ):
            training.train(SMALL, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_folder_that_another_process_has_used_while_the_data_was_loaded_is_left_as_it_is(tmp_path, monkeypatch):
    out = tmp_path / "run"

    def load(*arguments: Any, **settings: Any) -> data.Dataset:
        out.mkdir()
        (out / "recipe.json").write_text("of the other")
        return data.sample()

    with monkeypatch.context() as patch:
        patch.setattr(data, "load", load)
        with pytest.raises(ValueError, match="is in use; name a new or an empty one"):
            training.train(MINUTE, out=out)
    assert (out / "recipe.json").read_text() == "of the other"


@pytest.mark.parametrize("out", ["own/train/run", "own/train/cat", None])
def test_a_run_is_not_written_where_it_would_become_a_class_of_its_data(own, monkeypatch, out):
    if out is None:
        own = own / "train"
        monkeypatch.chdir(own)
    before = sorted(own.rglob("*"))
    with pytest.raises(ValueError, match=r"would be read as a class of the data in|is in use"):
        training.train(MINUTE, str(own), out=None if out is None else Path(out))
    assert sorted(own.rglob("*")) == before


def test_a_run_remembers_the_data_it_was_trained_on(tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(data, "load", lambda source, **_: asked.append(source) or data.sample())
    for source, expected in (("sample", "sample"), (None, "sample"), ("a folder", str(tmp_path / "a folder"))):
        training.train(MINUTE, source, out=tmp_path / f"run {source}", limit=32, stop_after_epoch=1)
        inference.evaluate_model(trained.load(tmp_path / f"run {source}"))
        assert asked[-1] == expected


def test_a_log_line_has_the_format_of_the_original():
    entry = {
        "epoch": 1,
        "learning_rate": 0.0013794,
        "train_loss": 2.05131,
        "train_accuracy": 0.22234,
        "test_loss": 1.79774,
        "test_accuracy": 0.3191,
    }
    expected = "Epoch 1/30 | LR(s): [0.001379] | Train loss 2.0513 acc 0.2223 | Val loss 1.7977 acc 0.3191"
    assert recording.log_line(entry, 30) == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has other means")
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step():
    program = """
import resource, sys, torch
from tinycifar import memory
if "keep" in sys.argv:
    memory.keep_freed()
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10, 1 << 20).sum()  # 40 MiB, more than glibc ever keeps by itself
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[20:]))  # the first few find their place on the heap
"""

    def faults(*argument: str) -> int:
        command = [sys.executable, "-c", program, *argument]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    mapped_anew = faults()
    assert mapped_anew > 0
    assert faults("keep") < mapped_anew / 2


def test_every_recipe_can_take_a_step(tmp_path):
    for name, recipe in recipes.RECIPES.items():
        recipe, teachers = with_minute_as_teacher(recipe)
        if recipe.validation_images:
            recipe = recipes.with_settings(recipe, ["validation_images=40"])
        result = training.train(
            recipe, data.sample(), out=tmp_path / name, limit=2, stop_after_epoch=1, teachers=teachers
        )
        assert result.record["epochs"] == 1


def test_a_run_begins_with_the_weights_it_is_given_and_remembers_whose_they_are(tmp_path):
    recipe = recipes.with_settings(MINUTE, ["max_learning_rate=1e-9", "muon_learning_rate=1e-9"])
    known = trained.load("minute", "cpu")
    result = training.train(recipe, data.sample(), out=tmp_path / "run", init=known, limit=64)
    found, weights = trained.load(result.directory, "cpu").model.state_dict(), known.model.state_dict()
    for name in weights:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], weights[name], rtol=1e-4, atol=1e-5)
    about = run.read_environment(result.directory).init
    assert (about.name, about.sha256) == ("minute", known.sha256)
    with pytest.raises(ValueError, match=r"trained with different settings: init was .*, not None"):
        training.train(recipe, data.sample(), resume=result.directory, limit=64)


def test_a_start_that_has_seen_the_validation_images_is_refused(tmp_path):
    recipe = recipes.with_settings(MINUTE, ["validation_images=40"])
    with pytest.raises(ValueError, match=r"the model minute was trained .*held-out"):
        training.train(recipe, data.sample(), out=tmp_path / "run", init=trained.load("minute", "cpu"))


def test_the_narrowest_reference_is_trained(tmp_path):
    """With fewer than 8 channels before its 1x1 convolution with a stride oneDNN ended the process, on AVX2."""
    recipe = recipes.with_settings(SMALL, ["epochs=1", "width=0.1", "watch_test=false"])
    result = training.train(recipe, data.sample(), out=tmp_path / "run", limit=32, evaluate=False)
    assert weights(result)["1.4.weight"].shape[1] == 8


def test_of_a_budget_the_widest_model_is_trained_and_told_and_few_steps_with_what_may_help(tmp_path):
    display, output = shown()
    result = training.train(
        MINUTE, data.sample(), out=tmp_path / "run", max_parameters=20_000, limit=64, display=display
    )
    width = run.read_recipe(result.directory).width
    assert 18_000 < result.record["parameters"] <= 20_000
    assert f"Width {width:g} is the largest with at most 20,000 parameters" in output.getvalue()
    assert re.search(r"Only \d+ steps?: with so few images, more epochs may help", output.getvalue())
    assert trained.load(result.directory, "cpu").width == width


def test_images_in_memory_of_any_size_are_trained_on_with_their_own_mean_and_deviation(tmp_path):
    sample = data.sample(24)
    own = replace(sample, name="dark", train_images=sample.train_images // 4, test_images=sample.test_images // 4)
    recipe = recipes.with_settings(MINUTE, ["image_size=24"])
    model = trained.load(training.train(recipe, own, out=tmp_path / "run").directory, "cpu")
    mean, std = own.statistics()
    torch.testing.assert_close(model.model.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(model.model.std.flatten(), torch.tensor(std))
    assert max(mean) < 0.13
    assert model.data_digest == own.digest
    with pytest.raises(ValueError, match="the images have 24 pixels a side, the recipe's 32"):
        training.train(MINUTE, own, out=tmp_path / "other")


def test_balanced_weights_are_inverse_to_the_images_of_a_class_and_one_on_average():
    labels = torch.tensor([0] * 6 + [2] * 3 + [3])
    weights = balanced_weights(labels, 5)
    assert weights.tolist() == pytest.approx([10 / 18, 0, 10 / 9, 10 / 3, 0])
    assert weights[labels].mean().item() == pytest.approx(1)


def test_class_weights_change_training_if_classes_differ_in_size_and_are_reported(tmp_path):
    display, output = shown()
    sample = data.sample()
    places = [(sample.train_labels == label).nonzero()[:, 0] for label in (3, 5)]
    found = {}
    for name, counts in (("alike", (16, 16)), ("rare", (28, 4))):
        rows = torch.cat([place[:count] for place, count in zip(places, counts, strict=True)])
        labels = torch.tensor([0] * counts[0] + [1] * counts[1])
        dataset = data.Dataset(
            name, ("cat", "dog"), sample.train_images[rows], labels, sample.train_images[rows], labels
        )
        for kind in ("none", "balanced"):
            recipe = recipes.with_settings(MINUTE, ["epochs=1", f"class_weights={kind}"])
            result = training.train(recipe, dataset, out=tmp_path / name / kind, display=display)
            weights = load_file(result.directory / "model.safetensors")
            found[name, kind] = torch.cat([tensor.flatten().float() for tensor in weights.values()])
    printed = output.getvalue()
    assert torch.equal(found["alike", "none"], found["alike", "balanced"])
    assert not torch.equal(found["rare", "none"], found["rare", "balanced"])
    assert "Classes have 4 (dog) to 28 (cat) training images; class_weights=balanced gives each class" in printed
    assert "the loss of an image is multiplied by 0.571 to 4" in printed
