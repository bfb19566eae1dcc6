import errno
import os
import random
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

import faults
from tinycifar import atomic, augment, checkpoint, data, recipes, run, training, typed
from tinycifar.checkpoint import State
from tinycifar.models import build
from tinycifar.optim import build as build_optimizers
from tinycifar.recipes import Recipe

CPU = torch.device("cpu")


def short(name: str, *settings: str) -> Recipe:
    return recipes.with_settings(recipes.get(name), ["epochs=2", "batch_size=20", "watch_test=false", *settings])


@pytest.mark.parametrize(
    ("name", "augmentation", "batch"),
    [
        *(
            pytest.param("minute", name, 4, marks=() if name in ("none", "reference") else pytest.mark.slow)
            for name in augment.AUGMENTATIONS
        ),
        *(("reference-30", "none", batch) for batch in (2, 3, 4)),  # 3 steps are an epoch
    ],
)
def test_a_run_goes_on_to_the_same_bits_with_every_optimizer_and_augmentation(tmp_path, name, augmentation, batch):
    recipe = short(name, f"augmentation={augmentation}", "skip_easiest=0")
    training.train(recipe, "sample", out=tmp_path / "whole", limit=60)
    faults.interrupt(recipe, tmp_path / "parts", batch, limit=60)
    resumed = training.train(recipe, "sample", resume=tmp_path / "parts", limit=60)
    assert [entry["step"] for entry in resumed.record["resumes"]] == [batch]
    assert faults.fingerprint(tmp_path / "parts") == faults.fingerprint(tmp_path / "whole")


def test_a_run_may_be_interrupted_after_every_step(tmp_path):
    recipe = short("minute", "batch_size=30")
    training.train(recipe, "sample", out=tmp_path / "whole", limit=90)
    faults.interrupt(recipe, tmp_path / "parts", 1, limit=90)
    for step in (1, 2):
        faults.interrupt(recipe, tmp_path / "parts", 1, limit=90)
        assert run.read_environment(tmp_path / "parts").resumes[-1]["step"] == step
    training.train(recipe, "sample", resume=tmp_path / "parts", limit=90)
    assert faults.fingerprint(tmp_path / "parts") == faults.fingerprint(tmp_path / "whole")


def test_a_checkpoint_in_mid_epoch_changes_nothing_but_that_it_is_there(tmp_path):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "seldom", limit=60)
    training.train(recipe, "sample", out=tmp_path / "often", limit=60, checkpoint_seconds=0)
    assert faults.fingerprint(tmp_path / "seldom") == faults.fingerprint(tmp_path / "often")


def test_a_run_cannot_be_resumed_to_stop_before_where_it_is(tmp_path):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    environment = run.read_environment(tmp_path / "run")
    with pytest.raises(ValueError, match="is past epoch 1 already and cannot stop there"):
        training.train(recipe, "sample", resume=tmp_path / "run", limit=60, stop_after_epoch=1)
    assert run.read_environment(tmp_path / "run") == environment
    faults.interrupt(recipe, tmp_path / "mid", 2, limit=60)
    training.train(recipe, "sample", resume=tmp_path / "mid", limit=60, stop_after_epoch=1)
    faults.interrupt(short("reference-30"), tmp_path / "later", 4, limit=60)
    with pytest.raises(ValueError, match="is past epoch 1 already"):
        training.train(short("reference-30"), "sample", resume=tmp_path / "later", limit=60, stop_after_epoch=1)


def test_the_last_two_checkpoints_are_kept_in_numeric_order(tmp_path):
    recipe = short("reference-30", "epochs=4", "batch_size=20")
    training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-12.json", "step-12.safetensors", "step-9.json", "step-9.safetensors"]


def test_a_run_without_a_checkpoint_yet_starts_over(tmp_path):
    recipe = short("minute")
    whole = training.train(recipe, "sample", out=tmp_path / "whole", limit=60)
    environment = run.read_environment(whole.directory)
    (tmp_path / "begun").mkdir()
    run.start(tmp_path / "begun", recipe, environment)
    training.train(recipe, "sample", resume=tmp_path / "begun", limit=60)
    assert faults.fingerprint(tmp_path / "begun") == faults.fingerprint(tmp_path / "whole")


def test_a_finished_run_that_is_resumed_stays_what_it_is(tmp_path):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    before = faults.fingerprint(tmp_path / "run")
    training.train(recipe, "sample", resume=tmp_path / "run", limit=60)
    assert faults.fingerprint(tmp_path / "run") == before


def test_what_differs_from_the_run_is_refused_by_name(tmp_path):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    other = recipes.with_settings(recipe, ["epochs=3", "weight_decay=0.1"])
    for changed, options, message in (
        (other, {}, "trained with different settings: epochs was 2, not 3, weight_decay was 0.0, not 0.1"),
        (recipe, {"seed": 5}, "seed was 0, not 5"),
        (recipe, {"limit": 50}, "train_images was 60, not 50"),
    ):
        arguments: dict[str, Any] = {"limit": 60, **options}
        with pytest.raises(ValueError, match=message):
            training.train(changed, "sample", resume=tmp_path / "run", **arguments)


