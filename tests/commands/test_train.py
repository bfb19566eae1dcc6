import json
from dataclasses import replace
from pathlib import Path

import pytest

from tinycifar import data, machine, recipes, run

pytestmark = pytest.mark.usefixtures("undrawn")

SHORT = ["--epochs", "2", "--set", "batch_size=32"]


def test_pictures_of_ones_own_are_trained_on_and_their_classes_told(tinycifar, own):
    done = tinycifar("train", "--data", own, *SHORT, "--out", "run")
    assert (done.code, done.err) == (0, "")
    assert "60 images" in done.out
    assert "Validation accuracy: " in done.out  # there is a folder val
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert [row["class"] for row in evaluation["classes"]] == ["car", "cat", "dog"]
    assert (evaluation["images"], run.read_environment(Path("run")).data) == (15, str(own))
    assert tinycifar("evaluate", "run", "--json").json["accuracy"] == evaluation["accuracy"]


def test_a_run_that_is_resumed_finds_its_data_and_what_it_started_from(tinycifar, own):
    words = ["train", "--data", own, "--init", "minute", *SHORT, "--json"]
    whole = tinycifar(*words, "--out", "whole")
    assert "Starting from the weights of minute, with a new head" in whole.err
    tinycifar(*words, "--out", "parts", "--stop-after-epoch", "1")
    assert tinycifar("train", "--resume", "parts", "--json").json["resumes"][0]["step"] == 2
    parts = Path("parts/model.safetensors").read_bytes()
    assert parts == Path("whole/model.safetensors").read_bytes()
    other = tinycifar("train", "--resume", "parts", "--init", "nano")
    assert (other.code, other.err.count("\n")) == (2, 1)


def test_data_that_was_moved_is_asked_for_by_a_resume_and_is_the_same_elsewhere(tinycifar, own):
    tinycifar("train", "--data", own, *SHORT, "--out", "run", "--stop-after-epoch", "1")
    own.rename("moved")
    lost = tinycifar("train", "--resume", "run")
    assert (lost.code, lost.out) == (2, "")
    assert lost.err == (f"tinycifar: {own} does not exist. run was trained on it: say where it is now with --data\n")
    assert tinycifar("train", "--resume", "run", "--data", "moved", "--json").json["epochs"] == 2
    assert tinycifar("train", "--resume", "run").code == 0  # from now on it knows the place
    assert tinycifar("evaluate", "run").code == 0
    next(Path("moved/train/cat").iterdir()).unlink()
    changed = tinycifar("train", "--resume", "run", "--data", "moved")
    assert (changed.code, "trained with different settings" in changed.err) == (2, True)


def test_what_a_run_started_from_is_asked_for_where_it_is_gone(tinycifar, trained):
    (trained / "model.safetensors").rename("first.safetensors")
    words = ["train", "--data", "sample", "--limit", "64", "--init", "first.safetensors", "--epochs", "2"]
    tinycifar(*words, "--out", "run", "--stop-after-epoch", "1")
    Path("first.safetensors").rename("second.safetensors")
    lost = tinycifar("train", "--resume", "run")
    assert (lost.code, lost.err.count("\n")) == (2, 1)
    assert "first.safetensors does not exist" in lost.err
    assert "run started from it; say where it is now with --init" in lost.err
    assert tinycifar("train", "--resume", "run", "--init", "second.safetensors", "--json").json["epochs"] == 2


def test_the_largest_width_within_a_budget_is_trained_and_needs_no_telling_again(tinycifar):
    words = ["train", "--data", "sample", "--limit", "64", "--epochs", "2", "--max-parameters", "50000"]
    done = tinycifar(*words, "--out", "run", "--stop-after-epoch", "1")
    width = recipes.widest(recipes.get("minute"), 50_000).width
    assert f"Width {width} is the largest with at most 50,000 parameters" in done.out
    resumed = tinycifar("train", "--resume", "run", "--json").json
    assert (resumed["epochs"], resumed["parameters"] <= 50_000) == (2, True)
    assert tinycifar("summary", "run", "--json").json["parameters"] == resumed["parameters"]


def test_a_recipe_that_was_shown_can_be_changed_and_trained(tinycifar):
    shown = tinycifar("recipes", "show", "minute").out
    Path("my.toml").write_text(shown.replace('"minute"', '"mine"').replace("epochs = 4", "epochs = 1"))
    done = tinycifar("train", "my.toml", "--data", "sample", "--limit", "64", "--json").json
    assert (done["recipe"], done["epochs"], Path(done["run"]).parent) == ("mine", 1, Path("runs/mine"))
    Path("my.toml").write_text(shown.replace("epochs = 4", "epochs = many"))
    assert tinycifar("train", "my.toml").code == 2


def test_a_record_can_be_written_by_a_resume_after_the_recipes_figures_have_changed(tinycifar, monkeypatch):
    whole = recipes.with_settings(recipes.get("minute"), ["epochs=1"])
    few = replace(data.sample().limit(32), name="cifar10")
    monkeypatch.setitem(recipes.RECIPES, "minute", whole)
    monkeypatch.setattr(machine, "git_revision", lambda: "0123abcd")
    monkeypatch.setattr(data, "load", lambda source, **_: few)
    assert tinycifar("train", "minute", "--out", "run").code == 0
    monkeypatch.setitem(recipes.RECIPES, "minute", replace(whole, expected_accuracy=0.5))
    done = tinycifar("train", "--resume", "run", "--record")
    assert (done.code, Path("results/minute/seed-0.json").exists()) == (0, True), done.err
