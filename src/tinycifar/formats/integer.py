"""An int8 ONNX file of ours as integer arithmetic: its steps, and their evaluation, which other formats must match.

A convolution adds int32 products, and every sum is rescaled to 8 bits by an integer multiplier and a shift per output
channel (Jacob et al. 2018, arXiv:1712.05877, section 2.2). Nothing but the table of pixels is computed in floating
point, so the scores are the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Array = NDArray[Any]
# A sum times a multiplier of 31 bits, divided by 2**32 and then by 2**shift with shift >= 1: the rounding of the last
# division then is that of the whole (the floor of a floor is a floor).
MULTIPLIER_BITS = 31
LARGEST_SUM = 2**31 - 1


@dataclass(eq=False)
class Map:
    """A feature map (channels, size, size) of uint8: value v stands for scale * (v - zero).

    `first` and `last` are the steps that write it and read it last.
    """

    channels: int
    size: int
    scale: float
    zero: int
    first: int
    last: int

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.channels * self.size**2


@dataclass(eq=False)
class Step:
    """A convolution ("conv"), 2x2 max-pooling ("pool") or addition ("add"): from which maps to which.

    `weights`, int8 (O, K, K, I), are all filters, or the first half if `mirrored`: the others are then mirror images
    with the halves of their inputs exchanged, and have the same `bias`, int32 (O,), and `scales`, float32 (O,), by
    which sums become values of the output map.
    """

    kind: str
    inputs: list[Map]
    output: Map
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    mirrored: bool = False
    weights: Array = field(default_factory=lambda: np.zeros(0, np.int8))
    bias: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    scales: Array = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(eq=False)
class Network:
    """An int8 ONNX file: steps from quantised pixels to features, the head in float32, and the file's metadata.

    `table`, uint8 (channels, 256), gives the first map's value of every pixel; `head` is (classes, channels).
    """

    steps: list[Step]
    pixels: Map
    features: Map
    table: Array
    head: Array
    head_bias: Array
    about: dict[str, str]

    @property
    def macs(self) -> int:
        """Multiplications and additions of its convolutions for one image, mirrored filters written out."""
        return sum(
            step.output.bytes * step.kernel**2 * (step.inputs[0].channels // step.groups)
            for step in self.steps
            if step.kind == "conv"
        )


@dataclass(frozen=True, eq=False)
class Rescaling:
    """From sums to 8 bits: (((sum * gain * multiplier) >> 32) + 2**(shift - 1)) >> shift, plus the zero point.

    `multipliers`, int32 (O,), and `shifts`, uint8 (O,) of at least 1, are per output channel; `gain` is a power of two,
    1 unless a scale is 1/4 or more.
    """

    multipliers: Array
    shifts: Array
    gain: int


@dataclass(frozen=True)
class Addition:
    """Of two maps: (first * (v - zero) + second * (w - zero) + 2**(shift - 1)) >> shift, plus the output's zero."""

    first: int
    second: int
    shift: int


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer in integers: weights int16 (classes, channels), bias int32 (classes,).

    Inputs are the sums of (v - zero) over all positions of the features; a logit is a score times `scale`.
    """

    weights: Array
    bias: Array
    scale: float


def read(path: Path) -> Network:
    """Read an int8 file that `onnx_file.to_int8` wrote.

    Raises ValueError for another file, and names the operator or attribute that integer arithmetic here lacks.
    """
    try:
        return _read(path)
    except (KeyError, IndexError):
        raise ValueError(f"{path} is no int8 file that tinycifar exported") from None


def _read(path: Path) -> Network:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    graph = model.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    alias: dict[str, str] = {}  # the output of a pair of QuantizeLinear and DequantizeLinear: its input
    ranges: dict[str, tuple[float, int]] = {}
    parameters: dict[str, tuple[Array, Array]] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            if zero.dtype != np.uint8:
                raise ValueError(f"the int8 model has activations of {zero.dtype}; C is written from uint8 activations")
            ranges[node.input[0]] = float(constants[node.input[1]]), int(zero)
            alias[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            values = constants[node.input[0]].astype(np.int32)
            zero = constants[node.input[2]].astype(np.int32).reshape(-1, *[1] * (values.ndim - 1))
            parameters[node.output[0]] = values - zero, constants[node.input[1]]
        elif node.op_type == "DequantizeLinear":
            alias[node.output[0]] = alias[node.input[0]]

    maps: dict[str, Map] = {}
    steps: list[Step] = []
    parts: dict[str, Any] = {}
    outputs = {item.name for item in graph.output}
    for node in graph.node:
        attributes = _attributes(node)
        inputs = [maps[alias[name]] for name in node.input if alias.get(name) in maps]
        step = None
        match node.op_type:
            case "Sub" if node.input[0] == graph.input[0].name:
                parts["mean"] = constants[node.input[1]]
            case "Div" if "mean" in parts and "std" not in parts:
                parts["std"] = constants[node.input[1]]
                channels, rows, columns = (item.dim_value for item in graph.input[0].type.tensor_type.shape.dim[1:])
                if rows != columns:
                    raise ValueError(f"the model takes images of {rows}x{columns} pixels; C is written for square ones")
                parts["pixels"] = maps[node.output[0]] = Map(channels, rows, *ranges[node.output[0]], 0, 0)
            case "Conv" if inputs and node.input[1] in parameters:
                step = _convolution(node, attributes, inputs[0], parameters, ranges[node.output[0]], len(steps))
            case "MaxPool" if inputs:
                _require(node, attributes, kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4, dilations=[1, 1])
                _require(node, attributes, ceil_mode=0, auto_pad="NOTSET")
                source = inputs[0]
                output = Map(source.channels, source.size // 2, *ranges[node.output[0]], len(steps), len(steps))
                if (output.scale, output.zero) != (source.scale, source.zero):
                    raise ValueError(f"{_named(node)} changes the scale of its input, for which there is no C")
                step = Step("pool", inputs, output)
            case "Add" if len(inputs) == 2:
                first = inputs[0]
                if (first.channels, first.size) != (inputs[1].channels, inputs[1].size):
                    raise ValueError(f"{_named(node)} adds maps of different shapes, for which there is no C")
                output = Map(first.channels, first.size, *ranges[node.output[0]], len(steps), len(steps))
                step = Step("add", inputs, output)
            case "ReduceMean" if inputs and "features" not in parts:
                parts["features"] = inputs[0]
                inputs[0].last = len(steps)
            case "Gemm" if "features" in parts and "head" not in parts:
                _require(node, attributes, alpha=1.0, beta=1.0, transA=0, transB=1)
                head = constants[node.input[1]]
                parts["head"] = head
                parts["head_bias"] = constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(head))
            case "QuantizeLinear" | "DequantizeLinear":
                pass
            case "Unsqueeze" if node.input[0] in constants:  # the head's weights, for the class activation map
                pass
            case "Conv" if set(node.output) <= outputs:
                pass  # the class activation map
            case _:
                raise ValueError(f"{_named(node)} has no equivalent in C; Conv, MaxPool, Add and Relu have")
        if step is not None:
            for item in inputs:
                item.last = len(steps)
            maps[node.output[0]] = step.output
            steps.append(step)
    return Network(
        steps,
        parts["pixels"],
        parts["features"],
        _table(parts["mean"], parts["std"], parts["pixels"]),
        parts["head"].astype(np.float32),
        parts["head_bias"].astype(np.float32),
        {item.key: item.value for item in model.metadata_props},
    )


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _named(node: Any) -> str:
    return f"{node.op_type} {node.name}".strip()


def _require(node: Any, attributes: dict[str, Any], **required: Any) -> None:
    """ValueError if an attribute is present and differs."""
    for name, value in required.items():
        given = attributes.get(name, value)
        given = list(given) if isinstance(value, list) else given
        if given != value:
            raise ValueError(f"{_named(node)} has {name} {given}; C is written for {value} only")


def _single(node: Any, name: str, values: Iterable[int]) -> int:
    """The value of an attribute that must be the same in all directions."""
    values = list(values)
    if len(set(values)) != 1:
        raise ValueError(f"{_named(node)} has {name} {values}; C is written for equal values only")
    return int(values[0])


def _convolution(
    node: Any,
    attributes: dict[str, Any],
    source: Map,
    parameters: dict[str, tuple[Array, Array]],
    range_out: tuple[float, int],
    index: int,
) -> Step:
    weights, weight_scales = parameters[node.input[1]]
    _require(node, attributes, auto_pad="NOTSET")
    kernel = _single(node, "kernel_shape", weights.shape[2:])
    stride = _single(node, "strides", attributes.get("strides", [1]))
    dilation = _single(node, "dilations", attributes.get("dilations", [1]))
    padding = _single(node, "pads", attributes.get("pads", [0]))
    size = (source.size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    weight_scales = np.broadcast_to(weight_scales, len(weights))
    bias, bias_scales = np.zeros(len(weights)), None
    if len(node.input) > 2:
        bias, bias_scales = parameters[node.input[2]]
    sum_scales = np.float32(source.scale) * weight_scales
    if bias_scales is not None and not np.allclose(bias_scales, sum_scales, rtol=1e-4, atol=0):
        raise ValueError(f"{_named(node)} has a bias of another scale than its sums, for which there is no C")
    scales = (sum_scales / np.float32(range_out[0])).astype(np.float32)
    if np.abs(weights + 0.5).max() > 128:
        raise ValueError(f"{_named(node)} has weights beyond 8 bits, for which there is no C")
    bias = bias.astype(np.int32)
    half, inputs = len(weights) // 2, weights.shape[1]
    mirrored = (
        len(weights) % 2 == 0
        and inputs % 2 == 0
        and attributes.get("group", 1) == 1
        and bool((weights[half:] == np.roll(weights[:half, :, :, ::-1], inputs // 2, axis=1)).all())
        and bool((bias[half:] == bias[:half]).all())
        and bool((scales[half:] == scales[:half]).all())
    )
    return Step(
        "conv",
        [source],
        Map(len(weights), size, *range_out, index, index),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=attributes.get("group", 1),
        mirrored=mirrored,
        weights=(weights[:half] if mirrored else weights).transpose(0, 2, 3, 1).astype(np.int8),
        bias=bias,
        scales=scales,
    )


def _table(mean: Array, std: Array, pixels: Map) -> Array:
    """Pixels of 0..255 as the first map holds them: uint8 (channels, 256)."""
    values = (np.arange(256, dtype=np.float32) / np.float32(255) - mean.reshape(-1, 1)) / std.reshape(-1, 1)
    table: Array = np.clip(np.rint(values / np.float32(pixels.scale)) + pixels.zero, 0, 255).astype(np.uint8)
    return table


def filters(step: Step) -> Array:
    """All filters of a convolution, int8 (O, K, K, I), mirrored ones written out."""
    if not step.mirrored:
        return step.weights
    mirror = np.roll(step.weights[:, :, ::-1], step.weights.shape[3] // 2, axis=3)
    return np.concatenate([step.weights, mirror])


def rescaling(step: Step) -> Rescaling:
    """Multipliers and shifts of a convolution; ValueError if its sums could exceed 32 bits."""
    largest = float(step.scales.max())
    gain = 2 ** max(0, math.floor(math.log2(largest)) + 3) if largest > 0 else 1
    # Both outputs of a mirrored pair are computed from their sum, so one bit more than an output has is needed.
    bound = _largest_sum(step)
    gain = min(gain, 2 ** max(0, (LARGEST_SUM // max(bound, 1)).bit_length() - 1))
    if 2 * bound > LARGEST_SUM or step.weights[0].size * 2**16 > LARGEST_SUM:
        raise ValueError(f"a convolution of {step.weights[0].size} inputs per output can exceed 32 bits in C")
    multipliers, shifts = [], []
    for scale in step.scales.astype(np.float64) / gain:
        mantissa, exponent = math.frexp(scale)
        multiplier, shift = round(mantissa * 2**MULTIPLIER_BITS), -exponent - 1
        if shift > 30:  # smaller than any output: 0
            multiplier, shift = multiplier >> min(shift - 30, 31), 30
        if multiplier and shift < 1:  # larger than any gain allows: the output saturates
            multiplier, shift = 2**MULTIPLIER_BITS - 1, 1
        multipliers.append(min(multiplier, 2**MULTIPLIER_BITS - 1))
        shifts.append(max(shift, 1))
    return Rescaling(np.array(multipliers, np.int32), np.array(shifts, np.uint8), gain)


def _largest_sum(step: Step) -> int:
    """A bound of all sums of a convolution, whatever its inputs, and of every part of such a sum."""
    weights = np.abs(filters(step).astype(np.int64)).sum((1, 2, 3))
    return int((weights * 256 + np.abs(step.bias.astype(np.int64))).max())


def addition(step: Step) -> Addition:
    """Multipliers of an addition, as precise as 32 bits allow; ValueError if its output is too fine for them."""
    ratios = [item.scale / step.output.scale for item in step.inputs]
    shift = min(24, math.floor(math.log2(2**30 / (256 * sum(ratios)))))
    if shift < 1:
        raise ValueError("an addition whose output has a far smaller scale than its inputs cannot be expressed in C")
    first, second = (round(ratio * 2**shift) for ratio in ratios)
    return Addition(first, second, shift)


def head(network: Network) -> Head:
    """The head in integers, as precise as sums of 32 bits and weights of 16 allow."""
    features = network.features
    positions = features.size**2
    weights = network.head.astype(np.float64) * features.scale / positions
    most = positions * max(features.zero, 255 - features.zero)
    bias = network.head_bias.astype(np.float64)
    # Half a step for the rounding of every weight and of the bias, and then 31 bits for the largest score.
    sums = np.abs(weights).sum(1) * most + np.abs(bias)
    rounding = 0.5 * (most * weights.shape[1] + 1)
    scale = max(float(sums.max()) / (LARGEST_SUM - rounding), float(np.abs(weights).max()) / (2**15 - 1), 1e-30)
    scale = float(np.float32(scale * (1 + 1e-6)))
    return Head(np.rint(weights / scale).astype(np.int16), np.rint(bias / scale).astype(np.int32), scale)


def scores(network: Network, images: Tensor, batch_size: int = 50) -> Tensor:
    """Evaluate in integers: images uint8 (N, channels, S, S) -> scores int32 (N, classes)."""
    return torch.cat([_scores(network, batch) for batch in torch.split(images, batch_size)])


def logits(network: Network, scores: Tensor) -> Tensor:
    """Scores (N, classes) times the head's scale: float32 (N, classes), the same on every processor."""
    return scores.float() * torch.tensor(head(network).scale, dtype=torch.float32)


