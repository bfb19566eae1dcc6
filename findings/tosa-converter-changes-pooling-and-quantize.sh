#!/usr/bin/env bash
# Arm's converter from TFLite to TOSA, the form that compilers for its accelerators read, writes a graph that computes
# something else for three operators, without a message:
#   - the activation fused into AVERAGE_POOL_2D or MAX_POOL_2D is left out. TensorFlow's converter fuses a ReLU
#     behind a pooling. Fused into a convolution, or as an operator of its own, it is kept;
#   - QUANTIZE from float to int8 with a zero point other than 0 wraps instead of saturating: the sum with the zero
#     point goes from int32 to int8 by a CAST, which by TOSA's specification drops the upper bits. Nets with float input
#     start with this operator: a pixel a little brighter than the brightest of the calibration becomes a black one.
#     With a zero point of 0 there is no sum, and the CAST from float saturates;
#   - RESIZE_NEAREST_NEIGHBOR with neither align_corners nor half_pixel_centers takes the nearest place, which is what
#     TOSA's RESIZE does, where TFLite takes the one before: enlarging to twice the size shifts the picture by a pixel.
# The graphs run in TOSA's own reference model, which follows its specification in CAST and RESIZE. The README calls the
# converter experimental, but names none of this.
#
# Seen with tosa-converter-for-tflite 2026.2.0, tosa-tools 2026.8.0 and ai-edge-litert 2.3.0, Python 3.11, x86-64;
# largest difference from NumPy, of LiteRT and of TOSA, and how many values of TOSA differ:
#   AVERAGE_POOL_2D                     LiteRT 0.000, TOSA   0.000 in 0%
#   AVERAGE_POOL_2D with RELU6 fused    LiteRT 0.000, TOSA   3.170 in 16%
#   AVERAGE_POOL_2D, RELU6 behind       LiteRT 0.000, TOSA   0.000 in 0%
#   MAX_POOL_2D with RELU6 fused        LiteRT 0.000, TOSA   3.961 in 81%
#   MAX_POOL_2D, RELU6 behind           LiteRT 0.000, TOSA   0.000 in 0%
#   QUANTIZE, scale 1/255, zero -128    LiteRT 0.000, TOSA 255.000 in 28%
#   QUANTIZE, scale 1/127, zero 0       LiteRT 0.000, TOSA   0.000 in 0%
#   RESIZE_NEAREST, neither flag        LiteRT 0.000, TOSA   1.947 in 61%
#   RESIZE_NEAREST, half_pixel_centers  LiteRT 0.000, TOSA   0.000 in 0%
#   RESIZE_NEAREST, align_corners       LiteRT 0.000, TOSA   0.000 in 0%
# Exit code 0 while TOSA differs where it does above and LiteRT nowhere, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "tosa-converter-for-tflite==2026.2.0" "tosa-tools==2026.8.0" "ai-edge-litert==2.3.0"
"$folder/venv/bin/python" - "$folder" <<'PY'
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import tosa_reference_model
from ai_edge_litert import schema_py_generated as s
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tosa_converter_for_tflite import tflite_flatbuffer_to_tosa_mlir

FOLDER = Path(sys.argv[1])
generator = np.random.default_rng(0)
maps = generator.uniform(-4, 10, (1, 8, 8, 4)).astype(np.float32)
small = generator.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)
pixels = ((np.arange(-50, 306) + 0.2) / 255).astype(np.float32).reshape(1, 356)


def tensor(shape, kind, buffer=0, scale=None, zero=0):
    table = s.TensorT()
    table.name, table.shape, table.type, table.buffer = "x", list(shape), kind, buffer
    if scale is not None:
        table.quantization = s.QuantizationParametersT()
        table.quantization.scale, table.quantization.zeroPoint = [scale], [zero]
    return table


