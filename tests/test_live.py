"""TensorBoard's event files of a training."""

import os
import sys
from pathlib import Path

import pytest

from tinycifar import data, live, recipes, run, training

RECIPE = recipes.with_settings(recipes.get("minute"), ["epochs=2", "batch_size=16", "skip_easiest=0"])


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """By name the values that TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory / live.FOLDER))
    found.Reload()
    return {name: {event.step: event.value for event in found.Scalars(name)} for name in found.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_event_files_hold_what_the_metrics_file_holds_and_the_loss_between(tmp_path: Path) -> None:
    result = training.train(RECIPE, data.sample(), out=tmp_path / "run", limit=320, tensorboard=True)
    found, history = scalars(result.directory), run.read_metrics(result.directory)
    assert list(found["step_loss"]) == [10, 20, 30, 40]
    assert list(found["learning_rate"]) == [10, 20, 30, 40]
    for number, entry in enumerate(history, 1):
        assert found["train_loss"][20 * number] == pytest.approx(entry["train_loss"])
        assert found["epoch"][20 * number] == number
    assert found["learning_rate"][40] < found["learning_rate"][10]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_an_interruption_the_steps_that_are_taken_again_are_shown_once(tmp_path: Path) -> None:
    training.train(RECIPE, data.sample(), out=tmp_path / "run", limit=320, stop_after_epoch=1, tensorboard=True)
    training.train(RECIPE, data.sample(), resume=tmp_path / "run", limit=320, tensorboard=True)
    found = scalars(tmp_path / "run")
    assert list(found["step_loss"]) == [10, 20, 30, 40]
    assert list(found["epoch"]) == [20, 40]


def test_without_being_asked_for_no_event_files_are_written(tmp_path: Path) -> None:
    training.train(RECIPE, data.sample(), out=tmp_path / "run", limit=32)
    assert not (tmp_path / "run" / live.FOLDER).exists()


def test_a_missing_package_is_named_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r'needs another package: pip install "tinycifar\[tensorboard\]"'):
        training.train(RECIPE, data.sample(), out=tmp_path / "run", tensorboard=True)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
