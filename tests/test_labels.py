"""What a model says about the labels that it is trained on, and which epoch's weights are kept."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import faults
from conftest import shown
from tinycifar import data, labels, recipes, recording, run, trained, training
from tinycifar.scores import Accuracy

SHORT = ["epochs=5", "batch_size=32", "precision=float32", "validation_images=60"]


def test_a_trained_model_contradicts_wrong_labels_and_hardly_any_right_ones():
    model, sample = trained.load("minute", "cpu").model, data.sample()
    draw = torch.Generator().manual_seed(0)
    wrong = sample.train_labels.clone()
    changed = torch.rand(len(wrong), generator=draw) < 0.2
    wrong[changed] = (wrong[changed] + torch.randint(1, 10, (int(changed.sum()),), generator=draw)) % 10
    assert labels.contradicted(model, sample.train_images, sample.train_labels) <= labels.MOST_CONTRADICTED
    assert labels.contradicted(model, sample.train_images, wrong) == pytest.approx(0.2, abs=0.1)


def test_labels_are_judged_without_running_statistics_which_stay_as_they_were():
    model, sample = trained.load("minute", "cpu").model, data.sample()
    expected = labels.contradicted(model, sample.train_images, sample.train_labels)
    running = [buffer for name, buffer in model.named_buffers() if "running" in name]
    for buffer in running:
        buffer.mul_(3).add_(1)
    before = [buffer.clone() for buffer in running]
    assert labels.contradicted(model.train(), sample.train_images, sample.train_labels) == expected
    assert all(map(torch.equal, running, before))
    assert model.training


def test_labels_are_judged_more_seldom_as_training_goes_on_and_not_after_the_last_epoch():
    assert [epoch for epoch in range(1, 20) if labels.is_due(epoch, 12)] == [1, 2, 4, 8]
    assert [epoch for epoch in range(1, 20) if labels.is_due(epoch, 4)] == [1, 2]
    assert [epoch for epoch in range(1, 20) if labels.is_due(epoch, 1)] == []


@pytest.mark.parametrize(("share", "hard"), [(0.0, 4), (0.5, 0), (None, 3)])
def test_only_the_hardest_images_are_trained_on_unless_labels_are_contradicted(tmp_path, monkeypatch, share, hard):
    answers = iter([0.5, 0.0])
    monkeypatch.setattr(training, "contradicted", lambda *_: next(answers) if share is None else share)
    seen: list[int] = []
    real = training.hardest
    monkeypatch.setattr(training, "hardest", lambda *arguments: seen.append(1) or real(*arguments))
    display, output = shown()
    recipe = recipes.with_settings(recipes.get("minute"), SHORT)
    training.train(recipe, "sample", out=tmp_path / "run", display=display)
    assert len(seen) == hard
    assert ("contradicts the labels of 50%" in output.getvalue()) == (share == 0.5)


def test_the_hardest_images_of_a_run_are_stored_with_their_losses(tmp_path):
    recipe = recipes.with_settings(recipes.get("reference-30"), ["epochs=1", "batch_size=32"])
    result = training.train(recipe, "sample", out=tmp_path / "run", limit=64)
    losses = faults.newest(result.directory).tensors["state.last_losses"]
    stored = run.read_hardest(result.directory)
    assert len(stored) == recording.HARDEST
    assert [image for image, _ in stored] == losses.argsort(descending=True, stable=True)[:50].tolist()
    assert stored[0][1] == pytest.approx(losses.max().item())


def scores(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Have the epochs of a training reach these validation accuracies."""
    answers = iter(accuracies)
    summarize = recording.metrics.summarize

    def scored(*arguments: Any) -> Accuracy:
        return replace(summarize(*arguments), accuracy=next(answers))

    monkeypatch.setattr(recording.metrics, "summarize", scored)


def test_the_weights_of_the_best_validation_epoch_are_kept_also_after_a_resume(tmp_path, monkeypatch):
    recipe = recipes.with_settings(recipes.get("reference-30"), [*SHORT, "keep_best=true", "augmentation=none"])
    with monkeypatch.context() as patch:
        scores(patch, [0.1, 0.5, 0.2, 0.5, 0.3, 0.5, 0.5])
        training.train(recipe, "sample", out=tmp_path / "whole", limit=64)
    with monkeypatch.context() as patch:
        scores(patch, [0.1, 0.5, 0.2])
        parts = tmp_path / "parts"
        second = training.train(recipe, "sample", out=parts, limit=64, stop_after_epoch=2, evaluate=False)
        kept = load_file(second.directory / "model.safetensors")
        training.train(recipe, "sample", resume=parts, limit=64, stop_after_epoch=3, evaluate=False)
    with monkeypatch.context() as patch:
        scores(patch, [0.5, 0.3, 0.5, 0.5])
        training.train(recipe, "sample", resume=parts, limit=64)
    for name in ("whole", "parts"):
        final = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(kept[key], tensor) for key, tensor in final.items()), name
    last = faults.newest(parts).tensors
    assert not all(torch.equal(last[f"model.{key}"], tensor) for key, tensor in kept.items())


def test_a_run_stops_when_the_validation_accuracy_no_longer_improves_and_is_complete(tmp_path, monkeypatch):
    recipe = recipes.with_settings(recipes.get("reference-30"), [*SHORT, "patience=2"])
    scores(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.5, 0.5])
    display, output = shown()
    result = training.train(recipe, "sample", out=tmp_path / "run", limit=64, display=display)
    assert (result.complete, result.record["epochs"]) == (True, 4)
    assert "Stopped early: validation accuracy did not improve for 2 epochs\n" in output.getvalue()
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["split"] == "validation"


@pytest.mark.parametrize("setting", ["keep_best=true", "patience=3"])
def test_an_epoch_is_never_chosen_by_test_images(tmp_path, setting):
    recipe = recipes.with_settings(recipes.get("reference-30"), [setting])
    with pytest.raises(ValueError, match="choose by validation images, and this data has none"):
        training.train(recipe, "sample", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_validation_images_there_is_no_best_epoch():
    assert recording.best_epoch([]) == 0
    assert recording.best_epoch([{"validation_accuracy": 0.3}, {"validation_accuracy": 0.3}]) == 1
