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

from tinycifar import __version__, data, inference, plain, run
from tinycifar.trained import Trained

OPSET = 18
INPUT, LOGITS, ACTIVATION = "images", "logits", "class_activation"
MOST_DIFFERENCE = 1e-3
LEAST_MARGIN = 1e-4  # between the two largest logits, below which either may come out on top
LEAST_AGREEMENT = 0.9  # of int8 with float, on the sample's images
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


def to_onnx(trained: Trained, path: Path) -> Exported:
    """Write an ONNX file of a model in float32: images (N, 3, 32, 32) of RGB in [0, 1] -> logits, class activation.

    Its metadata names classes, preprocessing and temperature. Raises ParityError, and writes no file, where its logits
    on the sample's test images are off by more than `MOST_DIFFERENCE` or name another class; ValueError for a model
    that cannot be written out or where packages are missing.
    """
    return _write(trained, path, _described(trained), least_agreement=1.0, most_difference=MOST_DIFFERENCE)


def to_int8(trained: Trained, path: Path, calibration: Tensor | None = None, *, signed: bool = False) -> Exported:
    """Write an ONNX file whose convolutions are of 8 bits: unsigned activations, and unsigned weights per channel.

    With `signed` weights are signed and of 7 bits, for which onnxruntime uses VNNI and AMX where a processor has them;
    with 8 signed bits, sums would overflow on processors that have not. The ranges of activations are those on
    `calibration`, uint8 (N, 3, 32, 32), by default the sample's training images. Normalisation and head stay in
    float32. Raises ParityError, and writes no file, where on the sample less than `LEAST_AGREEMENT` of the images keep
    their class; ValueError as `to_onnx` does.
    """
    if calibration is None:
        calibration = data.sample().train_images
    model = quantized(_described(trained), calibration, signed=signed)
    return _write(trained, path, model, least_agreement=LEAST_AGREEMENT)


def float_model(model: plain.Plain) -> Any:
    """A plain model as an `onnx.ModelProto` in float32."""
    onnx = _onnx()
    with _quiet():
        program = torch.onnx.export(
            model.cpu(),
            (torch.zeros(2, 3, 32, 32),),
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
    """An `onnx.ModelProto` as from `float_model` with its convolutions in 8 bits, ranges from images (N, 3, 32, 32).

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
    """Logits, float32 (N, num_classes), that an ONNX file or its content gives for images (N, 3, 32, 32).

    They are uint8, or float in [0, 1].
    """
    opened = session(model)
    batches = (inference.to_float(batch).numpy() for batch in torch.split(images, batch_size))
    return torch.cat([torch.from_numpy(opened.run([LOGITS], {INPUT: batch})[0]) for batch in batches])


def _described(trained: Trained) -> Any:
    model = float_model(plain.write_out(trained.model))
    about = {
        "model": trained.model_name,
        "recipe": trained.recipe,
        "classes": json.dumps(trained.classes),
        "preprocessing": "RGB, 32x32 pixels, float32 in [0, 1], (batch, channel, row, column); nothing else",
        "temperature": json.dumps(trained.temperature),
        "outputs": f"{LOGITS}: divide by the temperature, if any, then softmax; {ACTIVATION}: what speaks for a class",
        "weights_sha256": trained.sha256,
    }
    _onnx().helper.set_model_props(model, about)
    return model


def _stays_float(node: Any) -> bool:
    """Whether a node of the float model is its normalisation or its head."""
    return node.op_type in ("Sub", "Div", "ReduceMean", "Gemm") or ACTIVATION in node.output


def _write(
    trained: Trained, path: Path, model: Any, *, least_agreement: float, most_difference: float = math.inf
) -> Exported:
    content = model.SerializeToString()
    images = data.sample().test_images
    found = parity(inference.logits(trained.model, images), logits(content, images))
    if found.agreement < least_agreement or not found.largest_difference <= most_difference:
        raise ParityError(
            f"the exported model differs from its original: {found.images - found.same_class} of {found.images} images "
            f"get another class, logits differ by up to {found.largest_difference:.2g}; it is not written"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    run.write_bytes(path, content)
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
