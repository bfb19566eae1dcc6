#!/usr/bin/env bash
# MNN's converter reads three things of ONNX files otherwise than ONNX defines them, reports "Converted Success!", and
# the converted net gives wrong values:
#   - a BatchNormalization or InstanceNormalization without the attribute epsilon gets 1e-10 instead of 1e-5. Channels
#     of small variance come out up to 316 times too large;
#   - ReduceL1, ReduceL2, ReduceSumSquare and ReduceLogSumExp have had their axes as an input since opset 18. MNN
#     ignores it and reduces everything, the batch as well: features divided by their norm, as PyTorch exports its
#     normalize, then depend on the other images of the batch. Nor has an omitted keepdims the value 1 there.
#     ReduceMean, ReduceMax and ReduceSum are right, and so are all of them with the attributes of opset 13;
#   - auto_pad SAME_LOWER is treated as SAME_UPPER: a 3x3 convolution of stride 2 on an even size is shifted by a pixel.
# With epsilon, axes, keepdims and padding written out as attributes, each layer is right.
#
# Seen with mnn 3.6.1, onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, x86-64; largest value in float64 with NumPy,
# and the largest differences from it:
#   BatchNormalization, epsilon omitted: largest 1456.347; onnxruntime 0.000, MNN 13187.499
#   BatchNormalization, epsilon=1e-5: largest 1456.347; onnxruntime 0.000, MNN 0.000
#   InstanceNormalization, epsilon omitted: largest 2.857; onnxruntime 0.000, MNN 2.953
#   InstanceNormalization, epsilon=1e-5: largest 2.857; onnxruntime 0.000, MNN 0.000
#   ReduceL2, axes as an input: largest 4.389; onnxruntime 0.000, MNN 1x1x1x1 instead of 2x1x8x8
#   ReduceL2, keepdims omitted: largest 4.389; onnxruntime 0.000, MNN 2x8x8 instead of 2x1x8x8
#   ReduceL2, axes=[1], keepdims=1: largest 4.389; onnxruntime 0.000, MNN 0.000
#   ReduceMean, axes as an input, keepdims omitted: largest 1.815; onnxruntime 0.000, MNN 0.000
#   Conv, SAME_LOWER: largest 15.394; onnxruntime 0.000, MNN 26.392
#   Conv, pads: largest 15.394; onnxruntime 0.000, MNN 0.000
#   Conv, SAME_UPPER: largest 16.804; onnxruntime 0.000, MNN 0.000
# Exit code 0 while MNN differs as above and onnxruntime does not, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "mnn==3.6.1" "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import os
import sys

# MNN writes messages to the standard output, which is kept for the results here.
output = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

import _tools
import MNN
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

path = f"{sys.argv[1]}/model.onnx"
generator = np.random.default_rng(0)
SHAPE = 2, 4, 8, 8
image = generator.normal(size=SHAPE).astype(np.float32)
faint = image * np.float32(1e-3)
values = {name: generator.uniform(0.5, 2, 4).astype(np.float32) for name in ("scale", "shift", "mean")}
values["variance"] = np.array([1, 1e-2, 1e-5, 1e-7], np.float32)
values["w"] = generator.normal(size=(4, 4, 3, 3)).astype(np.float32)
values["axes"] = np.array([1])
wide = {name: table.astype(float)[:, None, None] for name, table in values.items() if table.ndim == 1}


def build(kind, names, opset, attributes):
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *names], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SHAPE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        [numpy_helper.from_array(values[name], name) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def with_onnxruntime(x):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def with_mnn(x):
    converted = f"{path}.mnn"
    # what the command mnnconvert calls
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", converted, "--bizCode", "x"])
    net = MNN.nn.load_module_from_file(converted, ["x"], ["y"])
    result = net.forward([MNN.expr.const(x, list(SHAPE), MNN.expr.NCHW, MNN.expr.float)])[0]
    return np.array(MNN.expr.convert(result, MNN.expr.NCHW).read())


def batch_norm(x):
    return (x - wide["mean"]) / np.sqrt(wide["variance"] + 1e-5) * wide["scale"] + wide["shift"]


def instance_norm(x):
    centred = x - x.mean((2, 3), keepdims=True)
    return centred / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5) * wide["scale"] + wide["shift"]


def norm(x):
    return np.sqrt((x**2).sum(1, keepdims=True))


def mean(x):
    return x.mean(1, keepdims=True)


def convolution(begin, end):
    def run(x):
        padded = np.pad(x, ((0, 0), (0, 0), (begin, end), (begin, end)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        return np.einsum("nihwyx,oiyx->nohw", windows, values["w"].astype(float))

    return run


BATCH, INSTANCE = ["scale", "shift", "mean", "variance"], ["scale", "shift"]
EPSILON, STRIDES = {"epsilon": 1e-5}, {"strides": [2, 2]}
stands = True
for text, kind, names, opset, attributes, x, exact, wrong in (
    ("epsilon omitted", "BatchNormalization", BATCH, 15, {}, image, batch_norm, True),
    ("epsilon=1e-5", "BatchNormalization", BATCH, 15, EPSILON, image, batch_norm, False),
    ("epsilon omitted", "InstanceNormalization", INSTANCE, 15, {}, faint, instance_norm, True),
    ("epsilon=1e-5", "InstanceNormalization", INSTANCE, 15, EPSILON, faint, instance_norm, False),
    ("axes as an input", "ReduceL2", ["axes"], 18, {"keepdims": 1}, image, norm, True),
    ("keepdims omitted", "ReduceL2", [], 13, {"axes": [1]}, image, norm, True),
    ("axes=[1], keepdims=1", "ReduceL2", [], 13, {"axes": [1], "keepdims": 1}, image, norm, False),
    ("axes as an input, keepdims omitted", "ReduceMean", ["axes"], 18, {}, image, mean, False),
    ("SAME_LOWER", "Conv", ["w"], 18, {"auto_pad": "SAME_LOWER", **STRIDES}, image, convolution(1, 0), True),
    ("pads", "Conv", ["w"], 18, {"pads": [1, 1, 0, 0], **STRIDES}, image, convolution(1, 0), False),
    ("SAME_UPPER", "Conv", ["w"], 18, {"auto_pad": "SAME_UPPER", **STRIDES}, image, convolution(0, 1), False),
):
    build(kind, names, opset, attributes)
    right = exact(x.astype(float))
    top = abs(right).max()
    texts = []
    for runner, run in (("onnxruntime", with_onnxruntime), ("MNN", with_mnn)):
        result = run(x)
        if result.shape == right.shape:
            error = abs(result - right).max()
            texts.append(f"{runner} {error:.3f}")
            close = error < 1e-4 * top
        else:
            texts.append(f"{runner} {'x'.join(map(str, result.shape))} instead of {'x'.join(map(str, right.shape))}")
            close = False
        stands &= bool(close != (wrong and runner == "MNN"))
    print(f"{kind}, {text}: largest {top:.3f}; {', '.join(texts)}", file=output, flush=True)
sys.exit(0 if stands else 1)
PY
