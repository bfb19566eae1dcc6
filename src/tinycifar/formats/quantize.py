"""Scales and zero points of 8-bit maps and weights, as TFLite and CMSIS-NN compute with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinycifar import inference
from tinycifar.formats import steps as graph
from tinycifar.formats.plain import Plain
from tinycifar.formats.steps import Step

LEAST, MOST = -128, 127
MOST_BIAS = 2**30  # a quarter of the range of int32: sums are added to it


@dataclass(frozen=True)
class Quantization:
    """A value is `scale` * (integer - `zero_point`), of int8."""

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Weights:
    """Integer weights, symmetric, int8 as in the step, with a scale for each output, and int32 biases."""

    values: NDArray[np.int8]
    scales: NDArray[np.float64]
    bias: NDArray[np.int32]


@dataclass(frozen=True)
class Ranges:
    """Quantisations of the maps of a network, by number, of the mean over the last one, and of the logits."""

    maps: tuple[Quantization, ...]
    mean: Quantization
    logits: Quantization


def covering(least: float, most: float) -> Quantization:
    """The quantisation whose 256 values cover a range and 0, which is a value itself."""
    least, most = min(least, 0.0), max(most, 0.0)
    scale = float(np.float32((most - least) / (MOST - LEAST))) or 1.0
    return Quantization(scale, int(np.clip(round(LEAST - least / scale), LEAST, MOST)))


@torch.inference_mode()
def ranges(model: Plain, steps: Sequence[Step], images: Tensor, batch_size: int = 100) -> Ranges:
    """The ranges that images (N, C, S, S) give; pooled maps have those of their input, as TFLite demands."""
    least = np.full(len(steps) + 3, np.inf)
    most = -least
    for batch in torch.split(images, batch_size):
        maps = graph.maps(list(steps), (inference.to_float(batch) - model.mean) / model.std)
        mean = maps[-1].mean((2, 3))
        for number, values in enumerate([*maps, mean, model.head(mean)]):
            least[number] = min(least[number], float(values.min()))
            most[number] = max(most[number], float(values.max()))
    corners = torch.stack([(value - model.mean) / model.std for value in (0, 1)])
    least[0], most[0] = float(corners.min()), float(corners.max())  # of all images there are
    quantizations = [covering(*pair) for pair in zip(least.tolist(), most.tolist(), strict=True)]
    for number, step in enumerate(steps, 1):
        if step.kind == "pool":
            quantizations[number] = quantizations[step.inputs[0]]
    return Ranges(tuple(quantizations[: len(steps) + 1]), quantizations[-2], quantizations[-1])


def weights(values: Tensor, bias: Tensor, input_scale: float, *, per_channel: bool = True) -> Weights:
    """Quantise weights (O, ...) and biases (O,) of an input with that scale.

    Scales are those of the largest weight, of each output or of all; larger where a bias would not fit into int32.
    """
    rows = values.detach().double().flatten(1).numpy()
    biases = bias.detach().double().numpy()
    largest = np.abs(rows).max(1) if per_channel else np.full(len(rows), np.abs(rows).max())
    least_scales = np.abs(biases) / (MOST_BIAS * input_scale)
    scales = np.maximum(largest / MOST, least_scales if per_channel else least_scales.max())
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32).astype(np.float64)
    integers = np.clip(np.rint(rows / scales[:, None]), -MOST, MOST).astype(np.int8)
    return Weights(
        integers.reshape(tuple(values.shape)), scales, np.rint(biases / (scales * input_scale)).astype(np.int32)
    )
