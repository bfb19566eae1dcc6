#!/usr/bin/env bash
# The npm package onnxjs (ONNX.js) runs ONNX files in browsers and Node.js. For valid files it gives wrong results, and
# says nothing:
#   - its backend "cpu" convolves the first image of a batch only, in each round of its loop. The others get the bias
#     alone, or zeros, so that all of them have the same answer. The backend "wasm" is right;
#   - auto_pad SAME_UPPER with stride 2 on an even size: the padding is computed from the size of the result before that
#     is rounded down, so that there is one pixel more of it, in front, and the result is moved by a pixel. The code is
#     common to all backends. Odd sizes and padding as `pads` are right;
#   - Softmax runs over `axis` and all after it, as it did until opset 12. Files of opset 13, where it runs over `axis`
#     alone, are read like that, although "11+" is in the list of what is supported;
#   - Softmax in "cpu" looks for the largest input from the smallest positive number on, so that negative ones are never
#     shifted. Where all are below -104, every probability is 0 instead of a sum of 1.
# onnxruntime is right in all of these.
#
# Seen with onnxjs 0.1.8, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11 and Node.js 20.20, x86-64; largest
# difference from NumPy in float64:
#   Conv 3x3, 1 image                  largest  7.558: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   Conv 3x3, 3 images                 largest  7.558: onnxruntime 0.000, cpu 7.982, wasm 0.000
#                                      cpu: the first image is right, the others are the bias alone
#   depthwise, 3 images                largest  6.492: onnxruntime 0.000, cpu 6.096, wasm 0.000
#                                      cpu: the first image is right, the others are the bias alone
#   Conv, stride 2, SAME_UPPER, 8x8    largest  6.526: onnxruntime 0.000, cpu 5.566, wasm 5.566
#   Conv, stride 2, pads, 8x8          largest  6.526: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   Conv, stride 2, SAME_UPPER, 7x7    largest  6.939: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   MaxPool, stride 2, SAME_UPPER, 8x8 largest  0.999: onnxruntime 0.000, cpu 0.155, wasm 0.155
#   MaxPool, stride 2, pads, 8x8       largest  0.999: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   MaxPool, 3 images                  largest  1.000: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   Softmax, axis 1, opset 13          largest  0.421: onnxruntime 0.000, cpu 0.414, wasm 0.414
#   Softmax, axis 1, opset 9           largest  0.006: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   Softmax of -4, -5, -7              largest  0.705: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   Softmax of -85, -86, -88           largest  0.705: onnxruntime 0.000, cpu 0.000, wasm 0.000
#   Softmax of -106, -107, -109        largest  0.705: onnxruntime 0.000, cpu 0.705, wasm 0.000
# (Node's own `fetch` is switched off, as the package's WebAssembly cannot be loaded with it.) Exit code 0 while it is
# so, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts onnxjs@0.1.8 >/dev/null
cat > run.cjs <<'JS'
const { readFileSync, writeFileSync } = require("fs");
const { InferenceSession, Tensor } = require("onnxjs");

async function main() {
  const cases = JSON.parse(readFileSync("cases.json", "utf8"));
  for (const one of cases) {
    one.found = {};
    for (const backendHint of ["cpu", "wasm"]) {
      const session = new InferenceSession({ backendHint });
      await session.loadModel(readFileSync(one.file));
      const values = await session.run([new Tensor(Float32Array.from(one.input), "float32", one.dims)]);
      const result = values.get("y");
      one.found[backendHint] = { dims: Array.from(result.dims), data: Array.from(result.data) };
    }
  }
  writeFileSync("found.json", JSON.stringify(cases.map((one) => one.found)));
}

main().then(() => process.exit(0));
JS
cat > check.py <<'PY'
import json
import subprocess
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper, save

generator = np.random.default_rng(0)
images = generator.uniform(0.5, 1, (3, 3, 8, 8)).astype(np.float32)
weights = {
    "w": generator.normal(size=(6, 3, 3, 3)).astype(np.float32),
    "d": generator.normal(size=(3, 1, 3, 3)).astype(np.float32),
    "b": generator.normal(size=6).astype(np.float32),
}
low = np.float32([[-4, -5, -7], [-85, -86, -88], [-106, -107, -109]])


def windows(given, stride, before, after, outside):
    padded = np.pad(given.astype(np.float64), [(0, 0), (0, 0)] + [(before, after)] * 2, constant_values=outside)
    found = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return found[:, :, ::stride, ::stride]


def conv(given, stride, before, after):
    found = np.einsum("nchwij,ocij->nohw", windows(given, stride, before, after, 0), weights["w"])
    return found + weights["b"][:, None, None]


def depthwise(given):
    return np.einsum("nchwij,cij->nchw", windows(given, 1, 1, 1, 0), weights["d"][:, 0])


def softmax(given, axes):
    powers = np.exp(given.astype(np.float64) - given.max(axes, keepdims=True))
    return powers / powers.sum(axes, keepdims=True)


