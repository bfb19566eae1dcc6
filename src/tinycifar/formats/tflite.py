"""Trained models as TFLite files, in int8 and in float, written without a converter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinycifar import __version__, atomic, inference
from tinycifar.data import Dataset
from tinycifar.formats import flat, parity, plain, quantize, tflite_run
from tinycifar.formats import steps as graph
from tinycifar.formats.parity import Exported
from tinycifar.formats.quantize import Quantization
from tinycifar.formats.steps import Step
from tinycifar.trained import Trained

IMAGES, LOGITS = "images", "logits"
PIXELS = Quantization(float(np.float32(1 / 255)), -128)
FLOAT32, INT32, INT8 = 0, 2, 9  # types of tensors
SAME, VALID = 0, 1
RELU = 1
# Of operators: number, the version that int8 ones have, and the table of their options.
OPERATORS = {
    "ADD": (0, 2, "AddOptions"),
    "CONV_2D": (3, 3, "Conv2DOptions"),
    "DEPTHWISE_CONV_2D": (4, 3, "DepthwiseConv2DOptions"),
    "FULLY_CONNECTED": (9, 4, "FullyConnectedOptions"),
    "MAX_POOL_2D": (17, 2, "Pool2DOptions"),
    "PAD": (34, 2, "PadOptions"),
    "MEAN": (40, 2, "ReducerOptions"),
    "PADV2": (60, 2, "PadV2Options"),
}
GROUPED_VERSION = 6
METADATA = "tinycifar"


def to_tflite(trained: Trained, path: Path, dataset: Dataset | None = None, *, int8: bool = True) -> Exported:
    """Write a TFLite file of a model: one image (1, S, S, 3) in RGB, or (1, S, S, 1) -> logits (1, num_classes).

    With `int8` both are int8: a pixel p of 0..255 is p - 128, and logits have a scale and a zero point; otherwise both
    are float32, pixels in [0, 1]. Weights are int8, symmetric, with a scale per output channel. Ranges of activations
    are those on at most `parity.CALIBRATION_IMAGES` training images of `parity.known_data`. The file is compared on at
    most `parity.COMPARED_IMAGES` test images, in ai-edge-litert if it is installed, otherwise in `tflite_run`. Raises
    `parity.ParityError`, and writes no file, unless logits agree within `parity.INT8` or `parity.FLOAT`; ValueError,
    naming it, for a layer or argument that TFLite or this writer cannot express, for a missing package, and as
    `parity.known_data` does.
    """
    flat.check_installed()
    dataset = parity.known_data(trained, dataset)
    written = plain.write_out(trained.model)
    steps = graph.trace(written, "TFLite")
    ranges = None
    if int8:
        calibration = parity.spread_out(dataset.train_images, parity.CALIBRATION_IMAGES)
        ranges = quantize.ranges(written, steps, calibration)
    content = _content(trained, written, steps, ranges)
    images = parity.spread_out(dataset.test_images, parity.COMPARED_IMAGES)
    exported, runtime = logits(content, images)
    tolerance = parity.INT8 if int8 else parity.FLOAT
    expected = inference.logits(trained.model, images)
    compared = tolerance.check(expected, exported, "the exported model differs from its original")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, content)
    return Exported(path, len(content), f"TFLite {'int8' if int8 else 'float32'}", runtime, compared)


def logits(content: bytes, images: Tensor) -> tuple[Tensor, str]:
    """Logits, float32 (N, num_classes), of a file's content for images uint8 (N, C, S, S), and what computed them."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        return tflite_run.logits(content, images), "tinycifar's own interpreter"
    # The kernels that define TFLite's arithmetic; XNNPACK, the default, rounds otherwise and logs to standard error.
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in tflite_run.inputs(images, int8=source["dtype"] == np.int8):
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        scale, zero_point = target["quantization"]
        output = torch.from_numpy(interpreter.get_tensor(target["index"])).float()
        rows.append((output - zero_point) * scale if scale else output)
    return torch.cat(rows), f"ai-edge-litert {metadata.version('ai-edge-litert')}"


