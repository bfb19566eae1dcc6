#!/usr/bin/env bash
# Aidge, the Eclipse project that compiles nets to C++ and for Cortex-M, reads ONNX files with aidge-onnx. What it does
# not support it fills with a "GenericOperator" and a warning. For these layers there is none, but other results:
#   - auto_pad of poolings is swapped: SAME_UPPER, the "same" of TensorFlow, puts the odd row and column of padding in
#     front, and SAME_LOWER behind, where ONNX has it the other way round. A 3x3 pooling of stride 2 on an even size is
#     moved by a pixel. The code for convolutions quotes the definition in a comment, and has the sides right;
#   - the padding is the size of the kernel less the stride, whatever the size of the map. Where the stride does not
#     divide the size, ONNX rounds the result's size up; here a row and a column are lost, so that a 7x7 map becomes 3x3
#     instead of 4x4. Dilation is left out, too;
#   - until opset 12 Softmax and LogSoftmax run over all dimensions from `axis` on together; here they run over one;
#   - Gemm with beta=0, by which its bias counts nothing, adds the bias.
# The same padding written as `pads`, a convolution on an even size, opset 18, and beta=0.5 are right.
#
# Seen with aidge-core, aidge-backend-cpu and aidge-onnx 0.10.1, onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11,
# x86-64; sizes of input and result, and largest difference from NumPy in float64, or another size of the result:
#   MaxPool 3x3, stride 2, SAME_UPPER 8x8 to 4x4, largest 0.999: onnxruntime 0.000, Aidge 0.155
#   MaxPool 3x3, stride 2, SAME_LOWER 8x8 to 4x4, largest 0.999: onnxruntime 0.000, Aidge 0.155
#   MaxPool 3x3, stride 2, pads       8x8 to 4x4, largest 0.999: onnxruntime 0.000, Aidge 0.000
#   AveragePool 2x2, SAME_UPPER       8x8 to 8x8, largest 0.972: onnxruntime 0.000, Aidge 0.272
#   AveragePool 2x2, pads             8x8 to 8x8, largest 0.972: onnxruntime 0.000, Aidge 0.000
#   MaxPool 2x2, stride 2, SAME_UPPER 7x7 to 4x4, largest 0.999: onnxruntime 0.000, Aidge 3x3
#   MaxPool 2x2, stride 2, pads       7x7 to 4x4, largest 0.999: onnxruntime 0.000, Aidge 0.000
#   Conv 3x3, stride 2, SAME_UPPER    7x7 to 4x4, largest 9.763: onnxruntime 0.000, Aidge 3x3
#   Conv 3x3, stride 2, SAME_UPPER    8x8 to 4x4, largest 9.040: onnxruntime 0.000, Aidge 0.000
#   Conv 3x3, dilation 2, SAME_UPPER  8x8 to 8x8, largest 9.899: onnxruntime refused, Aidge 6x6
#   Conv 3x3, dilation 2, pads        8x8 to 8x8, largest 9.899: onnxruntime 0.000, Aidge 0.000
#   Softmax, axis 1, opset 11         8x8 to 8x8, largest 0.006: onnxruntime 0.000, Aidge 0.414
#   Softmax, axis 1, opset 18         8x8 to 8x8, largest 0.421: onnxruntime 0.000, Aidge 0.000
#   Gemm, beta 0                      2x6 to 2x3, largest 2.637: onnxruntime 0.000, Aidge 0.418
#   Gemm, beta 0.5                    2x6 to 2x3, largest 2.694: onnxruntime 0.000, Aidge 0.000
# (onnxruntime refuses auto_pad with a dilation.) Exit code 0 while Aidge differs as above and nothing else does, 1 if
# it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "aidge-core==0.10.1" "aidge-backend-cpu==0.10.1" "aidge-onnx==0.10.1" "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import os
import sys

import aidge_backend_cpu  # noqa: F401  (registers the backend "cpu")
import aidge_core
import aidge_onnx
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

ort.set_default_logger_severity(4)
PATH = os.path.join(sys.argv[1], "net.onnx")
generator = np.random.default_rng(0)
even = generator.uniform(0.5, 1, (1, 3, 8, 8)).astype(np.float32)
odd = even[:, :, :7, :7].copy()
filters = generator.normal(size=(4, 3, 3, 3)).astype(np.float32)
features = generator.uniform(0.5, 1, (2, 6)).astype(np.float32)
dense = {
    "w": generator.normal(size=(6, 3)).astype(np.float32),
    "b": generator.normal(size=3).astype(np.float32),
}


def windows(given, kernel, stride, before, after, outside, dilation=1):
    padded = np.pad(given.astype(np.float64), [(0, 0), (0, 0)] + [(before, after)] * 2, constant_values=outside)
    reach = (kernel - 1) * dilation + 1
    found = np.lib.stride_tricks.sliding_window_view(padded, (reach, reach), (2, 3))
    return found[:, :, ::stride, ::stride, ::dilation, ::dilation]


def largest(given, kernel, stride, before, after):
    return windows(given, kernel, stride, before, after, -np.inf).max((4, 5))


