"""Several trainings at once: processes that share the threads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tinycifar import jobs, run


def test_commands_run_so_many_at_once_and_tell_what_they_printed() -> None:
    with run.StopSignal() as stop:
        found = list(jobs.run_all([["--version"], ["recipes", "--json"], ["recipes", "show", "no"]], 2, stop))
    by_index = {ended.index: ended for ended in found}
    assert sorted(by_index) == [0, 1, 2]
    assert [by_index[index].code for index in range(3)] == [0, 0, 2]
    assert by_index[0].out.startswith("tinycifar")
    assert len(json.loads(by_index[1].out)["recipes"]) > 5
    assert jobs.last_line(by_index[2]).startswith("unknown recipe 'no'; allowed are: minute")


def test_a_signal_ends_what_runs_and_begins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    popen = subprocess.Popen

    def sleeping(command: list[str], **settings: object) -> "subprocess.Popen[bytes]":
        begun.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **settings))  # type: ignore[call-overload]
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with run.StopSignal() as stop:
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
    with run.StopSignal() as stop:
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
