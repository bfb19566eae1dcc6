"""Trained models as files that run without PyTorch: ONNX, in float and in int8, held against `inference.logits`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinycifar import __version__, atomic, data, inference
from tinycifar.data import Dataset
from tinycifar.formats import plain
from tinycifar.trained import Trained

OPSET = 18
INPUT, LOGITS, ACTIVATION = "images", "logits", "class_activation"
MOST_DIFFERENCE = 1e-3
LEAST_MARGIN = 1e-4  # between the two largest logits, below which either may come out on top
LEAST_AGREEMENT = 0.9  # of int8 with float, unless its logits are as close as this: then these are nearly alike,
MOST_ERROR = 0.1  # as they are where classes are many or hardly learned; shipped models have errors of 0.03
MOST_CALIBRATION, MOST_COMPARED = 400, 200  # images, as many as the sample has
NEEDED = 'exporting needs more packages: pip install "tinycifar[export]"'


@dataclass(frozen=True)
class Parity:
    """How an exported model's logits compare with `inference.logits` on `images` images.

    `largest_difference` is that of any logit, `same_class` how many images have the same most probable class, and
    `undecided` how many of the others have two largest logits closer than `LEAST_MARGIN`.
    """

    images: int
    largest_difference: float
    same_class: int
    undecided: int

    @property
    def agreement(self) -> float:
        """The part of the images with the same most probable class, undecided ones counted as such."""
        return (self.same_class + self.undecided) / self.images


@dataclass(frozen=True)
class Exported:
    """A file that was written, its size in bytes and opset, and how it compares with the model it was made from."""

    path: Path
    size: int
    opset: int
    parity: Parity


class ParityError(Exception):
    """An exported model that does not do what its original does; it is not written."""


def parity(expected: Tensor, found: Tensor) -> Parity:
    """Compare logits, each (N, num_classes), `expected` being those of `inference.logits`."""
    same = expected.argmax(1) == found.argmax(1)
    largest = expected.topk(min(2, expected.shape[1]), dim=1).values
    return Parity(
        images=len(expected),
        largest_difference=float((expected - found).abs().max()),
        same_class=int(same.sum()),
        undecided=int((~same & (largest[:, 0] - largest[:, -1] < LEAST_MARGIN)).sum()),
    )


def disagrees(found: Parity, least_agreement: float) -> bool:
    """Whether more images get another class than may; where any may, of very few one may."""
    others = found.images - found.same_class - found.undecided
    return found.agreement < least_agreement and others > (least_agreement < 1)


def relative_error(expected: Tensor, found: Tensor) -> float:
    """The root mean square of how logits (N, C) differ, as a part of that of an image's logits around their mean."""
    spread = (expected - expected.mean(1, keepdim=True)).square().mean().sqrt()
    return float((expected - found).square().mean().sqrt() / spread)


def known_data(trained: Trained, dataset: Dataset | None = None) -> Dataset:
    """What a model's exports are tried on: `dataset`, by default its own data or, of CIFAR-10, the sample.

    Of its own data the training images are those that it was trained on. Raises ValueError where that is gone or has
    changed, and for images of another size.
    """
    if dataset is None:
        dataset = trained.dataset() if trained.data_digest else data.sample(trained.image_size)
    if dataset.image_size != trained.image_size:
        raise ValueError(
            f"{trained.name} takes images of {trained.image_size} pixels a side, those of {dataset.name} have "
            f"{dataset.image_size}"
        )
    own = trained.data_digest and trained.trained_on(dataset) and dataset.validation_images is None
    return dataset.split(trained.validation_images) if own else dataset


