import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import faults
from conftest import distance, float64, plain_loop
from tinycifar import data, distill, inference, models, optim, recipes, trained, training
from tinycifar.epochs import plan

LEARNING = recipes.with_settings(
    recipes.get("micro"), ["teacher=minute", "teacher_views=2", "epochs=4", "batch_size=32", "precision=float32"]
)


def plain_distillation(
    sample: data.Dataset, recipe: recipes.Recipe, teachers: list[trained.Trained], temperature: float = 3
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights, and the loss of each epoch against the labels."""
    torch.manual_seed(5)
    model = models.build(recipe.model).to(memory_format=torch.channels_last)
    model.prepare(sample.train_images)
    optimizers = optim.build(
        model,
        "muon",
        learning_rate=recipe.max_learning_rate,
        momentum=recipe.max_momentum,
        nesterov=True,
        weight_decay=0,
        muon_learning_rate=recipe.muon_learning_rate,
        muon_momentum=recipe.muon_momentum,
    )
    both = [inference.logits(teacher.model, sample.train_images) for teacher in teachers]
    soft = torch.nn.functional.softmax((both[0] + both[1]) / 2 / temperature, 1).clone()
    rates, steps = map(plan(recipe, 16).schedule, range(8)), list[float]()

    def loss(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        optim.set_rates(optimizers, *next(rates))
        steps.append(torch.nn.functional.cross_entropy(logits, labels).item())
        logarithms = torch.nn.functional.log_softmax(logits / temperature, 1)
        return torch.nn.functional.kl_div(logarithms, soft[rows], reduction="batchmean") * temperature**2

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    plain_loop(model, sample, 4, loss, step)
    label_losses = [(first + second) / 2 for first, second in zip(steps[::2], steps[1::2], strict=True)]
    return model.state_dict(), label_losses


def test_distillation_equals_a_plain_loop_with_the_divergence_from_the_teachers_softened_answers(tmp_path):
    sample, teachers = data.sample().limit(16), [trained.load("minute"), trained.load("micro")]
    for teacher in teachers:
        teacher.model.double()
    with torch.no_grad():
        teachers[1].model[-1].weight.mul_(-0.5)
    recipe = recipes.with_settings(
        LEARNING,
        ["teacher=minute+micro", "batch_size=8", "augmentation=none", "hold_fraction=0", "teacher_temperature=3"],
    )
    with float64():
        result = training.train(
            recipe, "sample", out=tmp_path / "run", seed=5, limit=16, teachers=teachers, evaluate=False
        )
        expected, label_losses = plain_distillation(sample, recipe, teachers)
        hotter, _ = plain_distillation(sample, recipe, teachers, temperature=3.003)
    learned = load_file(result.directory / "model.safetensors")
    # In float64 only the order of additions may differ: by nothing on an AMD EPYC with AVX-512, AVX2 and SSE4.1. A
    # temperature that is off by a thousandth moves the weights by 0.013.
    assert distance(learned, expected) < 1e-11
    assert distance(learned, hotter) > 1e-6
    assert [entry["train_loss"] for entry in result.record["history"]] == pytest.approx(label_losses, rel=1e-9)


def test_a_teacher_is_asked_once_for_each_view_about_what_the_student_sees(tmp_path, monkeypatch):
    asked, taught = [], []
    logits, losses = inference.logits, distill.losses

    def ask(model: models.Classifier, images: torch.Tensor, **options: Any) -> torch.Tensor:
        if model is teacher.model:
            asked.append(logits(model, images))
        return logits(model, images, **options)

    def teach(own: torch.Tensor, answers: torch.Tensor, temperature: float) -> torch.Tensor:
        taught.append(answers)
        return losses(own, answers, temperature)

    teacher = trained.load("minute")
    monkeypatch.setattr(inference, "logits", ask)
    monkeypatch.setattr(distill, "losses", teach)
    training.train(LEARNING, data.sample(), out=tmp_path / "run", limit=32, teachers=[teacher])
    assert len(asked) == 2
    assert not torch.equal(asked[0], asked[1])
    for number, answers in enumerate(taught):  # one batch an epoch, in an order of its own
        assert torch.equal(answers.sort(dim=0).values, asked[number % 2].sort(dim=0).values)
    assert not torch.equal(taught[0], taught[2])


def test_a_run_with_a_teacher_is_resumed_to_the_same_bits_also_from_within_an_epoch(tmp_path):
    teachers = [trained.load("minute")]
    whole = tmp_path / "whole"
    training.train(LEARNING, "sample", out=whole, limit=64, teachers=teachers, checkpoint_seconds=0)
    expected = faults.fingerprint(whole)
    # What the teachers answered is no longer needed.
    assert sorted(path.stem for path in (whole / "checkpoints").glob("*.json")) == ["step-7", "step-8"]
    for path in (whole / "checkpoints").glob("step-8.*"):
        path.unlink()
    training.train(LEARNING, "sample", resume=whole, limit=64, teachers=teachers)
    assert faults.fingerprint(whole) == expected


def test_a_resumed_run_asks_its_teachers_again_only_for_answers_that_are_missing_or_damaged(tmp_path, monkeypatch):
    teacher, logits, asked = trained.load("minute"), inference.logits, 0

    def ask(model: models.Classifier, images: torch.Tensor, **options: Any) -> torch.Tensor:
        nonlocal asked
        asked += model is teacher.model
        return logits(model, images, **options)

    def train(last_epoch: int, **where: Path) -> None:
        training.train(LEARNING, "sample", limit=64, teachers=[teacher], stop_after_epoch=last_epoch, **where)

    train(4, out=tmp_path / "whole")
    monkeypatch.setattr(inference, "logits", ask)
    train(1, out=tmp_path / "run")
    train(2, resume=tmp_path / "run")
    assert asked == 2
    damaged, kept = (tmp_path / "run" / "checkpoints" / f"teacher-{view}.safetensors" for view in range(2))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert kept.exists()
    train(4, resume=tmp_path / "run")
    assert asked == 3
    assert faults.fingerprint(tmp_path / "run") == faults.fingerprint(tmp_path / "whole")
    assert not damaged.exists()
    assert not kept.exists()


@pytest.mark.parametrize("view", [1, pytest.param(2, marks=pytest.mark.end_to_end)])
@pytest.mark.slow
def test_a_signal_while_the_teacher_answers_stops_the_run_and_it_is_resumed_to_the_same_bits(
    tmp_path, monkeypatch, view
):
    teacher, logits, asked = trained.load("minute"), inference.logits, 0

    def answer(model: models.Classifier, images: torch.Tensor, **options: Any) -> torch.Tensor:
        nonlocal asked
        asked += model is teacher.model
        if asked == 2 * view - 1:  # the first of the view's two batches
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return logits(model, images, **options)

    sample = data.sample()
    many = replace(
        sample, train_images=sample.train_images.repeat(2, 1, 1, 1), train_labels=sample.train_labels.repeat(2)
    )
    training.train(LEARNING, many, out=tmp_path / "whole", teachers=[teacher])
    with monkeypatch.context() as patch:
        patch.setattr(inference, "logits", answer)
        stopped = training.train(LEARNING, many, out=tmp_path / "run", teachers=[teacher])
    assert (stopped.complete, stopped.stopped_by, stopped.record["epochs"]) == (False, signal.SIGTERM, view - 1)
    assert asked == 2 * view - 1
    training.train(LEARNING, many, resume=tmp_path / "run", teachers=[teacher])
    assert faults.fingerprint(tmp_path / "run") == faults.fingerprint(tmp_path / "whole")


def test_a_teacher_that_does_not_belong_to_the_recipe_or_saw_validation_images_is_refused(tmp_path):
    minute = trained.load("minute")
    out = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"nano learns from a teacher of recipe teacher: train one with `tinycifar train teacher`"
    ):
        training.train(recipes.get("nano"), data.sample(), out=out)
    with pytest.raises(
        ValueError, match="learns from one of recipe teacher or large-teacher, and minute is of recipe minute"
    ):
        training.train(recipes.get("nano"), data.sample(), out=out, teachers=[minute])
    both = replace(LEARNING, teacher="minute+teacher")
    with pytest.raises(ValueError, match=r"a teacher of recipe teacher: train one with `tinycifar train teacher`"):
        training.train(both, data.sample(), out=out, teachers=[minute])
    with pytest.raises(ValueError, match="minute learns from no teacher"):
        training.train(recipes.get("minute"), data.sample(), out=out, teachers=[minute])
    with pytest.raises(ValueError, match="minute has other classes than the data"):
        training.train(LEARNING, data.sample(), out=out, teachers=[replace(minute, classes=("cat", "dog"))])
    own = replace(data.sample(), name="own", train_images=data.sample().train_images.flip(0))
    with pytest.raises(ValueError, match="the teacher minute takes pictures with fit=pad, not crop"):
        training.train(LEARNING, own, out=out, teachers=[replace(minute, fit="pad")])
    held_out = recipes.with_settings(LEARNING, ["validation_images=50"])
    with pytest.raises(ValueError, match="was trained on cifar10 and may have seen the held-out images"):
        training.train(held_out, data.sample(), out=out, teachers=[minute])
    minute = replace(minute, data="sample")
    with pytest.raises(ValueError, match="with 0 validation images held out, fewer than the 50 of this run"):
        training.train(held_out, data.sample(), out=out, teachers=[minute])
    assert not out.exists()
    training.train(LEARNING, data.sample(), out=out, limit=32, teachers=[minute], stop_after_epoch=1)
    with pytest.raises(
        ValueError, match=r"trained with different settings: teachers was \['[0-9a-f]{64}'\], not \['abc'\]"
    ):
        training.train(LEARNING, data.sample(), resume=out, limit=32, teachers=[replace(minute, sha256="abc")])
