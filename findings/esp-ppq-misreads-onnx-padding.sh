#!/usr/bin/env bash
# Espressif's quantiser reads the padding and strides of ONNX otherwise than ONNX defines them, without a message. Its
# documentation says that the operators are aligned with ONNX, and names for poolings that they have no dilation:
#   - AveragePool counts the padding, as if count_include_pad were 1. By default it is 0 in ONNX; "same" poolings of
#     TensorFlow need this. Values at the edges come out up to 5/9 too small. ESP-DL, the runtime on the chip, reads no
#     such attribute by its source;
#   - without strides, AveragePool and MaxPool move by the size of the kernel, PyTorch's default, where ONNX has 1: the
#     map becomes half as large, and a global average behind it hides that;
#   - with SAME_UPPER, a stride larger than the kernel and an even size, as in the 1x1 shortcuts of residual nets, no
#     padding is needed. Here it becomes -1 in front: the first row and column are cut off, and the map is shifted.
# The same layers with strides and pads written out, and without padding in AveragePool, are right. The report of errors
# compares the int8 net with this reading, not with ONNX.
#
# Seen with esp-ppq 1.3.12, torch 2.13.0, onnx 1.19.1 and onnxruntime 1.32.0, Python 3.11, x86-64; largest values for an
# image of 8x8, and largest differences from NumPy in float64, or the size of the result:
#   AveragePool 3x3, pads=1                largest 0.942; onnxruntime 0.000, esp-ppq 0.484, int8 0.488
#   with count_include_pad=1               largest 0.921; onnxruntime 0.000, esp-ppq 0.000, int8 0.005
#   AveragePool 3x3, stride 2, SAME_UPPER  largest 0.942; onnxruntime 0.000, esp-ppq 0.450, int8 0.450
#   AveragePool 2x2, no strides            largest 0.958; onnxruntime 0.000, esp-ppq 4x4, int8 4x4
#   AveragePool 2x2, strides=1             largest 0.958; onnxruntime 0.000, esp-ppq 0.000, int8 0.006
#   MaxPool 2x2, no strides                largest 0.999; onnxruntime 0.000, esp-ppq 4x4, int8 4x4
#   Conv 1x1, stride 2, SAME_UPPER         largest 1.954; onnxruntime 0.000, esp-ppq 1.405, int8 1.403
#   Conv 1x1, stride 2, pads=0             largest 1.954; onnxruntime 0.000, esp-ppq 0.000, int8 0.032
# ("int8": after espdl_quantize_onnx). Exit code 0 while esp-ppq differs as above and onnxruntime does not, 1 if it has
# changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "esp-ppq==1.3.12" "torch==2.13.0" "onnx==1.19.1" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import contextlib
import os
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, checker, helper, numpy_helper

# esp-ppq writes its banner and progress to the standard output, which is kept for the results here.
warnings.simplefilter("ignore")
silent = open(os.devnull, "w")
with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
    from esp_ppq.api import espdl_quantize_onnx, load_onnx_graph
    from esp_ppq.executor import TorchExecutor

FOLDER = sys.argv[1]
generator = np.random.default_rng(0)
image = generator.uniform(0.5, 1, (1, 4, 8, 8)).astype(np.float32)
point = generator.normal(size=(6, 4, 1, 1)).astype(np.float32)


def windows(kernel, stride, before, after, outside):
    padded = np.pad(image.astype(np.float64), [(0, 0), (0, 0)] + [(before, after)] * 2, constant_values=outside)
    found = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    return found[:, :, ::stride, ::stride]


def average(kernel, stride, before, after, outside=np.nan):
    return np.nanmean(windows(kernel, stride, before, after, outside), (4, 5))


def pool(name="AveragePool", **attributes):
    return [helper.make_node(name, ["x"], ["y"], **attributes)]


def conv(**attributes):
    return [helper.make_node("Conv", ["x", "point"], ["y"], **attributes)]


def build(nodes, shape):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(point, "point")] * ("point" in nodes[0].input),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def runtime(model):
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": image})[0]


def espressif(model, quantized):
    path = os.path.join(FOLDER, "net.onnx")
    onnx.save(model, path)
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        if quantized:
            graph = espdl_quantize_onnx(
                path,
                os.path.join(FOLDER, "net.espdl"),
                torch.utils.data.DataLoader(torch.from_numpy(image), batch_size=1),
                8,
                list(image.shape),
                target="esp32s3",
                error_report=False,
            )
        else:
            graph = load_onnx_graph(path)
        return TorchExecutor(graph, device="cpu").forward(torch.from_numpy(image))[0].detach().numpy()


SAME, THREE, TWO = {"auto_pad": "SAME_UPPER"}, {"kernel_shape": [3, 3]}, {"kernel_shape": [2, 2]}
ONE, HALF = {"strides": [1, 1]}, {"strides": [2, 2]}
halved = np.einsum("nchw,oc->nohw", image[:, :, ::2, ::2].astype(np.float64), point[:, :, 0, 0])
cases = {
    "AveragePool 3x3, pads=1": (pool(**THREE, **ONE, pads=[1] * 4), average(3, 1, 1, 1), False),
    "with count_include_pad=1": (
        pool(**THREE, **ONE, pads=[1] * 4, count_include_pad=1),
        average(3, 1, 1, 1, 0),
        True,
    ),
    "AveragePool 3x3, stride 2, SAME_UPPER": (pool(**THREE, **HALF, **SAME), average(3, 2, 0, 1), False),
    "AveragePool 2x2, no strides": (pool(**TWO), average(2, 1, 0, 0), False),
    "AveragePool 2x2, strides=1": (pool(**TWO, **ONE), average(2, 1, 0, 0), True),
    "MaxPool 2x2, no strides": (pool("MaxPool", **TWO), windows(2, 1, 0, 0, 0).max((4, 5)), False),
    "Conv 1x1, stride 2, SAME_UPPER": (conv(**HALF, **SAME), halved, False),
    "Conv 1x1, stride 2, pads=0": (conv(**HALF, pads=[0] * 4), halved, True),
}
stands = True
for name, (nodes, exact, right) in cases.items():
    model = build(nodes, exact.shape)
    words = []
    for result in (runtime(model), espressif(model, False), espressif(model, True)):
        if result.shape == exact.shape:
            words.append(f"{np.abs(result - exact).max():.3f}")
        else:
            words.append("x".join(map(str, result.shape[2:])))
    print(f"{name:38} largest {np.abs(exact).max():.3f}; onnxruntime {words[0]}, esp-ppq {words[1]}, int8 {words[2]}")
    stands &= words[0] == "0.000" and (words[1] == "0.000") == right
sys.exit(0 if stands else 1)
PY
