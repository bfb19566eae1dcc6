"""Latency and throughput of inference: ours beside published models, in PyTorch, ONNX and TFLite, in one run."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import torch
from torch import Tensor, nn

from tinycifar import data, inference, machine, metrics, trained
from tinycifar.bench import INFER_ROUNDS
from tinycifar.data.dataset import MEAN, STD
from tinycifar.formats import onnx_file, plain, tflite, tflite_run
from tinycifar.summary import summarize
from tinycifar.trained import Trained
from tinycifar.words import counted, table

BATCH = 256
WARM_UP = 3
CALLS = 10  # of one image, for one measurement
PAUSE_SECONDS = 0.1  # in which the threads of the runtime before stop spinning
ONNX_KINDS = ("onnx", "int8-u8s7", "int8-u8u8", "int8-s8s8")
TFLITE_KINDS = ("tflite", "tflite-int8")
KINDS = ("eager", *ONNX_KINDS, *TFLITE_KINDS)


class Shortcut(nn.Module):
    """A residual block whose input is added through a strided 1x1 convolution."""

    def __init__(self, layers: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, C, H, W) -> (N, 2 C, H / 2, W / 2)."""
        outputs: Tensor = self.layers(inputs) + self.shortcut(inputs)
        return outputs.relu()


def _unit(inputs: int, outputs: int, stride: int = 1, *, bias: bool, relu: bool = True) -> list[nn.Module]:
    norm = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias), nn.BatchNorm2d(outputs)]
    return [*norm, nn.ReLU()] if relu else norm


