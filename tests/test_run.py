import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import environment
from tinycifar import machine, recipes, run, signals


def test_a_run_without_a_name_gets_a_new_folder_every_time():
    first, second = run.create(None, "reference-30", 0), run.create(None, "reference-30", 0)
    assert first != second
    assert first.is_dir()
    assert first.parent == second.parent == Path("runs/reference-30")


def test_a_folder_in_use_or_a_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("used", "file"):
        with pytest.raises(ValueError, match="is in use; name a new or an empty one with `out=`"):
            run.create(tmp_path / name, "reference-30", 0)
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"
    assert run.create(tmp_path / "empty", "reference-30", 0).is_dir()
    assert run.create(tmp_path / "empty", "reference-30", 0).is_dir()


def test_metrics_are_appended_and_read_back_in_order(tmp_path):
    assert run.read_metrics(tmp_path) == []
    entries: list[dict[str, Any]] = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.5}]
    for entry in entries:
        run.append_metrics(tmp_path, entry)
    assert run.read_metrics(tmp_path) == entries


def test_a_run_starts_with_its_recipe_and_environment_on_disk(tmp_path):
    run.start(tmp_path, recipes.get("reference-40"), environment(seed=3, limit=5))
    assert json.loads((tmp_path / "recipe.json").read_text())["epochs"] == 40
    content = json.loads((tmp_path / "environment.json").read_text())
    assert (content["seed"], content["limit"], content["resumes"], content["init"]) == (3, 5, [], None)
    assert "skipped_images" not in content
    assert run.read_environment(tmp_path) == environment(seed=3, limit=5)


def test_a_record_lies_where_its_recipe_seed_and_device_say_and_is_never_replaced(monkeypatch):
    monkeypatch.setattr(machine, "git_revision", lambda: "0123abcd")
    path = run.record_path("reference-30", "seed-2", torch.device("cpu"))
    assert path == Path("results/reference-30/seed-2.json")
    assert run.record_path("reference-30", "seed-2", torch.device("cuda:0")) == Path(
        "results/reference-30/cuda/seed-2.json"
    )
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"seed-2.json exists already: move this record away first"):
        run.record_path("reference-30", "seed-2", torch.device("cpu"))


@pytest.mark.parametrize("revision", [None, "0123abcd-dirty"])
def test_a_record_needs_a_commit_to_name(monkeypatch, revision):
    monkeypatch.setattr(machine, "git_revision", lambda: revision)
    with pytest.raises(ValueError, match="git checkout whose source is committed"):
        run.record_path("reference-30", "seed-0", torch.device("cpu"))


def test_a_nearly_full_disk_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match=r"a run needs 18 MB of disk, 1\.0 MB are free"):
        run.create(tmp_path / "run", "reference-30", 100_000)


def test_the_first_signal_is_noted_and_the_second_one_acts():
    with signals.StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="has bytes in its name that are no text; name another one"):
        run.check_unused(Path(os.fsdecode(b"stray\xff")))


def test_the_seeds_of_a_directory_come_in_numeric_order(tmp_path):
    for name in ("seed-10", "seed-9", "seed-x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "seed-3").touch()
    assert [path.name for path in run.seeds(tmp_path)] == ["seed-9", "seed-10"]


def test_what_a_killed_start_left_behind_is_no_run_and_is_removed(tmp_path):
    for name in (".lock", "environment.json", ".recipe.json.a1b2c3d4", ".environment.json.zzzzzzz_"):
        (tmp_path / name).touch()
    run.check_unused(tmp_path)
    run.start(run.create(tmp_path, "minute", 0), recipes.get("minute"), environment())
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "environment.json", "recipe.json"}
    for name in (".env", ".recipe.json.a1b2c3d", "notes.json.a1b2c3d4"):
        used = tmp_path / f"used {name}"
        used.mkdir()
        (used / name).touch()
        with pytest.raises(ValueError, match="is in use"):
            run.check_unused(used)
