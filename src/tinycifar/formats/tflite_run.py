"""A small interpreter of the TFLite files that `tflite` writes, for machines without ai-edge-litert.

It computes in float64: of int8 files sums are exact, and only the rounding of ties differs from TFLite's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tinycifar.formats import flat

TYPES = {0: np.float32, 2: np.int32, 9: np.int8}
BATCH = 50


def inputs(images: Tensor, *, int8: bool) -> Iterator[NDArray[Any]]:
    """Images uint8 (N, C, S, S), one by one, as files take them: (S, S, C), int8 or float32 in [0, 1]."""
    for image in images.permute(0, 2, 3, 1):
        pixels = image.contiguous().numpy()
        yield (pixels.astype(np.int16) - 128).astype(np.int8) if int8 else pixels.astype(np.float32) / np.float32(255)


def logits(content: bytes, images: Tensor) -> Tensor:
    """Logits, float32 (N, num_classes), of a file's content for images uint8 (N, C, S, S)."""
    model = flat.read(content)
    (graph,) = model["subgraphs"]
    int8 = graph["tensors"][graph["inputs"][0]]["type"] == 9
    rows = []
    for batch in torch.split(images, BATCH):
        pixels = torch.from_numpy(np.stack(list(inputs(batch, int8=int8)))).double().permute(0, 3, 1, 2)
        rows.append(_run(model, graph, pixels))
    return torch.cat(rows)


def _run(model: flat.Table, graph: flat.Table, pixels: Tensor) -> Tensor:
    tensors = graph["tensors"]
    values: dict[int, Tensor] = {}

    def put(number: int, stored: Tensor) -> None:
        values[number] = _real(tensors[number], stored)

    for number, tensor in enumerate(tensors):
        data = model["buffers"][tensor["buffer"]]["data"]
        if len(data):
            array = np.frombuffer(data.tobytes(), TYPES[tensor["type"]]).reshape(tensor["shape"])
            put(number, torch.from_numpy(array.astype(np.float64)))
    put(graph["inputs"][0], pixels)
    for operator in graph["operators"]:
        code = model["operator_codes"][operator["opcode_index"]]["builtin_code"]
        arguments = [values[number] for number in operator["inputs"]]
        output = _compute(code, operator["builtin_options"], arguments)
        number = operator["outputs"][0]
        values[number] = _rounded(tensors[number], output)
    return values[graph["outputs"][0]].float()


def _compute(code: int, options: flat.Table, arguments: list[Tensor]) -> Tensor:
    """The output of an operator, before it is rounded; maps are (N, C, H, W)."""
    first = arguments[0]
    if code in (3, 4):
        filters = arguments[1].permute(3, 0, 1, 2) if code == 4 else arguments[1].permute(0, 3, 1, 2)
        stride, dilation = (options["stride_h"], options["stride_w"]), (options["dilation_h"], options["dilation_w"])
        padded = functional.pad(first, _edges(options, first, filters.shape[2:], stride, dilation))
        groups = first.shape[1] // filters.shape[1]
        output = functional.conv2d(padded, filters, arguments[2], stride, 0, dilation, groups)
    elif code == 17:
        kernel, stride = (options["filter_height"], options["filter_width"]), (options["stride_h"], options["stride_w"])
        edges = _edges(options, first, kernel, stride, (1, 1))
        output = functional.max_pool2d(functional.pad(first, edges, value=-torch.inf), kernel, stride)
    elif code in (34, 60):
        _, rows, columns, _ = arguments[1].long().tolist()
        output = functional.pad(first, [*columns, *rows], value=float(arguments[2]) if code == 60 else 0.0)
    elif code == 0:
        output = first + arguments[1]
    elif code == 40:
        output = first.mean((2, 3))
    elif code == 9:
        output = functional.linear(first, arguments[1], arguments[2])
    else:
        raise ValueError(f"this interpreter has no operator {code}")
    return output.relu() if options.get("activation") else output


def _edges(options: flat.Table, maps: Tensor, kernel: Any, stride: Any, dilation: Any) -> list[int]:
    """Left, right, top and bottom padding: none for VALID, as the schema has it for SAME."""
    if options["padding"] == 1:
        return [0, 0, 0, 0]
    edges: list[int] = []
    for size, extent, step, spread in zip(maps.shape[:1:-1], kernel[::-1], stride[::-1], dilation[::-1], strict=True):
        total = max((-(-size // step) - 1) * step + spread * (extent - 1) + 1 - size, 0)
        edges += [total // 2, total - total // 2]
    return edges


def _real(tensor: flat.Table, stored: Tensor) -> Tensor:
    """The numbers that a stored tensor stands for."""
    quantization = tensor["quantization"]
    if not quantization or not len(quantization["scale"]):
        return stored
    scale, zero = (torch.from_numpy(quantization[key].astype(np.float64)) for key in ("scale", "zero_point"))
    if len(scale) > 1:
        shape = [1] * stored.dim()
        shape[quantization["quantized_dimension"]] = -1
        scale, zero = scale.view(shape), zero.view(shape)
    return (stored - zero) * scale


def _rounded(tensor: flat.Table, real: Tensor) -> Tensor:
    """Computed numbers as far as the type of their tensor can hold them."""
    if tensor["type"] == 0:
        return real.float().double()
    (scale,), (zero,) = tensor["quantization"]["scale"].tolist(), tensor["quantization"]["zero_point"].tolist()
    rounded: Tensor = ((real / scale).round() + zero).clamp(-128, 127).sub(zero).mul(scale)
    return rounded
