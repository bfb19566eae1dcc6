#!/usr/bin/env bash
# TFLite Micro computes a separate int8 RELU6 without looking at the scale and zero point of its output: it clamps the
# input's integers between those of 0 and 6 and stores them as they are. LiteRT (XNNPACK, built-in and reference
# kernels) converts to the output's scale, and so does TFLite Micro itself for RELU. Where the output has a scale of its
# own, 6/255 for instance to use all 256 steps, the device computes wrong values without an error; with equal scales,
# or with a RELU6 that is fused into a convolution, all agree.
#
# Seen with ai-edge-litert 2.3.0, tflite-micro 0.dev20261023182759 and flatbuffers 25.12.19, Python 3.11, x86-64: the
# result for the largest of 256 inputs, 12.7 at a scale of 0.1, and the largest error of all of them in steps
#   RELU6 to scale 6/255: LiteRT 6.00, off by at most 1; TFLite Micro 4.42, off by at most 128
#   RELU6 to scale 0.1  : LiteRT 6.00, off by at most 0; TFLite Micro 6.00, off by at most 0
#   RELU  to scale 6/255: LiteRT 6.00, off by at most 1; TFLite Micro 6.00, off by at most 1
# Exit code 0 while this holds, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "flatbuffers==25.12.19" "ai-edge-litert==2.3.0" "tflite-micro==0.dev20261023182759" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as s
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime

values = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 1, 256)
INPUT_SCALE = 0.1


def tensor(name, scale, zero):
    table = s.TensorT()
    table.name, table.shape, table.type, table.buffer = name, list(values.shape), s.TensorType.INT8, 0
    table.quantization = s.QuantizationParametersT()
    table.quantization.scale, table.quantization.zeroPoint = [scale], [zero]
    return table


def build(kind, scale, zero):
    operator = s.OperatorT()
    operator.inputs, operator.outputs = [0], [1]
    code = s.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 2
    graph = s.SubGraphT()
    graph.tensors, graph.operators = [tensor("input", INPUT_SCALE, 0), tensor("output", scale, zero)], [operator]
    graph.inputs, graph.outputs = [0], [1]
    model = s.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [s.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def litert(content, kernels):
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(int)


def micro(content):
    interpreter = runtime.Interpreter.from_bytes(content)
    interpreter.set_input(values, 0)
    interpreter.invoke()
    return interpreter.get_output(0).astype(int)


KERNELS = OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.BUILTIN_REF
rows = []
for name, kind, top, scale, zero, text in (
    ("RELU6", s.BuiltinOperator.RELU6, 6, 6 / 255, -128, "6/255"),
    ("RELU6", s.BuiltinOperator.RELU6, 6, 0.1, 0, "0.1"),
    ("RELU", s.BuiltinOperator.RELU, np.inf, 6 / 255, -128, "6/255"),
):
    content = build(kind, scale, zero)
    exact = np.clip(np.round(np.clip(values * INPUT_SCALE, 0, top) / scale) + zero, -128, 127)
    several = [litert(content, kernels) for kernels in KERNELS]
    host = max(abs(result - exact).max() for result in several)
    device = micro(content)
    error = abs(device - exact).max()
    rows.append((host, error))
    print(
        f"{name:5} to scale {text:5}: LiteRT {(several[0].flat[-1] - zero) * scale:.2f}, off by at most {host:.0f}; "
        f"TFLite Micro {(device.flat[-1] - zero) * scale:.2f}, off by at most {error:.0f}"
    )
wrong, others = rows[0][1], [rows[0][0], *rows[1], *rows[2]]
sys.exit(0 if wrong > 100 and max(others) <= 1 else 1)
PY