def node(name, inputs="x", **attributes):
    return helper.make_node(name, inputs.split(), ["y"], **attributes)


SAME, PADS = {"auto_pad": "SAME_UPPER"}, {"pads": [0, 0, 1, 1]}
step, one = {"kernel_shape": [3, 3], "strides": [2, 2]}, images[:1]
odd = one[:, :, :7, :7].copy()
around = {"kernel_shape": [3, 3], "pads": [1] * 4}
# name: (layer, input, exact result, opset, backends of ONNX.js that are right)
cases = {
    "Conv 3x3, 1 image": (node("Conv", "x w b", **around), one, conv(one, 1, 1, 1), 9, "cpu wasm"),
    "Conv 3x3, 3 images": (node("Conv", "x w b", **around), images, conv(images, 1, 1, 1), 9, "wasm"),
    "depthwise, 3 images": (node("Conv", "x d", group=3, **around), images, depthwise(images), 9, "wasm"),
    "Conv, stride 2, SAME_UPPER, 8x8": (node("Conv", "x w b", **step, **SAME), one, conv(one, 2, 0, 1), 9, ""),
    "Conv, stride 2, pads, 8x8": (node("Conv", "x w b", **step, **PADS), one, conv(one, 2, 0, 1), 9, "cpu wasm"),
    "Conv, stride 2, SAME_UPPER, 7x7": (node("Conv", "x w b", **step, **SAME), odd, conv(odd, 2, 1, 1), 9, "cpu wasm"),
    "MaxPool, stride 2, SAME_UPPER, 8x8": (
        node("MaxPool", **step, **SAME),
        one,
        windows(one, 2, 0, 1, -np.inf).max((4, 5)),
        9,
        "",
    ),
    "MaxPool, stride 2, pads, 8x8": (
        node("MaxPool", **step, **PADS),
        one,
        windows(one, 2, 0, 1, -np.inf).max((4, 5)),
        9,
        "cpu wasm",
    ),
    "MaxPool, 3 images": (
        node("MaxPool", **step, **PADS),
        images,
        windows(images, 2, 0, 1, -np.inf).max((4, 5)),
        9,
        "cpu wasm",
    ),
    "Softmax, axis 1, opset 13": (node("Softmax", axis=1), one, softmax(one, 1), 13, ""),
    "Softmax, axis 1, opset 9": (node("Softmax", axis=1), one, softmax(one, (1, 2, 3)), 9, "cpu wasm"),
    "Softmax of -4, -5, -7": (node("Softmax", axis=1), low[:1], softmax(low[:1], 1), 9, "cpu wasm"),
    "Softmax of -85, -86, -88": (node("Softmax", axis=1), low[1:2], softmax(low[1:2], 1), 9, "cpu wasm"),
    "Softmax of -106, -107, -109": (node("Softmax", axis=1), low[2:], softmax(low[2:], 1), 9, "wasm"),
}
for index, (layer, given, exact, opset, _) in enumerate(cases.values()):
    graph = helper.make_graph(
        [layer],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, exact.shape)],
        [numpy_helper.from_array(weights[name], name) for name in layer.input[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)
    checker.check_model(model, full_check=True)
    save(model, f"{index}.onnx")
given = [
    {"file": f"{index}.onnx", "dims": case[1].shape, "input": case[1].ravel().tolist()}
    for index, case in enumerate(cases.values())
]
with open("cases.json", "w") as file:
    json.dump(given, file)
subprocess.run(["node", "--no-experimental-fetch", "run.cjs"], check=True)
with open("found.json") as file:
    results = json.load(file)

stands = True
for index, ((name, (_, given, exact, _, right)), found) in enumerate(zip(cases.items(), results)):
    words = {"onnxruntime": ort.InferenceSession(f"{index}.onnx").run(None, {"x": given})[0]}
    words |= {backend: np.array(found[backend]["data"]).reshape(found[backend]["dims"]) for backend in ("cpu", "wasm")}
    same = {key: value.shape == exact.shape for key, value in words.items()}
    stands &= all(same.values())
    errors = {key: np.abs(value - exact).max() for key, value in words.items()}
    print(f"{name:34} largest {np.abs(exact).max():6.3f}: " + ", ".join(f"{k} {v:.3f}" for k, v in errors.items()))
    stands &= errors.pop("onnxruntime") < 1e-4
    for backend, error in errors.items():
        stands &= error < 1e-4 if backend in right else error > 0.1
    if "3 images" in name and "Pool" not in name:
        wrong = words["cpu"]
        plain = np.broadcast_to(weights["b"][:, None, None] if "Conv" in name else 0, wrong[1:].shape)
        stands &= bool(np.allclose(wrong[0], exact[0], atol=1e-4) and np.allclose(wrong[1:], plain, atol=1e-6))
        print(f"{'':34} cpu: the first image is right, the others are the bias alone")
sys.exit(0 if stands else 1)
PY
"$folder/venv/bin/python" check.py
