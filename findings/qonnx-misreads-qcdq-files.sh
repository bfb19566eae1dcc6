#!/usr/bin/env bash
# QONNX, which brings ONNX to FPGAs (hls4ml and FINN read it), has a transformation `QCDQToQuant` for quantised files of
# other tools. By its documentation it makes one Quant of QuantizeLinear, Clip and DequantizeLinear, and takes the Clip
# into account for the number of bits; it does so too with a DequantizeLinear of stored integers, which its comments
# take for a QuantizeLinear that was folded. Valid files come out with other values, without an error or a warning:
#   - stored integers with a zero point: the difference is computed in 8 bits and wraps. With a zero point of 128 the
#     weight 10 becomes 138 steps instead of -118. So files of onnxruntime's quantiser with uint8 weights break;
#   - Clip gives the number of bits, by how many values are between its limits, but not their place: int8 clipped to
#     0...127 (a ReLU) becomes 7 bits with a sign, -64...63, and uint8 clipped to 0...14 becomes 0...15. The latter is
#     what QONNX itself writes (`QuantToQCDQ`) for an unsigned Quant of 4 bits with narrow=1: there and back is another
#     net;
#   - scales per channel where `axis` is left out: ONNX says axis 1 then, QONNX takes the last, the columns. With as
#     many columns as channels nothing fails.
# Symmetric weights, clips to all values of a number of bits, and scales with the axis written out are right.
#
# Seen with qonnx 1.0.0, onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, x86-64; largest difference from NumPy for an
# image of values from -1 to 1 (to which the weights are added):
#   int8 weights, zero point 0       onnxruntime 0.0000, QONNX 0.0000
#   int8 weights, zero point 40      onnxruntime 0.0000, QONNX 1.9687
#   uint8 weights, zero point 0      onnxruntime 0.0000, QONNX 0.0000
#   uint8 weights, zero point 128    onnxruntime 0.0000, QONNX 1.9609
#   int8, no Clip                    onnxruntime 0.0000, QONNX 0.0000
#   int8, Clip to -128...127         onnxruntime 0.0000, QONNX 0.0000
#   int8, Clip to 0...127            onnxruntime 0.0000, QONNX 0.5000
#   uint8, Clip to 0...15            onnxruntime 0.0000, QONNX 0.0000
#   uint8, Clip to 0...14, of QONNX  onnxruntime 0.0000, QONNX 0.0625
#   per channel, axis=1              onnxruntime 0.0000, QONNX 0.0000
#   per channel, without axis        onnxruntime 0.0000, QONNX 0.8672
# Exit code 0 while QONNX differs as above, without a warning, and onnxruntime does not, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "qonnx==1.0.0" "onnx==1.23.2" "onnxruntime==1.32.0" "onnxscript==0.7.2" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.fold_constants import FoldConstants
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.qcdq_to_qonnx import QCDQToQuant
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ

SHAPE = [1, 4, 4, 4]
CUSTOM = "qonnx.custom_op.general"
STEP = np.float32(1 / 128)
SPREAD = np.array([1, 2, 4, 8], np.float32) / 1024
generator = np.random.default_rng(0)
image = generator.uniform(-1, 1, SHAPE).astype(np.float32)
STORED = {
    np.dtype(kind): generator.integers(*limits, SHAPE).astype(kind)
    for kind, limits in ((np.int8, (-128, 128)), (np.uint8, (0, 256)))
}


def build(nodes, constants):
    values = {name: np.asarray(value) for name, value in constants.items() if value is not None}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(CUSTOM, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    checker.check_model(model, full_check=all(node.domain == "" for node in nodes))
    return model


def quantised(zero, limits=None, scale=STEP, **axis):
    """A graph that quantises its input, and its output by the definitions of the three operators in NumPy."""
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **axis)]
    if limits:
        nodes.append(helper.make_node("Clip", ["q", "low", "high"], ["clipped"]))
    nodes.append(helper.make_node("DequantizeLinear", [nodes[-1].output[0], "scale", "zero"], ["y"], **axis))
    low, high = (zero.dtype.type(limit) for limit in limits) if limits else (None, None)
    model = build(nodes, {"scale": scale, "zero": np.broadcast_to(zero, np.shape(scale)), "low": low, "high": high})
    bounds = np.iinfo(zero.dtype)
    steps = np.float64(scale).reshape(-1, 1, 1)
    whole = np.clip(np.round(image / steps) + int(zero), bounds.min, bounds.max)
    return model, (np.clip(whole, *limits or (bounds.min, bounds.max)) - int(zero)) * steps


def stored(zero):
    """A graph that adds its input to dequantised integers."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    weights = STORED[zero.dtype]
    return build(nodes, {"w": weights, "scale": STEP, "zero": zero}), image + (weights - float(zero)) * float(STEP)


def there_and_back():
    """What QONNX itself writes as QuantizeLinear, Clip and DequantizeLinear."""
    quant = helper.make_node(
        "Quant", ["x", "scale", "zero", "bits"], ["y"], domain=CUSTOM, signed=0, narrow=1, rounding_mode="ROUND"
    )
    scale = np.float32(1 / 16)
    model = build([quant], {"scale": scale, "zero": np.float32(0), "bits": np.float32(4)})
    written = ModelWrapper(model).transform(QuantToQCDQ()).transform(FoldConstants())
    return written.model, np.clip(np.round(image * 16.0), 0, 14) / 16


def with_onnxruntime(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": image})[0]


def with_qonnx(model):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapper = ModelWrapper(onnx.load_from_string(model.SerializeToString())).transform(InferShapes())
        wrapper = wrapper.transform(QCDQToQuant())
        result = execute_onnx(wrapper, {"x": image})["y"]
    names = {node.op_type for node in wrapper.graph.node}
    return result, not said and "Quant" in names and "DequantizeLinear" not in names


CASES = {
    "int8 weights, zero point 0": (stored(np.int8(0)), True),
    "int8 weights, zero point 40": (stored(np.int8(40)), False),
    "uint8 weights, zero point 0": (stored(np.uint8(0)), True),
    "uint8 weights, zero point 128": (stored(np.uint8(128)), False),
    "int8, no Clip": (quantised(np.int8(0)), True),
    "int8, Clip to -128...127": (quantised(np.int8(0), (-128, 127)), True),
    "int8, Clip to 0...127": (quantised(np.int8(0), (0, 127)), False),
    "uint8, Clip to 0...15": (quantised(np.uint8(0), (0, 15), np.float32(1 / 18)), True),
    "uint8, Clip to 0...14, of QONNX": (there_and_back(), False),
    "per channel, axis=1": (quantised(np.int8(0), scale=SPREAD, axis=1), True),
    "per channel, without axis": (quantised(np.int8(0), scale=SPREAD), False),
}
stands = True
for name, ((model, exact), right) in CASES.items():
    reference = np.abs(with_onnxruntime(model) - exact).max()
    result, silent = with_qonnx(model)
    difference = np.abs(result - exact).max()
    print(f"{name:31}  onnxruntime {reference:.4f}, QONNX {difference:.4f}{'' if silent else ', with a message'}")
    stands &= reference < 1e-5 and silent and (difference < 1e-5) == right
sys.exit(0 if stands else 1)
PY