def _scores(network: Network, images: Tensor) -> Tensor:
    table = torch.from_numpy(network.table)
    values = {
        network.pixels: torch.stack([table[channel][images[:, channel].long()] for channel in range(len(table))], 1)
    }
    for step in network.steps:
        inputs = [values[item] for item in step.inputs]
        if step.kind == "conv":
            result = _convolve(step, inputs[0])
        elif step.kind == "pool":
            result = functional.max_pool2d(inputs[0].float(), 2).to(torch.uint8)
        else:
            given = addition(step)
            first, second = (value.long() - item.zero for value, item in zip(inputs, step.inputs, strict=True))
            total = given.first * first + given.second * second + (1 << given.shift - 1)
            result = ((total >> given.shift) + step.output.zero).clamp(0, 255).to(torch.uint8)
        values[step.output] = result
    layer = head(network)
    sums = (values[network.features].long() - network.features.zero).sum((2, 3))
    return (sums @ torch.from_numpy(layer.weights).long().T + torch.from_numpy(layer.bias).long()).int()


def _convolve(step: Step, values: Tensor) -> Tensor:
    """A convolution of a map, uint8 (N, C, H, W), by products of matrices whose sums are exact in their type."""
    exact = torch.float32 if _largest_sum(step) < 2**24 else torch.float64
    centred = values.to(exact) - step.inputs[0].zero
    columns = functional.unfold(centred, step.kernel, step.dilation, step.padding, step.stride)
    columns = columns.reshape(len(values), step.groups, -1, columns.shape[2])
    weights = torch.from_numpy(filters(step)).permute(0, 3, 1, 2).to(exact).reshape(step.groups, -1, columns.shape[2])
    # NumPy's products, as torch's may be of 16 bits if the process has allowed it.
    products = torch.from_numpy(weights.numpy() @ columns.numpy())
    sums = products.reshape(len(values), -1, step.output.size, step.output.size).long()
    sums += torch.from_numpy(step.bias).long().view(-1, 1, 1)
    given = rescaling(step)
    multipliers, shifts = (
        torch.from_numpy(item.astype(np.int64)).view(-1, 1, 1) for item in (given.multipliers, given.shifts)
    )
    high = (sums * given.gain * multipliers) >> 32
    rounded = (high + torch.bitwise_left_shift(torch.ones_like(shifts), shifts - 1)) >> shifts
    return (rounded + step.output.zero).clamp(0, 255).to(torch.uint8)
