"""The shipped models in NumPy: a few pictures are classified before PyTorch would be loaded.

`tinycifar predict` uses this for a shipped model and few pictures on the CPU; everything else runs in `inference`.
`tests/test_numpy_model.py` compares the logits with those of `inference`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import safe_open

from tinycifar import catalog

Array = np.ndarray[Any, np.dtype[np.float32]]
EPSILON = np.float32(1e-5)  # of batch normalisation


@dataclass(frozen=True)
class NumpyModel:
    """A shipped model: its tensors by their names in PyTorch, and what its file says of it."""

    tensors: dict[str, Array]
    residual: tuple[int, ...]
    classes: tuple[str, ...]
    form: catalog.Form
    temperature: float | None
    kept: tuple[float, ...] = ()

    def logits(self, images: np.ndarray[Any, Any]) -> Array:
        """Images (N, channels, S, S), uint8 in 0..255 or float32 in [0, 1] -> logits (N, C)."""
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        values = (images - self.tensors["mean"]) / self.tensors["std"]
        stem = self.tensors["0.weight"]
        values = _convolve(values.transpose(0, 2, 3, 1), stem, stride=stem.shape[-1] - 2, padding=1)
        values = np.maximum(values, 0)
        last = max(int(name.partition(".")[0]) for name in self.tensors if name[0].isdigit())
        for index in range(2, last):
            if f"{index}.layers.0.weight" in self.tensors:
                values = self._block(index, values)
        features = values.mean((1, 2))
        halves = np.split(features, 2, axis=1)
        result: Array = (halves[0] + halves[1]) * features.shape[1] ** -0.5 @ self.tensors[f"{last}.weight"].T
        return result

    def _block(self, index: int, inputs: Array) -> Array:
        """A `MirroredBlock` or `MirroredBottleneck` on (N, H, W, C)."""
        prefix = f"{index}.layers."
        last = max(int(name[len(prefix) :].partition(".")[0]) for name in self.tensors if name.startswith(prefix))
        values, normalized = inputs, False
        for number in range(last + 1):
            at = f"{prefix}{number}."
            weight, shift = self.tensors.get(f"{at}weight"), self.tensors.get(f"{at}shift")
            if weight is not None:
                mirror = self.tensors.get(f"{at}mirror")  # a depthwise convolution has none
                mirrored = weight[..., ::-1] if mirror is None else weight[..., ::-1][:, mirror]
                values = _convolve(values, np.concatenate([weight, mirrored]), padding=weight.shape[-1] // 2)
            elif shift is not None:
                mean, variance = (
                    (part + np.roll(part, len(part) // 2)) / 2
                    for part in (self.tensors[f"{at}running_{name}"] for name in ("mean", "var"))
                )
                values = (values - mean) / np.sqrt(variance + EPSILON) + np.concatenate([shift, shift])
            elif normalized:
                values = np.maximum(values, 0)
            else:  # of the layers without tensors, only max-pooling by 2 follows a convolution
                n, height, width, channels = values.shape
                values = values[:, : height // 2 * 2, : width // 2 * 2]
                values = values.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
            normalized = shift is not None
        if index in self.residual:
            values = values + inputs
        result: Array = np.maximum(values, 0)
        return result


def load(name: str) -> NumpyModel:
    """Load the shipped model of that name; ValueError if its file is not what was shipped."""
    about = catalog.shipped()[name]
    with safe_open(catalog.weights(name), framework="numpy") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (it is no dict)
        stated = json.loads(stored.metadata()["tinycifar"])
    return NumpyModel(
        tensors,
        catalog.ARCHITECTURES[about["model"]].residual,
        tuple(stated["classes"]),
        catalog.Form(**{name: stated[name] for name in ("image_size", "fit", "channels") if name in stated}),
        stated["temperature"],
        tuple(about.get("kept", ())),
    )


def _convolve(values: Array, weight: Array, *, padding: int, stride: int = 1) -> Array:
    """Values (N, H, W, C) and filters (O, C, K, K) -> (N, H', W', O): one product for each position of K x K.

    Filters (C, 1, K, K) are those of a depthwise convolution.
    """
    n, height, width, channels = values.shape
    filters, inputs, kernel, _ = weight.shape
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    padded = np.pad(values, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    result = np.zeros((n * height * width, filters), np.float32)
    for row in range(kernel):
        for column in range(kernel):
            part = padded[:, row : row + stride * height : stride, column : column + stride * width : stride]
            rows, factors = part.reshape(-1, channels), weight[:, :, row, column].T
            result += rows @ factors if inputs == channels else rows * factors
    return result.reshape(n, height, width, filters)
