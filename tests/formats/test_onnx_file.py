"""ONNX files, in float and in int8, against `inference.logits`."""

import dataclasses
import json
import logging
import os
import runpy
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from tinycifar import catalog, data, heatmaps, inference, machine, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import onnx_file, parity

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_exported_model_gives_the_logits_of_the_original(exports):
    images = data.sample().test_images
    expected = inference.logits(trained.load("minute", "cpu").model, images)
    found = onnx_file.logits(exports / "minute.onnx", images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_one_image_and_many_and_float_images_are_taken(exports):
    images = data.sample().test_images[:5]
    path = exports / "minute.onnx"
    together = onnx_file.logits(path, images)
    torch.testing.assert_close(onnx_file.logits(path, images, batch_size=1), together, rtol=0, atol=1e-4)
    torch.testing.assert_close(onnx_file.logits(path, images / 255), together, rtol=0, atol=1e-4)


def test_the_second_output_is_the_class_activation_map(exports):
    images, classes = data.sample().test_images[:8], torch.arange(8)
    session = onnx_file.session(exports / "minute.onnx")
    (maps,) = session.run(["class_activation"], {"images": (images / 255).numpy()})
    expected = heatmaps.class_activation(trained.load("minute", "cpu").model, images, classes)
    positions = maps.shape[2] * maps.shape[3]
    chosen = torch.from_numpy(maps)[torch.arange(8), classes] / positions
    torch.testing.assert_close(chosen, expected, rtol=1e-3, atol=1e-4)


def test_the_file_says_what_it_is_and_nothing_of_this_machine(exports):
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


def test_int8_stays_close_to_float_and_is_a_third_of_its_size(exports):
    images = data.sample().test_images
    expected = inference.logits(trained.load("minute", "cpu").model, images)
    found = parity.compare(expected, onnx_file.logits(exports / "minute-int8.onnx", images))
    assert found.same_class >= 0.97 * len(images)
    assert found.relative_error < 0.05
    assert (exports / "minute-int8.onnx").stat().st_size < (exports / "minute.onnx").stat().st_size / 3


@pytest.mark.parametrize(
    ("variant", "dtype", "weight_zero", "activation_zeros"),
    [("u8s7", np.int8, {0}, None), ("u8u8", np.uint8, {128}, None), ("s8s8", np.int8, {0}, {0})],
)
def test_every_variant_has_its_types_and_is_computed_in_int8(
    exports, tmp_path, variant, dtype, weight_zero, activation_zeros
):
    path = exports / ("minute-int8.onnx" if variant == "u8s7" else f"minute-{variant}.onnx")
    images = data.sample().test_images
    parity.INT8.check(inference.logits(trained.load("minute", "cpu").model, images), onnx_file.logits(path, images), "")
    model = onnx.load(path)
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    weights = [values.astype(int) for name, values in constants.items() if "weight_quantized" in name]
    assert {values.dtype for name, values in constants.items() if "weight_quantized" in name} == {np.dtype(dtype)}
    assert {int(value) for name in constants if "weight_zero" in name for value in constants[name].flat} == weight_zero
    largest = {int(abs(values - min(weight_zero)).max()) for values in weights}
    assert largest == {64} if variant == "u8s7" else max(largest) >= 127
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].dtype.kind for node in quantizers} == {"i" if variant == "s8s8" else "u"}
    if activation_zeros is not None:
        assert {int(constants[node.input[2]]) for node in quantizers} == activation_zeros
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 8 or variant == "s8s8"  # the stem and seven more
    assert kinds.count("Conv") <= 1 or variant == "s8s8"  # that of the class activation map alone


@pytest.mark.parametrize("vnni", [True, False])
def test_a_file_whose_sums_may_overflow_is_not_optimized_without_vnni(exports, monkeypatch, vnni):
    monkeypatch.setattr(machine, "has_vnni", lambda: vnni)
    levels = onnxruntime.GraphOptimizationLevel
    for name in ("minute.onnx", "minute-int8.onnx", "minute-u8u8.onnx"):
        level = onnx_file.session(exports / name).get_session_options().graph_optimization_level
        assert level == levels.ORT_ENABLE_ALL
    level = onnx_file.session(exports / "minute-s8s8.onnx").get_session_options().graph_optimization_level
    assert level == (levels.ORT_ENABLE_ALL if vnni else levels.ORT_DISABLE_ALL)


