#!/usr/bin/env bash
# The reference evaluator of the onnx package, by which other engines are checked, computes MaxPool otherwise than ONNX
# defines it, without a message. It has one implementation for strides and dilations of 1 and one for all others:
#   - with stride 1, `pads` are read as top, bottom, left, right, where ONNX has top, left, bottom, right. With
#     padding behind alone, as a 2x2 pooling needs it to keep the size, the map becomes 7x9 instead of 8x8;
#   - with stride 1, ceil_mode=1 adds the padding to the size a second time, and zeros are behind the values;
#   - with stride 1, the second output, Indices, which MaxUnpool reads, is wrong: the place in the window is taken for
#     a place in the map, and the channel is left out;
#   - with other strides, SAME_LOWER is padded as SAME_UPPER is, and the size is rounded down instead of up.
# LpPool with ceil_mode=1 scales up the windows that reach beyond the edge, as if the missing values were like the
# others; ONNX defines the norm of the values there are.
# AveragePool is right with all these attributes, and so is MaxPool with the same pads on all sides, or in the other
# implementation of the two. Shape inference of the same package has the right sizes.
#
# Seen with onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, x86-64; an image of two channels with normal values, the
# size of the result in NumPy and by shape inference, and the largest difference from NumPy or the size instead:
#   MaxPool 2x2, stride 1, pads=0,0,1,1 on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 7x9
#   MaxPool 2x2, stride 1, pads=1,1,0,0 on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 9x7
#   MaxPool 3x3, stride 1, pads=1,1,1,1 on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 0.000
#   MaxPool 3x3, stride 1, pads=1,1,1,1, ceil_mode=1 on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 10x10
#   MaxPool 2x2, stride 1 on 8x8: 7x7, inferred 7x7
#     onnxruntime 0.000 and 0% wrong indices; reference 0.000 and 73% wrong indices
#   MaxPool 2x2, stride 1, SAME_LOWER on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 0.000
#   MaxPool 3x3, stride 2, pads=0,0,1,1 on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
#   MaxPool 3x3, stride 2, pads=1,1,0,0 on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
#   MaxPool 3x3, stride 2, pads=1,1,1,1, ceil_mode=1 on 8x8: 5x5, inferred 5x5
#     onnxruntime 0.000; reference 0.000
#   MaxPool 2x2, stride 2 on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000 and 0% wrong indices; reference 0.000 and 0% wrong indices
#   MaxPool 3x3, stride 2, SAME_UPPER on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
#   MaxPool 3x3, stride 2, SAME_LOWER on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 1.660
#   MaxPool 2x2, stride 2, SAME_LOWER on 7x7: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 3x3
#   AveragePool 2x2, stride 1, pads=0,0,1,1 on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 0.000
#   AveragePool 3x3, stride 1, pads=1,1,1,1, ceil_mode=1 on 8x8: 8x8, inferred 8x8
#     onnxruntime 0.000; reference 0.000
#   AveragePool 3x3, stride 2, SAME_LOWER on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
#   AveragePool 2x2, stride 2, SAME_LOWER on 7x7: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
#   AveragePool 3x3, stride 2, ceil_mode=1 on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
#   LpPool 3x3, stride 2, ceil_mode=1 on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 1.132
#   LpPool 3x3, stride 2, pads=0,0,1,1 on 8x8: 4x4, inferred 4x4
#     onnxruntime 0.000; reference 0.000
# Exit code 0 while the reference evaluator differs as above and nothing else does, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, checker, helper, shape_inference
from onnx.reference import ReferenceEvaluator

BEHIND, FRONT, AROUND, NONE = (0, 0, 1, 1), (1, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0)
generator = np.random.default_rng(0)


