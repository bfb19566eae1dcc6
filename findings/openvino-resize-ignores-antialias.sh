#!/usr/bin/env bash
# ONNX's Resize has had an attribute since opset 18, `antialias`, that widens the filter when an image is made smaller,
# as Pillow does. OpenVINO accepts it and computes the same as without it, for "linear" and for "cubic": a file that
# holds its own preprocessing, so as to be fed pictures of any size, then sees pictures with aliasing that its net
# was not trained on, and nothing says so. Enlarging is not affected.
#
# Seen with openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2 and pillow 12.0.0, Python 3.11, x86-64, for a grey
# picture of 128x128 in which every third column is 255 and the others 0 (a mean of 85), reduced to 32x32; smallest and
# largest value in the middle:
#   linear antialias=1: onnx 79.7 to 87.7, onnxruntime 79.7 to 87.7, OpenVINO 0.0 to 127.5, Pillow 79.7 to 87.7
#   linear antialias=0: onnx 0.0 to 127.5, onnxruntime 0.0 to 127.5, OpenVINO 0.0 to 127.5
#   cubic  antialias=1: onnx 84.6 to 85.8, onnxruntime 84.6 to 85.8, OpenVINO -31.9 to 143.4, Pillow 84.6 to 85.8
#   cubic  antialias=0: onnx -31.9 to 143.4, onnxruntime -31.9 to 143.4, OpenVINO -31.9 to 143.4
# Exit code 0 while OpenVINO ignores the attribute and onnxruntime does not, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "openvino==2026.4.1" "onnxruntime==1.32.0" "onnx==1.23.2" "pillow==12.0.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
import openvino
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

LARGE, SMALL = 128, 32
columns = np.arange(LARGE)
picture = np.broadcast_to(np.where(columns % 3 == 0, 255, 0), (LARGE, LARGE)).astype(np.float32)
image = picture[None, None]


def build(mode, antialias):
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "", "", "size"], ["y"], mode=mode, antialias=antialias, cubic_coeff_a=-0.5)],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, LARGE, LARGE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, SMALL, SMALL])],
        [numpy_helper.from_array(np.array([1, 1, SMALL, SMALL]), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def reference(model):
    return ReferenceEvaluator(model).run(None, {"x": image})[0]


def with_onnxruntime(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0]


def with_openvino(model):
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)([image])[0]


stands = True
for mode, filter in (("linear", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC)):
    pillow = np.asarray(Image.fromarray(picture).resize((SMALL, SMALL), filter))
    results = {"Pillow": pillow}
    for antialias in (1, 0):
        model = build(mode, antialias)
        for name, run in (("onnx", reference), ("onnxruntime", with_onnxruntime), ("OpenVINO", with_openvino)):
            results[name, antialias] = run(model)[0, 0]
    middle = {name: values[8:-8, 8:-8] for name, values in results.items()}
    for antialias in (1, 0):
        texts = [
            f"{name} {middle[name, antialias].min():.1f} to {middle[name, antialias].max():.1f}"
            for name in ("onnx", "onnxruntime", "OpenVINO")
        ]
        if antialias:
            texts.append(f"Pillow {middle['Pillow'].min():.1f} to {middle['Pillow'].max():.1f}")
        print(f"{mode:6} antialias={antialias}: {', '.join(texts)}")
    stands &= bool(
        np.allclose(results["OpenVINO", 1], results["OpenVINO", 0], atol=1e-2)
        and np.allclose(results["onnxruntime", 1], results["onnx", 1], atol=1e-2)
        and not np.allclose(results["onnxruntime", 1], results["OpenVINO", 1], atol=10)
    )
sys.exit(0 if stands else 1)
PY
