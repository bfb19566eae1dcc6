"""Runs, weights and studies that commit e4172b7 wrote still load, evaluate, report, compare and resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinycifar import data, inference, run, trained, training, typed
from tinycifar.report import compare, run_page

OLD = Path(__file__).parent / "old"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy, which tests may change."""
    return shutil.copytree(OLD, tmp_path / "old")


@pytest.mark.parametrize("name", ["run", "weights.safetensors"])
def test_old_weights_give_the_logits_that_were_stored_with_them(name):
    model = trained.load(OLD / name, "cpu")
    evaluation = inference.evaluate_model(model)
    stored = load_file(OLD / "run" / "evaluation.safetensors")
    torch.testing.assert_close(evaluation.logits, stored["logits"], atol=1e-3, rtol=0)
    assert torch.equal(evaluation.labels, stored["labels"])
    assert evaluation.scores.split == "validation"


def test_an_old_evaluation_is_read_as_it_was_written_and_gives_a_report_and_a_comparison(old):
    evaluation = json.loads((old / "run" / "evaluation.json").read_text())
    scores = typed.to_json(run.read_evaluation(old / "run"))
    assert {name: scores[name] for name in evaluation} == evaluation
    page = run_page.write(old / "run").read_text()
    assert f"{100 * evaluation['accuracy']:.2f} %" in page
    assert "of 60 validation images right" in page
    shutil.copytree(old / "run", old / "again")
    lines = compare.compare([old / "run", old / "again"]).lines()
    assert any(f"{evaluation['accuracy']:.2%}" in line for line in lines)


def test_an_old_run_that_was_stopped_is_resumed_without_a_warning_about_the_processors_name(old):
    environment = json.loads((old / "stopped" / "environment.json").read_text())
    result = training.train(run.read_recipe(old / "stopped"), "sample", resume=old / "stopped", limit=120)
    assert result.complete
    assert [entry["epoch"] for entry in result.record["history"]] == [1, 2]
    assert result.record["history"][0] == json.loads((OLD / "stopped" / "metrics.jsonl").read_text())
    resumed = json.loads((old / "stopped" / "environment.json").read_text())
    (resume,) = resumed["resumes"]
    assert resume["step"] == 3
    assert "instruction_set" not in resume  # what an old run had is not known
    kept = environment.keys() - {"resumes"}
    assert {name: resumed[name] for name in kept} == {name: environment[name] for name in kept}


def test_a_new_run_starts_from_the_weights_of_an_old_one(old, tmp_path):
    recipe = run.read_recipe(old / "run")
    result = training.train(recipe, data.sample(), out=tmp_path / "new", init=trained.load(old / "run", "cpu"))
    assert result.complete
    init = run.read_environment(tmp_path / "new").init
    assert init.sha256 == trained.load(old / "run", "cpu").sha256


def test_a_sweep_adds_a_trial_to_an_old_study(old, tinycifar):
    fields = ["width=0.1", "precision=float32", "batch_size=40"]
    fields += ["model=whitenet", "muon_learning_rate=0.1", "muon_momentum=0.7"]  # as `minute` was
    fields += ["max_learning_rate=0.5", "small_fraction=0"]
    words = [word for field in fields for word in ("--set", field)]
    options = ["--epochs", "1", "--vary", "muon_learning_rate=0.05,0.2", "--out", old / "study", "--threads", "1"]
    done = tinycifar("sweep", "minute", "--data", "sample", "--trials", "3", *words, *options)
    assert done.code == 0
    assert "Best of 3 trials (3 complete)" in done.out
    trials = json.loads((old / "study" / "sweep.json").read_text())["trials"]
    stored = json.loads((OLD / "study" / "sweep.json").read_text())["trials"]
    assert [trial | {"run": None} for trial in trials[:2]] == [trial | {"run": None} for trial in stored]
