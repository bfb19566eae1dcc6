"""Child processes: several pieces of work in parallel."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tinycifar import signals
from tinycifar.scale import jobs


def work(number: int, seconds: float = 0.0, error: str = "") -> dict[str, Any]:
    """What the children of these tests do."""
    print("this is not the answer")
    time.sleep(seconds)
    if error == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if error:
        raise {"value": ValueError, "diverged": FloatingPointError}[error](f"because of {number}\nand more")
    return {"twice": 2 * number}


WORK = "scale.test_jobs:work"


def test_children_answer_with_a_result_or_with_the_reason_why_there_is_none():
    requests: list[dict[str, Any]] = [{"number": 0}, {"number": 1}]
    requests += [{"number": number, "error": error} for number, error in ((2, "value"), (3, "diverged"), (4, "kill"))]
    with signals.StopSignal() as stop:
        ended = {child.index: child for child in jobs.run_all(WORK, requests, 2, stop)}
    assert [ended[index].result for index in range(5)] == [{"twice": 0}, {"twice": 2}, None, None, None]
    assert [ended[index].code for index in range(5)] == [0, 0, 2, 1, -signal.SIGKILL]
    assert [ended[index].problem for index in range(2, 5)] == [
        "because of 2\nand more",
        "because of 3\nand more",
        "it was killed by signal 9",
    ]


def test_an_unexpected_error_of_a_child_is_named_by_its_last_line():
    with signals.StopSignal() as stop:
        (ended,) = jobs.run_all(WORK, [{"number": 0, "error": "unknown"}], 1, stop)
    assert (ended.code, ended.problem) == (1, "it ended with 1: KeyError: 'unknown'")


def test_children_import_nothing_from_the_working_folder_that_this_process_does_not():
    for name in ("signal", "queue", "random", "torch"):
        Path(f"{name}.py").write_text("raise SystemExit('it was imported')")
    with signals.StopSignal() as stop:
        (ended,) = jobs.run_all(WORK, [{"number": 1}], 1, stop)
    assert (ended.result, ended.problem) == ({"twice": 2}, "")


def test_a_signal_stops_the_children_and_starts_no_more():
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with signals.StopSignal() as stop:
        ended = list(jobs.run_all(WORK, [{"number": number, "seconds": 600} for number in range(3)], 2, stop))
    assert stop.received == signal.SIGINT
    assert sorted(child.index for child in ended) == [0, 1]
    assert {child.code for child in ended} == {128 + signal.SIGTERM}


def test_children_that_are_left_at_the_end_are_killed():
    with jobs.Processes(WORK) as processes:
        processes.start(0, number=0, seconds=600)
        (child,) = (child.process for child in processes._running.values())
        assert child.poll() is None
    assert child.poll() == -signal.SIGKILL