def test_another_thread_count_is_warned_about_and_recorded(tmp_path, capsys):
    recipe = short("minute")
    faults.interrupt(recipe, tmp_path / "run", 2, limit=60)
    environment = run.read_environment(tmp_path / "run")
    changed = replace(environment, threads=64, torch_version="2.0", instruction_set="vis3")
    atomic.write_json(tmp_path / "run" / "environment.json", typed.to_json(changed))
    resumed, warnings = run.resumed(tmp_path / "run", environment, 2)
    assert [line.removesuffix(": results may differ") for line in warnings] == [
        f"instruction_set was vis3 and is {environment.instruction_set}",
        f"threads was 64 and is {environment.threads}",
        f"torch_version was 2.0 and is {environment.torch_version}",
    ]
    assert resumed.resumes[0]["threads"] == environment.threads
    assert resumed.resumes[0]["instruction_set"] == environment.instruction_set
    assert run.read_environment(tmp_path / "run") == resumed


def test_a_run_that_names_neither_family_nor_instruction_set_is_resumed_without_a_warning(tmp_path):
    faults.interrupt(short("minute"), tmp_path / "run", 2, limit=60)
    environment = run.read_environment(tmp_path / "run")
    now = replace(environment, device="cpu: AMD EPYC (Zen 4, family 25 model 17)")
    old = typed.to_json(now) | {"device": "cpu: AMD EPYC"}
    del old["instruction_set"]
    atomic.write_json(tmp_path / "run" / "environment.json", old)
    resumed, changes = run.resumed(tmp_path / "run", now, 2)
    assert changes == []
    assert resumed.instruction_set is None
    _, changes = run.resumed(tmp_path / "run", replace(now, device="cpu: AMD EPYC 9654 (family 25 model 17)"), 2)
    assert [change.split(" was ")[0] for change in changes] == ["device"]


def test_a_second_process_cannot_train_the_same_run(tmp_path):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    with run.only_one(tmp_path / "run"), pytest.raises(ValueError, match="another process is training"):
        training.train(recipe, "sample", resume=tmp_path / "run", limit=60)


