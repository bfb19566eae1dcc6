#!/usr/bin/env bash
# ONNX's auto_pad SAME_UPPER pads as TensorFlow's "same": as much as the stride needs and, where that is odd, one more
# at the end. The engine that is new in OpenCV 5, and the default, puts (kernel - 1) / 2 rows and columns in front
# instead, whatever the stride and the size, and as much behind as the output's size needs. A 3x3 layer of stride 2 on
# an even size, the usual one of nets that come from TensorFlow, is thus shifted by a pixel; so are 5x5 ones, and
# those whose stride is the kernel's size, which need no padding. It is the same for convolutions and both poolings.
# SAME_LOWER, one more in front, is often right by that rule, but not for even kernels at stride 1. The classic engine,
# like OpenCV 4, is right for SAME_UPPER and takes SAME_LOWER for it. The sizes are right everywhere, nothing is said,
# and with the same padding written out as `pads` all agree.
#
# Seen with opencv-python-headless 5.0.0.93, onnxruntime 1.32.0 and onnx 1.23.2, Python 3.11, x86-64; largest
# differences of a convolution, a depthwise one, MaxPool and AveragePool from onnxruntime with `pads` ("=": below
# 0.001), with the padding in front and behind by ONNX's definition:
#   8x8, 3x3, stride 1, SAME_UPPER (1 and 1): new = = = =, classic = = = =
#   9x9, 3x3, stride 2, SAME_UPPER (1 and 1): new = = = =, classic = = = =
#   8x8, 3x3, stride 2, SAME_UPPER (0 and 1): new 11.23 3.59 0.59 0.27, classic = = = =
#   8x8, 3x3, stride 2, SAME_LOWER (1 and 0): new = = = =, classic 12.70 4.73 0.34 0.30
#   32x32, 3x3, stride 2, SAME_UPPER (0 and 1): new 13.41 5.86 0.57 0.29, classic = = = =
#   32x32, 3x3, stride 2, SAME_LOWER (1 and 0): new = = = =, classic 14.60 4.63 0.57 0.31
#   8x8, 5x5, stride 2, SAME_UPPER (1 and 2): new 9.42 5.35 0.34 0.17, classic = = = =
#   8x8, 5x5, stride 2, SAME_LOWER (2 and 1): new = = = =, classic 5.27 5.07 0.36 0.11
#   9x9, 3x3, stride 3, SAME_UPPER (0 and 0): new 13.68 4.56 0.56 0.25, classic = = = =
#   9x9, 3x3, stride 3, SAME_LOWER (0 and 0): new 12.61 5.18 0.43 0.19, classic = = = =
#   8x8, 4x4, stride 1, SAME_UPPER (1 and 2): new = = = =, classic = = = =
#   8x8, 4x4, stride 1, SAME_LOWER (2 and 1): new 8.14 7.05 0.65 0.26, classic 8.14 7.05 0.65 0.26
# onnxruntime is right with auto_pad too.
# Exit code 0 while the engines differ from the definition as above, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "opencv-python-headless==5.0.0.93" "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import cv2
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

CHANNELS = 4
generator = np.random.default_rng(0)
path = f"{sys.argv[1]}/model.onnx"


def padding(mode, size, kernel, stride):
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    less, more = total // 2, total - total // 2
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def build(kind, size, kernel, stride, **pads):
    attributes = {"strides": [stride] * 2, "kernel_shape": [kernel] * 2, **pads}
    inputs, weights = ["x"], []
    if "pool" not in kind.lower():
        groups = CHANNELS if kind == "depthwise" else 1
        count = CHANNELS // groups * CHANNELS * kernel**2
        values = np.cos(0.7 * np.arange(count)).reshape(CHANNELS, -1, kernel, kernel).astype(np.float32)
        inputs, weights = ["x", "w"], [numpy_helper.from_array(values, "w")]
        kind, attributes["group"] = "Conv", groups
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model, full_check=True)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def with_onnxruntime(image):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": image})[0]


def with_opencv(image, engine):
    net = cv2.dnn.readNetFromONNX(path, engine=engine)
    net.setInput(image)
    return net.forward()


KINDS = "Conv", "depthwise", "MaxPool", "AveragePool"
RUNNERS = {
    "onnxruntime": with_onnxruntime,
    "new": lambda image: with_opencv(image, cv2.dnn.ENGINE_NEW),
    "default": lambda image: with_opencv(image, cv2.dnn.ENGINE_AUTO),
    "classic": lambda image: with_opencv(image, cv2.dnn.ENGINE_CLASSIC),
}
stands = True
for size, kernel, stride in ((8, 3, 1), (9, 3, 2), (8, 3, 2), (32, 3, 2), (8, 5, 2), (9, 3, 3), (8, 4, 1)):
    for mode in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = padding(mode, size, kernel, stride)
        image = generator.uniform(1, 2, (1, CHANNELS, size, size)).astype(np.float32)
        errors = {runner: [] for runner in RUNNERS}
        for kind in KINDS:
            build(kind, size, kernel, stride, pads=[begin, begin, end, end])
            exact = with_onnxruntime(image)
            written = max(abs(run(image) - exact).max() for run in RUNNERS.values())
            build(kind, size, kernel, stride, auto_pad=mode)
            results = {runner: run(image) for runner, run in RUNNERS.items()}
            for runner, result in results.items():
                errors[runner].append(abs(result - exact).max())
            build(kind, size, kernel, stride, pads=[(kernel - 1) // 2] * 2 + [kernel - 1] * 2)
            outputs = exact.shape[2]
            guessed = abs(results["new"] - with_onnxruntime(image)[:, :, :outputs, :outputs]).max()
            stands &= bool(max(written, guessed) < 1e-3)
        wrong = {
            "onnxruntime": False,
            "new": begin != (kernel - 1) // 2,
            "default": begin != (kernel - 1) // 2,
            "classic": mode == "SAME_LOWER" and begin != end,
        }
        stands &= all((error > 0.01) == wrong[runner] for runner, row in errors.items() for error in row)
        texts = {runner: " ".join("=" if e < 1e-3 else f"{e:.2f}" for e in row) for runner, row in errors.items()}
        print(
            f"{size}x{size}, {kernel}x{kernel}, stride {stride}, {mode} ({begin} and {end}): "
            f"new {texts['new']}, classic {texts['classic']}"
        )
sys.exit(0 if stands else 1)
PY
