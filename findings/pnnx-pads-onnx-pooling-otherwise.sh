#!/usr/bin/env bash
# pnnx, which converts ONNX for ncnn, writes other layers than ONNX defines in four places, without a message:
#   - of auto_pad SAME_UPPER and SAME_LOWER it pads poolings by the size of the kernel alone. With stride 2 and an even
#     size the windows begin one pixel too early: a 3x3 pooling needs no padding in front there, a 2x2 one none at all;
#   - in AveragePool the zeros of this padding are counted, as if count_include_pad were 1 instead of ONNX's 0;
#   - a MaxPool whose `pads` have more in front than behind is padded twice, and its map becomes larger;
#   - SpaceToDepth becomes PyTorch's pixel_unshuffle, which has the channels in another order: there the places of a
#     block go together for each channel, in ONNX the channels for each place. DepthToSpace in ONNX's default order is
#     refused, as it should be.
# Convolutions with SAME_UPPER are right, and so are poolings with the same padding on both sides, or behind alone.
#
# Seen with pnnx 20261020, ncnn 1.0.20261020, onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, x86-64; largest
# difference from NumPy for an image of 8x8 with values from 1 to 2:
#   AveragePool 3x3, pads=1              onnxruntime 0.000, pnnx and ncnn 0.000
#   AveragePool 3x3, SAME_UPPER          onnxruntime 0.000, pnnx and ncnn 0.967
#   MaxPool 3x3, stride 2, pads=0,0,1,1  onnxruntime 0.000, pnnx and ncnn 0.000
#   MaxPool 3x3, stride 2, SAME_UPPER    onnxruntime 0.000, pnnx and ncnn 0.459
#   MaxPool 3x3, stride 2, pads=1,1,0,0  onnxruntime 0.000, pnnx and ncnn 5x5 instead of 4x4
#   MaxPool 2x2, stride 2, SAME_LOWER    onnxruntime 0.000, pnnx and ncnn 0.824
#   Conv 3x3, stride 2, SAME_UPPER       onnxruntime 0.000, pnnx and ncnn 0.000
#   SpaceToDepth                         onnxruntime 0.000, pnnx and ncnn 0.979
# Exit code 0 while pnnx differs as above, without a message, and onnxruntime does not, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "pnnx==20261020"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "ncnn==1.0.20261020" "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import importlib.util
import subprocess
import sys
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

FOLDER = Path(sys.argv[1])
# The package itself needs torch to be imported, the converter in it does not.
CONVERTER = Path(importlib.util.find_spec("pnnx").origin).with_name("pnnx")
generator = np.random.default_rng(0)
image = generator.uniform(1, 2, (1, 4, 8, 8)).astype(np.float32)
weights = generator.normal(size=(4, 4, 3, 3)).astype(np.float32)
point = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)


def windows(kernel, stride, pads, outside):
    top, left, bottom, right = pads
    padding = [(0, 0), (0, 0), (top, bottom), (left, right)]
    padded = np.pad(image.astype(np.float64), padding, constant_values=outside)
    found = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    return found[:, :, ::stride, ::stride]


def average(stride, pads):
    return np.nanmean(windows(3, stride, pads, np.nan), (4, 5))


def largest(kernel, stride, pads):
    return windows(kernel, stride, pads, -np.inf).max((4, 5))


def node(name, *inputs, **attributes):
    return helper.make_node(name, ["point", *inputs], ["y"], **attributes)


def build(last, shape):
    # A 1x1 convolution that changes nothing goes first, from which pnnx knows the batch's axis.
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "eye"], ["point"]), last],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(point, "eye")]
        + [numpy_helper.from_array(weights, "weights")] * ("weights" in last.input),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def convert(model):
    for file in FOLDER.glob("net*"):
        file.unlink()
    onnx.save(model, FOLDER / "net.onnx")
    command = [CONVERTER, "net.onnx", "fp16=0"]
    said = subprocess.run(command, cwd=FOLDER, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.load_param(str(FOLDER / "net.ncnn.param"))
    net.load_model(str(FOLDER / "net.ncnn.bin"))
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(image[0]).clone())
    words = ("todo", "ignore", "unsupported", "fallback")
    silent = not any(line.startswith(words) for line in said.stdout.splitlines())
    return np.array(extractor.extract("out0")[1])[None], silent


FRONT, BEHIND = (1, 1, 0, 0), (0, 0, 1, 1)
THREE, TWO, HALF = {"kernel_shape": [3, 3]}, {"kernel_shape": [2, 2]}, {"strides": [2, 2]}
UPPER, LOWER = {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}
blocks = image.astype(np.float64).reshape(1, 4, 4, 2, 4, 2).transpose(0, 3, 5, 1, 2, 4).reshape(1, 16, 4, 4)
sums = np.einsum("nchwij,ocij->nohw", windows(3, 2, BEHIND, 0), weights)
cases = {
    "AveragePool 3x3, pads=1": (node("AveragePool", **THREE, pads=[1] * 4), average(1, (1, 1, 1, 1)), True),
    "AveragePool 3x3, SAME_UPPER": (node("AveragePool", **THREE, **UPPER), average(1, (1, 1, 1, 1)), False),
    "MaxPool 3x3, stride 2, pads=0,0,1,1": (node("MaxPool", **THREE, **HALF, pads=BEHIND), largest(3, 2, BEHIND), True),
    "MaxPool 3x3, stride 2, SAME_UPPER": (node("MaxPool", **THREE, **HALF, **UPPER), largest(3, 2, BEHIND), False),
    "MaxPool 3x3, stride 2, pads=1,1,0,0": (node("MaxPool", **THREE, **HALF, pads=FRONT), largest(3, 2, FRONT), False),
    "MaxPool 2x2, stride 2, SAME_LOWER": (node("MaxPool", **TWO, **HALF, **LOWER), largest(2, 2, (0, 0, 0, 0)), False),
    "Conv 3x3, stride 2, SAME_UPPER": (node("Conv", "weights", **HALF, **UPPER), sums, True),
    "SpaceToDepth": (node("SpaceToDepth", blocksize=2), blocks, False),
}
stands = True
for name, (last, exact, right) in cases.items():
    model = build(last, exact.shape)
    reference = np.abs(ort.InferenceSession(model.SerializeToString()).run(None, {"x": image})[0] - exact).max()
    result, silent = convert(model)
    same = result.shape == exact.shape
    word = f"{np.abs(result - exact).max():.3f}" if same else "x".join(map(str, result.shape[2:])) + " instead of 4x4"
    print(f"{name:36} onnxruntime {reference:.3f}, pnnx and ncnn {word}{'' if silent else ', with a message'}")
    stands &= reference < 1e-4 and silent and (word == "0.000") == right
sys.exit(0 if stands else 1)
PY
