#!/usr/bin/env bash
# tinygrad's reader of ONNX files (tinygrad.nn.onnx, which "executes an ONNX model") raises NotImplementedError for what
# it does not know, but reads these valid files otherwise than ONNX defines them, without a message:
#   - negative axes, allowed since opset 11, are taken one after another, while the number of dimensions changes.
#     Squeeze of the last two axes after a global pooling removes one; Unsqueeze of (N, C) at -2 and -1 gives (N, 1, C,
#     1). A squeeze-and-excitation gate then weights rows instead of channels where a map has as many rows as channels;
#   - auto_pad SAME_UPPER and SAME_LOWER leave the dilation out, so that the map becomes smaller. With a stride larger
#     than the kernel no padding is needed (`pads` are never negative in ONNX); here it becomes negative and cuts off
#     the first rows and columns: the 1x1 shortcuts of residual nets read other pixels;
#   - until opset 12 Softmax and LogSoftmax run over all dimensions from `axis` on together, and LogSoftmax starts at 1
#     by default. Here they run over one, LogSoftmax over the last;
#   - CenterCropPad from an odd size to a smaller odd one starts a pixel early. ONNX starts at half of the difference;
#   - ArgMin negates unsigned integers, by which 0 stays 0: the smallest pixel is never found where it is 0;
#   - QuantizeLinear to uint8 rounds halves up, where ONNX rounds them to even. To int8 it is right.
# The same layers with positive axes, `pads`, a later opset, even sizes or signed integers are right.
#
# Seen with tinygrad 0.14.0 (its Python backend; the reader is the same for all), onnx 1.23.2 and onnxruntime 1.32.0,
# Python 3.11, x86-64: size and largest value of the result by NumPy, and largest differences from it or another size
#   Conv 2x2, stride 4, SAME_UPPER    1x1x2x2  largest   3.238; onnxruntime 0.000, tinygrad 0.572
#   Conv 1x1, stride 2, SAME_UPPER    1x1x4x4  largest   0.897; onnxruntime 0.000, tinygrad 0.274
#   Conv 1x1, stride 2, pads=0        1x1x4x4  largest   0.897; onnxruntime 0.000, tinygrad 0.000
#   Conv 3x3, dilation 2, SAME_UPPER  1x1x8x8  largest   6.170; onnxruntime refused, tinygrad 1x1x6x6
#   Conv 3x3, dilation 2, pads=2      1x1x8x8  largest   6.170; onnxruntime 0.000, tinygrad 0.000
#   Squeeze, axes -2 and -1           1x4      largest   0.726; onnxruntime 0.000, tinygrad 1x4x1
#   Squeeze, axes 2 and 3             1x4      largest   0.726; onnxruntime 0.000, tinygrad 0.000
#   gate, Unsqueeze axes -2 and -1    1x4x4x4  largest   0.780; onnxruntime 0.000, tinygrad 0.083
#   gate, Unsqueeze axes 2 and 3      1x4x4x4  largest   0.780; onnxruntime 0.000, tinygrad 0.000
#   Softmax, axis 1, opset 11         1x4x4x4  largest   0.020; onnxruntime 0.000, tinygrad 0.317
#   Softmax, axis 1, opset 18         1x4x4x4  largest   0.337; onnxruntime 0.000, tinygrad 0.000
#   LogSoftmax, opset 11              1x4x4x4  largest   4.415; onnxruntime 0.000, tinygrad 2.902
#   LogSoftmax, opset 18              1x4x4x4  largest   1.688; onnxruntime 0.000, tinygrad 0.000
#   ArgMin, uint8                     2        largest   1.000; onnxruntime 0.000, tinygrad 2.000
#   ArgMin, int32                     2        largest   1.000; onnxruntime 0.000, tinygrad 0.000
#   QuantizeLinear of halves, uint8   1x16     largest   8.000; onnxruntime 0.000, tinygrad 1.000
#   QuantizeLinear of halves, int8    1x16     largest   8.000; onnxruntime 0.000, tinygrad 0.000
#   CenterCropPad, 3x3 of 7x7         1x2x3x3  largest   0.988; onnxruntime 0.000, tinygrad 0.386
#   CenterCropPad, 4x4 of 8x8         1x2x4x4  largest   0.997; onnxruntime 0.000, tinygrad 0.000
# Exit code 0 while tinygrad differs as above and nothing else does, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "tinygrad==0.14.0" "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
DEV=PYTHON "$folder/venv/bin/python" - "$folder" <<'PY'
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import checker, helper, numpy_helper
from tinygrad import Tensor
from tinygrad.nn.onnx import OnnxRunner

ort.set_default_logger_severity(4)
PATH = os.path.join(sys.argv[1], "net.onnx")
generator = np.random.default_rng(0)
image = generator.uniform(0.5, 1, (1, 4, 4, 4)).astype(np.float32)
large = generator.uniform(0.5, 1, (1, 2, 8, 8)).astype(np.float32)
three = generator.normal(size=(1, 2, 3, 3)).astype(np.float32)
two, point = three[:, :, :2, :2].copy(), three[:, :, :1, :1].copy()
pooled = generator.uniform(size=(1, 4, 1, 1)).astype(np.float32)
bytes_ = np.array([[0, 200, 90], [7, 0, 255]], np.uint8)
halves = (np.arange(16, dtype=np.float32) / 2 + 0.5).reshape(1, 16)


def conv(weights, stride=1, dilation=1, before=0, after=0):
    padded = np.pad(large.astype(np.float64), [(0, 0), (0, 0)] + [(before, after)] * 2)
    reach = (weights.shape[2] - 1) * dilation + 1
    found = np.lib.stride_tricks.sliding_window_view(padded, (reach, reach), (2, 3))
    found = found[:, :, ::stride, ::stride, ::dilation, ::dilation]
    return np.einsum("nchwij,ocij->nohw", found, weights)