def _content(trained: Trained, model: plain.Plain, steps: Sequence[Step], ranges: quantize.Ranges | None) -> bytes:
    size, channels = model.image_size, len(model.mean)
    values = "float32 in [0, 1]" if ranges is None else "int8: the pixel of 0..255 minus 128"
    outputs = f"{LOGITS}: divide by the temperature, if any, then softmax"
    about = parity.metadata(trained, f"(1, row, column, channel), {values}", outputs)
    writer = _Writer(ranges is not None)
    source = writer.tensor(IMAGES, (1, size, size, channels), quantization=PIXELS)
    mean, std = (values.flatten().double() for values in (model.mean, model.std))
    normalization = Step("conv", (0,), groups=channels, weight=(1 / std).view(-1, 1, 1, 1), bias=-mean / std)
    shapes = [(size, size, channels)]
    quantizations = [None] * (len(steps) + 1) if ranges is None else list(ranges.maps)
    numbers = [writer.convolution("normalised", normalization, source, PIXELS, shapes[0], quantizations[0])]
    for index, step in enumerate(steps, 1):
        inputs = [numbers[number] for number in step.inputs]
        quantization, name = quantizations[index], f"{step.kind}_{index}"
        shape = _shape(step, shapes[step.inputs[0]])
        if step.kind == "conv":
            before = quantizations[step.inputs[0]]
            number = writer.convolution(name, step, inputs[0], before, shapes[step.inputs[0]], quantization)
        elif step.kind == "pool":
            number = writer.pooling(name, step, inputs[0], shapes[step.inputs[0]], quantization)
        else:
            number = writer.tensor(name, (1, *shape), quantization=quantization)
            writer.operator("ADD", inputs, number, activation=RELU * step.relu)
        numbers.append(number)
        shapes.append(shape)
    head = model.head
    mean_quantization = None if ranges is None else ranges.mean
    pooled = writer.tensor("mean", (1, head.in_features), quantization=mean_quantization)
    axes = writer.constant("mean/axes", np.array([1, 2], np.int32))
    writer.operator("MEAN", [numbers[-1], axes], pooled, keep_dims=False)
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias
    weights = writer.weights("head", head.weight, bias, mean_quantization, per_channel=False)
    output = writer.tensor(LOGITS, (1, head.out_features), quantization=None if ranges is None else ranges.logits)
    writer.operator("FULLY_CONNECTED", [pooled, *weights], output)
    return writer.finish(f"tinycifar {__version__}: {trained.model_name}", source, output, json.dumps(about))


