"""TFLite files against the model, in LiteRT, in TFLite Micro and in our own interpreter."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import Own
from formats.test_plain import TAIL, set_statistics
from tinycifar import catalog, data, inference, models, trained
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import flat, parity, tflite, tflite_run


def odd() -> models.Classifier:
    """A model with padding that TFLite lacks, groups, dilation, oblong kernels, and no bias in its head."""
    return models.Classifier(
        nn.Conv2d(3, 12, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(12, 24, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=2, dilation=2, groups=24),
        nn.ReLU(),
        nn.Conv2d(48, 16, 3, padding="same"),
        nn.MaxPool2d(2, stride=1, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10, bias=False),
    )


def as_trained(model: models.Classifier) -> trained.Trained:
    """A model with statistics that matter, as if it had been trained."""
    set_statistics(model)
    about = {"model_name": "odd", "recipe": "minute", "classes": CLASSES, "data": "sample", "validation_images": 0}
    return trained.Trained(**about, model=model.eval(), name="odd", source="odd", sha256="0" * 64)


def make(name: str) -> trained.Trained:
    torch.manual_seed(0)
    if name in models.MODELS:
        return as_trained(models.build(name))
    return as_trained(odd()) if name == "odd" else trained.load(name, "cpu")


def in_tflite_micro(content: bytes, images: Tensor) -> Tensor:
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="tflite-micro is not installed")
    interpreter = runtime.Interpreter.from_bytes(content)
    (graph,) = flat.read(content)["subgraphs"]
    output = graph["tensors"][graph["outputs"][0]]
    rows = []
    for image in tflite_run.inputs(images, int8=output["type"] == tflite.INT8):
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        rows.append(torch.from_numpy(interpreter.get_output(0).astype(np.float64)))
    logits = torch.cat(rows)
    if output["type"] == tflite.INT8:
        logits = (logits - int(output["quantization"]["zero_point"][0])) * float(output["quantization"]["scale"][0])
    return logits.float()


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("name", ["nano", pytest.param("c1c2c3c4o", marks=pytest.mark.slow), "odd"])
def test_a_file_gives_the_logits_of_its_model_in_every_interpreter(name, int8, tmp_path):
    model = make(name)
    exported = tflite.to_tflite(model, tmp_path / "model.tflite", int8=int8)
    content = exported.path.read_bytes()
    assert exported.size == len(content)
    assert exported.form == ("TFLite int8" if int8 else "TFLite float32")
    images = data.sample().test_images[:40]
    expected = inference.logits(model.model, images)
    tolerance = parity.INT8 if int8 else parity.FLOAT
    tolerance.check(expected, tflite_run.logits(content, images), "tinycifar's own interpreter")
    tolerance.check(expected, in_tflite_micro(content, images), "TFLite Micro")
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    assert exported.runtime.startswith("ai-edge-litert 2.")
    tolerance.check(expected, tflite.logits(content, images)[0], "LiteRT")


def test_of_an_int8_file_sums_are_exact_so_that_own_logits_are_within_a_step_of_litert(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    path = tflite.to_tflite(trained.load("minute", "cpu"), tmp_path / "model.tflite").path
    images = data.sample().test_images[:40]
    (graph,) = flat.read(path.read_bytes())["subgraphs"]
    step = float(graph["tensors"][graph["outputs"][0]]["quantization"]["scale"][0])
    difference = (tflite.logits(path.read_bytes(), images)[0] - tflite_run.logits(path.read_bytes(), images)).abs()
    assert float(difference.max()) <= 2.01 * step


def test_without_litert_a_file_is_compared_in_our_own_interpreter(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    exported = tflite.to_tflite(make("odd"), tmp_path / "model.tflite")
    assert exported.runtime == "tinycifar's own interpreter"
    assert exported.parity.images == 200


def test_without_flatbuffers_it_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match=r'pip install "tinycifar\[tflite\]"'):
        tflite.to_tflite(trained.load("nano", "cpu"), tmp_path / "model.tflite")


def test_the_file_has_int8_at_both_ends_and_says_what_it_is(tmp_path):
    model = trained.load("nano", "cpu")
    content = tflite.to_tflite(model, tmp_path / "nano.tflite").path.read_bytes()
    table = flat.read(content)
    (graph,) = table["subgraphs"]
    source, target = (graph["tensors"][graph[key][0]] for key in ("inputs", "outputs"))
    assert (source["name"], source["shape"].tolist(), source["type"]) == ("images", [1, 32, 32, 3], tflite.INT8)
    assert (target["name"], target["shape"].tolist(), target["type"]) == ("logits", [1, 10], tflite.INT8)
    assert source["quantization"]["zero_point"].tolist() == [-128]
    assert source["quantization"]["scale"].tolist() == [np.float32(1 / 255)]
    assert {tensor["type"] for tensor in graph["tensors"]} == {tflite.INT8, tflite.INT32}
    (entry,) = table["metadata"]
    about = json.loads(table["buffers"][entry["buffer"]]["data"].tobytes())
    assert (entry["name"], about["classes"], about["temperature"]) == ("tinycifar", list(CLASSES), model.temperature)
    assert "minus 128" in about["preprocessing"]
    (signature,) = table["signature_defs"]
    assert signature["signature_key"] == "serving_default"
    assert str(Path.home()).encode() not in content


def test_every_buffer_is_aligned_to_the_16_bytes_that_the_schema_demands(tmp_path):
    content = tflite.to_tflite(trained.load("nano", "cpu"), tmp_path / "nano.tflite").path.read_bytes()
    start = np.frombuffer(content, np.uint8).ctypes.data
    buffers = [buffer["data"] for buffer in flat.read(content)["buffers"] if len(buffer["data"])]
    assert len(buffers) > 20
    assert {(data.ctypes.data - start) % 16 for data in buffers} == {0}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.SiLU()], "TFLite cannot express SiLU; it can express: Conv2d, "),
        ([nn.AvgPool2d(2)], "TFLite cannot express AvgPool2d"),
        ([nn.MaxPool2d(2, ceil_mode=True)], "TFLite cannot express MaxPool2d with ceil_mode=True"),
        ([nn.MaxPool2d(2, dilation=2)], "TFLite cannot express MaxPool2d with dilation=2"),
        ([nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")], "Conv2d with padding_mode='reflect'"),
    ],
)
def test_a_layer_or_argument_that_cannot_be_expressed_is_named_and_nothing_is_written(layers, message, tmp_path):
    model = as_trained(models.Classifier(nn.Conv2d(3, 8, 3), *layers, *TAIL))
    with pytest.raises(ValueError, match=message):
        tflite.to_tflite(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_from_its_model_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "logits", lambda content, images: (torch.zeros(len(images), 10), "nothing"))
    with pytest.raises(parity.ParityError, match="differs from its original"):
        tflite.to_tflite(trained.load("nano", "cpu"), tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["own_run", "thousand"])
def test_files_of_other_sizes_and_of_a_thousand_classes_agree(name, tmp_path, request):
    own: Own = request.getfixturevalue(name)
    exported = tflite.to_tflite(trained.load(own.directory, "cpu"), tmp_path / "own.tflite", own.dataset)
    table = flat.read(exported.path.read_bytes())
    about = json.loads(table["buffers"][table["metadata"][0]["buffer"]]["data"].tobytes())
    assert (about["classes"], about["image_size"]) == (list(own.dataset.classes), own.dataset.image_size)
    assert exported.parity.images == 200


def test_channels_without_weights_and_biases_beyond_int32_are_quantised(tmp_path):
    model = make("odd")
    first = model.model[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.weight[0] = 0
        first.weight[1] *= 1e-12
        first.bias[:2] = 1.0
    tflite.to_tflite(model, tmp_path / "model.tflite")


@pytest.mark.parametrize("kind", ["tflite", "tflite-float"])
def test_the_command_writes_a_file_and_reports_the_interpreter(tinycifar, kind, tmp_path):
    done = tinycifar("export", "nano", "--format", kind)
    assert (done.code, done.err) == (0, "")
    path = Path("exports") / ("nano-int8.tflite" if kind == "tflite" else "nano.tflite")
    assert done.out.startswith(f"{path}: {path.stat().st_size:,} bytes, TFLite ")
    assert "Against PyTorch on 200 images, in " in done.out


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", catalog.shipped())
def test_a_shipped_model_keeps_its_accuracy_on_all_test_images(name, tmp_path):
    model, dataset = trained.load(name, "cpu"), data.load()
    path = tflite.to_tflite(model, tmp_path / "model.tflite").path
    logits, _ = tflite.logits(path.read_bytes(), dataset.test_images)
    accuracies = [
        float((values.argmax(1) == dataset.test_labels).float().mean())
        for values in (inference.logits(model.model, dataset.test_images), logits)
    ]
    assert accuracies[1] >= accuracies[0] - 0.003
