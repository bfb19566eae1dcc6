"""A plain model as a list of steps: the operators that integer formats have, in the order of computation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinycifar.formats import plain

Pair = tuple[int, int]
KNOWN = "Conv2d, BatchNorm2d behind a convolution, ReLU, MaxPool2d, Dropout, and tinycifar's own blocks"


@dataclass(frozen=True)
class Step:
    """A convolution, max-pooling or addition, with a ReLU behind it if `relu`.

    `inputs` are numbers of maps: 0 is the normalised image, n the output of the n-th step. `weight` is (O, I / groups,
    H, W) and `bias` (O,), both for a convolution only. `padding` is before and after, of rows and of columns.
    """

    kind: Literal["conv", "pool", "add"]
    inputs: tuple[int, ...]
    relu: bool = False
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    weight: Tensor | None = None
    bias: Tensor | None = None


def trace(model: plain.Plain, form: str) -> list[Step]:
    """The steps of a plain model; ValueError, naming the layer or its argument, for what `form` cannot express."""
    steps: list[Step] = []
    _trace(model.trunk, 0, steps, frozenset(), form)
    if not steps:
        raise ValueError(f"{form} needs a model with at least one convolution")
    return steps


def _trace(layers: nn.Sequential, source: int, steps: list[Step], shared: frozenset[int], form: str) -> int:
    """Append the steps of layers whose input is map `source`; gives the map that comes out.

    `shared` are the maps that something else reads too, so that no ReLU may be added to them.
    """
    for layer in layers:
        if type(layer) is nn.Conv2d:
            steps.append(_convolution(layer, source, form))
        elif type(layer) is nn.MaxPool2d:
            steps.append(_pooling(layer, source, form))
        elif type(layer) is plain.Residual:
            body = _trace(layer, source, steps, shared | {source}, form)
            steps.append(Step("add", (body, source), relu=True))
        elif type(layer) is nn.ReLU:
            if source == 0 or (source in shared and not steps[source - 1].relu):
                raise ValueError(f"{form} cannot express a ReLU that does not follow a convolution")
            steps[source - 1] = replace(steps[source - 1], relu=True)
            continue
        else:
            raise ValueError(f"{form} cannot express {type(layer).__name__}; it can express: {KNOWN}")
        source = len(steps)
    return source


def _convolution(layer: nn.Conv2d, source: int, form: str) -> Step:
    if layer.padding_mode != "zeros":
        raise ValueError(f"{form} cannot express Conv2d with padding_mode={layer.padding_mode!r}")
    kernel, stride, dilation = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
    if isinstance(layer.padding, str):
        extents = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        totals = extents if layer.padding == "same" else [0, 0]
        rows, columns = ((total // 2, total - total // 2) for total in totals)
    else:
        rows, columns = ((size, size) for size in _pair(layer.padding))
    assert layer.bias is not None  # `plain.write_out` gives every convolution one
    return Step(
        "conv",
        (source,),
        kernel=kernel,
        stride=stride,
        padding=(rows, columns),
        dilation=dilation,
        groups=layer.groups,
        weight=layer.weight.detach(),
        bias=layer.bias.detach(),
    )


def _pooling(layer: nn.MaxPool2d, source: int, form: str) -> Step:
    if _pair(layer.dilation) != (1, 1):
        raise ValueError(f"{form} cannot express MaxPool2d with dilation={layer.dilation}")
    if layer.ceil_mode:
        raise ValueError(f"{form} cannot express MaxPool2d with ceil_mode=True")
    rows, columns = ((size, size) for size in _pair(layer.padding))
    return Step("pool", (source,), kernel=_pair(layer.kernel_size), stride=_pair(layer.stride), padding=(rows, columns))


def _pair(value: int | tuple[int, ...]) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


@torch.inference_mode()
def maps(steps: list[Step], normalized: Tensor) -> list[Tensor]:
    """The maps of all steps in float, the first being `normalized`, (N, C, H, W)."""
    outputs = [normalized]
    for step in steps:
        inputs = [outputs[number] for number in step.inputs]
        (top, bottom), (left, right) = step.padding
        edges = [left, right, top, bottom]
        if step.kind == "conv":
            assert step.weight is not None
            padded = functional.pad(inputs[0], edges)
            output = functional.conv2d(padded, step.weight, step.bias, step.stride, 0, step.dilation, step.groups)
        elif step.kind == "pool":
            padded = functional.pad(inputs[0], edges, value=-torch.inf)
            output = functional.max_pool2d(padded, step.kernel, step.stride)
        else:
            output = inputs[0] + inputs[1]
        outputs.append(output.relu() if step.relu else output)
    return outputs