def model(tensors, operators, contents=b""):
    """A TFLite file: tensor 0 goes in, the last one comes out; operators are (name, inputs, output, options)."""
    built, graph = s.ModelT(), s.SubGraphT()
    built.version, built.buffers = 3, [s.BufferT(), s.BufferT()]
    built.buffers[1].data = np.frombuffer(contents, np.uint8)
    graph.tensors, graph.inputs, graph.outputs, graph.operators, built.operatorCodes = tensors, [0], [], [], []
    for number, (name, inputs, output, options) in enumerate(operators):
        code, operator = s.OperatorCodeT(), s.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(s.BuiltinOperator, name)
        code.version = 1
        operator.opcodeIndex, operator.inputs, operator.outputs = number, inputs, [output]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(s.BuiltinOptions, type(options).__name__[:-1])
        graph.operators.append(operator)
        built.operatorCodes.append(code)
    graph.outputs, built.subgraphs = [len(tensors) - 1], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(built.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def pooling(name, fused, behind=False):
    options = s.Pool2DOptionsT()
    options.padding, options.filterHeight, options.filterWidth = s.Padding.VALID, 2, 2
    options.strideH = options.strideW = 2
    if fused:
        options.fusedActivationFunction = s.ActivationFunctionType.RELU6
    shapes = [maps.shape, (1, 4, 4, 4)] + [(1, 4, 4, 4)] * behind
    operators = [(name, [0], 1, options)] + [("RELU6", [1], 2, None)] * behind
    windows = maps.astype(np.float64).reshape(1, 4, 2, 4, 2, 4)
    exact = windows.mean((2, 4)) if name == "AVERAGE_POOL_2D" else windows.max((2, 4))
    exact = np.clip(exact, 0, 6) if fused or behind else exact
    return model([tensor(shape, s.TensorType.FLOAT32) for shape in shapes], operators), maps, exact


def quantize(scale, zero):
    tensors = [tensor(pixels.shape, s.TensorType.FLOAT32), tensor(pixels.shape, s.TensorType.INT8, 0, scale, zero)]
    exact = np.clip(np.round(pixels.astype(np.float64) / scale) + zero, -128, 127)
    return model(tensors, [("QUANTIZE", [0], 1, s.QuantizeOptionsT())]), pixels, exact


def resize(mode):
    options = s.ResizeNearestNeighborOptionsT()
    options.alignCorners, options.halfPixelCenters = mode == "align_corners", mode == "half_pixel_centers"
    shapes, kinds = [small.shape, (2,), (1, 8, 8, 2)], [s.TensorType.FLOAT32, s.TensorType.INT32, s.TensorType.FLOAT32]
    tensors = [tensor(shape, kind, int(shape == (2,))) for shape, kind in zip(shapes, kinds)]
    outputs = np.arange(8)
    places = {
        "neither": outputs * 4 // 8,
        "half_pixel_centers": (2 * outputs + 1) * 4 // 16,
        "align_corners": np.round(outputs * 3 / 7).astype(int),
    }[mode]
    file = model(tensors, [("RESIZE_NEAREST_NEIGHBOR", [0, 1], 2, options)], np.array([8, 8], np.int32).tobytes())
    return file, small, small[:, places][:, :, places].astype(np.float64)


def litert(file, image):
    interpreter = Interpreter(
        model_content=file, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def tosa(file, image):
    for name in ("net.tflite", "net.mlirbc", "net.tosa"):
        (FOLDER / name).unlink(missing_ok=True)
    (FOLDER / "net.tflite").write_bytes(file)
    tflite_flatbuffer_to_tosa_mlir(str(FOLDER / "net.tflite"), str(FOLDER / "net.mlirbc"))
    command = [FOLDER / "venv/bin/tosa-opt", f"--tosa-serialize=tosa-flatbuffer-filename={FOLDER / 'net.tosa'}"]
    subprocess.run([*command, FOLDER / "net.mlirbc", "-o", "/dev/null"], check=True)
    results, _ = tosa_reference_model.run((FOLDER / "net.tosa").read_bytes(), [image])
    return results[0]


cases = {
    "AVERAGE_POOL_2D": (pooling("AVERAGE_POOL_2D", False), True),
    "AVERAGE_POOL_2D with RELU6 fused": (pooling("AVERAGE_POOL_2D", True), False),
    "AVERAGE_POOL_2D, RELU6 behind": (pooling("AVERAGE_POOL_2D", False, True), True),
    "MAX_POOL_2D with RELU6 fused": (pooling("MAX_POOL_2D", True), False),
    "MAX_POOL_2D, RELU6 behind": (pooling("MAX_POOL_2D", False, True), True),
    "QUANTIZE, scale 1/255, zero -128": (quantize(1 / 255, -128), False),
    "QUANTIZE, scale 1/127, zero 0": (quantize(1 / 127, 0), True),
    "RESIZE_NEAREST, neither flag": (resize("neither"), False),
    "RESIZE_NEAREST, half_pixel_centers": (resize("half_pixel_centers"), True),
    "RESIZE_NEAREST, align_corners": (resize("align_corners"), True),
}
stands = True
for name, ((file, image, exact), right) in cases.items():
    results = [result(file, image).astype(np.float64).reshape(exact.shape) for result in (litert, tosa)]
    lite, arm = (np.abs(result - exact) for result in results)
    print(f"{name:35} LiteRT {lite.max():.3f}, TOSA {arm.max():7.3f} in {(arm > 1e-3).mean():.0%}")
    stands &= lite.max() < 1e-3 and (arm.max() < 1e-3) == right
sys.exit(0 if stands else 1)
PY