def _shape(step: Step, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Rows, columns and channels of a step's output, from those of its input."""
    if step.kind == "add":
        return shape
    rows, columns = (
        (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
        for size, pads, dilation, kernel, stride in zip(
            shape, step.padding, step.dilation, step.kernel, step.stride, strict=False
        )
    )
    return rows, columns, shape[2] if step.weight is None else len(step.weight)


def _same(step: Step, shape: tuple[int, int, int]) -> bool:
    """Whether TFLite's own padding "SAME" is that of a step on an input of that shape."""
    output = _shape(step, shape)
    for axis in (0, 1):
        stride, extent = step.stride[axis], step.dilation[axis] * (step.kernel[axis] - 1) + 1
        total = max((output[axis] - 1) * stride + extent - shape[axis], 0)
        if output[axis] != -(-shape[axis] // stride) or total // 2 != step.padding[axis][0]:
            return False
    return True


@dataclass
class _Writer:
    """The tables of a file as they are filled."""

    int8: bool
    tensors: list[flat.Table] = field(default_factory=list)
    buffers: list[flat.Table] = field(default_factory=lambda: [{}])  # the first one is empty, as the schema has it
    operators: list[flat.Table] = field(default_factory=list)
    codes: dict[tuple[int, int], int] = field(default_factory=dict)  # by number and version of an operator

    def tensor(self, name: str, shape: Sequence[int], *, quantization: Quantization | None = None) -> int:
        """Add a tensor that is computed; gives its number."""
        table = {"name": name, "shape": list(shape), "type": INT8 if self.int8 else FLOAT32}
        if self.int8:
            assert quantization is not None
            table["quantization"] = {"scale": [quantization.scale], "zero_point": [quantization.zero_point]}
        self.tensors.append(table)
        return len(self.tensors) - 1

    def constant(self, name: str, values: NDArray[Any], scales: Sequence[float] = (), axis: int = 0) -> int:
        """Add a constant, symmetric if it has scales; gives its number."""
        kinds = {np.dtype(np.float32): FLOAT32, np.dtype(np.int32): INT32, np.dtype(np.int8): INT8}
        self.buffers.append({"data": np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)})
        table: flat.Table = {
            "name": name,
            "shape": list(values.shape),
            "type": kinds[values.dtype],
            "buffer": len(self.buffers) - 1,
        }
        if len(scales):
            zeros = [0] * len(scales)
            table["quantization"] = {"scale": list(scales), "zero_point": zeros, "quantized_dimension": axis}
        self.tensors.append(table)
        return len(self.tensors) - 1

    def operator(self, kind: str, inputs: list[int], output: int, version: int = 1, **values: int) -> None:
        """Add an operator with the values of its options."""
        code, int8_version, options = OPERATORS[kind]
        version = max(version, int8_version if self.int8 else 1)
        self.operators.append(
            {
                "opcode_index": self.codes.setdefault((code, version), len(self.codes)),
                "inputs": inputs,
                "outputs": [output],
                "builtin_options_type": flat.OPTION_NUMBERS[options],
                "builtin_options": values,
            }
        )

    def weights(
        self,
        name: str,
        values: Tensor,
        bias: Tensor,
        before: Quantization | None,
        *,
        depthwise: bool = False,
        per_channel: bool = True,
    ) -> list[int]:
        """Add weights (O, I, H, W) or (O, I) and biases (O,) for an input of that quantisation; gives both numbers."""

        def arranged(array: NDArray[Any]) -> NDArray[Any]:
            if array.ndim == 4:
                array = array.transpose(1, 2, 3, 0) if depthwise else array.transpose(0, 2, 3, 1)
            return array

        names = f"{name}/weights", f"{name}/bias"
        if not self.int8:
            arrays = (values.detach().float().numpy(), bias.detach().float().numpy())
            return [self.constant(names[0], arranged(arrays[0])), self.constant(names[1], arrays[1])]
        assert before is not None
        quantized = quantize.weights(values, bias, before.scale, per_channel=per_channel)
        scales = quantized.scales if per_channel else quantized.scales[:1]
        return [
            self.constant(names[0], arranged(quantized.values), scales.tolist(), axis=3 if depthwise else 0),
            self.constant(names[1], quantized.bias, (scales * before.scale).tolist()),
        ]

    def convolution(
        self,
        name: str,
        step: Step,
        source: int,
        before: Quantization | None,
        shape: tuple[int, int, int],
        quantization: Quantization | None,
    ) -> int:
        """Add a convolution of an input (rows, columns, channels); gives the number of its output."""
        assert step.weight is not None
        assert step.bias is not None
        output_shape = _shape(step, shape)
        depthwise = 1 < step.groups == shape[2]
        source, padding = self._padded(name, step, source, before, shape)
        weights = self.weights(name, step.weight, step.bias, before, depthwise=depthwise)
        output = self.tensor(name, (1, *output_shape), quantization=quantization)
        values = {
            "padding": padding,
            "stride_h": step.stride[0],
            "stride_w": step.stride[1],
            "dilation_h": step.dilation[0],
            "dilation_w": step.dilation[1],
            "activation": RELU * step.relu,
        }
        if depthwise:
            values["depth_multiplier"] = output_shape[2] // shape[2]
            self.operator("DEPTHWISE_CONV_2D", [source, *weights], output, 2, **values)
        else:
            version = GROUPED_VERSION if step.groups > 1 else 2
            self.operator("CONV_2D", [source, *weights], output, version, **values)
        return output

    def pooling(
        self, name: str, step: Step, source: int, shape: tuple[int, int, int], quantization: Quantization | None
    ) -> int:
        """Add a max-pooling of an input (rows, columns, channels); gives the number of its output."""
        source, padding = self._padded(name, step, source, quantization, shape)
        output = self.tensor(name, (1, *_shape(step, shape)), quantization=quantization)
        self.operator(
            "MAX_POOL_2D",
            [source],
            output,
            padding=padding,
            stride_h=step.stride[0],
            stride_w=step.stride[1],
            filter_height=step.kernel[0],
            filter_width=step.kernel[1],
            activation=RELU * step.relu,
        )
        return output

    def _padded(
        self, name: str, step: Step, source: int, before: Quantization | None, shape: tuple[int, int, int]
    ) -> tuple[int, int]:
        """The input of a step, padded by an operator if TFLite's own padding differs, and the padding that is left."""
        if not any(map(any, step.padding)):
            return source, VALID
        if _same(step, shape):
            return source, SAME
        rows, columns = (size + sum(pads) for size, pads in zip(shape, step.padding, strict=False))
        edges = self.constant(f"{name}/edges", np.array([(0, 0), *step.padding, (0, 0)], np.int32))
        padded = self.tensor(f"{name}/padded", (1, rows, columns, shape[2]), quantization=before)
        if step.kind == "conv":
            self.operator("PAD", [source, edges], padded)
            return padded, VALID
        if self.int8:
            assert before is not None
            least = self.constant(f"{name}/least", np.array([-128], np.int8), [before.scale])
            self.tensors[least]["quantization"]["zero_point"] = [before.zero_point]
        else:
            least = self.constant(f"{name}/least", np.array([np.finfo(np.float32).min], np.float32))
        self.operator("PADV2", [source, edges, least], padded)
        return padded, VALID

    def finish(self, description: str, source: int, output: int, about: str) -> bytes:
        """The bytes of the file."""
        self.buffers.append({"data": np.frombuffer(about.encode(), np.uint8)})
        codes = [
            {"deprecated_builtin_code": code, "version": version, "builtin_code": code} for code, version in self.codes
        ]
        subgraph = {
            "tensors": self.tensors,
            "inputs": [source],
            "outputs": [output],
            "operators": self.operators,
            "name": "main",
        }
        signature = {
            "inputs": [{"name": IMAGES, "tensor_index": source}],
            "outputs": [{"name": LOGITS, "tensor_index": output}],
            "signature_key": "serving_default",
        }
        return flat.write(
            {
                "version": 3,
                "operator_codes": codes,
                "subgraphs": [subgraph],
                "description": description,
                "buffers": self.buffers,
                "metadata": [{"name": METADATA, "buffer": len(self.buffers) - 1}],
                "signature_defs": [signature],
            }
        )
