#!/usr/bin/env bash
# ONNX's MaxPool and AveragePool have dilations, and auto_pad SAME_UPPER or SAME_LOWER, by which the output has the size
# of the input divided by the stride. Together they go wrong in two places that others are checked against, without an
# error. onnxruntime pads as if there were no dilation and returns a smaller output than ONNX's own shape inference
# says, with a warning in its log at most; its Conv refuses the combination. The reference evaluator of the onnx package
# returns the right size for AveragePool, but wrong values and zeros behind them. OpenVINO and tract give what all four
# give for the same padding written out as `pads`.
#
# Seen with onnxruntime 1.32.0, onnx 1.23.2, openvino 2026.4.1 and tract 0.23.9, Python 3.11, x86-64, for a kernel of
# 3x3 with dilation 2 and stride 1 on 8x8 pixels:
#   MaxPool     pads=2     (8x8 inferred): onnxruntime right, reference right, OpenVINO right, tract right
#   MaxPool     SAME_UPPER (8x8 inferred): onnxruntime 6x6, reference right, OpenVINO right, tract right
#   AveragePool pads=2     (8x8 inferred): onnxruntime right, reference right, OpenVINO right, tract right
#   AveragePool SAME_UPPER (8x8 inferred): onnxruntime 6x6, reference wrong, 44% zeros, OpenVINO right, tract right
# Exit code 0 while onnxruntime and the reference evaluator differ as above, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "onnxruntime==1.32.0" "onnx==1.23.2" "openvino==2026.4.1" "tract==0.23.9" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import tract
from onnx import TensorProto, checker, helper, shape_inference
from onnx.reference import ReferenceEvaluator

SIZE = 8
image = np.random.default_rng(0).uniform(1, 2, (1, 1, SIZE, SIZE)).astype(np.float32)
path = f"{sys.argv[1]}/model.onnx"


def build(kind, **padding):
    node = helper.make_node(kind, ["x"], ["y"], kernel_shape=[3, 3], dilations=[2, 2], strides=[1, 1], **padding)
    graph = helper.make_graph(
        [node],
        "pooling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    return model


def inferred(model):
    bare = onnx.load_from_string(model.SerializeToString())
    bare.graph.output[0].type.tensor_type.ClearField("shape")
    dimensions = shape_inference.infer_shapes(bare).graph.output[0].type.tensor_type.shape.dim
    return "x".join(str(dimension.dim_value) for dimension in dimensions[2:])


def with_onnxruntime(model):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0]


def with_openvino(model):
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)([image])[0]


def with_tract(model):
    onnx.save(model, path)
    return tract.onnx().load(path).into_model().into_runnable().run([image])[0].to_numpy()


ENGINES = {
    "onnxruntime": with_onnxruntime,
    "reference": lambda model: ReferenceEvaluator(model).run(None, {"x": image})[0],
    "OpenVINO": with_openvino,
    "tract": with_tract,
}
verdicts = {}
for kind in ("MaxPool", "AveragePool"):
    explicit = build(kind, pads=[2, 2, 2, 2])
    exact = with_onnxruntime(explicit)
    for name, model in (("pads=2", explicit), ("SAME_UPPER", build(kind, auto_pad="SAME_UPPER"))):
        texts = []
        for engine, run in ENGINES.items():
            result = run(model)
            if result.shape != exact.shape:
                text = "x".join(map(str, result.shape[2:]))
            elif np.allclose(result, exact, atol=1e-5):
                text = "right"
            else:
                text = f"wrong, {(result == 0).mean():.0%} zeros"
            verdicts[kind, name, engine] = text
            texts.append(f"{engine} {text}")
        print(f"{kind:11} {name:10} ({inferred(model)} inferred): {', '.join(texts)}")
odd = {key for key, text in verdicts.items() if text != "right"}
expected = {
    ("MaxPool", "SAME_UPPER", "onnxruntime"),
    ("AveragePool", "SAME_UPPER", "onnxruntime"),
    ("AveragePool", "SAME_UPPER", "reference"),
}
sys.exit(0 if odd == expected else 1)
PY
