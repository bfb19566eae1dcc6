"""Latency and throughput of inference: ours beside published models, in PyTorch, ONNX and TFLite, in one run."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from tinycifar import data, inference, machine, metrics, trained
from tinycifar.bench import INFER_ROUNDS
from tinycifar.data.dataset import MEAN, STD
from tinycifar.formats import onnx_file, plain, tflite, tflite_run
from tinycifar.summary import summarize
from tinycifar.trained import Trained

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
    to one image and to a batch of 256 in turn, after a pause and a call that is not counted. With `accuracy` trained
    models are also scored, but for TFLite. Raises ValueError for fewer than 1 round and as `onnx_file.to_onnx` does.
    """
    if rounds < 1:
        raise ValueError("at least 1 round is needed")
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        models = [trained.load(name, "cpu") for name in names]
        subjects = [subject for model in models for subject in _ours(model, Path(folder), accuracy)]
        subjects += [subject for name in PUBLISHED for subject in _published(name, Path(folder))]
        single, batch = images[:1], images
        seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in subjects]
        for turn in range(WARM_UP + rounds):
            for (_, call), (singles, batches) in zip(subjects, seconds, strict=True):
                timings = _time(call, single, CALLS), _time(call, batch, 1)
                if turn >= WARM_UP:
                    singles.append(timings[0])
                    batches.append(timings[1])
    rows = [
        replace(row, latency_ms=1e3 * median(singles), images_per_second=BATCH / median(batches))
        for (row, _), (singles, batches) in zip(subjects, seconds, strict=True)
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


Subject = tuple[Row, Callable[[Tensor], object]]


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


def _subjects(row: Row, model: nn.Module, paths: dict[str, Path], accuracy: dict[str, float]) -> list[Subject]:
    calls = {"eager": _eager(model)}
    calls |= {kind: _interpreter(path) if kind in TFLITE_KINDS else _session(path) for kind, path in paths.items()}
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    return [
        (replace(row, kind=kind, bytes=sizes.get(kind), accuracy=accuracy.get(kind)), call)
        for kind, call in calls.items()
    ]


def _ours(model: Trained, folder: Path, accuracy: bool) -> list[Subject]:
    paths = {kind: folder / f"{model.name}-{kind}.onnx" for kind in ONNX_KINDS}
    onnx_file.to_onnx(model, paths["onnx"])
    for kind in ONNX_KINDS[1:]:
        onnx_file.to_int8(model, paths[kind], variant=kind.removeprefix("int8-"))
    scores: dict[str, float] = {}
    if accuracy and model.data == "cifar10" and not model.data_digest and not model.validation_images:
        dataset = data.load()
        images, labels = dataset.test_images, dataset.test_labels
        logits = {"eager": inference.logits(model.model, images)}
        logits |= {kind: onnx_file.logits(path, images) for kind, path in paths.items()}
        scores = {kind: metrics.correct_count(values, labels) / len(labels) for kind, values in logits.items()}
    if importlib.util.find_spec("ai_edge_litert"):
        for kind in TFLITE_KINDS:
            paths[kind] = folder / f"{model.name}-{kind}.tflite"
            tflite.to_tflite(model, paths[kind], int8=kind == "tflite-int8")
    table = summarize(model.model)
    return _subjects(Row(model.name, table.parameters, table.macs, "eager"), model.model, paths, scores)


class _Normalize(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _published(name: str, folder: Path) -> list[Subject]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PUBLISHED[name]()
    paths = {kind: folder / f"{name}-{kind}.onnx" for kind in ONNX_KINDS}
    proto = onnx_file.float_model(model)
    paths["onnx"].write_bytes(proto.SerializeToString())
    for kind in ONNX_KINDS[1:]:
        variant = kind.removeprefix("int8-")
        model_of_kind = onnx_file.quantized(proto, data.sample().train_images, variant=variant)
        paths[kind].write_bytes(model_of_kind.SerializeToString())
    logits_alone = nn.Sequential(_Normalize(model.mean, model.std), model.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _subjects(Row(name, kind="eager", **SIZES[name]), logits_alone.append(model.head), paths, {})


def render(bench: InferBench) -> str:
    """Lay a measurement out as lines of text."""
    lines = [
        f"{bench.processor}, {bench.threads} threads, torch {bench.torch_version}, onnxruntime "
        f"{bench.onnxruntime_version}; medians of {bench.rounds} rounds in turn",
        f"{'model':<12} {'in':<12} {'kB':>7} {'accuracy':>9} {'ms, one image':>14} {'images/s by 256':>16}",
    ]
    for row in bench.rows:
        size = "" if row.bytes is None else f"{row.bytes / 1000:.0f}"
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
        lines.append(
            f"{row.model:<12} {row.kind:<12} {size:>7} {accuracy:>9} {row.latency_ms:>14.3f} "
            f"{row.images_per_second:>16,.0f}"
        )
    return "\n".join(lines)
