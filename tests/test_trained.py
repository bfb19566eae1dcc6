import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tinycifar import cifar10, data, inference, models, run, trained

ABOUT: dict[str, Any] = {
    "model_name": "c1c2c3c4o",
    "recipe": "reference-30",
    "classes": cifar10.CLASSES,
    "data": "sample",
    "validation_images": 0,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "a run" / "model.safetensors"
    path.parent.mkdir()
    run.save_weights(path, models.build("c1c2c3c4o"), **ABOUT, temperature=0.7)
    return path


def test_weights_load_from_their_file_and_from_the_run_directory(weights: Path) -> None:
    model = trained.load(weights)
    assert (model.model_name, model.recipe, model.classes) == ("c1c2c3c4o", "reference-30", cifar10.CLASSES)
    assert (model.data, model.validation_images, model.temperature) == ("sample", 0, 0.7)
    again = trained.load(weights.parent)
    images = data.sample().test_images[:5]
    assert torch.equal(inference.logits(model.model, images), inference.logits(again.model, images))


def test_what_is_no_weights_file_of_ours_is_refused_by_name(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "short.safetensors").write_bytes(weights.read_bytes()[:5000])
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    about = {"model": "c1c2c3c4o", "classes": cifar10.CLASSES, "recipe": "x", "data": "sample"}
    about |= {"validation_images": 0, "temperature": None}
    save_file({"x": torch.zeros(1)}, tmp_path / "misfit.safetensors", {"tinycifar": json.dumps(about)})
    save_file(
        {"x": torch.zeros(1)}, tmp_path / "unknown.safetensors", {"tinycifar": json.dumps(about | {"model": "vgg"})}
    )
    save_file(
        {"x": torch.zeros(1)}, tmp_path / "classes.safetensors", {"tinycifar": json.dumps(about | {"classes": 10})}
    )
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "count.safetensors",
        {"tinycifar": json.dumps(about | {"validation_images": "some"})},
    )
    for name, message in {
        "missing": "does not exist; name a run directory",
        "empty": "is no run directory: it holds no model.safetensors",
        "text.safetensors": "is no readable safetensors file",
        "short.safetensors": "is no readable safetensors file",
        "foreign.safetensors": "does not name its model, classes and data; no tinycifar",
        "count.safetensors": "does not name its model, classes and data",
        "misfit.safetensors": "weights that do not fit the model c1c2c3c4o",
        "unknown.safetensors": "unknown model 'vgg'",
        "classes.safetensors": "does not name its model, classes and data",
    }.items():
        with pytest.raises(ValueError, match=message):
            trained.load(tmp_path / name)


def test_a_model_is_called_after_its_run_its_file_or_as_it_is_shipped(weights: Path, tmp_path: Path) -> None:
    weights.with_name("mine.safetensors").write_bytes(weights.read_bytes())
    names = [trained.load(source).name for source in (weights, weights.parent, weights.with_name("mine.safetensors"))]
    assert names == ["a run", "a run", "mine"]
    assert trained.load("minute").name == "minute"


def test_every_shipped_model_has_the_digest_size_and_score_that_its_json_says() -> None:
    results = Path(__file__).parents[1] / "results"
    assert "minute" in trained.shipped()
    for name, about in trained.shipped().items():
        model = trained.load(name)
        record = json.loads((results / name / "seed-0.json").read_text())
        parameters = sum(parameter.numel() for parameter in model.model.parameters())
        assert (about["parameters"], about["model"]) == (parameters, model.model_name)
        assert about["bytes"] == (trained.WEIGHTS / f"{name}.safetensors").stat().st_size
        assert about["test_accuracy"] == record["test_accuracy"]
        assert model.temperature == pytest.approx(about["temperature"])
        assert model.validation_images == 0
        sample = data.sample()
        right = (inference.logits(model.model, sample.test_images).argmax(1) == sample.test_labels).float().mean()
        assert right == pytest.approx(about["test_accuracy"], abs=0.08)  # 200 images: three standard errors


def test_a_shipped_name_goes_before_a_folder_unless_it_is_written_as_a_path(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.parent.rename("minute")
    assert trained.load("minute").model_name == "whitenet"
    assert trained.load("./minute").model_name == "c1c2c3c4o"


def test_damaged_shipped_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in trained.WEIGHTS.glob("minute.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "minute.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "minute.safetensors").write_bytes(content)
    monkeypatch.setattr(trained, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"minute\.safetensors is damaged or missing; install tinycifar again"):
        trained.load("minute")


def test_a_folder_of_several_seeds_asks_for_one_of_them(tmp_path: Path) -> None:
    for seed in (10, 2):
        (tmp_path / f"seed-{seed}").mkdir()
    with pytest.raises(ValueError, match=r"holds several seeds; name one of them, for example .*seed-2$"):
        trained.load(tmp_path)