def average(given, kernel, stride, before, after):
    return np.nanmean(windows(given, kernel, stride, before, after, np.nan), (4, 5))


def conv(given, stride, before, after, dilation=1):
    found = windows(given, 3, stride, before, after, 0, dilation)
    return np.einsum("nchwij,ocij->nohw", found, filters)


def softmax(axes):
    powers = np.exp(even.astype(np.float64))
    return powers / powers.sum(axes, keepdims=True)


def node(name, inputs="x", **attributes):
    return helper.make_node(name, inputs.split(), ["y"], **attributes)


def pool(name, kernel, stride, **attributes):
    return node(name, kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)


UPPER, LOWER = {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}
weights = {"w": filters}
product = features @ dense["w"]
# name: (layer, input, constants, exact result, whether Aidge is right)
cases = {
    "MaxPool 3x3, stride 2, SAME_UPPER": (pool("MaxPool", 3, 2, **UPPER), even, {}, largest(even, 3, 2, 0, 1), False),
    "MaxPool 3x3, stride 2, SAME_LOWER": (pool("MaxPool", 3, 2, **LOWER), even, {}, largest(even, 3, 2, 1, 0), False),
    "MaxPool 3x3, stride 2, pads": (
        pool("MaxPool", 3, 2, pads=[0, 0, 1, 1]),
        even,
        {},
        largest(even, 3, 2, 0, 1),
        True,
    ),
    "AveragePool 2x2, SAME_UPPER": (pool("AveragePool", 2, 1, **UPPER), even, {}, average(even, 2, 1, 0, 1), False),
    "AveragePool 2x2, pads": (
        pool("AveragePool", 2, 1, pads=[0, 0, 1, 1]),
        even,
        {},
        average(even, 2, 1, 0, 1),
        True,
    ),
    "MaxPool 2x2, stride 2, SAME_UPPER": (pool("MaxPool", 2, 2, **UPPER), odd, {}, largest(odd, 2, 2, 0, 1), False),
    "MaxPool 2x2, stride 2, pads": (
        pool("MaxPool", 2, 2, pads=[0, 0, 1, 1]),
        odd,
        {},
        largest(odd, 2, 2, 0, 1),
        True,
    ),
    "Conv 3x3, stride 2, SAME_UPPER": (
        node("Conv", "x w", strides=[2, 2], **UPPER),
        odd,
        weights,
        conv(odd, 2, 1, 1),
        False,
    ),
    "Conv 3x3, stride 2, SAME_UPPER ": (
        node("Conv", "x w", strides=[2, 2], **UPPER),
        even,
        weights,
        conv(even, 2, 0, 1),
        True,
    ),
    "Conv 3x3, dilation 2, SAME_UPPER": (
        node("Conv", "x w", dilations=[2, 2], **UPPER),
        even,
        weights,
        conv(even, 1, 2, 2, 2),
        False,
    ),
    "Conv 3x3, dilation 2, pads": (
        node("Conv", "x w", dilations=[2, 2], pads=[2] * 4),
        even,
        weights,
        conv(even, 1, 2, 2, 2),
        True,
    ),
    "Softmax, axis 1, opset 11": (node("Softmax", axis=1), even, {}, softmax((1, 2, 3)), False),
    "Softmax, axis 1, opset 18": (node("Softmax", axis=1), even, {}, softmax(1), True),
    "Gemm, beta 0": (node("Gemm", "x w b", beta=0.0), features, dense, product, False),
    "Gemm, beta 0.5": (node("Gemm", "x w b", beta=0.5), features, dense, product + dense["b"] / 2, True),
}


def build(name, layer, given, constants, exact):
    graph = helper.make_graph(
        [layer],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, exact.shape)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    opset = 11 if "opset 11" in name else 18
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    onnx.save(model, PATH)


def aidge(given):
    graph = aidge_onnx.load_onnx(PATH)
    graph.set_backend("cpu")
    graph.forward_dims([list(given.shape)], True)
    aidge_core.SequentialScheduler(graph).forward(data=[aidge_core.Tensor(given)])
    (end,) = graph.get_output_nodes()
    return np.array(end.get_operator().get_output(0))


def words(result, exact):
    if result.shape != exact.shape:
        return "x".join(map(str, result.shape[2:]))
    return f"{np.abs(result - exact).max():.3f}"


stands = True
for name, (layer, given, constants, exact, right) in cases.items():
    build(name, layer, given, constants, exact)
    try:
        runtime = words(ort.InferenceSession(PATH).run(None, {"x": given})[0], exact)
    except ort.capi.onnxruntime_pybind11_state.InvalidArgument:
        runtime = "refused"
    found = words(aidge(given), exact)
    sizes = " to ".join("x".join(map(str, array.shape[-2:])) for array in (given, exact))
    print(f"{name:33} {sizes}, largest {np.abs(exact).max():5.3f}: onnxruntime {runtime}, Aidge {found}")
    stands &= runtime in ("0.000", "refused") and (found == "0.000") == right
sys.exit(0 if stands else 1)
PY
