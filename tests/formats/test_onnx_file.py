"""ONNX files, in float and in int8, against `inference.logits`."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from conftest import Own
from tinycifar import data, heatmaps, inference, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import onnx_file

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_exported_model_gives_the_logits_of_the_original(exports: Path) -> None:
    images = data.sample().test_images
    expected = inference.logits(trained.load("minute", "cpu").model, images)
    found = onnx_file.logits(exports / "minute.onnx", images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_one_image_and_many_and_float_images_are_taken(exports: Path) -> None:
    images = data.sample().test_images[:5]
    path = exports / "minute.onnx"
    together = onnx_file.logits(path, images)
    torch.testing.assert_close(onnx_file.logits(path, images, batch_size=1), together, rtol=0, atol=1e-4)
    torch.testing.assert_close(onnx_file.logits(path, images / 255), together, rtol=0, atol=1e-4)


def test_the_second_output_is_the_class_activation_map(exports: Path) -> None:
    images, classes = data.sample().test_images[:8], torch.arange(8)
    session = onnx_file.session(exports / "minute.onnx")
    (maps,) = session.run(["class_activation"], {"images": (images / 255).numpy()})
    expected = heatmaps.class_activation(trained.load("minute", "cpu").model, images, classes)
    positions = maps.shape[2] * maps.shape[3]
    chosen = torch.from_numpy(maps)[torch.arange(8), classes] / positions
    torch.testing.assert_close(chosen, expected, rtol=1e-3, atol=1e-4)


def test_the_file_says_what_it_is_and_nothing_of_this_machine(exports: Path) -> None:
    for name in ("minute.onnx", "minute-int8.onnx"):
        content = (exports / name).read_bytes()
        model = onnx.load_from_string(content)
        about = {item.key: item.value for item in model.metadata_props}
        assert json.loads(about["classes"]) == list(CLASSES)
        assert json.loads(about["temperature"]) == trained.load("minute").temperature
        assert "[0, 1]" in about["preprocessing"]
        assert model.opset_import[0].version == onnx_file.OPSET
        assert [item.name for item in model.graph.input] == ["images"]
        assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value  # any number of images
        assert str(Path.home()).encode() not in content
        assert b"site-packages" not in content
        assert [path.name for path in exports.glob(f"{name}*")] == [name]  # no second file for weights


def test_int8_stays_close_to_float_and_is_a_third_of_its_size(exports: Path) -> None:
    images = data.sample().test_images
    expected = inference.logits(trained.load("minute", "cpu").model, images)
    found = onnx_file.parity(expected, onnx_file.logits(exports / "minute-int8.onnx", images))
    assert found.agreement >= 0.97
    assert (exports / "minute-int8.onnx").stat().st_size < (exports / "minute.onnx").stat().st_size / 3


def test_signed_weights_have_seven_bits_and_stay_close_to_float(tmp_path: Path) -> None:
    model = trained.load("minute", "cpu")
    found = onnx_file.to_int8(model, tmp_path / "signed.onnx", signed=True)
    assert found.parity.agreement >= 0.97
    weights = [
        onnx.numpy_helper.to_array(item)
        for item in onnx.load(tmp_path / "signed.onnx").graph.initializer
        if item.name.endswith("weight_quantized")
    ]
    assert len(weights) == 6
    assert all((values.dtype, int(abs(values).max())) == (np.int8, 64) for values in weights)


def test_the_runtime_computes_int8_convolutions_in_int8(exports: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(exports / "minute-int8.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 6  # the stem and five more
    assert kinds.count("Conv") <= 1  # that of the class activation map alone
    weights = [item for item in onnx.load(exports / "minute-int8.onnx").graph.initializer if "weight_q" in item.name]
    assert {item.data_type for item in weights} == {onnx.TensorProto.UINT8}
    zeros = [item for item in onnx.load(exports / "minute-int8.onnx").graph.initializer if "weight_zero" in item.name]
    assert all(set(onnx.numpy_helper.to_array(item).flatten().tolist()) == {128} for item in zeros)


def test_parity_counts_images_that_change_class_and_those_that_may() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.50001, 0.5], [1.0, 0.0]])
    found = torch.tensor([[1.0, 0.0], [0.0, 0.9], [0.5, 0.50001], [0.0, 0.1]])
    assert onnx_file.parity(expected, found) == onnx_file.Parity(4, 1.0, 2, 1)
    assert onnx_file.parity(expected, found).agreement == 0.75


def test_a_file_that_differs_from_its_original_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained.load("minute", "cpu")
    monkeypatch.setattr(onnx_file, "_described", lambda _: onnx.ModelProto())
    monkeypatch.setattr(onnx_file, "logits", lambda *_: inference.logits(model.model, data.sample().test_images) + 0.01)
    path = tmp_path / "model.onnx"
    with pytest.raises(onnx_file.ParityError, match="differs from its original: 0 of 200 images"):
        onnx_file.to_onnx(model, path)
    assert not path.exists()


def test_logits_that_are_no_numbers_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained.load("minute", "cpu")
    monkeypatch.setattr(onnx_file, "_described", lambda _: onnx.ModelProto())
    monkeypatch.setattr(onnx_file, "logits", lambda *_: torch.full((200, 10), float("nan")))
    with pytest.raises(onnx_file.ParityError):
        onnx_file.to_onnx(model, tmp_path / "model.onnx")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r'pip install "tinycifar\[export\]"'):
        onnx_file.to_int8(trained.load("minute", "cpu"), tmp_path / "model.onnx")


def test_the_example_with_onnxruntime_alone_names_the_class(exports: Path, tmp_path: Path) -> None:
    image = data.sample().test_images[0]
    pictures.to_image(image).save(tmp_path / "picture.png")
    command = [sys.executable, EXAMPLES / "classify.py", exports / "minute.onnx", tmp_path / "picture.png"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "picture.png"])
    assert lines == [f"{of['class']} {of['probability']:.1%}" for of in expected["classes"]]


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", trained.shipped())
def test_parity_on_all_test_images(name: str, tmp_path: Path) -> None:
    model, dataset = trained.load(name, "cpu"), data.load()
    expected = inference.logits(model.model, dataset.test_images)
    onnx_file.to_onnx(model, tmp_path / "float.onnx")
    found = onnx_file.parity(expected, onnx_file.logits(tmp_path / "float.onnx", dataset.test_images))
    assert found.largest_difference <= 1e-3
    assert found.same_class + found.undecided == 10_000
    accuracy = float((expected.argmax(1) == dataset.test_labels).float().mean())
    for signed in (False, True):
        onnx_file.to_int8(model, tmp_path / "int8.onnx", signed=signed)
        quantized = onnx_file.logits(tmp_path / "int8.onnx", dataset.test_images)
        assert float((quantized.argmax(1) == dataset.test_labels).float().mean()) >= accuracy - 0.003


def test_of_one_class_no_image_changes_it() -> None:
    assert onnx_file.parity(torch.zeros(3, 1), torch.ones(3, 1)) == onnx_file.Parity(3, 1.0, 3, 0)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_written_over(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    before = path.stat().st_ino
    with pytest.raises(ValueError, match="exists and is not a file; name a file to write"):
        onnx_file.to_onnx(trained.load("minute", "cpu"), path)
    assert path.stat().st_ino == before
    assert [path] == list(tmp_path.iterdir())


def test_a_model_of_own_data_is_exported_at_its_size_and_tried_on_its_own_images(own_run: Own, tmp_path: Path) -> None:
    model, dataset = trained.load(own_run.directory, "cpu"), own_run.dataset
    exported = onnx_file.to_onnx(model, tmp_path / "own.onnx", dataset)
    assert (exported.parity.images, exported.parity.same_class) == (200, 200)
    int8 = onnx_file.to_int8(model, tmp_path / "int8.onnx", dataset)
    expected = inference.logits(model.model, dataset.test_images)
    assert int8.parity == onnx_file.parity(expected, onnx_file.logits(tmp_path / "int8.onnx", dataset.test_images))
    for name in ("own.onnx", "int8.onnx"):
        about = {item.key: item.value for item in onnx.load(tmp_path / name).metadata_props}
        assert json.loads(about["classes"]) == ["käse", "größe <1>", "猫"]
        assert (about["image_size"], about["data"]) == ("24", "mine")
        assert "24x24 pixels" in about["preprocessing"]


def test_ranges_are_those_of_images_that_were_trained_on(
    own_run: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    quantized = onnx_file.quantized
    monkeypatch.setattr(
        onnx_file, "quantized", lambda model, images, **of: (seen.append(images), quantized(model, images, **of))[1]
    )
    onnx_file.to_int8(trained.load(own_run.directory, "cpu"), tmp_path / "int8.onnx", own_run.dataset)
    assert torch.equal(seen[0], own_run.dataset.train_images[:340])  # the others were held out


def test_of_many_images_some_from_all_over_them_are_taken() -> None:
    assert onnx_file.some(torch.arange(10), 4).tolist() == [0, 2, 5, 7]
    assert onnx_file.some(torch.arange(400), 400).tolist() == list(range(400))
    assert onnx_file.some(torch.arange(3), 400).tolist() == [0, 1, 2]


def test_where_own_data_is_gone_or_of_another_size_the_line_says_what_to_name(own_run: Own, tmp_path: Path) -> None:
    model = trained.load(own_run.directory, "cpu")
    with pytest.raises(ValueError, match="say where it is now with --data"):
        onnx_file.to_onnx(model, tmp_path / "own.onnx")
    with pytest.raises(ValueError, match="run takes images of 24 pixels a side, those of sample have 32"):
        onnx_file.to_onnx(model, tmp_path / "own.onnx", data.sample())
    assert not list(tmp_path.iterdir())


def test_a_path_of_this_machine_is_not_told(own_run: Own) -> None:
    model = trained.load(own_run.directory, "cpu")
    assert onnx_file.data_name(dataclasses.replace(model, data="/home/me/pets")) == "pets"
    assert onnx_file.data_name(dataclasses.replace(model, data="/home/me/cifar.tar.gz", data_digest="")) == "cifar10"


def test_logits_that_are_nearly_alike_may_change_places_in_int8_but_not_where_they_are_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained.load("minute", "cpu")
    torch.manual_seed(0)
    expected = torch.randn(200, 1000)
    monkeypatch.setattr(inference, "logits", lambda *_: expected)
    monkeypatch.setattr(onnx_file, "_described", lambda _: onnx.ModelProto())
    monkeypatch.setattr(onnx_file, "quantized", lambda *_, **__: onnx.ModelProto())
    found = expected + 0.09 * torch.randn(200, 1000)
    monkeypatch.setattr(onnx_file, "logits", lambda *_: found)
    assert onnx_file.parity(expected, found).agreement < onnx_file.LEAST_AGREEMENT
    assert onnx_file.to_int8(model, tmp_path / "close.onnx").path.exists()
    found = expected + 0.12 * torch.randn(200, 1000)
    with pytest.raises(onnx_file.ParityError, match="it is not written"):
        onnx_file.to_int8(model, tmp_path / "far.onnx")
    with pytest.raises(onnx_file.ParityError, match="it is not written"):
        onnx_file.to_onnx(model, tmp_path / "float.onnx")