def _resnet(blocks: int, *, bias: bool) -> plain.Plain:
    layers = _unit(3, 16, bias=bias)
    for outputs, inputs in ((16, 16), (32, 16), (64, 32)):
        for block in range(blocks):
            stride = 2 if block == 0 and outputs > inputs else 1
            first = inputs if block == 0 else outputs
            body = [*_unit(first, outputs, stride, bias=bias), *_unit(outputs, outputs, bias=bias, relu=False)]
            if stride == 1:
                layers.append(plain.Residual(*body))
            else:
                shortcut: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1, 2, bias=bias)]
                if not bias:
                    shortcut.append(nn.BatchNorm2d(outputs))
                layers.append(Shortcut(nn.Sequential(*body), nn.Sequential(*shortcut)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return plain.Plain(mean, std, nn.Sequential(*layers), nn.Linear(64, 10)).eval()


def resnet8() -> plain.Plain:
    """MLPerf Tiny's image classifier with random weights: 78,666 parameters, statistics of normalisations among them.

    Three residual blocks of 16, 32 and 64 channels, convolutions with biases (Banbury et al. 2021, arXiv:2106.07597).
    """
    return _resnet(1, bias=True)


def resnet20() -> plain.Plain:
    """ResNet-20 for CIFAR-10 with random weights and projection shortcuts: 272,474 parameters (He et al. 2016)."""
    return _resnet(3, bias=False)


PUBLISHED: dict[str, Callable[[], plain.Plain]] = {"resnet8": resnet8, "resnet20": resnet20}
SIZES = {  # multiply-accumulates of convolutions and linear layers
    "resnet8": {"parameters": 78_666, "macs": 12_501_632},
    "resnet20": {"parameters": 272_474, "macs": 40_813_184},
}


@dataclass(frozen=True)
class Row:
    """What one model costs in one form.

    `kind` is "eager" (PyTorch), one of `ONNX_KINDS` in onnxruntime, int8 ones by their variant in `onnx_file.VARIANTS`,
    or one of `TFLITE_KINDS` in LiteRT. `macs` are those of an image, `bytes` is the size of the file (None for
    PyTorch), `accuracy` that on all of CIFAR-10's test images (None for models that were not trained on all of its
    training images). `latency_ms` of one image and `images_per_second` in batches of 256 are medians.
    """

    model: str
    parameters: int
    macs: int
    kind: str
    bytes: int | None = None
    accuracy: float | None = None
    latency_ms: float = 0.0
    images_per_second: float = 0.0


@dataclass(frozen=True)
class InferBench:
    """What `bench_infer` measured, every figure in turn with the others.

    What onnxruntime runs has the class activation map as a second output, the other forms have none.
    """

    rows: list[Row]
    rounds: int
    threads: int
    torch_version: str
    onnxruntime_version: str
    device: str
    instruction_set: str
    processor: str
    git_revision: str | None
    date: str


def bench_infer(names: Sequence[str], *, rounds: int = INFER_ROUNDS, accuracy: bool = True) -> InferBench:
    """Time trained models (names as `trained.load` takes) and the published ones, on the CPU, on torch's threads.

    TFLite is timed for trained models, if ai-edge-litert is installed. In every round each model in each form answers
    to one image of its size and to a batch of 256 in turn, after a pause and a call that is not counted. With
    `accuracy` trained models are also scored, but for TFLite. Raises ValueError for fewer than 1 round and as
    `onnx_file.to_onnx` does.
    """
    if rounds < 1:
        raise ValueError("at least 1 round is needed")
    with TemporaryDirectory() as folder:
        models = [trained.load(name, "cpu") for name in names]
        # Each in a folder of its own, as models of several runs may have the same name.
        subjects = [subject for model in models for subject in _ours(model, Path(mkdtemp(dir=folder)), accuracy)]
        subjects += [subject for name in PUBLISHED for subject in _published(name, Path(mkdtemp(dir=folder)))]
        for turn in range(WARM_UP + rounds):
            for subject in subjects:
                latency = _time(subject.call, subject.images[:1], CALLS)
                seconds = _time(subject.call, subject.images, 1)
                if turn >= WARM_UP:
                    subject.latencies.append(latency)
                    subject.batch_seconds.append(seconds)
    rows = [
        replace(
            subject.row,
            latency_ms=1e3 * median(subject.latencies),
            images_per_second=BATCH / median(subject.batch_seconds),
        )
        for subject in subjects
    ]
    import onnxruntime

    return InferBench(
        rows,
        rounds,
        onnxruntime_version=onnxruntime.__version__,
        processor=machine.processor(),
        **machine.measured_on(torch.device("cpu")),
    )


def _time(call: Callable[[Tensor], object], images: Tensor, calls: int) -> float:
    time.sleep(PAUSE_SECONDS)
    call(images)
    start = time.perf_counter()
    for _ in range(calls):
        call(images)
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True, eq=False)
class _Subject:
    """A model in one form: its row without times, what answers to its `images`, a batch, and seconds as measured."""

    row: Row
    call: Callable[[Tensor], object]
    images: Tensor
    latencies: list[float] = field(default_factory=list)
    batch_seconds: list[float] = field(default_factory=list)


def _eager(model: nn.Module) -> Callable[[Tensor], object]:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call(images: Tensor) -> object:
        return model(images.contiguous(memory_format=torch.channels_last))

    return call


def _session(path: Path) -> Callable[[Tensor], object]:
    session = onnx_file.session(path, torch.get_num_threads())
    return lambda images: session.run([onnx_file.LOGITS], {onnx_file.INPUT: images.numpy()})


def _interpreter(path: Path) -> Callable[[Tensor], object]:
    from ai_edge_litert.interpreter import Interpreter

    prepared = {}

    def call(images: Tensor) -> object:
        count = len(images)
        if count not in prepared:
            interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
            (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
            interpreter.resize_tensor_input(source["index"], [count, *source["shape"][1:]])
            interpreter.allocate_tensors()
            levels = (images * 255).round().to(torch.uint8)
            values = np.stack(list(tflite_run.inputs(levels, int8=source["dtype"] == np.int8)))
            prepared[count] = interpreter, source["index"], target["index"], values
        interpreter, source_index, target_index, values = prepared[count]
        interpreter.set_tensor(source_index, values)
        interpreter.invoke()
        return interpreter.get_tensor(target_index)

    return call


def _subjects(
    row: Row, model: nn.Module, paths: dict[str, Path], accuracy: dict[str, float], channels: int = 3, size: int = 32
) -> list[_Subject]:
    images = torch.rand(BATCH, channels, size, size, generator=torch.Generator().manual_seed(0))
    subjects = [_Subject(replace(row, accuracy=accuracy.get("eager")), _eager(model), images)]
    for kind, path in paths.items():
        file_row = replace(row, kind=kind, bytes=path.stat().st_size, accuracy=accuracy.get(kind))
        subjects.append(_Subject(file_row, _interpreter(path) if kind in TFLITE_KINDS else _session(path), images))
    return subjects


def _ours(model: Trained, folder: Path, accuracy: bool) -> list[_Subject]:
    paths = {kind: folder / f"{kind}.onnx" for kind in ONNX_KINDS}
    onnx_file.to_onnx(model, paths["onnx"])
    for kind in ONNX_KINDS[1:]:
        onnx_file.to_int8(model, paths[kind], variant=kind.removeprefix("int8-"))
    scores: dict[str, float] = {}
    if accuracy and model.data == "cifar10" and not model.data_digest and not model.validation_images:
        dataset = data.load(**vars(model.form))
        images, labels = dataset.test_images, dataset.test_labels
        logits = {"eager": inference.logits(model.model, images)}
        logits |= {kind: onnx_file.logits(path, images) for kind, path in paths.items()}
        scores = {kind: metrics.correct_count(values, labels) / len(labels) for kind, values in logits.items()}
    if importlib.util.find_spec("ai_edge_litert"):
        for kind in TFLITE_KINDS:
            paths[kind] = folder / f"{kind}.tflite"
            tflite.to_tflite(model, paths[kind], int8=kind == "tflite-int8")
    summary = summarize(model.model)
    row = Row(model.name, summary.parameters, summary.macs, "eager")
    return _subjects(row, model.model, paths, scores, model.channels, model.image_size)


class _Normalize(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _published(name: str, folder: Path) -> list[_Subject]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PUBLISHED[name]()
    proto = onnx_file.float_model(model)
    paths = {}
    for kind in ONNX_KINDS:
        calibration, variant = data.sample().train_images, kind.removeprefix("int8-")
        of_kind = proto if kind == "onnx" else onnx_file.quantized(proto, calibration, variant=variant)
        paths[kind] = folder / f"{kind}.onnx"
        paths[kind].write_bytes(of_kind.SerializeToString())
    logits_alone = nn.Sequential(_Normalize(model.mean, model.std), model.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _subjects(Row(name, kind="eager", **SIZES[name]), logits_alone.append(model.head), paths, {})


def render(bench: InferBench) -> str:
    """Lay a measurement out as lines of text."""
    rows = [["model", "in", "kB", "accuracy", "ms, one image", f"images/s by {BATCH}"]]
    for row in bench.rows:
        size = "" if row.bytes is None else f"{row.bytes / 1000:.0f}"
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
        rows.append([row.model, row.kind, size, accuracy, f"{row.latency_ms:.3f}", f"{row.images_per_second:,.0f}"])
    heading = (
        f"{bench.processor}, {counted(bench.threads, 'thread')}, torch {bench.torch_version}, onnxruntime "
        f"{bench.onnxruntime_version}; medians of {bench.rounds} rounds in turn"
    )
    return "\n".join([heading, *table(rows)])