def build(kind, size, attributes, outputs):
    types = {"y": TensorProto.FLOAT, "indices": TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], outputs, **attributes)],
        "pooling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, size, size])],
        [helper.make_tensor_value_info(name, types[name], ["n", "c", "h", "w"]) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    checker.check_model(model, full_check=True)
    return model


def inferred(model):
    bare = onnx.load_from_string(model.SerializeToString())
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    dimensions = shape_inference.infer_shapes(bare).graph.output[0].type.tensor_type.shape.dim
    return tuple(dimension.dim_value for dimension in dimensions)


# ONNX's definition for square kernels: the windows' first places in both directions, then the values inside the image.
def exact(kind, x, kernel_shape, strides=(1, 1), pads=NONE, auto_pad="NOTSET", ceil_mode=0):
    kernel, stride, size = kernel_shape[0], strides[0], x.shape[2]
    starts = []
    for front, behind in zip(pads[:2], pads[2:], strict=True):
        if auto_pad == "NOTSET":
            steps = (size + front + behind - kernel) / stride
            count = int(np.ceil(steps) if ceil_mode else np.floor(steps)) + 1
            # windows that would start in the padding behind are ignored
            count -= (count - 1) * stride >= size + front
        else:
            count = int(np.ceil(size / stride))
            total = max(0, (count - 1) * stride + kernel - size)
            front = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        starts.append(np.arange(count) * stride - front)
    result = np.zeros((*x.shape[:2], *map(len, starts)))
    indices = np.zeros(result.shape, np.int64)
    places = np.arange(x.size).reshape(x.shape)
    for channel, row, column in np.ndindex(*result.shape[1:]):
        top, left = starts[0][row], starts[1][column]
        window = 0, channel, slice(max(top, 0), top + kernel), slice(max(left, 0), left + kernel)
        values = x[window].astype(float)
        indices[0, channel, row, column] = places[window].ravel()[values.argmax()]
        if kind == "MaxPool":
            result[0, channel, row, column] = values.max()
        elif kind == "AveragePool":
            result[0, channel, row, column] = values.mean()
        else:
            result[0, channel, row, column] = np.sqrt((values**2).sum())
    return result, indices


def text(shape):
    return "x".join(map(str, shape[2:]))


def verdict(results, right):
    if results[0].shape != right[0].shape:
        return text(results[0].shape)
    difference = f"{abs(results[0] - right[0]).max():.3f}"
    if len(results) > 1:
        difference += f" and {(results[1] != right[1]).mean():.0%} wrong indices"
    return difference


RIGHT = ("0.000", "0.000 and 0% wrong indices")
stands = True
for kind, kernel, stride, size, attributes, outputs, wrong in (
    ("MaxPool", 2, 1, 8, {"pads": BEHIND}, ["y"], True),
    ("MaxPool", 2, 1, 8, {"pads": FRONT}, ["y"], True),
    ("MaxPool", 3, 1, 8, {"pads": AROUND}, ["y"], False),
    ("MaxPool", 3, 1, 8, {"pads": AROUND, "ceil_mode": 1}, ["y"], True),
    ("MaxPool", 2, 1, 8, {}, ["y", "indices"], True),
    ("MaxPool", 2, 1, 8, {"auto_pad": "SAME_LOWER"}, ["y"], False),
    ("MaxPool", 3, 2, 8, {"pads": BEHIND}, ["y"], False),
    ("MaxPool", 3, 2, 8, {"pads": FRONT}, ["y"], False),
    ("MaxPool", 3, 2, 8, {"pads": AROUND, "ceil_mode": 1}, ["y"], False),
    ("MaxPool", 2, 2, 8, {}, ["y", "indices"], False),
    ("MaxPool", 3, 2, 8, {"auto_pad": "SAME_UPPER"}, ["y"], False),
    ("MaxPool", 3, 2, 8, {"auto_pad": "SAME_LOWER"}, ["y"], True),
    ("MaxPool", 2, 2, 7, {"auto_pad": "SAME_LOWER"}, ["y"], True),
    ("AveragePool", 2, 1, 8, {"pads": BEHIND}, ["y"], False),
    ("AveragePool", 3, 1, 8, {"pads": AROUND, "ceil_mode": 1}, ["y"], False),
    ("AveragePool", 3, 2, 8, {"auto_pad": "SAME_LOWER"}, ["y"], False),
    ("AveragePool", 2, 2, 7, {"auto_pad": "SAME_LOWER"}, ["y"], False),
    ("AveragePool", 3, 2, 8, {"ceil_mode": 1}, ["y"], False),
    ("LpPool", 3, 2, 8, {"ceil_mode": 1}, ["y"], True),
    ("LpPool", 3, 2, 8, {"pads": BEHIND}, ["y"], False),
):
    attributes = {"kernel_shape": (kernel, kernel), "strides": (stride, stride), **attributes}
    x = generator.normal(size=(1, 2, size, size)).astype(np.float32)
    model = build(kind, size, attributes, outputs)
    right = exact(kind, x, **attributes)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        results = ReferenceEvaluator(model).run(None, {"x": x})
    theirs, reference = (verdict(these, right) for these in (session.run(None, {"x": x}), results))
    words = [f"{kernel}x{kernel}", f"stride {stride}"]
    words += [f"pads={','.join(map(str, attributes['pads']))}"] if "pads" in attributes else []
    words += [attributes["auto_pad"]] if "auto_pad" in attributes else []
    words += ["ceil_mode=1"] if "ceil_mode" in attributes else []
    print(f"{kind} {', '.join(words)} on {size}x{size}: {text(right[0].shape)}, inferred {text(inferred(model))}")
    print(f"  onnxruntime {theirs}; reference {reference}{'; a message' if messages else ''}")
    stands &= theirs in RIGHT and (reference in RIGHT) != wrong and inferred(model) == right[0].shape and not messages
sys.exit(0 if stands else 1)
PY
