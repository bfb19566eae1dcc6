"""An int8 model as integer arithmetic: its steps, and their evaluation, which the compiled C must match.

A convolution adds int32 products, and every sum is rescaled to 8 bits by an integer multiplier and a shift per output
channel (Jacob et al. 2018, arXiv:1712.05877, section 2.2). Nothing but the table of pixels is computed in floating
point, so the scores are the same on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
    with the halves of their inputs exchanged (if each has one input, it is that of its own channel), and have the same
    `bias`, int32 (O,), and `scales`, float32 (O,), by which sums become values of the output map.
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

    @property
    def depthwise(self) -> bool:
        """Whether it is a convolution with one filter for each channel of its input."""
        return 1 < self.groups == self.inputs[0].channels == self.output.channels


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
