"""TensorBoard's event files of a training."""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console
from rich.progress import Progress

from tinycifar import data, recipes, run, training
from tinycifar.scale import live

RECIPE = recipes.with_settings(recipes.get("minute"), ["epochs=2", "batch_size=16", "skip_easiest=0"])


def events(directory: Path) -> dict[str, list[Any]]:
    """By name what TensorBoard shows of a run, in its order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory / live.FOLDER))
    accumulator.Reload()
    return {name: list(accumulator.Scalars(name)) for name in accumulator.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_event_files_hold_what_the_metrics_file_holds_and_the_loss_between(tmp_path):
    result = training.train(RECIPE, data.sample(), out=tmp_path / "run", limit=320, tensorboard=True)
    values = {name: {event.step: event.value for event in row} for name, row in events(result.directory).items()}
    assert list(values["step_loss"]) == list(values["learning_rate"]) == [10, 20, 30, 40]
    for number, entry in enumerate(run.read_metrics(result.directory), 1):
        assert values["train_loss"][20 * number] == pytest.approx(entry["train_loss"])
        assert values["epoch"][20 * number] == number
    assert values["learning_rate"][40] < values["learning_rate"][10]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_an_interruption_the_steps_that_are_taken_again_are_shown_once(tmp_path):
    def shown() -> list[int]:
        return [event.step for event in events(tmp_path)["step_loss"]]

    with live.View(tmp_path, print) as view:
        for step in (10, 20, 30):
            view.add(step, step_loss=float(step))
        assert shown() == [10, 20, 30]  # at once, as it is to be looked at while it goes on
    with live.View(tmp_path, print) as view:  # the last checkpoint was that of step 15
        view.add(20, step_loss=0.2)
        view.add(30, step_loss=0.3)
    assert shown() == [10, 20, 30]
    assert [event.value for event in events(tmp_path)["step_loss"]] == pytest.approx([10, 0.2, 0.3])


FULL = OSError(28, "No space left on device")


def test_a_view_that_cannot_be_written_is_reported_once_and_the_training_goes_on(tmp_path, capsys):
    display = Progress(console=Console(file=sys.stdout), disable=True)
    options = {"out": tmp_path / "run", "limit": 320, "tensorboard": True, "display": display}
    with mock.patch.object(live.View, "_write", side_effect=FULL):
        assert training.train(RECIPE, data.sample(), **options).complete
    assert capsys.readouterr().out.count("TensorBoard shows nothing more of this run: No space left") == 1


def test_a_disk_that_fills_up_ends_the_view_with_one_warning_and_nothing_waits(tmp_path):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, written, warnings = RecordWriter.write, [], []

    def until_full(writer: RecordWriter, content: bytes) -> None:
        written.append(content)
        if len(written) > 4:
            raise FULL
        write(writer, content)

    with mock.patch.object(RecordWriter, "write", until_full), live.View(tmp_path, warnings.append) as view:
        for step in range(10):
            view.add(step, step_loss=1.0)
    assert warnings == ["TensorBoard shows nothing more of this run: No space left on device"]


def test_without_being_asked_for_no_event_files_are_written(tmp_path):
    training.train(RECIPE, data.sample(), out=tmp_path / "run", limit=32)
    assert not (tmp_path / "run" / live.FOLDER).exists()


def test_a_missing_package_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ValueError, match=r'needs another package: pip install "tinycifar\[tensorboard\]"'):
        training.train(RECIPE, data.sample(), out=tmp_path / "run", tensorboard=True)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