def some(rows: Tensor, most: int) -> Tensor:
    """At most that many of the rows (N, ...), from all over them: images of a folder are in the order of classes."""
    count = min(most, len(rows))
    return rows[torch.arange(count) * len(rows) // count]


def to_onnx(trained: Trained, path: Path, dataset: Dataset | None = None) -> Exported:
    """Write an ONNX file of a model in float32: images (N, 3, S, S) of RGB in [0, 1] -> logits, class activation.

    Its metadata names classes, preprocessing, image size, temperature and data. It is tried on at most `MOST_COMPARED`
    test images of `known_data`. Raises ParityError, and writes no file, where its logits are off by more than
    `MOST_DIFFERENCE` or name another class; ValueError for a model that cannot be written out, where packages are
    missing, and as `known_data` does.
    """
    images = some(known_data(trained, dataset).test_images, MOST_COMPARED)
    return _write(trained, path, _described(trained), images, least_agreement=1.0, most_difference=MOST_DIFFERENCE)


def to_int8(trained: Trained, path: Path, dataset: Dataset | None = None, *, signed: bool = False) -> Exported:
    """Write an ONNX file whose convolutions are of 8 bits: unsigned activations, and unsigned weights per channel.

    With `signed` weights are signed and of 7 bits, for which onnxruntime uses VNNI and AMX where a processor has them;
    with 8 signed bits, sums would overflow on processors that have not. The ranges of activations are those on at most
    `MOST_CALIBRATION` training images of `known_data`. Normalisation and head stay in float32. Raises ParityError, and
    writes no file, where less than `LEAST_AGREEMENT` of the test images keep their class and logits are off by more
    than `MOST_ERROR`; else as `to_onnx` does.
    """
    dataset = known_data(trained, dataset)
    model = quantized(_described(trained), some(dataset.train_images, MOST_CALIBRATION), signed=signed)
    images = some(dataset.test_images, MOST_COMPARED)
    return _write(trained, path, model, images, least_agreement=LEAST_AGREEMENT, most_error=MOST_ERROR)


def float_model(model: plain.Plain) -> Any:
    """A plain model as an `onnx.ModelProto` in float32."""
    onnx = _onnx()
    with _quiet():
        program = torch.onnx.export(
            model.cpu(),
            (torch.zeros(2, 3, model.image_size, model.image_size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS, ACTIVATION],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    found = program.model_proto
    graph = found.graph
    for part in (found, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]  # where in the exporter's source it came from: of no use, and with local paths
        part.doc_string = ""
    found.producer_name, found.producer_version = "tinycifar", __version__
    onnx.checker.check_model(found, full_check=True)
    return found


def quantized(model: Any, calibration: Tensor, *, signed: bool = False) -> Any:
    """An `onnx.ModelProto` as from `float_model` with its convolutions in 8 bits, ranges from images (N, 3, S, S).

    `signed` as in `to_int8`.
    """
    onnx = _onnx()
    runtime()
    in_float = [node.name for node in model.graph.node if _stays_float(node)]
    with _quiet(), tempfile.TemporaryDirectory() as name:
        from onnxruntime import quantization

        source, prepared, target = (str(Path(name) / f"{part}.onnx") for part in ("float", "prepared", "int8"))
        onnx.save(model, source)
        quantization.quant_pre_process(source, prepared, skip_optimization=True)
        quantization.quantize_static(
            prepared,
            target,
            _Calibration(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=signed,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=in_float,
            # Zero points that are equal across channels, without which the runtime would go back to float.
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        return onnx.load(target)


def session(model: Path | bytes, threads: int = 0) -> Any:
    """An onnxruntime session for a file, or its content, on the CPU with that many threads; 0 for its own choice."""
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def logits(model: Path | bytes, images: Tensor, batch_size: int = 500) -> Tensor:
    """Logits, float32 (N, num_classes), that an ONNX file or its content gives for images (N, 3, S, S).

    They are uint8, or float in [0, 1].
    """
    opened = session(model)
    batches = (inference.to_float(batch).numpy() for batch in torch.split(images, batch_size))
    return torch.cat([torch.from_numpy(opened.run([LOGITS], {INPUT: batch})[0]) for batch in batches])


def _described(trained: Trained) -> Any:
    model = float_model(plain.write_out(trained.model))
    size = trained.image_size
    about = {
        "model": trained.model_name,
        "recipe": trained.recipe,
        "data": data_name(trained),
        "image_size": json.dumps(size),
        "classes": json.dumps(trained.classes),
        "preprocessing": f"RGB, {size}x{size} pixels, float32 in [0, 1], (batch, channel, row, column); nothing else",
        "temperature": json.dumps(trained.temperature),
        "outputs": f"{LOGITS}: divide by the temperature, if any, then softmax; {ACTIVATION}: what speaks for a class",
        "weights_sha256": trained.sha256,
    }
    _onnx().helper.set_model_props(model, about)
    return model


def data_name(trained: Trained) -> str:
    """What a model's data is called, without where it lies on this machine."""
    return Path(trained.data).name if trained.data_digest or trained.data == "sample" else "cifar10"


def _stays_float(node: Any) -> bool:
    """Whether a node of the float model is its normalisation or its head."""
    return node.op_type in ("Sub", "Div", "ReduceMean", "Gemm") or ACTIVATION in node.output


def _write(
    trained: Trained,
    path: Path,
    model: Any,
    images: Tensor,
    *,
    least_agreement: float,
    most_error: float = 0.0,
    most_difference: float = math.inf,
) -> Exported:
    content = model.SerializeToString()
    expected, exported = inference.logits(trained.model, images), logits(content, images)
    found = parity(expected, exported)
    differs = disagrees(found, least_agreement) and not relative_error(expected, exported) <= most_error
    if differs or not found.largest_difference <= most_difference:
        raise ParityError(
            f"the exported model differs from its original: {found.images - found.same_class} of {found.images} images "
            f"get another class, logits differ by up to {found.largest_difference:.2g}; it is not written"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, content)
    return Exported(path, len(content), OPSET, found)


class _Calibration:
    """Images as onnxruntime's calibration reads them, batch after batch."""

    def __init__(self, images: Tensor) -> None:
        self.batches: Iterator[dict[str, np.ndarray[Any, Any]]] = iter(
            [{INPUT: inference.to_float(batch).numpy()} for batch in torch.split(images, 100)]
        )

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self.batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters log, print and warn of among themselves from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError:
        raise ValueError(NEEDED) from None
    return onnx


def runtime() -> Any:
    """The package onnxruntime; ValueError, saying how to install it, where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(NEEDED) from None
    return onnxruntime
