#!/usr/bin/env bash
# onnx2torch turns ONNX files into PyTorch modules, to train or change them there. It raises NotImplementedError for
# what it does not have, and warns of differences in Resize, but converts four things otherwise than ONNX defines them
# without a message:
#   - ReduceMax and ReduceMin remove one dimension after another. With keepdims=0 and negative axes, which
#     ONNX allows since opset 11, the second axis means another dimension by then: a global maximum over the last two
#     axes becomes one over channels and rows. Where there are as many columns as channels, even the shape is right.
#     ReduceMean, ReduceSum and others, which PyTorch computes at once, are right;
#   - Unsqueeze of (N, C) at -2 and -1 gives (N, 1, C, 1) for the same reason, so that a squeeze-and-excitation gate
#     weights rows instead of channels; Squeeze of the last two axes after a global pooling removes one of them;
#   - PRelu with one slope for each column, a shape that ONNX aligns with the last dimension, takes them for slopes of
#     channels where there are as many;
#   - Pad until opset 10 has its value as an attribute, `value`. The code asks for `constant_value`: the border is 0.
# The same layers with positive axes, slopes of shape (C, 1, 1), and Pad since opset 11 are right.
#
# Seen with onnx2torch 1.5.15, torch 2.13.0, onnx 1.19.1 and onnxruntime 1.32.0, Python 3.11, x86-64; shape and largest
# value of the result by NumPy, and largest differences from it or another shape:
#   ReduceMax, axes -2 and -1      2x4     largest 0.994: onnxruntime 0.000, onnx2torch 0.209
#   ReduceMax, axes 2 and 3        2x4     largest 0.994: onnxruntime 0.000, onnx2torch 0.000
#   ReduceMin, axes -2 and -1      2x4     largest 0.995: onnxruntime 0.000, onnx2torch 0.342
#   ReduceMean, axes -2 and -1     2x4     largest 0.365: onnxruntime 0.000, onnx2torch 0.000
#   gate, Unsqueeze axes -2 and -1 2x4x4x4 largest 0.354: onnxruntime 0.000, onnx2torch 0.375
#   gate, Unsqueeze axes 2 and 3   2x4x4x4 largest 0.354: onnxruntime 0.000, onnx2torch 0.000
#   Squeeze, axes -2 and -1        2x4     largest 0.810: onnxruntime 0.000, onnx2torch 2x4x1
#   Squeeze, axes 2 and 3          2x4     largest 0.810: onnxruntime 0.000, onnx2torch 0.000
#   PRelu, slopes 4                2x4x4x4 largest 0.994: onnxruntime 0.000, onnx2torch 0.746
#   PRelu, slopes 4x1x1            2x4x4x4 largest 0.994: onnxruntime 0.000, onnx2torch 0.000
#   Pad with 0.5, opset 10         2x4x6x6 largest 0.995: onnxruntime 0.000, onnx2torch 0.500
#   Pad with 0.5, opset 13         2x4x6x6 largest 0.995: onnxruntime 0.000, onnx2torch 0.000
# Exit code 0 while onnx2torch differs as above, without a warning, and onnxruntime does not, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
# onnx2torch needs torchvision for non-maximum suppression and RoiAlign alone, which are not used here.
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "torch==2.13.0" "onnx==1.19.1" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "onnx2torch==1.5.15"
"$folder/venv/bin/python" - "$folder" <<'PY'
import os
import sys
import types
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, checker, helper, numpy_helper

for name in ("torchvision", "torchvision.ops"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision.ops"].roi_align = None

from onnx2torch import convert

PATH = os.path.join(sys.argv[1], "net.onnx")
generator = np.random.default_rng(0)
image = generator.uniform(-1, 1, (2, 4, 4, 4)).astype(np.float32)
pooled = generator.uniform(size=(2, 4, 1, 1)).astype(np.float32)
slope = np.array([0, 0.25, 0.5, 0.75], np.float32)
PADS = [0, 0, 1, 1, 0, 0, 1, 1]


def node(name, inputs="x", **attributes):
    return [helper.make_node(name, inputs.split(), ["y"], **attributes)]


def gate(axes):
    return [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", axes], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]


def integers(*values):
    return np.array(values, np.int64)


def rectified(slopes):
    return np.where(image < 0, slopes * image, image)


def padded(value):
    return np.pad(image, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=value)


gated = image * image.mean((2, 3), keepdims=True)
edge = {"pads": integers(*PADS), "value": np.array(0.5, np.float32)}
channels = slope.reshape(4, 1, 1)
# name: (nodes, opset, input, constants, exact result, whether onnx2torch is right)
cases = {
    "ReduceMax, axes -2 and -1": (
        node("ReduceMax", axes=[-2, -1], keepdims=0),
        13,
        image,
        {},
        image.max((2, 3)),
        False,
    ),
    "ReduceMax, axes 2 and 3": (node("ReduceMax", axes=[2, 3], keepdims=0), 13, image, {}, image.max((2, 3)), True),
    "ReduceMin, axes -2 and -1": (
        node("ReduceMin", axes=[-2, -1], keepdims=0),
        13,
        image,
        {},
        image.min((2, 3)),
        False,
    ),
    "ReduceMean, axes -2 and -1": (
        node("ReduceMean", axes=[-2, -1], keepdims=0),
        13,
        image,
        {},
        image.mean((2, 3)),
        True,
    ),
    "gate, Unsqueeze axes -2 and -1": (gate("axes"), 13, image, {"axes": integers(-2, -1)}, gated, False),
    "gate, Unsqueeze axes 2 and 3": (gate("axes"), 13, image, {"axes": integers(2, 3)}, gated, True),
    "Squeeze, axes -2 and -1": (
        node("Squeeze", "x axes"),
        13,
        pooled,
        {"axes": integers(-2, -1)},
        pooled[:, :, 0, 0],
        False,
    ),
    "Squeeze, axes 2 and 3": (
        node("Squeeze", "x axes"),
        13,
        pooled,
        {"axes": integers(2, 3)},
        pooled[:, :, 0, 0],
        True,
    ),
    "PRelu, slopes 4": (node("PRelu", "x slope"), 13, image, {"slope": slope}, rectified(slope), False),
    "PRelu, slopes 4x1x1": (node("PRelu", "x slope"), 13, image, {"slope": channels}, rectified(channels), True),
    "Pad with 0.5, opset 10": (node("Pad", pads=PADS, value=0.5), 10, image, {}, padded(0.5), False),
    "Pad with 0.5, opset 13": (node("Pad", "x pads value"), 13, image, edge, padded(0.5), True),
}


def build(nodes, opset, given, constants, exact):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, exact.shape)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    onnx.save(model, PATH)


def words(result, exact):
    if result.shape != exact.shape:
        return "x".join(map(str, result.shape))
    return f"{np.abs(result - exact).max():.3f}"


stands = True
for name, (nodes, opset, given, constants, exact, right) in cases.items():
    build(nodes, opset, given, constants, exact)
    runtime = words(ort.InferenceSession(PATH).run(None, {"x": given})[0], exact)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = words(convert(PATH).eval()(torch.from_numpy(given)).numpy(), exact)
    shape = "x".join(map(str, exact.shape))
    told = [str(warning.message) for warning in said]
    print(f"{name:30} {shape:7} largest {np.abs(exact).max():5.3f}: onnxruntime {runtime}, onnx2torch {found}", *told)
    stands &= runtime == "0.000" and (found == "0.000") == right and not told
sys.exit(0 if stands else 1)
PY
