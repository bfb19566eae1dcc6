#!/usr/bin/env bash
# onnxruntime computes a quantised convolution with signed activations and signed 8-bit weights (S8S8 in QDQ form)
# wrongly on x86 processors without VNNI, such as those with AVX2 alone: sums of two products are cut to 16 bits. Its
# documentation names this saturation for unsigned activations (U8S8), and S8S8 as the format to choose first. With
# graph optimisation switched off the same file gives the values that ONNX defines.
#
# Seen with onnxruntime 1.32.0 and onnx 1.23.2, Python 3.11, AMD Zen 3 (AVX2, no VNNI), for a sum of 128 ones times one:
#   without optimisation 128.00 to 128.00, with it 1.01 to 1.01
# Exit code 0 while the results differ, 1 if they have become equal. On a processor with VNNI, where this script was not
# tried, it prints both and exits with 0.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

CHANNELS, SIZE, STEP = 128, 16, 1 / 127
constants = {
    "step": np.float32(STEP),
    "zero": np.int8(0),
    "weights": np.full((64, CHANNELS, 1, 1), 127, np.int8),
    "scales": np.full(64, STEP, np.float32),
    "zeros": np.zeros(64, np.int8),
    "output_step": np.float32(CHANNELS * STEP),
}
nodes = [
    helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["qx"]),
    helper.make_node("DequantizeLinear", ["qx", "step", "zero"], ["dx"]),
    helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["dw"], axis=0),
    helper.make_node("Conv", ["dx", "dw"], ["y"]),
    helper.make_node("QuantizeLinear", ["y", "output_step", "zero"], ["qy"]),
    helper.make_node("DequantizeLinear", ["qy", "output_step", "zero"], ["z"]),
]
graph = helper.make_graph(
    nodes,
    "convolution",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])],
    [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 64, SIZE, SIZE])],
    [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
checker.check_model(model, full_check=True)

inputs = np.ones((1, CHANNELS, SIZE, SIZE), np.float32)  # 127 in 8 bits; the exact output is CHANNELS


def run(level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": inputs})[0]


exact = run(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
optimized = run(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
difference = np.abs(optimized - exact)
flags = open("/proc/cpuinfo").read().split() if sys.platform == "linux" else []
vnni = "avx512_vnni" in flags or "avx_vnni" in flags
print(f"onnxruntime {ort.__version__}, {'with' if vnni else 'without'} VNNI")
print(f"without optimisation {exact.min():.2f} to {exact.max():.2f}, with it {optimized.min():.2f} to {optimized.max():.2f}")
overflows = bool((difference > 2 * constants["output_step"]).any())
sys.exit(0 if overflows or vnni else 1)
PY
