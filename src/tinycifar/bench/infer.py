"""Latency and throughput of inference: ours beside published models, in PyTorch, ONNX and int8, in turn in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tinycifar import data, inference, machine, metrics, trained
from tinycifar.data.dataset import MEAN, STD
from tinycifar.formats import onnx_file, plain
from tinycifar.summary import summarize
from tinycifar.trained import Trained

BATCH = 256
ROUNDS = 30
WARM_UP = 3
CALLS = 10  # of one image, for one measurement
PAUSE_SECONDS = 0.1  # in which the threads of the runtime before stop spinning
KINDS = ("eager", "onnx", "int8-u8s7", "int8-u8u8", "int8-s8s8")


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
class InferBench:
    """What `bench_infer` measured, every figure in turn with the others.

    A row has the `model`, its `kind` ("eager" is PyTorch, the others onnxruntime, int8 ones by their variant in
    `onnx_file.VARIANTS`), `parameters`, `macs` an image, `bytes` of its file (None for eager), `latency_ms` of one
    image and `images_per_second` in batches of 256, medians, and `accuracy` on all of CIFAR-10's test images, None for
    models that were not trained on all of its training images. What onnxruntime runs has the class activation map as a
    second output, PyTorch's forms have none.
    """

    rows: list[dict[str, Any]]
    rounds: int
    threads: int
    torch_version: str
    onnxruntime_version: str
    device: str
    instruction_set: str
    git_revision: str | None
    date: str


def bench_infer(names: Sequence[str], *, rounds: int = ROUNDS, accuracy: bool = True) -> InferBench:
    """Time trained models (names as `trained.load` takes) and the published ones, on the CPU, on torch's threads.

    In every round each model in each form answers to one image and to a batch of 256 in turn, after a pause and a call
    that is not counted. With `accuracy` ours are also scored. Raises ValueError for fewer than 1 round and as
    `onnx_file.to_onnx` does.
    """
    if rounds < 1:
        raise ValueError("at least 1 round is needed")
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        models = [trained.load(name, "cpu") for name in names]
        subjects = [subject for model in models for subject in _ours(model, Path(folder), accuracy)]
        subjects += [subject for name in PUBLISHED for subject in _published(name, Path(folder))]
        one, many = images[:1], images
        seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in subjects]
        for turn in range(WARM_UP + rounds):
            for (_, call), (singles, batches) in zip(subjects, seconds, strict=True):
                found = _time(call, one, CALLS), _time(call, many, 1)
                if turn >= WARM_UP:
                    singles.append(found[0])
                    batches.append(found[1])
    rows = [
        {**about, "latency_ms": 1e3 * median(singles), "images_per_second": BATCH / median(batches)}
        for (about, _), (singles, batches) in zip(subjects, seconds, strict=True)
    ]
    import onnxruntime

    known = machine.environment(torch.device("cpu"))
    return InferBench(
        rows,
        rounds,
        onnxruntime_version=onnxruntime.__version__,
        **{name: known[name] for name in machine.MEASURED_ON},
    )


def _time(call: Callable[[Tensor], object], images: Tensor, calls: int) -> float:
    time.sleep(PAUSE_SECONDS)
    call(images)
    start = time.perf_counter()
    for _ in range(calls):
        call(images)
    return (time.perf_counter() - start) / calls


Subject = tuple[dict[str, Any], Callable[[Tensor], object]]


def _eager(model: nn.Module) -> Callable[[Tensor], object]:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call(images: Tensor) -> object:
        return model(images.contiguous(memory_format=torch.channels_last))

    return call


def _session(path: Path) -> Callable[[Tensor], object]:
    session = onnx_file.session(path, torch.get_num_threads())
    return lambda images: session.run([onnx_file.LOGITS], {onnx_file.INPUT: images.numpy()})


def _subjects(
    about: dict[str, Any], model: nn.Module, paths: dict[str, Path], accuracy: dict[str, float] | None = None
) -> list[Subject]:
    calls = {"eager": _eager(model), **{kind: _session(path) for kind, path in paths.items()}}
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    scores = accuracy or {}
    return [
        ({**about, "kind": kind, "bytes": sizes.get(kind), "accuracy": scores.get(kind)}, call)
        for kind, call in calls.items()
    ]


def _ours(model: Trained, folder: Path, accuracy: bool) -> list[Subject]:
    paths = {kind: folder / f"{model.name}-{kind}.onnx" for kind in KINDS[1:]}
    onnx_file.to_onnx(model, paths["onnx"])
    for kind in KINDS[2:]:
        onnx_file.to_int8(model, paths[kind], variant=kind.removeprefix("int8-"))
    table = summarize(model.model)
    scores = None
    if accuracy and model.data == "cifar10" and not model.data_digest and not model.validation_images:
        dataset = data.load()
        images, labels = dataset.test_images, dataset.test_labels
        logits = {"eager": inference.logits(model.model, images)}
        logits |= {kind: onnx_file.logits(path, images) for kind, path in paths.items()}
        scores = {kind: metrics.correct_count(values, labels) / len(labels) for kind, values in logits.items()}
    return _subjects(
        {"model": model.name, "parameters": table.parameters, "macs": table.macs}, model.model, paths, scores
    )


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
    paths = {kind: folder / f"{name}-{kind}.onnx" for kind in KINDS[1:]}
    proto = onnx_file.float_model(model)
    paths["onnx"].write_bytes(proto.SerializeToString())
    for kind in KINDS[2:]:
        variant = kind.removeprefix("int8-")
        model_of_kind = onnx_file.quantized(proto, data.sample().train_images, variant=variant)
        paths[kind].write_bytes(model_of_kind.SerializeToString())
    logits_alone = nn.Sequential(_Normalize(model.mean, model.std), model.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _subjects({"model": name, **SIZES[name]}, logits_alone.append(model.head), paths)


def render(bench: InferBench) -> str:
    """Lay a measurement out as lines of text."""
    lines = [
        f"{bench.device}, {bench.instruction_set}, {bench.threads} threads, torch {bench.torch_version}, "
        f"onnxruntime {bench.onnxruntime_version}; medians of {bench.rounds} rounds in turn",
        f"{'model':<12} {'in':<12} {'kB':>7} {'accuracy':>9} {'ms, one image':>14} {'images/s by 256':>16}",
    ]
    for row in bench.rows:
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1000:.0f}"
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        lines.append(
            f"{row['model']:<12} {row['kind']:<12} {size:>7} {accuracy:>9} {row['latency_ms']:>14.3f} "
            f"{row['images_per_second']:>16,.0f}"
        )
    return "\n".join(lines)
