"""Integer evaluation of int8 models: compared with a loop over pixels, and with the int8 ONNX file."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tinycifar import data
from tinycifar.formats import c_source, int8_graph, integer, onnx_file


def loops(step: integer.Step, values: np.ndarray) -> np.ndarray:
    """A convolution of a map, uint8 (C, H, W), as exact fractions, rounded half up at the very end."""
    weights = integer.filters(step).astype(int)
    outputs, kernel, _, inputs = weights.shape
    size, per_group = step.output.size, outputs // step.groups
    result = np.zeros((outputs, size, size), np.uint8)
    given = integer.rescaling(step)
    for output, row, column in np.ndindex(outputs, size, size):
        total = int(step.bias[output])
        for i, j, channel in np.ndindex(kernel, kernel, inputs):
            y = row * step.stride - step.padding + i * step.dilation
            x = column * step.stride - step.padding + j * step.dilation
            if 0 <= y < values.shape[1] and 0 <= x < values.shape[2]:
                value = int(values[output // per_group * inputs + channel, y, x]) - step.inputs[0].zero
                total += value * int(weights[output, i, j, channel])
        exact = Fraction(total * given.gain * int(given.multipliers[output]), 2 ** (32 + int(given.shifts[output])))
        result[output, row, column] = min(255, max(0, (exact + Fraction(1, 2)).__floor__() + step.output.zero))
    return result


def convolution(
    generator: np.random.Generator,
    *,
    inputs: int,
    outputs: int,
    size: int = 5,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    mirrored: bool = False,
    scale: float = 2e-3,
    zeros: tuple[int, int] = (7, 130),
) -> integer.Step:
    """A convolution of random weights."""
    after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    stored = outputs // 2 if mirrored else outputs
    repeat = 2 if mirrored else 1
    return integer.Step(
        "conv",
        [integer.Map(inputs, size, 0.02, zeros[0], 0, 0)],
        integer.Map(outputs, after, 0.05, zeros[1], 0, 0),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        mirrored,
        generator.integers(-128, 128, (stored, kernel, kernel, inputs // groups), np.int8),
        np.tile(generator.integers(-3000, 3000, stored, np.int32), repeat),
        np.tile(generator.uniform(scale / 9, scale, stored).astype(np.float32), repeat),
    )


SHAPES = [
    {"inputs": 3, "outputs": 5, "kernel": 4, "stride": 2, "size": 8},
    {"inputs": 6, "outputs": 4, "groups": 2, "dilation": 2, "padding": 2, "size": 6},
    {"inputs": 4, "outputs": 4, "groups": 4, "stride": 2, "size": 7},
    {"inputs": 8, "outputs": 6, "mirrored": True, "zeros": (123, 0)},
    {"inputs": 6, "outputs": 2, "mirrored": True, "kernel": 1, "padding": 0, "size": 3},
    {"inputs": 4, "outputs": 3, "scale": 3.0},
    {"inputs": 4, "outputs": 3, "scale": 1e-12},
    {"inputs": 1, "outputs": 8, "kernel": 5, "padding": 2},
    {"inputs": 12, "outputs": 12, "groups": 12, "mirrored": True, "kernel": 5, "padding": 2, "zeros": (123, 0)},
    {"inputs": 9, "outputs": 9, "groups": 9, "dilation": 2, "padding": 1, "size": 8},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_equals_loops_over_exact_fractions(shape):
    generator = np.random.default_rng(0)
    step = convolution(generator, **shape)
    source = step.inputs[0]
    values = generator.integers(0, 256, (source.channels, source.size, source.size), np.uint8)
    result = integer._convolve(step, torch.from_numpy(values)[None])[0].numpy()
    np.testing.assert_array_equal(result, loops(step, values))
    # Multipliers and shifts are as precise as float32 scales are.
    given = integer.rescaling(step)
    exact = given.multipliers * float(given.gain) / 2.0 ** (32 + given.shifts.astype(int))
    np.testing.assert_allclose(exact, step.scales, rtol=1e-7, atol=1e-11)
    assert (given.gain > 1) == (shape.get("scale", 0) == 3.0)


def test_the_integer_evaluation_agrees_with_onnxruntime(exports):
    path = exports / "minute-u8u8.onnx"
    network = int8_graph.read(path)
    images = data.sample().test_images[:100]
    expected, scores = onnx_file.logits(path, images), integer.scores(network, images)
    logits = integer.logits(network, scores)
    assert c_source.TOLERANCE.check(expected, logits, "integers").relative_error < 0.003
    assert scores.dtype == torch.int32
    assert logits.equal(scores.float() * np.float32(integer.head(network).scale))


def test_the_head_uses_the_bits_that_sums_of_32_bits_leave(exports):
    network = int8_graph.read(exports / "minute-u8u8.onnx")
    given = integer.head(network)
    largest = max(network.features.zero, 255 - network.features.zero) * network.features.size**2
    bound = np.abs(given.weights.astype(np.int64)).sum(1) * largest + np.abs(given.bias.astype(np.int64))
    assert bound.max() < 2**31
    assert bound.max() > 2**30 or np.abs(given.weights).max() > 2**14
    exact = network.head * network.features.scale / network.features.size**2
    np.testing.assert_allclose(given.weights * given.scale, exact, atol=0.51 * given.scale)


def test_an_addition_of_scales_that_32_bits_cannot_hold_is_refused():
    maps = [integer.Map(1, 1, scale, 0, 0, 0) for scale in (1.0, 1.0, 1e-8)]
    with pytest.raises(ValueError, match="far smaller scale"):
        integer.addition(integer.Step("add", maps[:2], maps[2]))


def test_a_convolution_whose_sums_exceed_32_bits_is_refused():
    step = convolution(np.random.default_rng(0), inputs=2, outputs=1)
    step.bias[0] = 2**31 - 1
    with pytest.raises(ValueError, match="exceed 32 bits"):
        integer.rescaling(step)
