#!/usr/bin/env bash
# Until opset 12, Softmax, LogSoftmax and Hardmax flatten all dimensions from `axis` on, by default 1, and run over them
# together; since opset 13 they run over the one dimension `axis`, by default the last. The version converter of the
# onnx package leaves this out in two directions, without a message, and the converted file is valid:
#   - from 13 to 12, Softmax and LogSoftmax keep their axis, only counted from the front. A softmax over the classes at
#     each pixel becomes one over all classes and pixels: the sum is 1 for the image instead of for each pixel;
#   - from 12 to 13, Hardmax stays as it is. Without an axis, or with one other than the last, it runs over less.
# From 12 to 13, Softmax and LogSoftmax are converted as they should be, with a Flatten and a Reshape around them.
# The package's reference evaluator hides this: it computes the layers of opset 12 as those of opset 13, apart from the
# default axis. With an axis given, it finds no difference after a wrong conversion, and one after a right conversion.
# With the last axis all are right.
#
# Seen with onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, x86-64; a 1x1 convolution of images of 6x6 pixels to 4
# classes, then the layer: the layers after the conversion, and the largest differences from NumPy's result for the file
# before it:
#   Softmax, axis=1, 13 to 12: Softmax, axis=1
#     before: onnxruntime 0.000, reference 0.000; converted: onnxruntime 0.913, reference 0.000
#   Softmax, axis=-3, 13 to 12: Softmax, axis=1
#     before: onnxruntime 0.000, reference 0.000; converted: onnxruntime 0.913, reference 0.000
#   Softmax, no axis, 13 to 12: Softmax, axis=3
#     before: onnxruntime 0.000, reference 0.000; converted: onnxruntime 0.000, reference 0.000
#   Softmax, axis=1, 12 to 13: Shape, Flatten, Softmax, Reshape, axis=-1
#     before: onnxruntime 0.000, reference 0.913; converted: onnxruntime 0.000, reference 0.000
#   LogSoftmax, axis=1, 13 to 12: LogSoftmax, axis=1
#     before: onnxruntime 0.000, reference 0.000; converted: onnxruntime 7.577, reference 0.000
#   LogSoftmax, axis=-1, 13 to 12: LogSoftmax, axis=3
#     before: onnxruntime 0.000, reference 0.000; converted: onnxruntime 0.000, reference 0.000
#   LogSoftmax, no axis, 12 to 13: Shape, Flatten, LogSoftmax, Reshape, axis=-1
#     before: onnxruntime 0.000, reference 6.605; converted: onnxruntime 0.000, reference 0.000
#   Hardmax, no axis, 12 to 13: Hardmax, no axis
#     before: onnxruntime 0.000, reference 1.000; converted: onnxruntime 1.000, reference 1.000
#   Hardmax, axis=1, 12 to 13: Hardmax, axis=1
#     before: onnxruntime 0.000, reference 1.000; converted: onnxruntime 1.000, reference 1.000
#   Hardmax, axis=-1, 12 to 13: Hardmax, axis=-1
#     before: onnxruntime 0.000, reference 0.000; converted: onnxruntime 0.000, reference 0.000
# Exit code 0 while the version converter and the reference evaluator differ as above, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import os
import sys
import tempfile

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

generator = np.random.default_rng(0)
image = generator.normal(size=(2, 3, 6, 6)).astype(np.float32)
kernel = generator.normal(size=(4, 3, 1, 1)).astype(np.float32)
features = np.einsum("oi,nihw->nohw", kernel[:, :, 0, 0].astype(float), image.astype(float))


def build(kind, opset, attributes):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node(kind, ["h"], ["y"], **attributes)],
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(features.shape))],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    checker.check_model(model, full_check=True)
    return model


# ONNX's definitions, before opset 13 and since.
def exact(kind, opset, attributes):
    x, axis = features, attributes.get("axis", 1 if opset < 13 else -1) % features.ndim
    if opset < 13:
        x, axis = x.reshape(int(np.prod(x.shape[:axis])), -1), 1
    if kind == "Hardmax":
        # no two values are equal here
        result = (x == x.max(axis, keepdims=True)).astype(float)
    else:
        powers = np.exp(x - x.max(axis, keepdims=True))
        result = powers / powers.sum(axis, keepdims=True)
    return (np.log(result) if kind == "LogSoftmax" else result).reshape(features.shape)


def convert(model, opset):
    """The converted model and what was written to the standard error meanwhile."""
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            converted = version_converter.convert_version(model, opset)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        log.seek(0)
        return converted, log.read()


def with_onnxruntime(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0]


def with_reference(model):
    return ReferenceEvaluator(model).run(None, {"x": image})[0]


# The last column: whether onnxruntime and the reference evaluator are right before the conversion and after it.
stands = True
for kind, before, after, attributes, expected in (
    ("Softmax", 13, 12, {"axis": 1}, [True, True, False, True]),
    ("Softmax", 13, 12, {"axis": -3}, [True, True, False, True]),
    ("Softmax", 13, 12, {}, [True, True, True, True]),
    ("Softmax", 12, 13, {"axis": 1}, [True, False, True, True]),
    ("LogSoftmax", 13, 12, {"axis": 1}, [True, True, False, True]),
    ("LogSoftmax", 13, 12, {"axis": -1}, [True, True, True, True]),
    ("LogSoftmax", 12, 13, {}, [True, False, True, True]),
    ("Hardmax", 12, 13, {}, [True, False, False, False]),
    ("Hardmax", 12, 13, {"axis": 1}, [True, False, False, False]),
    ("Hardmax", 12, 13, {"axis": -1}, [True, True, True, True]),
):
    model = build(kind, before, attributes)
    right = exact(kind, before, attributes)
    converted, messages = convert(model, after)
    checker.check_model(converted, full_check=True)
    names = [node.op_type for node in converted.graph.node]
    (layer,) = (node for node in converted.graph.node if node.op_type == kind)
    kept = {item.name: item.i for item in layer.attribute}
    results = [run(net) for net in (model, converted) for run in (with_onnxruntime, with_reference)]
    errors = [abs(result - right).max() for result in results]
    old, now = (f"axis={given['axis']}" if given else "no axis" for given in (attributes, kept))
    print(f"{kind}, {old}, {before} to {after}: {', '.join(names[1:])}, {now}")
    texts = [f"{error:.3f}" for error in errors]
    print("  before: onnxruntime {}, reference {}; converted: onnxruntime {}, reference {}".format(*texts))
    stands &= [bool(error < 1e-5) for error in errors] == expected
    stands &= all(bool(error < 1e-5 or error > 0.1) for error in errors)
    stands &= converted.opset_import[0].version == after and not messages
    if names == ["Conv", kind]:
        # a kept layer means something else in the other opset, and onnxruntime computes that
        stands &= bool(abs(results[2] - exact(kind, after, kept)).max() < 1e-5)
sys.exit(0 if stands else 1)
PY
