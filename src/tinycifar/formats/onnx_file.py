"""Trained models as files that run without PyTorch: ONNX, in float and in int8, held against `inference.logits`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinycifar import __version__, atomic, inference, machine
from tinycifar.data import Dataset
from tinycifar.formats import parity, plain
from tinycifar.formats.parity import Exported
from tinycifar.trained import Trained

OPSET = 18
INPUT, LOGITS, ACTIVATION = "images", "logits", "class_activation"
INT8 = "int8"  # the key of the metadata that names the variant of an int8 file
_ONE_AT_A_TIME = threading.Lock()
NEEDED = 'exporting needs more packages: pip install "tinycifar[export]"'


@dataclass(frozen=True)
class Variant:
    """Types of an int8 graph: unsigned or signed, with zero points or symmetric around 0, weights of 7 or 8 bits."""

    signed_activations: bool
    signed_weights: bool
    symmetric: bool = False
    seven_bits: bool = False


VARIANTS = {
    "u8s7": Variant(signed_activations=False, signed_weights=True, seven_bits=True),
    "u8u8": Variant(signed_activations=False, signed_weights=False),
    "s8s8": Variant(signed_activations=True, signed_weights=True, symmetric=True),
}
"""Activations and weights by name: u or s for unsigned or signed, and the bits that are used."""


def to_onnx(trained: Trained, path: Path, dataset: Dataset | None = None) -> Exported:
    """Write an ONNX file of a model in float32: images (N, 3, S, S) of RGB in [0, 1] -> logits, class activation.

    Of a model of grey images they are (N, 1, S, S).
    Its metadata names classes, preprocessing, image size, temperature and data. It is compared on at most
    `parity.COMPARED_IMAGES` test images of `parity.known_data`. Raises `parity.ParityError`, and writes no file, unless
    its logits agree within `parity.FLOAT`; ValueError for a model that cannot be expressed, for missing packages, and
    as `parity.known_data` does.
    """
    dataset = parity.known_data(trained, dataset)
    return _write(trained, path, _described(trained), dataset, parity.FLOAT)


def to_int8(trained: Trained, path: Path, dataset: Dataset | None = None, *, variant: str | None = None) -> Exported:
    """Write an ONNX file whose convolutions are of 8 bits, with one scale per output channel.

    `variant` is one of `VARIANTS`. "u8s7", with unsigned activations and signed weights of 7 bits, is the one that
    onnxruntime computes with VNNI and AMX; with 8 signed bits sums would overflow on processors without them. "u8u8"
    keeps 8 bits of every weight. "s8s8" has no zero points. The default is "u8s7", or "u8u8" for a model that does not
    agree in 7 bits. Ranges of activations are those on at most `parity.CALIBRATION_IMAGES` training images of
    `parity.known_data`. Normalisation and head stay in float32. Raises `parity.ParityError` unless logits agree within
    `parity.INT8`; else as `to_onnx` does.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; allowed are: {', '.join(VARIANTS)}")
    dataset = parity.known_data(trained, dataset)
    calibration = parity.spread_out(dataset.train_images, parity.CALIBRATION_IMAGES)
    described = _described(trained)

    def write(variant: str) -> Exported:
        model = quantized(described, calibration, variant=variant)
        return _write(trained, path, model, dataset, parity.INT8, f"int8 {variant}")

    if variant is not None:
        return write(variant)
    try:
        return write("u8s7")
    except parity.ParityError:
        return write("u8u8")


