#!/usr/bin/env bash
# OpenVINO reads the scales of an ONNX QLinearConv with weights per channel along the second axis of the weights, the
# input channels, where ONNX has one for each output channel (the first axis). A layer with as many outputs as inputs,
# like those of residual blocks, gives wrong values without a message; one with other numbers is refused when the file
# is read, with a message that speaks of "dimension" and not of this. So int8 files in the operator-oriented format
# with weights per channel (onnxruntime's QuantFormat.QOperator) cannot be trusted there. The same layer with one scale,
# or written as DequantizeLinear and Conv (QDQ), is right.
#
# Seen with openvino 2026.4.1, onnxruntime 1.32.0 and onnx 1.23.2, Python 3.11, x86-64; largest difference from the
# reference evaluator of onnx in steps of 8 bits, for a 3x3 convolution of 16 channels to 16 with scales from 0.001 to
# 0.01:
#   QLinearConv, per channel: onnxruntime 0, OpenVINO 84, which is 0 from scales along the inputs
#   QLinearConv, one scale  : onnxruntime 0, OpenVINO 1
#   QDQ, per channel        : onnxruntime 0, OpenVINO 0
# Exit code 0 while OpenVINO differs in the first line alone, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "openvino==2026.4.1" "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
import openvino
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

CHANNELS, SIZE = 16, 8
generator = np.random.default_rng(0)
image = generator.integers(0, 256, (1, CHANNELS, SIZE, SIZE)).astype(np.uint8)
weights = generator.integers(-63, 64, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
spread = np.linspace(0.001, 0.01, CHANNELS).astype(np.float32)


def build(nodes, scales, weights=weights):
    constants = {
        "w": weights, "ws": scales, "wz": np.zeros(scales.shape, weights.dtype), "zero": np.uint8(128),
        "xs": np.float32(0.02), "ys": np.float32(0.1),
    }
    used = {name for node in nodes for name in node.input}
    shape = [1, CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


quantised = [helper.make_node("QLinearConv", ["x", "xs", "zero", "w", "ws", "wz", "ys", "zero"], ["y"], pads=[1] * 4)]
pairs = [
    helper.make_node("DequantizeLinear", ["x", "xs", "zero"], ["fx"]),
    helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["fw"], axis=0),
    helper.make_node("Conv", ["fx", "fw"], ["fy"], pads=[1] * 4),
    helper.make_node("QuantizeLinear", ["fy", "ys", "zero"], ["y"]),
]


def reference(model):
    return ReferenceEvaluator(model).run(None, {"x": image})[0].astype(int)


def with_onnxruntime(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0].astype(int)


def with_openvino(model):
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)([image])[0].astype(int)


differences = []
for name, nodes, scales in (
    ("QLinearConv, per channel", quantised, spread),
    ("QLinearConv, one scale", quantised, np.float32(0.005)),
    ("QDQ, per channel", pairs, spread),
):
    model = build(nodes, scales)
    exact, result = reference(model), with_openvino(model)
    differences.append((abs(with_onnxruntime(model) - exact).max(), abs(result - exact).max()))
    text = f"{name:24}: onnxruntime {differences[-1][0]}, OpenVINO {differences[-1][1]}"
    if len(differences) == 1:
        values = 0.02 * np.pad(image - 128.0, ((0, 0), (0, 0), (1, 1), (1, 1)))
        wrong = weights * spread[:, None, None].astype(float)
        total = sum(
            np.einsum("chw,oc->ohw", values[0, :, y : y + SIZE, x : x + SIZE], wrong[:, :, y, x])
            for y in range(3)
            for x in range(3)
        )
        guess = np.clip(np.round(total / 0.1) + 128, 0, 255)
        text += f", which is {abs(result[0] - guess).max():.0f} from scales along the inputs"
    print(text)
stands = differences[0][1] > 10 and max(differences[0][0], *differences[1], *differences[2]) <= 1
sys.exit(0 if stands else 1)
PY
