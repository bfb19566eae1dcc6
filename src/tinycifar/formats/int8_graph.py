"""Reading an int8 ONNX file of ours as steps in integers; what integers here cannot express is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinycifar.formats.integer import Array, Map, Network, Step


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

    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}


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
    groups = attributes.get("group", 1)
    depthwise = 1 < groups == len(weights) == source.channels
    mirrored = (
        len(weights) % 2 == 0
        and (depthwise or (inputs % 2 == 0 and groups == 1))
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
        groups=groups,
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
