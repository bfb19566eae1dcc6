"""What `import tinycifar` offers."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tinycifar
from tinycifar import data, inference, recipes, run, trained, training
from tinycifar.data import pictures
from tinycifar.data.dataset import Dataset
from tinycifar.recipes import Recipe
from tinycifar.seeds import Several
from tinycifar.training import Result

pytestmark = pytest.mark.usefixtures("undrawn")

PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("library") / "run"
    return tinycifar.train("minute", data="sample", out=out, epochs=1, quiet=True)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        tinycifar.fit  # noqa: B018
    assert not hasattr(tinycifar, "_private")


def test_training_fills_a_run_directory_with_all_that_the_command_leaves(result):
    names = {path.name for path in result.directory.iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "evaluation.json", "loss.png", "accuracy.png", "report.html"} <= names
    assert result.complete
    assert result.record["epochs"] == 1


def test_what_was_trained_is_loaded_evaluated_and_asked_for_predictions(result, tmp_path):
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
    assert "no PNG, JPEG, WEBP" in two["problem"]
    assert tinycifar.predict(result.directory, tmp_path / "one.png", top=1) == [one]


def test_a_shipped_model_is_a_module_that_takes_images_in_0_to_1():
    model = tinycifar.load("minute")
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    sample = data.sample()
    with torch.no_grad():
        right = model(sample.test_images / 255).argmax(1) == sample.test_labels
    assert right.float().mean() > 0.8
    assert (len(model.classes), model.image_size) == (10, 32)
    assert model.temperature == trained.load("minute", "cpu").temperature


def test_all_of_it_works_for_images_in_memory_of_another_size_and_other_classes(tmp_path):
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
    assert "not available" not in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ValueError, match="was trained on it: say where it is now with `data=`"):
        tinycifar.evaluate(made)


def test_a_recipe_comes_by_name_as_a_file_or_as_itself(tmp_path):
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
        ({"image_size": 33}, "image_size must lie between 16 and 64 in steps of 8 for minutenet, not be 33"),
        ({"data": "nowhere"}, "nowhere does not exist; allowed are cifar10, sample, a folder"),
        ({"out": ""}, "`out=` is empty; name a file or folder, or . for the current folder"),
        ({"resume": ""}, "`resume=` is empty"),
        ({"init": ""}, "the name of a model is empty"),
        ({"teacher": [""]}, "the name of a teacher is empty"),
        ({"init": "unknown"}, "unknown does not exist; name a run directory"),
        ({"max_parameters": 50_000, "width": 0.5}, "`max_parameters=` finds the width"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        tinycifar.train("minute", **{"data": "sample", "quiet": True, **settings})
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"seed": 2**63}, "seed must be a whole number from 0 to 9223372036854775807, not 9223372036854775808"),
        ({"seed": 1.5}, r"seed must be a whole number of at least 0, not 1\.5"),
        ({"limit": "5"}, "limit must be a whole number of at least 1, not '5'"),
        ({"max_parameters": 0}, "max_parameters must be a whole number of at least 1, not 0"),
        ({"threads": 0}, "threads must be a whole number of at least 1, not 0"),
        ({"threads": 10**6}, "threads must be a whole number from 1 to"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
        ({"seeds": 1, "jobs": -3}, "jobs must be a whole number of at least 1, not -3"),
    ],
)
def test_numbers_that_are_not_whole_or_out_of_range_are_refused_before_anything_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        tinycifar.train("minute", "sample", quiet=True, **options)
    if options.keys() <= {"seed", "limit", "max_parameters"}:
        with pytest.raises(ValueError, match=message):
            training.train(recipes.get("minute"), "sample", **options)
    assert list(Path().iterdir()) == []


def test_whole_numbers_of_numpy_are_numbers(tmp_path):
    several = tinycifar.train(
        "minute", "sample", seeds=np.int64(1), seed=np.uint8(3), limit=np.int32(32), epochs=1, quiet=True, out="many"
    )
    assert several.summary["finished"] == [3]
    assert run.read_environment(several.directory / "seed-3").limit == 32
    with pytest.raises(ValueError, match="top must be a whole number of at least 1, not 0"):
        tinycifar.predict("minute", "x.png", top=0)


def test_training_tells_what_happens_unless_it_is_to_be_quiet(tmp_path, capsys):
    for quiet in (True, False):
        tinycifar.train("minute", "sample", out=tmp_path / str(quiet), limit=40, epochs=1, quiet=quiet)
        assert ("Epoch 1/1" in capsys.readouterr().out) != quiet


def test_what_is_asked_of_train_reaches_the_training(result, monkeypatch):
    asked: dict[str, Any] = {}

    def train(recipe: Recipe, source: Any, **options: Any) -> Result:
        asked.update(options, recipe=recipe, source=source)
        return result

    monkeypatch.setattr(training, "train", train)
    tinycifar.train(
        "nano", "sample", teacher=("minute", "micro"), init="nano", max_parameters=9, tensorboard=True, quiet=True
    )
    assert (asked["max_parameters"], asked["tensorboard"], asked["source"]) == (9, True, "sample")
    assert ([of.name for of in asked["teachers"]], asked["init"].name) == (["minute", "micro"], "nano")
    tinycifar.train(resume=result.directory, quiet=True)
    assert (asked["resume"], asked["recipe"].epochs, asked["source"], asked["seed"]) == (
        result.directory,
        1,
        "sample",
        0,
    )
    tinycifar.train(epochs=np.int64(3), weight_decay=np.float64(0.5), quiet=True)
    assert (asked["recipe"].epochs, asked["recipe"].weight_decay, asked["recipe"].name) == (3, 0.5, "minute")


def test_a_run_is_resumed_with_all_that_it_was_begun_with(tmp_path):
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
def test_a_folder_that_is_no_run_is_not_resumed_and_left_as_it_is(tmp_path, name):
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for resume in (lambda: tinycifar.train(resume=tmp_path / name), lambda: again(tmp_path / name)):
        with pytest.raises(
            ValueError, match=r"folder is no run directory: it holds no recipe.json|nowhere does not exist"
        ):
            resume()
    assert sorted(tmp_path.rglob("*")) == before


def again(directory: Path) -> Result:
    return training.train(recipes.get("minute"), "sample", resume=directory)


def test_test_images_are_opened_where_it_is_asked_for(tmp_path):
    run = tinycifar.train("minute", "sample", out=tmp_path / "run", epochs=1, validation_images=50, quiet=True)
    assert [tinycifar.evaluate(run, test=test)["images"] for test in (False, True)] == [50, 200]


def forms(picture: np.ndarray[Any, Any], folder: Path) -> dict[str, Any]:
    """The same picture, uint8 (H, W, 3), in every form that `predict` takes."""
    image = Image.fromarray(picture)
    image.save(folder / "a.png")
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    return {
        "path": folder / "a.png",
        "str": str(folder / "a.png"),
        "folder": folder,
        "bytes": (folder / "a.png").read_bytes(),
        "PIL": image,
        "RGBA": image.convert("RGBA"),
        "array": picture,
        "array, channels first": picture.transpose(2, 0, 1),
        "array of floats": (picture / 255).astype(np.float32),
        "array of doubles, channels first": picture.transpose(2, 0, 1) / 255,
        "tensor": tensor,
        "tensor, channels last": tensor.permute(1, 2, 0),
        "tensor of floats": tensor / 255,
        "tensor of halves": (tensor / 255).half(),
        "tensor with a gradient": (tensor / 255).requires_grad_(),
        "generator": (part for part in [image]),
    }


@pytest.mark.parametrize("side", [32, 40])
def test_a_picture_has_the_same_classes_in_every_form(tmp_path, side):
    image = pictures.to_image(data.sample().test_images[0]).resize((side + 8, side)).crop((4, 0, side + 4, side))
    every = forms(np.asarray(image), tmp_path)
    expected = tinycifar.predict("minute", every["path"])
    assert expected[0]["file"] == str(tmp_path / "a.png")
    for name, form in every.items():
        (found,) = tinycifar.predict("minute", form)
        assert [row["class"] for row in found["classes"]] == [row["class"] for row in expected[0]["classes"]], name
        for row, other in zip(found["classes"], expected[0]["classes"], strict=True):
            assert row["probability"] == pytest.approx(other["probability"], abs=2e-3 if "halves" in name else 1e-5)
        assert (found["file"] is None) == (name not in ("path", "str", "folder"))
    mixed = [every["PIL"], every["tensor"], [every["array of floats"], every["path"]]]
    assert [entry["file"] for entry in tinycifar.predict("minute", mixed)] == [None] * 3 + [str(tmp_path / "a.png")]


def test_batches_are_taken_apart_and_equal_their_pictures():
    images = data.sample().test_images[:70]
    batches = [
        images,
        images / 255,
        images.numpy(),
        images.permute(0, 2, 3, 1).numpy(),
        (images / 255).permute(0, 2, 3, 1).numpy(),
    ]
    model = trained.load("minute", "cpu")
    expected = (inference.logits(model.model, images) / model.temperature).softmax(1).max(1).values.tolist()
    for batch in batches:
        found = tinycifar.predict("minute", batch, top=1)
        assert [entry["classes"][0]["probability"] for entry in found] == pytest.approx(expected, abs=1e-6)
    assert tinycifar.predict("minute", []) == []


def test_where_both_orders_are_possible_arrays_have_channels_last_and_tensors_first():
    values = np.random.default_rng(0).integers(0, 256, (3, 3, 3), np.uint8)
    as_image = tinycifar.predict("minute", Image.fromarray(values))
    assert tinycifar.predict("minute", values) == as_image
    assert tinycifar.predict("minute", torch.from_numpy(values).permute(2, 0, 1)) == as_image


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, "pictures must be files, folders, bytes of a file, PIL images, arrays, tensors"),
        (io.BytesIO(b"a picture"), TypeError, "pictures must be files.*, not BytesIO"),
        (3.5, TypeError, "pictures must be files"),
        ([Image.new("RGB", (4, 4)), 7], TypeError, "pictures must be files.*, not int"),
        (np.zeros((32, 32, 3), np.int64), TypeError, "pictures must be uint8 in 0..255 or floating point.*, not int64"),
        (torch.zeros(3, 32, 32, dtype=torch.bool), TypeError, "pictures must be uint8.*, not bool"),
        (np.zeros((32, 32), np.uint8), ValueError, r"pictures must have the shape .*, not \(32, 32\)"),
        (torch.zeros(2, 4, 32, 32), ValueError, r"pictures must have the shape"),
        (np.zeros((0, 32, 32, 3), np.uint8), ValueError, "pictures must have the shape"),
        (np.zeros((2, 2, 32, 32, 3), np.uint8), ValueError, "pictures must have the shape"),
        (torch.full((3, 32, 32), 200.0), ValueError, r"must lie in \[0, 1\]; divide 8-bit values by 255"),
        (np.full((3, 32, 32), np.nan), ValueError, r"must lie in \[0, 1\]"),
        (-torch.ones(3, 32, 32), ValueError, r"must lie in \[0, 1\]"),
        ("nowhere.png", ValueError, "nowhere.png does not exist"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_is_allowed(given, error, message):
    with pytest.raises(error, match=message):
        tinycifar.predict("minute", given)


def test_bytes_that_are_no_picture_are_a_problem_of_that_picture_alone():
    first, second = tinycifar.predict("minute", [b"no picture", Image.new("RGB", (40, 40))])
    assert (first["file"], "no PNG, JPEG, WEBP" in first["problem"]) == (None, True)
    assert len(second["classes"]) == 3


def test_a_loaded_model_refuses_integers():
    model = tinycifar.load("nano")
    images = data.sample().test_images[:2]
    for wrong in (images, images.long()):
        with pytest.raises(TypeError, match="divide uint8 by 255"):
            model(wrong)


def test_every_public_name_and_every_submodule_is_there_after_a_plain_import():
    program = (
        "import pkgutil, tinycifar\n"
        "modules = [m.name for m in pkgutil.iter_modules(tinycifar.__path__) if not m.name.startswith('_')]\n"
        "for name in [*modules, *tinycifar.__all__]:\n"
        "    assert name in dir(tinycifar), name\n"
        "    getattr(tinycifar, name)\n"
        "assert not set(modules) & set(tinycifar.__all__)\n"
        "print(tinycifar.recipes.get('minute').name, tinycifar.data.load.__name__, len(tinycifar.models.MODELS) > 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "minute load True\n"
    assert callable(tinycifar.export)
    assert callable(tinycifar.compare)


def test_names_are_listed_and_limited():
    assert tinycifar.list_recipes() == list(recipes.RECIPES)
    assert tinycifar.list_models() == ["accurate", "nano", "micro", "minute"]
    assert tinycifar.list_models(max_parameters=41_432) == ["nano", "micro"]
    assert tinycifar.list_models(max_macs=12_485_088) == ["nano", "micro", "minute"]
    assert tinycifar.list_models(max_macs=11_270_784) == ["nano", "micro"]
    with pytest.raises(ValueError, match="max_parameters must be a number, not '5'"):
        tinycifar.list_models(max_parameters="5")


def test_pictures_are_explained_and_runs_compared_without_overwriting(result, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (made,) = tinycifar.explain(result, tmp_path / "a.png", out="drawn", class_name="cat")
    assert (made["class"], Path(made["picture"])) == ("cat", Path("drawn/a-explained.png"))
    Path("drawn/a-explained.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"drawn/a-explained.png exists already; .* pass `overwrite=` to replace it"):
        tinycifar.explain(result, tmp_path / "a.png", out="drawn", class_name="dog")
    assert Path("drawn/a-explained.png").read_bytes() == b"mine"
    tinycifar.explain(result, tmp_path / "a.png", out="drawn", class_name="dog", overwrite=True)
    assert Path("drawn/a-explained.png").read_bytes() != b"mine"
    comparison = tinycifar.compare([result.directory], "page.html")
    assert [row.label.split(",")[0] for row in comparison.contenders] == ["minute"]
    with pytest.raises(ValueError, match=r"page.html exists already"):
        tinycifar.compare([result.directory], "page.html")
    assert tinycifar.compare([result.directory], "page.html", overwrite=True).verdicts == ()
    assert tinycifar.compare([result.directory]).lines()


def test_what_train_returned_names_a_model_and_runs_to_compare(result):
    several = Several(result.directory.parent, (result,), (), {}, None)
    assert [row.runs[0].directory for row in tinycifar.compare([result]).contenders] == [result.directory]
    with pytest.raises(ValueError, match="holds 1 run; name one of them"):
        tinycifar.load(several)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a model is the name of a shipped one, .* not Tensor"):
        tinycifar.load(torch.zeros(3, 32, 32))  # type: ignore[arg-type]
    for single in ("minute", Path("minute"), result):
        with pytest.raises(TypeError, match=r"`runs` is a list of runs; put a single one into brackets: \[run\]"):
            tinycifar.compare(single)
    with pytest.raises(ValueError, match="no run is named; name at least one"):
        tinycifar.compare([])


@pytest.mark.parametrize("given", [torch.zeros(2, 3, 32, 32), ["photos"]])
def test_data_that_is_neither_a_path_nor_a_dataset_is_refused(given):
    for call in (
        lambda: tinycifar.train("minute", given, out="run"),
        lambda: tinycifar.evaluate("micro", given),
        lambda: tinycifar.evaluate("micro", "sample", outside=given),
        lambda: tinycifar.export("micro", data=given),
    ):
        with pytest.raises(TypeError, match=f"not {type(given).__name__}"):
            call()
    assert not Path("run").exists()


def test_a_device_of_torch_is_a_device():
    assert tinycifar.load("micro", torch.device("cpu")).mean.device.type == "cpu"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no device 'None' here; allowed are auto, cpu, cuda and mps"):
        tinycifar.load("micro", None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_export_in_python_refuses_what_it_cannot_write_and_overwrites_only_if_told_to(result, tmp_path):
    for options, message in (
        ({"format": "tensorrt"}, "unknown format 'tensorrt'; allowed are: onnx"),
        ({"int8": "u8u8"}, "`int8=` is for the format onnx-int8"),
        ({"format": "c", "out": result.directory / "recipe.json"}, "must be a folder for the format c"),
        ({"out": result.directory / "model.safetensors"}, "names the weights themselves"),
        (
            {"out": result.directory / "recipe.json"},
            r"recipe\.json does not end in \.onnx; the file is written as ONNX",
        ),
        ({"format": "web", "out": result.directory}, "is in use; name a new or an empty one with `out=`"),
    ):
        before = {path: path.stat().st_mtime_ns for path in result.directory.iterdir()}
        with pytest.raises(ValueError, match=message):
            tinycifar.export(result, **options)
        assert {path: path.stat().st_mtime_ns for path in result.directory.iterdir()} == before
    written = tinycifar.export(result, tmp_path / "model.onnx")
    assert written.path == tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"model.onnx exists already"):
        tinycifar.export(result, tmp_path / "model.onnx")
    tinycifar.export(result, tmp_path / "model.onnx", overwrite=True)


def test_an_output_that_ends_like_a_folder_is_no_file(tmp_path):
    for call in (tinycifar.export, lambda model, out: tinycifar.compare([model], out)):
        with pytest.raises(ValueError, match="new/ names a folder; name a file to write"):
            call("minute", f"{tmp_path}/new/")
    assert list(tmp_path.iterdir()) == []