def float_model(model: plain.Plain) -> Any:
    """A plain model as an `onnx.ModelProto` in float32."""
    _onnx()
    with _quiet(), _naming_what_is_unknown():
        program = torch.onnx.export(
            model.cpu(),
            (torch.zeros(2, len(model.mean), model.image_size, model.image_size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS, ACTIVATION],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]  # where in the exporter's source it came from: of no use, and with local paths
        part.doc_string = ""
    return _finished(proto)


def _finished(proto: Any) -> Any:
    """The model, checked, under our name and as the oldest IR version that has its opset."""
    onnx = _onnx()
    proto.producer_name, proto.producer_version = "tinycifar", __version__
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def quantized(model: Any, calibration: Tensor, *, variant: str) -> Any:
    """An `onnx.ModelProto` as from `float_model` with its convolutions in 8 bits, ranges from images (N, C, S, S).

    `variant` is one of `VARIANTS`, as in `to_int8`.
    """
    types = VARIANTS[variant]
    onnx = _onnx()
    runtime()
    in_float = [node.name for node in model.graph.node if _stays_float(node)]
    with _quiet(), tempfile.TemporaryDirectory() as name:
        from onnxruntime import quantization

        def integer(signed: bool) -> Any:
            return quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8

        source, prepared, target = (str(Path(name) / f"{part}.onnx") for part in ("float", "prepared", "int8"))
        onnx.save(model, source)
        quantization.quant_pre_process(source, prepared, skip_optimization=True)
        quantization.quantize_static(
            prepared,
            target,
            _Calibration(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=types.seven_bits,
            activation_type=integer(types.signed_activations),
            weight_type=integer(types.signed_weights),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=in_float,
            # Zero points that are equal across channels, without which the runtime would go back to float.
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": types.symmetric},
        )
        model = onnx.load(target)
        entry = model.metadata_props.add()
        entry.key, entry.value = INT8, variant
        return _finished(model)


def session(model: Path | bytes, threads: int = 0) -> Any:
    """An onnxruntime session for a file, or its content, on the CPU with that many threads; 0 for its own choice.

    onnxruntime 1.32 sums products of signed 8-bit integers in 16 bits on x86 processors without VNNI. The sums of an
    "s8s8" file overflow there (findings/onnxruntime-s8s8-overflows-without-vnni.sh), so it is not optimized: its
    convolutions are then computed in float on the numbers that the integers stand for, as ONNX defines them.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def open_session() -> Any:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )

    opened = open_session()
    if opened.get_modelmeta().custom_metadata_map.get(INT8) == "s8s8" and not machine.has_vnni():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        opened = open_session()
    return opened


def logits(model: Path | bytes, images: Tensor, batch_size: int = 500) -> Tensor:
    """Logits, float32 (N, num_classes), that an ONNX file or its content gives for images (N, C, S, S).

    They are uint8, or float in [0, 1].
    """
    opened = session(model)
    batches = (inference.to_float(batch).numpy() for batch in torch.split(images, batch_size))
    return torch.cat([torch.from_numpy(opened.run([LOGITS], {INPUT: batch})[0]) for batch in batches])


def _described(trained: Trained) -> Any:
    model = float_model(plain.write_out(trained.model))
    about = parity.metadata(
        trained,
        "float32 in [0, 1], (batch, channel, row, column); nothing else",
        f"{LOGITS}: divide by the temperature, if any, then softmax; {ACTIVATION}: what speaks for a class",
    )
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    _onnx().helper.set_model_props(model, texts)
    return model


def _stays_float(node: Any) -> bool:
    """Whether a node of the float model is its normalisation or its head."""
    return node.op_type in ("Sub", "Div", "ReduceMean", "Gemm") or ACTIVATION in node.output


def _write(
    trained: Trained, path: Path, model: Any, dataset: Dataset, tolerance: parity.Tolerance, kind: str = "float32"
) -> Exported:
    content = model.SerializeToString()
    images = parity.spread_out(dataset.test_images, parity.COMPARED_IMAGES)
    expected, exported = inference.logits(trained.model, images), logits(content, images)
    compared = tolerance.check(expected, exported, "the exported model differs from its original")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, content)
    form = f"ONNX {kind}, opset {model.opset_import[0].version}, IR version {model.ir_version}"
    return Exported(path, len(content), form, f"onnxruntime {runtime().__version__}", compared)


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
    """Keep what exporters log, print and warn of among themselves from the user; in one thread at a time.

    All of this is the process's own: of two threads the second would restore what the first has set.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _naming_what_is_unknown() -> Iterator[None]:
    """Turn what the exporter raises, pages long, into a line that names the operator."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        operator = re.search(r"op='([^']+)'", str(cause))
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        why = f"there is no ONNX operator for {operator[1]}" if operator else lines[0]
        raise ValueError(f"the model cannot be exported to ONNX: {why}") from None


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