def test_an_unknown_variant_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown variant 'u4'; allowed are: u8s7, u8u8, s8s8"):
        onnx_file.to_int8(trained.load("minute", "cpu"), tmp_path / "model.onnx", variant="u4")


# ST Edge AI Core 3.0 reads opsets 7 to 20 of ONNX 1.15, ESP-DL 3.2 opset 18, onnxruntime 1.17 IR versions up to 9.
def test_files_keep_to_the_versions_and_operators_of_embedded_toolchains(exports):
    standard = {"Sub", "Div", "Conv", "Relu", "MaxPool", "Add", "ReduceMean", "Gemm", "Unsqueeze"}
    for name in ("minute.onnx", "minute-int8.onnx"):
        model = onnx.load(exports / name)
        assert model.ir_version == 8
        assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
        assert {node.op_type for node in model.graph.node} <= standard | {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture
def assumed_logits(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What every file, of an empty graph, seems to give: the logits of `minute`. So a test need not wait for export."""
    logits = inference.logits(trained.load("minute", "cpu").model, data.sample().test_images).clone()
    monkeypatch.setattr(onnx_file, "_described", lambda _: onnx.ModelProto())
    monkeypatch.setattr(onnx_file, "logits", lambda *_: logits)
    return logits


def test_a_file_that_differs_from_its_original_is_not_written(assumed_logits, tmp_path):
    assumed_logits += 0.01
    with pytest.raises(parity.ParityError, match="differs from its original: 0 of 200 images"):
        onnx_file.to_onnx(trained.load("minute", "cpu"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r'pip install "tinycifar\[export\]"'):
        onnx_file.to_int8(trained.load("minute", "cpu"), tmp_path / "model.onnx")


@pytest.mark.parametrize("fit", catalog.FITS)
@pytest.mark.parametrize("size", [(32, 32), (151, 90), (90, 151)], ids=["small", "wide", "high"])
def test_the_example_with_onnxruntime_alone_sees_and_answers_what_predict_does(
    fit, size, exports, tmp_path, monkeypatch, capsys
):
    image = pictures.to_image(data.sample().test_images[0]).resize(size)
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))))
    path = tmp_path / "picture.png"
    image.save(path)
    seen = []

    class Session(onnxruntime.InferenceSession):
        def get_modelmeta(self) -> SimpleNamespace:
            return SimpleNamespace(custom_metadata_map={**super().get_modelmeta().custom_metadata_map, "fit": fit})

        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> Any:
            seen.append(inputs["images"])
            return super().run(names, inputs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(sys, "argv", ["classify.py", str(exports / "minute.onnx"), str(path)])
    runpy.run_path(str(EXAMPLES / "classify.py"))
    expected_pixels = pictures.to_array(pictures.read(path, fit), 32, fit)
    np.testing.assert_array_equal(np.rint(seen[0][0] * 255).astype(np.uint8), expected_pixels)
    lines = [line.rpartition(" ") for line in capsys.readouterr().out.splitlines()]
    (expected,) = inference.predict(dataclasses.replace(trained.load("minute", "cpu"), fit=fit), [path])
    assert [name for name, _, _ in lines] == [entry["class"] for entry in expected["classes"]]
    percentages = [float(percentage.rstrip("%")) for _, _, percentage in lines]
    assert percentages == pytest.approx([100 * entry["probability"] for entry in expected["classes"]], abs=0.11)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", catalog.shipped())
def test_parity_on_all_test_images(name, tmp_path):
    model, dataset = trained.load(name, "cpu"), data.load()
    expected = inference.logits(model.model, dataset.test_images)
    onnx_file.to_onnx(model, tmp_path / "float.onnx")
    exported = onnx_file.logits(tmp_path / "float.onnx", dataset.test_images)
    assert parity.FLOAT.check(expected, exported, "float").largest_difference <= 1e-3
    accuracy = float((expected.argmax(1) == dataset.test_labels).float().mean())
    for variant in onnx_file.VARIANTS:
        onnx_file.to_int8(model, tmp_path / "int8.onnx", variant=variant)
        quantized = onnx_file.logits(tmp_path / "int8.onnx", dataset.test_images)
        assert float((quantized.argmax(1) == dataset.test_labels).float().mean()) >= accuracy - 0.003


@pytest.mark.usefixtures("assumed_logits")
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_written_over(kind, tmp_path):
    path = tmp_path / "out"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    before = path.stat().st_ino
    with pytest.raises(ValueError, match="exists and is not a file; name a file to write"):
        onnx_file.to_onnx(trained.load("minute", "cpu"), path)
    assert path.stat().st_ino == before
    assert [path] == list(tmp_path.iterdir())


def test_after_exports_in_several_threads_the_process_prints_as_before():
    """A second thread that enters while the first is in, and leaves after it, would restore the first one's silence."""
    stdout, disabled = sys.stdout, logging.root.manager.disable
    first, second = onnx_file._quiet(), onnx_file._quiet()
    first.__enter__()
    thread = threading.Thread(target=second.__enter__, daemon=True)
    thread.start()
    thread.join(0.1)
    first.__exit__(None, None, None)
    thread.join()
    second.__exit__(None, None, None)
    assert (sys.stdout, logging.root.manager.disable) == (stdout, disabled)


@pytest.mark.slow
def test_a_model_of_own_data_is_exported_at_its_size_and_tried_on_its_own_images(own_run, tmp_path):
    model, dataset = trained.load(own_run.directory, "cpu"), own_run.dataset
    exported = onnx_file.to_onnx(model, tmp_path / "own.onnx", dataset)
    assert (exported.parity.images, exported.parity.same_class) == (200, 200)
    int8 = onnx_file.to_int8(model, tmp_path / "int8.onnx", dataset, variant="u8u8")
    expected = inference.logits(model.model, dataset.test_images)
    assert int8.parity == parity.compare(expected, onnx_file.logits(tmp_path / "int8.onnx", dataset.test_images))
    for name in ("own.onnx", "int8.onnx"):
        about = {item.key: item.value for item in onnx.load(tmp_path / name).metadata_props}
        assert json.loads(about["classes"]) == ["käse", "größe <1>", "猫"]
        assert (about["image_size"], about["data"]) == ("24", "mine")
        assert "24x24 pixels" in about["preprocessing"]


def test_ranges_are_those_of_images_that_were_trained_on(own_run, tmp_path, monkeypatch):
    seen: list[torch.Tensor] = []
    quantized = onnx_file.quantized

    def too_narrow_in_seven_bits(model: onnx.ModelProto, images: torch.Tensor, *, variant: str) -> onnx.ModelProto:
        seen.append(images)
        return quantized(model, torch.zeros_like(images) if variant == "u8s7" else images, variant=variant)

    monkeypatch.setattr(onnx_file, "quantized", too_narrow_in_seven_bits)
    model = trained.load(own_run.directory, "cpu")
    found = onnx_file.to_int8(model, tmp_path / "int8.onnx", own_run.dataset)
    assert len(seen) == 2
    assert found.form == "ONNX int8 u8u8, opset 18, IR version 8"
    assert found.parity.relative_error < 0.1
    with pytest.raises(parity.ParityError):
        onnx_file.to_int8(model, tmp_path / "seven.onnx", own_run.dataset, variant="u8s7")
    assert not (tmp_path / "seven.onnx").exists()
    assert torch.equal(seen[0], own_run.dataset.train_images[:340])  # the others were held out


def test_where_own_data_is_gone_or_of_another_size_the_line_says_what_to_name(own_run, tmp_path):
    model = trained.load(own_run.directory, "cpu")
    with pytest.raises(ValueError, match="say where it is now with `data=`"):
        onnx_file.to_onnx(model, tmp_path / "own.onnx")
    with pytest.raises(ValueError, match="run takes images of 24 pixels a side, those of sample have 32"):
        onnx_file.to_onnx(model, tmp_path / "own.onnx", data.sample())
    assert not list(tmp_path.iterdir())