class Saved:
    """A model whose training has two checkpoints."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        torch.manual_seed(0)
        self.model = build("whitenet")
        arguments: dict[str, Any] = {"learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
        self.optimizers = build_optimizers(self.model, "muon", **arguments, muon_learning_rate=0.1, muon_momentum=0.5)
        self.state = State.at_start(50, CPU)
        self.paths = [self.save(), self.save()]

    def save(self) -> Path:
        images = data.sample().train_images[:4].float() / 255
        self.model(images).sum().backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.state.step += 1
        return checkpoint.save(self.directory, self.model, self.optimizers, self.state, CPU)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path)


def test_no_truncation_and_no_flipped_bit_is_loaded_and_the_one_before_is_used_and_named(saved):
    before, newest = saved.paths
    contents = {path: path.read_bytes() for path in (newest, newest.with_suffix(".json"))}
    chance = random.Random(0)
    for number in range(40):  # of each file, cut short or with a bit changed; its SHA-256 decides
        path = chance.choice(list(contents)) if number % 4 else newest.with_suffix(".json")
        content = bytearray(contents[path])
        if number % 2:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(content)
        found, problems = checkpoint.latest(saved.directory)
        assert found.path == before
        (problem,) = problems
        assert newest.name in problem
        assert f"going back to {before.name}" in problem
        for path, whole in contents.items():
            path.write_bytes(whole)
    found, problems = checkpoint.latest(saved.directory)
    assert (found.path, problems) == (newest, [])


def test_what_was_not_finished_is_put_aside_and_named(saved):
    before, newest = saved.paths
    newest.with_suffix(".json").unlink()
    (saved.directory / "checkpoints" / ".step-3.safetensors.abcdefgh").write_bytes(b"begun")
    found, problems = checkpoint.latest(saved.directory)
    assert found.path == before
    assert problems == [f"{newest} was not finished: it has no manifest; going back to {before.name}"]
    names = {path.name for path in (saved.directory / "checkpoints").iterdir()}
    assert names == {"step-1.safetensors", "step-1.json", "step-2.safetensors.damaged"}


def test_where_none_is_whole_a_run_starts_over_only_if_no_epoch_was_finished(saved):
    for path in saved.paths:
        path.write_bytes(b"")
    run.append_metrics(saved.directory, {"epoch": 1})
    before = sorted(saved.directory.rglob("*"))
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"no whole checkpoint to resume from; .*step-2.* damaged.*; .*step-1.* damag"
        ):
            checkpoint.latest(saved.directory)
        assert sorted(saved.directory.rglob("*")) == before
    (saved.directory / "metrics.jsonl").unlink()
    found, problems = checkpoint.latest(saved.directory)
    assert found is None
    assert [problem.rpartition("; ")[2] for problem in problems] == ["starting over"] * 2


@pytest.mark.parametrize("loss", ["all checkpoints", "the folder", "a file in its place"])
def test_a_finished_run_without_checkpoints_is_left_as_it_is(tmp_path, loss):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.iterdir():
        path.unlink()
    if loss != "all checkpoints":
        folder.rmdir()
    if loss == "a file in its place":
        folder.touch()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError), match=r"no whole checkpoint|Not a directory"):
        training.train(recipe, "sample", resume=tmp_path / "run", limit=60)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_no_step_is_saved_twice(tmp_path, monkeypatch):
    steps: list[int] = []
    save = checkpoint.save

    def noted(directory: Path, model: Any, optimizers: Any, state: State, *others: Any) -> Path:
        steps.append(state.step)
        return save(directory, model, optimizers, state, *others)

    monkeypatch.setattr(checkpoint, "save", noted)
    training.train(short("reference-30", "epochs=3"), "sample", out=tmp_path / "run", limit=60, checkpoint_seconds=0)
    training.train(short("reference-30", "epochs=3"), "sample", resume=tmp_path / "run", limit=60)
    assert steps == list(range(1, 10))


def test_a_file_with_a_fitting_manifest_that_is_no_checkpoint_is_refused(saved):
    for metadata in (None, {"tinycifar": "[]"}, {"tinycifar": "{"}, {"tinycifar": '{"about": {}, "strides": {}}'}):
        path = saved.paths[1]
        save_file({"x": torch.zeros(2)}, path, metadata)
        path.with_suffix(".json").write_bytes(checkpoint._manifest(path.name, path.read_bytes()))
        with pytest.raises(ValueError, match="is not a checkpoint of tinycifar"):
            checkpoint.read(path)


def test_a_checkpoint_of_another_model_does_not_fit(saved):
    with pytest.raises(ValueError, match=r"step-2\.safetensors does not fit this model"):
        checkpoint.restore(faults.newest(saved.directory), build("c1c2c3c4o"), saved.optimizers, CPU)


CALLS = ["os.open", "os.fdopen", "os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace", "pathlib.Path.unlink"]


@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_of_a_save_fails_a_checkpoint_that_can_be_loaded_remains(saved, call):
    owner, _, name = call.rpartition(".")
    place: Any = os if owner == "os" else Path
    real = getattr(place, name)
    for failing in range(1, 12):
        calls = 0

        def full(*arguments: Any, failing: int = failing, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        with mock.patch.object(place, name, full):
            path, told = None, ""
            try:
                path = saved.save()
            except OSError as error:
                told = str(error)
        assert path or "No space left on device" in told
        stored, steps = faults.newest(saved.directory).about["state.step"], saved.state.step
        assert stored in ((steps,) if path else (steps, steps - 1))
        if path:
            assert failing > 1
            break
        saved.state.step = stored
    else:
        raise AssertionError("no save came to its end")


def test_a_training_whose_disk_failed_can_go_on(tmp_path):
    recipe = short("minute")
    training.train(recipe, "sample", out=tmp_path / "whole", limit=60)
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:  # in the second epoch
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with (
        mock.patch.object(os, "fsync", full),
        pytest.raises(
            checkpoint.SaveError, match="No space left on device: stopped at step 4, what was saved before is as it was"
        ),
    ):
        training.train(recipe, "sample", out=tmp_path / "run", limit=60)
    training.train(recipe, "sample", resume=tmp_path / "run", limit=60)
    assert faults.fingerprint(tmp_path / "run") == faults.fingerprint(tmp_path / "whole")


def test_no_pickle_is_written_or_read(tmp_path):
    with (
        mock.patch.object(torch, "load", side_effect=AssertionError),
        mock.patch.object(torch, "save", side_effect=AssertionError),
        mock.patch("pickle.load", side_effect=AssertionError),
        mock.patch("pickle.loads", side_effect=AssertionError),
    ):
        faults.interrupt(short("minute"), tmp_path / "run", 2, limit=60)
        training.train(short("minute"), "sample", resume=tmp_path / "run", limit=60)
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".npy", ""}  # .npy: bytes, read with allow_pickle=False


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_with_the_last_checkpoint_whole(tmp_path):
    words = ["train", "--data", "sample", "--epochs", "1000", "--out", str(tmp_path / "run")]
    with faults.started(faults.tinycifar(*words)) as process:
        output = faults.wait_for(process, "Epoch 2/")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        output.read()
        assert process.wait(10) in (-signal.SIGTERM, 143)
    found, problems = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert problems == []


@pytest.mark.end_to_end
def test_a_stopped_run_says_how_to_go_on_and_that_command_does(tmp_path):
    directory = tmp_path / "a run"
    words = ["train", "--data", "sample", "--epochs", "40", "--set", "batch_size=40", "--out", str(directory)]
    with faults.started(faults.tinycifar(*words)) as process:
        output = faults.wait_for(process, "Epoch 1/")
        process.send_signal(signal.SIGINT)
        rest = output.read()
        assert process.wait() == 130
    assert f"Resume with: tinycifar train --resume '{directory}'" in rest
    again = faults.tinycifar("train", "--resume", str(directory), "--stop-after-epoch", "12", "--json")
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming after step" in done.stderr
    assert '"epochs": 12' in done.stdout
