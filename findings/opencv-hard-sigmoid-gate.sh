#!/usr/bin/env bash
# OpenCV reads a HardSigmoid followed by a Mul as hard swish, x * HardSigmoid(x), without looking whether the Mul's
# other input is the x of the HardSigmoid. A gate, such as that of the squeeze-and-excitation blocks of MobileNetV3,
# is then lost: the map that it should weight is thrown away, and the layers behind get the hard swish of the gate's
# own input. A map of 1x1 thus replaces the whole picture; with convolutions and a global average behind it, even the
# size of the result is right. Nothing is said. The fusion needs alpha=1/6 and beta=0.5, both written in the file.
# PyTorch's exporter writes both for nn.Hardsigmoid since it is built on torch.export; the one before it omits beta,
# so that the same net is right. Where a Sigmoid makes a swish, OpenCV compares the inputs, and is right too.
#
# Seen with opencv-python-headless 5.0.0.93 and 4.14.0.94, onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, x86-64,
# for a 3x3 convolution, a squeeze-and-excitation block of 8x16x16, a 1x1 convolution and a global average; largest
# difference of the whole net (whose values go up to 7.83) and of the block alone from float64 in NumPy:
#   onnxruntime, HardSigmoid, beta=0.5: net 0.000, block 0.000
#   OpenCV 5.0.0, new engine, HardSigmoid, beta=0.5: net 6.402, block 8x1x1, the gate's hard swish
#   OpenCV 5.0.0, classic engine, HardSigmoid, beta=0.5: net 6.402, block 8x1x1, the gate's hard swish
#   OpenCV 4.14.0, HardSigmoid, beta=0.5: net 6.402, block 8x1x1, the gate's hard swish
# and 0.000 for all of them where beta is omitted, and for a Sigmoid.
# Exit code 0 while OpenCV loses this gate alone, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
pip() {
    "$folder/venv/bin/pip" --disable-pip-version-check install --quiet "$@"
}
pip "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
cat > "$folder/look.py" <<'PY'
import os
import sys

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

CHANNELS, SIZE, CLASSES = 8, 16, 10
generator = np.random.default_rng(0)
image = generator.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
constants = {
    "stem": generator.normal(size=(CHANNELS, 3, 3, 3)),
    "squeeze": 3 * generator.normal(size=(CHANNELS, CHANNELS, 1, 1)),
    "excite": generator.normal(size=(CHANNELS,)),
    "head": generator.normal(size=(CLASSES, CHANNELS, 1, 1)),
}
constants = {name: values.astype(np.float32) for name, values in constants.items()}


def build(kind, path, whole, **attributes):
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["stemmed"], pads=[1] * 4),
        helper.make_node("Relu", ["stemmed"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["means"]),
        helper.make_node("Conv", ["means", "squeeze", "excite"], ["logits"]),
        helper.make_node(kind, ["logits"], ["gate"], **attributes),
        helper.make_node("Mul", ["map", "gate"], ["weighted" if whole else "y"]),
        helper.make_node("Conv", ["weighted", "head"], ["scores"]),
        helper.make_node("GlobalAveragePool", ["scores"], ["y"]),
    ]
    shape = [1, CLASSES, 1, 1] if whole else [1, CHANNELS, SIZE, SIZE]
    nodes = nodes if whole else nodes[:6]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(values, name) for name, values in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model, full_check=True)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def exact(activation, whole):
    wide = {name: values.astype(float) for name, values in constants.items()}
    padded = np.pad(image[0].astype(float), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    values = np.maximum(0, np.einsum("ihwyx,oiyx->ohw", windows, wide["stem"]))
    logits = wide["squeeze"][:, :, 0, 0] @ values.mean((1, 2)) + wide["excite"]
    values = values * activation(logits)[:, None, None]
    if whole:
        values = (wide["head"][:, :, 0, 0] @ values.mean((1, 2)))[:, None, None]
    return values[None], logits


def with_onnxruntime(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": image})[0]


def with_opencv(path, engine):
    net = cv2.dnn.readNetFromONNX(path, **({"engine": getattr(cv2.dnn, engine)} if engine else {}))
    net.setInput(image)
    return net.forward()


def text(result, right, logits):
    if result.shape == right.shape:
        return f"{abs(result - right).max():.3f}"
    swish = logits * np.clip(logits / 6 + 0.5, 0, 1)
    same = result.size == swish.size and np.allclose(result.ravel(), swish, atol=1e-3)
    return "x".join(map(str, result.shape[1:])) + (", the gate's hard swish" if same else "")


def hard(values):
    return np.clip(values / 6 + 0.5, 0, 1)


RUNNERS = {"onnxruntime": with_onnxruntime}
for engine in ("ENGINE_NEW", "ENGINE_CLASSIC") if hasattr(cv2.dnn, "ENGINE_NEW") else (None,):
    name = f"OpenCV {cv2.__version__}" + (f", {engine.split('_')[1].lower()} engine" if engine else "")
    RUNNERS[name] = lambda path, engine=engine: with_opencv(path, engine)
path = f"{sys.argv[1]}/model.onnx"
stands = True
for name, kind, attributes, activation in (
    ("HardSigmoid, beta=0.5", "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, hard),
    ("HardSigmoid, beta omitted", "HardSigmoid", {"alpha": 1 / 6}, hard),
    ("Sigmoid", "Sigmoid", {}, lambda values: 1 / (1 + np.exp(-values))),
):
    texts = {}
    for whole in (False, True):
        right, logits = exact(activation, whole)
        build(kind, path, whole, **attributes)
        for runner, run in RUNNERS.items():
            texts[runner, whole] = text(run(path), right, logits)
    for runner in RUNNERS:
        print(f"{runner}, {name}: net {texts[runner, True]}, block {texts[runner, False]}")
        wrong = runner != "onnxruntime" and "beta" in attributes
        block = "8x1x1, the gate's hard swish" if wrong else "0.000"
        stands &= texts[runner, False] == block and (float(texts[runner, True]) > 1) == wrong
sys.exit(0 if stands else 1)
PY
code=0
for version in 5.0.0.93 4.14.0.94; do
    pip --no-deps --target "$folder/$version" "opencv-python-headless==$version"
    PYTHONPATH=$folder/$version "$folder/venv/bin/python" "$folder/look.py" "$folder" || code=1
done
exit $code
