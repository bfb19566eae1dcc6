#!/usr/bin/env bash
# onnxoptimizer, called with its default passes, changes the results of valid files, without a message:
#   - a Pad with zeros before a MaxPool (as ported TensorFlow nets have it) becomes the pooling's own padding. But zeros
#     take part in a maximum and a pooling's padding does not: where all values of a window at the edge are negative,
#     the result is negative instead of 0;
#   - where such a pooling has auto_pad, the Pad vanishes: the output has another size;
#   - of two Reshapes in a row, the second of which copies a dimension of the first (0), the first is dropped, and the 0
#     then copies a dimension of the input: another shape, so that a softmax behind it runs over other values.
# The tool's purpose is an equal graph that runs faster. onnxsim and onnxslim change none of the three.
#
# Seen with onnxoptimizer 0.4.2, onnxsim 0.8.1, onnxslim 0.1.98, onnx 1.23.2 (its reference evaluator) and onnxruntime
# 1.32.0, Python 3.11; the input is -1 everywhere:
#   Pad, MaxPool: 4x4x4, from -1.000 to 0.000
#     onnxoptimizer 4x4x4, from -1.000 to -1.000
#   Pad, MaxPool with auto_pad: 4x5x5, from -1.000 to 0.000
#     onnxoptimizer 4x4x4, from -1.000 to -1.000
#   Reshape, Reshape, Softmax: 4x2x32, from 0.250 to 0.250
#     onnxoptimizer 1x8x32, from 1.000 to 1.000
# and "the same" for onnxruntime, onnxsim and onnxslim.
# Exit code 0 while onnxoptimizer changes all three, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "onnxoptimizer==0.4.2" "onnxsim==0.8.1" "onnxslim==0.1.98" "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxoptimizer
import onnxruntime as ort
import onnxsim
import onnxslim
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

image = np.full((1, 4, 8, 8), -1, np.float32)


def build(nodes, constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def text(values):
    return f"{'x'.join(map(str, values.shape[1:]))}, from {values.min():.3f} to {values.max():.3f}"


pad = helper.make_node("Pad", ["x", "pads"], ["p"])
window = dict(kernel_shape=[3, 3], strides=[2, 2])
PADS = {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}
CASES = {
    "Pad, MaxPool": build([pad, helper.make_node("MaxPool", ["p"], ["y"], **window)], PADS),
    "Pad, MaxPool with auto_pad": build(
        [pad, helper.make_node("MaxPool", ["p"], ["y"], **window, auto_pad="SAME_UPPER")], PADS
    ),
    "Reshape, Reshape, Softmax": build(
        [
            helper.make_node("Reshape", ["x", "first"], ["r"]),
            helper.make_node("Reshape", ["r", "second"], ["s"]),
            helper.make_node("Softmax", ["s"], ["y"], axis=1),
        ],
        {"first": [1, 2, 2, 64], "second": [0, -1, 0, 32]},
    ),
}
TOOLS = {
    "onnxoptimizer": onnxoptimizer.optimize,
    "onnxsim": lambda model: onnxsim.simplify(model)[0],
    "onnxslim": onnxslim.slim,
}


def copy(model):
    return onnx.load_from_string(model.SerializeToString())


def run(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0]


changed = []
for name, model in CASES.items():
    exact = ReferenceEvaluator(model).run(None, {"x": image})[0]
    print(f"{name}: {text(exact)}")
    for tool, optimize in {"onnxruntime": lambda model: model, **TOOLS}.items():
        result = run(optimize(copy(model)))
        same = result.shape == exact.shape and np.allclose(result, exact, atol=1e-5)
        if not same:
            changed.append(tool)
        print(f"  {tool:13} {'the same' if same else text(result)}")
sys.exit(0 if changed == ["onnxoptimizer"] * 3 else 1)
PY
