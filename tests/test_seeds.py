"""Several seeds of one recipe, in turn and in parallel."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tinycifar
from tinycifar import data, recipes, run, seeds, signals, speed, training
from tinycifar.resume import Request
from tinycifar.scale import jobs

pytestmark = pytest.mark.usefixtures("undrawn")

SAMPLE = data.sample()
SHORT: dict[str, Any] = {"data": "sample", "epochs": 1, "limit": 32, "quiet": True, "device": "cpu"}


@pytest.fixture
def trained_seed(tmp_path: Path) -> Path:
    """A folder with one of several seeds, trained."""
    recipe = recipes.with_settings(recipes.get("minute"), ["epochs=1"])
    training.train(recipe, "sample", out=tmp_path / "many" / "seed-0", limit=32, device="cpu", evaluate=False)
    return tmp_path / "many"


def test_accuracies_are_summed_up_with_students_interval():
    found = seeds.spread([0.85, 0.86, 0.87])
    assert (found["mean"], found["min"], found["max"]) == (pytest.approx(0.86), 0.85, 0.87)
    assert found["standard_deviation"] == pytest.approx(0.01)
    assert found["interval"] == pytest.approx([0.86 - 4.3027 * 0.01 / 3**0.5, 0.86 + 4.3027 * 0.01 / 3**0.5], abs=1e-5)
    assert seeds.spread([0.85])["interval"] is None


@pytest.mark.slow
def test_python_trains_several_seeds_and_adds_more_to_a_folder_with_one_summary_of_all(tmp_path):
    first = tinycifar.train("minute", seeds=2, seed=3, out=tmp_path / "many", **SHORT)
    assert [result.record["seed"] for result in first.results] == [3, 4]
    assert first.summary["finished"] == [3, 4]
    assert (first.directory / "seed-3" / "report.html").exists()
    alone = tinycifar.train("minute", seed=4, out=tmp_path / "one", **SHORT)
    assert alone.record["test_accuracy"] == first.summary["accuracies"][1]
    more = tinycifar.train(seeds=1, out=tmp_path / "many", quiet=True)  # recipe, data and limit are known
    assert [result.record["train_images"] for result in more.results] == [32]
    assert more.summary["finished"] == [0, 3, 4]
    assert json.loads((tmp_path / "many" / "summary.json").read_text()) == more.summary


def test_what_several_seeds_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="jobs is the number of seeds"):
        tinycifar.train("minute", jobs=2, **SHORT)
    with pytest.raises(ValueError, match="need data from a file or folder"):
        tinycifar.train("minute", data.sample(), seeds=2, jobs=2, quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 40}, "train_images was 32, not 40"),
        ({"data": replace(SAMPLE, name="mine", test_images=SAMPLE.test_images.flip(0))}, "data was sample, not"),
        ({"init": "minute"}, "init was None, not"),
        ({"weight_decay": 0.1}, r"weight_decay was 0\.0, not 0\.1"),
    ],
)
def test_a_new_seed_beside_others_is_trained_as_they_were(trained_seed, change, message):
    with pytest.raises(ValueError, match=f"seed-0 was trained with different settings: {message}"):
        tinycifar.train("minute", seeds=1, seed=1, out=trained_seed, **{**SHORT, **change})
    assert [path.name for path in run.seeds(trained_seed)] == ["seed-0"]


def test_what_is_refused_leaves_no_dated_folder_behind():
    with pytest.raises(ValueError, match="cannot keep 500 training images"):
        tinycifar.train("minute", seeds=1, **{**SHORT, "limit": 500})
    assert list(Path().iterdir()) == []


def test_a_request_survives_the_way_to_a_child():
    request = Request(
        recipe=recipes.get("nano"), data="sample", resume=Path("a b/ü"), teachers=("x", "y"), seed=3, limit=5
    )
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize(
    ("together", "told"),
    [
        (2000.0, "In parallel takes 50% less time than in turn"),
        (800.0, "In parallel takes 25% more time than in turn: one after the other is faster"),
    ],
)
def test_whether_parallel_is_faster_is_said(together, told):
    measured = speed.Speed(alone=1000.0, together=together, jobs=2, threads=2)
    assert measured.describe() == (
        f"2 in parallel, 1 thread each, train {together:,.0f} images/s; one alone with 2 threads 1,000. {told}"
    )


@pytest.mark.slow
def test_a_seed_that_is_killed_is_reported_and_no_other_ones_result_is_its(tinycifar, monkeypatch):
    def run_all(work: str, requests: list[dict[str, Any]], parallel: int, stop: Any) -> Iterator[jobs.Ended]:
        for index, request in enumerate(requests):
            out = Path(request["request"]["out"])
            result = training.train(recipes.get("minute"), "sample", out=out, seed=index, limit=32, device="cpu")
            if index == 1:
                (out / "evaluation.json").unlink()
                yield jobs.Ended(index, -9, None, "it was killed by signal 9")
            else:
                content = {"result": {**asdict(result), "directory": str(out)}, "report_problems": []}
                yield jobs.Ended(index, 0, json.loads(json.dumps(content)), "")

    monkeypatch.setattr(jobs, "run_all", run_all)
    monkeypatch.setattr(seeds, "speed_in_parallel", lambda *arguments, **options: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    done = tinycifar("train", "--data", "sample", "--limit", "32", "--seeds", "3", "--out", "many", "--jobs", "2")
    assert (done.code, done.err) == (1, "tinycifar: seed 1: it was killed by signal 9\n")
    assert "The speed in parallel is unknown: a training on few images failed" in done.out
    assert json.loads(Path("many/summary.json").read_text())["finished"] == [0, 2]


def test_a_trial_of_speed_opens_no_test_image_and_one_that_diverges_is_no_reason_to_refuse(monkeypatch):
    asked: list[dict[str, Any]] = []

    def run_all(work: str, requests: list[dict[str, Any]], parallel: int, stop: Any) -> Iterator[jobs.Ended]:
        asked.extend(request["request"] for request in requests)
        yield from (jobs.Ended(index, code, None, "because") for index in range(len(requests)))

    monkeypatch.setattr(jobs, "run_all", run_all)
    request = Request(recipe=recipes.get("reference-30"), data="sample")
    with signals.StopSignal() as stop:
        code = 1
        assert speed.speed_in_parallel(seeds.WORK, request, images=100, threads=2, parallel=2, stop=stop) is None
        code = 2
        with pytest.raises(ValueError, match="because"):
            speed.speed_in_parallel(seeds.WORK, request, images=100, threads=2, parallel=2, stop=stop)
    assert {(of["evaluate"], of["recipe"]["watch_test"], of["stop_after_epoch"]) for of in asked} == {(False, False, 1)}


@pytest.mark.end_to_end
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_seeds_in_parallel_end_with_the_command_that_started_them(tmp_path):
    words = ["train", "--data", "sample", "--epochs", "900", "--seeds", "2", "--jobs", "2", "--threads", "2"]
    command = [sys.executable, "-m", "tinycifar", *words, "--out", str(tmp_path / "many")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while len(list(tmp_path.glob("many/seed-*/metrics.jsonl"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) == 2
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < end, "they train on"
        time.sleep(0.05)
    assert all((seed / "checkpoints").exists() for seed in run.seeds(tmp_path / "many"))


@pytest.mark.slow
def test_seeds_in_parallel_are_the_runs_that_each_would_be_alone_with_its_threads(tinycifar, tmp_path):
    words = ["train", "minute", "--data", "sample", "--epochs", "2", "--limit", "64"]
    for seed, out in ((0, "many/seed-0"), (1, "alone")):  # in parallel, the first is resumed, at its end
        alone = tinycifar(*words, "--seed", str(seed), "--threads", "1", "--out", out)
        assert alone.code == 0, alone.err
    done = tinycifar(*words, "--seeds", "2", "--jobs", "2", "--threads", "2", "--out", "many", "--json")
    assert done.code == 0, done.err
    assert done.json["finished"] == [0, 1]
    assert [record["threads"] for record in done.json["runs"]] == [1, 1]
    assert "In parallel takes " in done.err
    weights = [tmp_path / name / "model.safetensors" for name in ("many/seed-1", "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    refused = tinycifar(*words, "--seeds", "3", "--jobs", "3", "--threads", "2", "--out", "none")
    assert (refused.code, refused.err) == (2, "tinycifar: --jobs 3 is too many for 2 threads and 3 seeds\n")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_ctrl_c_in_a_program_that_trains_in_a_loop_ends_the_loop_with_a_checkpoint(tmp_path):
    program = """
import os, signal, tinycifar
from tinycifar import augment
real = augment.build
class Interrupting:
    def __init__(self, *arguments): self.real, self.left = real(*arguments), 3
    def draw(self, count, generator): return self.real.draw(count, generator)
    def apply(self, images, parameters):
        self.left -= 1
        if self.left == 0: os.kill(os.getpid(), signal.SIGINT)
        return self.real.apply(images, parameters)
augment.build = Interrupting
signal.signal(signal.SIGINT, signal.default_int_handler)
for seed in range(3):
    print("seed", seed, flush=True)
    tinycifar.train("minute", "sample", epochs=30, limit=64, seed=seed, quiet=True, out=f"run{seed}")
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "seed 0\n"), done.stderr
    assert done.stderr.splitlines()[-1] == (
        "KeyboardInterrupt: the training in run0 was interrupted; resume it with train(resume='run0')"
    )
    assert (tmp_path / "run0" / "checkpoints" / "step-3.safetensors").exists()
