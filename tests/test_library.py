"""What `import tinycifar` offers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tinycifar
from tinycifar import data, recipes, trained, training
from tinycifar.data import pictures
from tinycifar.data.dataset import Dataset
from tinycifar.recipes import Recipe
from tinycifar.training import Result

PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("library") / "run"
    return tinycifar.train("minute", data="sample", out=out, epochs=1, quiet=True)


def test_the_package_loads_without_torch_and_offers_four_functions() -> None:
    program = (
        "import sys, tinycifar; print('torch' in sys.modules, [n for n in dir(tinycifar) if n in tinycifar.__all__])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["False", "['evaluate', 'load', 'predict', 'train']\n"]
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        tinycifar.fit  # noqa: B018


def test_training_fills_a_run_directory_with_all_that_the_command_leaves(result: Result) -> None:
    names = {path.name for path in result.directory.iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "evaluation.json", "loss.png", "accuracy.png", "report.html"} <= names
    assert result.complete
    assert result.record["epochs"] == 1


def test_what_was_trained_is_loaded_evaluated_and_asked_for_predictions(result: Result, tmp_path: Path) -> None:
    model = tinycifar.load(result)
    images = data.sample().test_images
    found = tinycifar.evaluate(result)
    with torch.no_grad():
        logits = model(images / 255)
    assert (logits.argmax(1) == data.sample().test_labels).sum() == found["correct"]
    pictures.to_image(images[0]).save(tmp_path / "one.png")
    (tmp_path / "two.png").write_text("no picture")
    one, two = tinycifar.predict(result, [tmp_path / "one.png", tmp_path / "two.png"], top=1)
    assert one["classes"][0]["class"] == model.classes[int(logits[0].argmax())]
    assert "no PNG, JPEG or WEBP image" in two["problem"]
    assert tinycifar.predict(result.directory, tmp_path / "one.png", top=1) == [one]


def test_a_shipped_model_is_a_module_that_takes_images_in_0_to_1() -> None:
    model = tinycifar.load("minute")
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    sample = data.sample()
    with torch.no_grad():
        right = model(sample.test_images / 255).argmax(1) == sample.test_labels
    assert right.float().mean() > 0.8
    assert (len(model.classes), model.image_size) == (10, 32)
    assert model.temperature == trained.load("minute", "cpu").temperature


def test_all_of_it_works_for_images_in_memory_of_another_size_and_other_classes(tmp_path: Path) -> None:
    sample = data.sample(24)
    own = Dataset(
        "mine",
        ("low", "high"),
        sample.train_images[:80],
        sample.train_labels[:80] // 5,
        sample.test_images[:40],
        sample.test_labels[:40] // 5,
    )
    made = tinycifar.train("minute", own, out=tmp_path / "run", epochs=1, image_size=24, quiet=True)
    model = tinycifar.load(made)
    assert (model.classes, model.image_size) == (("low", "high"), 24)
    assert "not at hand" not in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ValueError, match="was trained on it: say where it is now with --data"):
        tinycifar.evaluate(made)


def test_a_recipe_comes_by_name_as_a_file_or_as_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(recipes.to_toml(recipes.get("minute")).replace('"minute"', '"mine"', 1))
    for number, recipe in enumerate(("minute", tmp_path / "mine.toml", recipes.get("minute"))):
        made = tinycifar.train(
            recipe, "sample", out=tmp_path / str(number), limit=40, epochs=1, quiet=True, seed=number
        )
        assert made.record["seed"] == number
        assert made.record["recipe"] == ("mine" if number == 1 else "minute")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.1}, "unknown recipe field 'learning_rate'; allowed are: model, "),
        ({"epochs": 0}, "epochs must lie between 1 and 100000, not 0"),
        ({"image_size": 33}, "image_size must lie between 16 and 64 in steps of 8 for whitenet, not be 33"),
        ({"data": "nowhere"}, "nowhere does not exist; allowed are cifar10, sample, a folder with"),
        ({"init": "unknown"}, "unknown does not exist; name a run directory"),
        ({"max_parameters": 50_000, "width": 0.5}, "max_parameters finds the width"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tinycifar.train("minute", **{"data": "sample", "quiet": True, **settings})  # type: ignore[arg-type]
    assert list(Path().iterdir()) == []


def test_predicting_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="top must be at least 1, not 0"):
        tinycifar.predict("minute", "x.png", top=0)


def test_training_tells_what_happens_unless_it_is_to_be_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet in (True, False):
        tinycifar.train("minute", "sample", out=tmp_path / str(quiet), limit=40, epochs=1, quiet=quiet)
        assert ("Epoch 1/1" in capsys.readouterr().out) != quiet


def test_what_is_asked_of_train_reaches_the_training(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def train(recipe: Recipe, source: Any, **options: Any) -> Result:
        asked.update(options, recipe=recipe, source=source)
        return result

    monkeypatch.setattr(training, "train", train)
    tinycifar.train("nano", "sample", teacher="minute", init="nano", max_parameters=9, tensorboard=True, quiet=True)
    assert (asked["max_parameters"], asked["tensorboard"], asked["source"]) == (9, True, "sample")
    assert ([of.name for of in asked["teachers"]], asked["init"].name) == (["minute"], "nano")
    tinycifar.train(resume=result.directory, quiet=True)
    assert (asked["resume"], asked["recipe"].epochs, asked["source"], asked["seed"]) == (
        result.directory,
        1,
        "sample",
        0,
    )
    tinycifar.train(epochs=np.int64(3), weight_decay=np.float64(0.5), quiet=True)
    assert (asked["recipe"].epochs, asked["recipe"].weight_decay, asked["recipe"].name) == (3, 0.5, "minute")


def test_a_run_is_resumed_with_all_that_it_was_begun_with(tmp_path: Path) -> None:
    own = Dataset("mine", tuple("abcdefghij"), *(getattr(data.sample(), name) for name in PARTS))
    init = tinycifar.train("minute", own, out=tmp_path / "init", limit=64, epochs=1, quiet=True)
    recipe = replace(recipes.get("minute"), epochs=2)
    begun = trained.load(init.directory, "cpu")
    for name, stop in (("whole", None), ("parts", 1)):
        options: dict[str, Any] = {"init": begun, "seed": 5, "limit": 64, "stop_after_epoch": stop, "device": "cpu"}
        training.train(recipe, own, out=tmp_path / name, **options)
    resumed = tinycifar.train(data=own, resume=tmp_path / "parts", device="cpu", quiet=True)
    assert (resumed.record["seed"], resumed.record["train_images"], resumed.complete) == (5, 64, True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert tinycifar.evaluate(resumed, own)["correct"] == tinycifar.evaluate(tmp_path / "whole", own)["correct"]
    with pytest.raises(ValueError, match="takes images of 32 pixels, not of 16"):
        tinycifar.evaluate(resumed, data.sample(16))


@pytest.mark.parametrize("name", ["nowhere", "folder"])
def test_a_folder_that_is_no_run_is_not_resumed_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for resume in (lambda: tinycifar.train(resume=tmp_path / name), lambda: again(tmp_path / name)):
        with pytest.raises(ValueError, match=r"environment.json is missing|is no run directory"):
            resume()
    assert sorted(tmp_path.rglob("*")) == before


def again(directory: Path) -> Result:
    return training.train(recipes.get("minute"), "sample", resume=directory)


def test_test_images_are_opened_where_it_is_asked_for(tmp_path: Path) -> None:
    run = tinycifar.train("minute", "sample", out=tmp_path / "run", epochs=1, validation_images=50, quiet=True)
    assert [tinycifar.evaluate(run, test=test)["images"] for test in (False, True)] == [50, 200]
