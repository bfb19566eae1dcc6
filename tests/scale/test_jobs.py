"""Several trainings at once: processes that share the threads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tinycifar import recipes, run, signals, training
from tinycifar.scale import jobs


def test_commands_run_so_many_at_once_and_tell_what_they_printed() -> None:
    with signals.StopSignal() as stop:
        found = list(jobs.run_all([["--version"], ["recipes", "--json"], ["recipes", "show", "no"]], 2, stop))
    by_index = {ended.index: ended for ended in found}
    assert sorted(by_index) == [0, 1, 2]
    assert [by_index[index].code for index in range(3)] == [0, 0, 2]
    assert by_index[0].out.startswith("tinycifar")
    assert len(json.loads(by_index[1].out)["recipes"]) > 5
    assert jobs.reason(by_index[2]).startswith("unknown recipe 'no'; allowed are: minute")


def test_a_signal_ends_what_runs_and_begins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    popen = subprocess.Popen

    def sleeping(command: list[str], **settings: object) -> "subprocess.Popen[bytes]":
        begun.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **settings))  # type: ignore[call-overload]
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with signals.StopSignal() as stop:
        found = list(jobs.run_all([["a"], ["b"], ["c"]], 2, stop))
    assert time.monotonic() - start < 30
    assert stop.received == signal.SIGINT
    assert len(begun) == len(found) == 2
    assert {ended.code for ended in found} == {-signal.SIGTERM}


def test_what_is_left_is_killed_where_nobody_asks_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    popen = subprocess.Popen

    def some(command: list[str], **settings: object) -> "subprocess.Popen[bytes]":
        seconds = 0 if command[-1] == "short" else 60
        begun.append(popen([sys.executable, "-c", f"import time; time.sleep({seconds})"], **settings))  # type: ignore[call-overload]
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", some)
    with signals.StopSignal() as stop:
        ended = jobs.run_all([["short"], ["long"]], 2, stop)
        assert next(ended).index == 0
        ended.close()
    assert [process.poll() for process in begun] == [0, -signal.SIGKILL]


@pytest.mark.parametrize(
    ("at_once", "told"),
    [
        (2000.0, "At once takes 50% less time than one after the other"),
        (800.0, "At once takes 25% more time than one after the other: leave out --jobs to be faster"),
    ],
)
def test_it_is_told_whether_several_at_once_are_faster(at_once: float, told: str) -> None:
    speed = jobs.Speed(alone=1000.0, at_once=at_once, jobs=2, threads=2)
    assert (
        speed.told()
        == f"2 at once, 1 thread each, train {at_once:,.0f} images/s; one alone with 2 threads 1,000. {told}"
    )


def test_a_seed_that_is_killed_is_told_and_no_other_ones_result_is_its(
    tinycifar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(commands: list[list[str]], at_once: int, stop: signals.StopSignal) -> Iterator[jobs.Ended]:
        for index, words in enumerate(commands):
            out = Path(words[-1].removeprefix("--out="))
            result = training.train(recipes.get("minute"), "sample", out=out, seed=index, limit=32, device="cpu")
            killed = index == 1  # as it wrote its report, so that its evaluation is there
            yield jobs.Ended(index, -9 if killed else 0, "" if killed else json.dumps(result.record), "Epoch 4/4 ...\n")

    monkeypatch.setattr(jobs, "run_all", ended)
    monkeypatch.setattr(jobs, "compare", lambda *arguments, **options: None)
    words = ["train", "--data", "sample", "--limit", "32", "--seeds", "3", "--out", "many"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    done = tinycifar(*words, "--jobs", "2")
    assert (done.code, done.err) == (1, "tinycifar: seed 1: it was killed by signal 9\n")
    assert "could not be tried: a training on few images failed" in done.out
    assert json.loads(Path("many/summary.json").read_text())["finished"] == [0, 2]


def test_a_trial_of_speed_that_diverges_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(commands: list[list[str]], at_once: int, stop: signals.StopSignal) -> Iterator[jobs.Ended]:
        yield from (jobs.Ended(index, code, "", "tinycifar: because\n") for index in range(len(commands)))

    monkeypatch.setattr(jobs, "run_all", ended)
    with signals.StopSignal() as stop:
        code = 1
        assert jobs.compare(["train"], images=100, threads=2, jobs=2, stop=stop) is None
        code = 2
        with pytest.raises(ValueError, match="because"):
            jobs.compare(["train"], images=100, threads=2, jobs=2, stop=stop)


@pytest.mark.end_to_end
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_seeds_at_once_end_with_the_command_that_began_them(tmp_path: Path) -> None:
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


@pytest.mark.end_to_end
def test_seeds_at_once_are_the_runs_that_each_would_be_alone_with_its_threads(tmp_path: Path) -> None:
    def tinycifar(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tinycifar", "train", "minute", "--data", "sample", "--epochs", "2", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = tinycifar("--seeds", "3", "--jobs", "2", "--threads", "2", "--out", str(tmp_path / "many"), "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["finished"] == [0, 1, 2]
    assert [record["threads"] for record in content["runs"]] == [1, 1, 1]
    assert "At once takes " in done.stderr
    assert json.loads((tmp_path / "many" / "summary.json").read_text())["mean"] == content["mean"]
    alone = tinycifar("--seed", "1", "--threads", "1", "--out", str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    weights = [tmp_path / name / "model.safetensors" for name in ("many/seed-1", "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    shutil.rmtree(tmp_path / "many" / "seed-2")  # as if it had not begun when the others were interrupted
    again = tinycifar("--seeds", "3", "--jobs", "2", "--threads", "2", "--out", str(tmp_path / "many"), "--json")
    assert (again.returncode, json.loads(again.stdout)["accuracies"]) == (0, content["accuracies"])
    refused = tinycifar("--seeds", "3", "--jobs", "3", "--threads", "2", "--out", str(tmp_path / "none"))
    assert (refused.returncode, refused.stderr) == (2, "tinycifar: --jobs 3 is too many for 2 threads and 3 seeds\n")
    assert not (tmp_path / "none").exists()