def softmax(axes):
    powers = np.exp(image.astype(np.float64))
    return powers / powers.sum(axes, keepdims=True)


def node(name, inputs="x", **attributes):
    return [helper.make_node(name, inputs.split(), ["y"], **attributes)]


def gate(axes):
    return [
        helper.make_node("ReduceMean", ["x", "spatial"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", axes], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]


def integers(*values):
    return np.array(values, np.int64)


def scaled(dtype):
    return {"scale": np.array(1, np.float32), "zero": np.array(0, dtype)}


SAME = {"auto_pad": "SAME_UPPER"}
gated = image * image.mean((2, 3), keepdims=True)
last = {"axes": integers(-2, -1)}
cases = {
    "Conv 2x2, stride 4, SAME_UPPER": (node("Conv", "x w", strides=[4, 4], **SAME), large, conv(two, 4), {"w": two}),
    "Conv 1x1, stride 2, SAME_UPPER": (
        node("Conv", "x w", strides=[2, 2], **SAME),
        large,
        conv(point, 2),
        {"w": point},
    ),
    "Conv 1x1, stride 2, pads=0": (node("Conv", "x w", strides=[2, 2]), large, conv(point, 2), {"w": point}),
    "Conv 3x3, dilation 2, SAME_UPPER": (
        node("Conv", "x w", dilations=[2, 2], **SAME),
        large,
        conv(three, 1, 2, 2, 2),
        {"w": three},
    ),
    "Conv 3x3, dilation 2, pads=2": (
        node("Conv", "x w", dilations=[2, 2], pads=[2] * 4),
        large,
        conv(three, 1, 2, 2, 2),
        {"w": three},
    ),
    "Squeeze, axes -2 and -1": (node("Squeeze", "x axes"), pooled, pooled[:, :, 0, 0], last),
    "Squeeze, axes 2 and 3": (node("Squeeze", "x axes"), pooled, pooled[:, :, 0, 0], {"axes": integers(2, 3)}),
    "gate, Unsqueeze axes -2 and -1": (gate("axes"), image, gated, {"spatial": integers(2, 3), **last}),
    "gate, Unsqueeze axes 2 and 3": (gate("spatial"), image, gated, {"spatial": integers(2, 3)}),
    "Softmax, axis 1, opset 11": (node("Softmax", axis=1), image, softmax((1, 2, 3)), {}),
    "Softmax, axis 1, opset 18": (node("Softmax", axis=1), image, softmax(1), {}),
    "LogSoftmax, opset 11": (node("LogSoftmax"), image, np.log(softmax((1, 2, 3))), {}),
    "LogSoftmax, opset 18": (node("LogSoftmax"), image, np.log(softmax(3)), {}),
    "ArgMin, uint8": (node("ArgMin", axis=1, keepdims=0), bytes_, bytes_.argmin(1), {}),
    "ArgMin, int32": (node("ArgMin", axis=1, keepdims=0), bytes_.astype(np.int32), bytes_.argmin(1), {}),
    "QuantizeLinear of halves, uint8": (
        node("QuantizeLinear", "x scale zero"),
        halves,
        np.round(halves).astype(np.uint8),
        scaled(np.uint8),
    ),
    "QuantizeLinear of halves, int8": (
        node("QuantizeLinear", "x scale zero"),
        halves,
        np.round(halves).astype(np.int8),
        scaled(np.int8),
    ),
}
odd = large[:, :, :7, :7].copy()
for size, kept, exact in ((7, 3, odd[:, :, 2:5, 2:5]), (8, 4, large[:, :, 2:6, 2:6])):
    cases[f"CenterCropPad, {kept}x{kept} of {size}x{size}"] = (
        node("CenterCropPad", "x size", axes=[2, 3]),
        odd if size == 7 else large,
        exact,
        {"size": integers(kept, kept)},
    )
WRONG = (
    "stride 4",
    "1x1, stride 2, SAME",
    "dilation 2, SAME",
    "-1",
    "opset 11",
    "3x3 of",
    "ArgMin, uint8",
    "halves, uint8",
)


def build(name, nodes, given, exact, constants):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(given.dtype), given.shape)],
        [helper.make_tensor_value_info("y", kind(exact), exact.shape)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    opset = 11 if "opset 11" in name else 18
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    onnx.save(model, PATH)


def kind(exact):
    return helper.np_dtype_to_tensor_dtype(np.dtype("f4") if exact.dtype == np.float64 else exact.dtype)


def words(result, exact):
    if result.shape != exact.shape:
        return "x".join(map(str, result.shape))
    return f"{np.abs(result.astype(np.float64) - exact).max():.3f}"


stands = True
for name, (nodes, given, exact, constants) in cases.items():
    build(name, nodes, given, exact, constants)
    try:
        runtime = words(ort.InferenceSession(PATH).run(None, {"x": given})[0], exact)
    except ort.capi.onnxruntime_pybind11_state.InvalidArgument:
        runtime = "refused"
    found = words(OnnxRunner(PATH)({"x": Tensor(given)})["y"].numpy(), exact)
    shape = "x".join(map(str, exact.shape))
    print(f"{name:33} {shape:8} largest {np.abs(exact).max():7.3f}; onnxruntime {runtime}, tinygrad {found}")
    stands &= runtime in ("0.000", "refused") and (found != "0.000") == any(part in name for part in WRONG)
sys.exit(0 if stands else 1)
PY
