"""From an int8 ONNX file of ours to C: a header and a source file with weights, plan of memory, and inference."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinycifar import atomic, inference
from tinycifar.data import Dataset
from tinycifar.formats import onnx_file, parity
from tinycifar.formats.parity import Parity
from tinycifar.trained import Trained

Array = NDArray[Any]
TOLERANCE = parity.Tolerance(classes=0.99, logits=0.01)  # of the compiled code and the int8 model it was made from


@dataclass(eq=False)
class Map:
    """A feature map of 8 bits: shape, what its numbers mean, where it lies in memory, from and to which step."""

    channels: int
    size: int
    scale: float
    zero: int
    first: int
    last: int
    offset: int = 0

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.channels * self.size**2


@dataclass(eq=False)
class Step:
    """A convolution, pooling or addition: from which maps to which."""

    kind: str
    inputs: list[Map]
    output: Map
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    mirrored: bool = False
    weights: Array = field(default_factory=lambda: np.zeros(0, np.int8))
    bias: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    scales: Array = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(eq=False)
class Network:
    """What is in an int8 ONNX file: steps from quantised pixels to features, a head in float, what is told of it."""

    steps: list[Step]
    pixels: Map
    features: Map
    table: Array
    head: Array
    head_bias: Array
    memory_bytes: int
    about: dict[str, str]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights: of all filters, those that are mirror images of others not counted, and of the head."""
        return sum(step.weights.nbytes for step in self.steps) + self.head.nbytes

    @property
    def constant_bytes(self) -> int:
        """Bytes of everything that is constant but the code: weights, biases, scales, and the table of pixels."""
        rest = sum(step.bias.nbytes + step.scales.nbytes for step in self.steps)
        return self.weight_bytes + rest + self.head_bias.nbytes + self.table.nbytes


def read(path: Path) -> Network:
    """Read an int8 file that `onnx_file.to_int8` wrote; ValueError for another one."""
    try:
        return _read(path)
    except (KeyError, IndexError):
        raise ValueError(f"{path} is no int8 file that tinycifar exported") from None


def _read(path: Path) -> Network:
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = list(model.graph.node)
    alias: dict[str, str] = {}  # of what was quantised and back: what it was before
    ranges: dict[str, tuple[float, int]] = {}
    parameters: dict[str, tuple[Array, Array]] = {}
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            ranges[node.input[0]] = float(constants[node.input[1]]), int(constants[node.input[2]])
            alias[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            values = constants[node.input[0]].astype(np.int32)
            zero = constants[node.input[2]].astype(np.int32).reshape(-1, *[1] * (values.ndim - 1))
            parameters[node.output[0]] = values - zero, constants[node.input[1]]
        elif node.op_type == "DequantizeLinear":
            alias[node.output[0]] = alias[node.input[0]]

    maps: dict[str, Map] = {}
    steps: list[Step] = []

    def add(kind: str, node: Any, channels: int, size: int, **of: Any) -> None:
        inputs = [maps[alias[name]] for name in node.input if name in alias]
        for one in inputs:
            one.last = len(steps)
        output = Map(channels, size, *ranges[node.output[0]], len(steps), len(steps))
        maps[node.output[0]] = output
        steps.append(Step(kind, inputs, output, **of))

    found: dict[str, Any] = {}
    for node in nodes:
        about = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        source = maps.get(alias.get(node.input[0], "")) if node.input else None
        match node.op_type:
            case "Sub":
                found["mean"] = constants[node.input[1]]
            case "Div":
                found["std"] = constants[node.input[1]]
                side = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
                maps[node.output[0]] = Map(3, side, *ranges[node.output[0]], 0, 0)
                found["pixels"] = maps[node.output[0]]
            case "Conv" if source is not None and node.input[1] in parameters:
                weights, weight_scales = parameters[node.input[1]]
                bias = parameters[node.input[2]][0] if len(node.input) > 2 else np.zeros(len(weights))
                kernel, stride, dilation = about["kernel_shape"][0], about["strides"][0], about["dilations"][0]
                padding = about["pads"][0]
                size = (source.size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
                scale = np.float32(source.scale) * weight_scales / np.float32(ranges[node.output[0]][0])
                add("conv", node, len(weights), size, kernel=kernel, stride=stride, padding=padding, dilation=dilation,
                    groups=about["group"], **_stored(weights), bias=bias.astype(np.int32),
                    scales=scale.astype(np.float32))  # fmt: skip
            case "MaxPool" if source is not None:
                add("pool", node, source.channels, source.size // 2)
            case "Add" if source is not None:
                add("add", node, source.channels, source.size)
            case "ReduceMean" if source is not None:
                found["features"] = source
                source.last = len(steps)
            case "Gemm":
                found["head"] = constants[node.input[1]]
                found["head_bias"] = constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(found["head"]))
            case "Conv" | "QuantizeLinear" | "DequantizeLinear" | "Unsqueeze":  # of the class activation map
                pass
            case _:
                raise ValueError(f"{path} holds {node.op_type}, for which there is no C here")
    memory = _place([found["pixels"], *(step.output for step in steps)])
    metadata = {item.key: item.value for item in model.metadata_props}
    return Network(
        steps,
        found["pixels"],
        found["features"],
        _table(found["mean"], found["std"], found["pixels"]),
        found["head"].astype(np.float32),
        found["head_bias"].astype(np.float32),
        memory,
        metadata,
    )


def _stored(weights: Array) -> dict[str, Any]:
    """What of the filters (O, I, K, K) has to be stored, by output, row, column, input; half of them if mirrored."""
    half, inputs = len(weights) // 2, weights.shape[1]
    mirror = np.roll(weights[:half, :, :, ::-1], inputs // 2, axis=1)
    mirrored = len(weights) % 2 == 0 and inputs % 2 == 0 and bool((weights[half:] == mirror).all())
    kept = weights[:half] if mirrored else weights
    return {"weights": kept.transpose(0, 2, 3, 1).astype(np.int8), "mirrored": mirrored}


def _table(mean: Array, std: Array, pixels: Map) -> Array:
    """Pixels of 0..255 as the first map holds them: uint8 (3, 256)."""
    values = (np.arange(256, dtype=np.float32) / np.float32(255) - mean.reshape(3, 1)) / std.reshape(3, 1)
    table: Array = np.clip(np.rint(values / np.float32(pixels.scale)) + pixels.zero, 0, 255).astype(np.uint8)
    return table


def _place(maps: list[Map]) -> int:
    """Give every map the first place in memory that is free as long as it is needed; gives the bytes needed."""
    placed: list[Map] = []
    for one in maps:
        others = [other for other in placed if other.first <= one.last and one.first <= other.last]
        starts = [0, *(other.offset + other.bytes for other in others)]
        one.offset = min(
            start
            for start in starts
            if all(start + one.bytes <= other.offset or other.offset + other.bytes <= start for other in others)
        )
        placed.append(one)
    return max(one.offset + one.bytes for one in maps)


@dataclass(frozen=True)
class ExportedC:
    """A pair of files, what they need, and how the compiled code compares with the model they were made from.

    `weight_bytes` and `constant_bytes` are needed in flash besides the code, `memory_bytes` in RAM besides the stack.
    `parity` is with the model, `parity_int8` with the int8 ONNX file; None where there is no C compiler to try it with.
    """

    header: Path
    source: Path
    weight_bytes: int
    constant_bytes: int
    memory_bytes: int
    parity: Parity | None
    parity_int8: Parity | None


def export_c(trained: Trained, folder: Path, dataset: Dataset | None = None) -> ExportedC:
    """Write a model as `NAME.h` and `NAME.c`, int8 weights and inference in C99, into a folder.

    The compiled code is tried on the images that `onnx_file.to_int8` takes, where a C compiler is at hand. Raises
    `parity.ParityError`, and writes no file, unless it agrees with the int8 ONNX file within `TOLERANCE`; else as
    `onnx_file.to_int8` does.
    """
    dataset = parity.known_data(trained, dataset)
    images = parity.spread_out(dataset.test_images, parity.COMPARED_IMAGES)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "int8.onnx"
        onnx_file.to_int8(trained, path, dataset, variant="u8u8")  # all 8 bits of the weights
        network = read(path)
        expected = onnx_file.logits(path, images)
        written = write(network, Path(name), trained.name)
        compiled = compiled_logits(written[1], network, images)
        compared = compared_int8 = None
        if compiled is not None:
            compared = parity.compare(inference.logits(trained.model, images), compiled)
            compared_int8 = TOLERANCE.check(expected, compiled, "the compiled C differs from the int8 model")
        folder.mkdir(parents=True, exist_ok=True)
        header, source = (folder / path.name for path in written)
        for path in written:
            atomic.write_bytes(folder / path.name, path.read_bytes())
    return ExportedC(
        header, source, network.weight_bytes, network.constant_bytes, network.memory_bytes, compared, compared_int8
    )


def compiled_logits(source: Path, network: Network, images: Tensor, options: Sequence[str] = ()) -> Tensor | None:
    """Logits (N, num_classes) of the compiled code for images, uint8 (N, 3, S, S); None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "model.so"
        command = [compiler, "-std=c99", "-O2", "-shared", "-fPIC", *options, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise parity.ParityError(f"{source.name} does not compile: {' '.join(done.stderr.split())[:300]}")
        classify = ctypes.CDLL(str(library))[f"{source.stem}_classify"]
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    memory = np.zeros(network.memory_bytes, np.uint8)
    logits = np.zeros((len(images), len(network.head)), np.float32)
    for of, into in zip(pixels, logits, strict=True):
        classify(*(ctypes.c_void_p(array.ctypes.data) for array in (of, memory, into)))
    return torch.from_numpy(logits)


def write(network: Network, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `NAME.h` and `NAME.c` into a folder; gives their paths."""
    prefix = re.sub(r"\W", "_", name, flags=re.ASCII)
    prefix = prefix if re.match(r"[A-Za-z]", prefix) else f"model_{prefix}"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinycifar.formats"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["values"] = _values
    environment.filters["c_string"] = _c_string
    paths = folder / f"{prefix}.h", folder / f"{prefix}.c"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"network": network, "prefix": prefix, "classes": json.loads(network.about["classes"])}
    for path in paths:
        path.write_text(environment.get_template(f"model{path.suffix}").render(about), encoding="utf-8")
    return paths


def _c_string(name: str) -> str:
    """A C string with a name in UTF-8, whatever is in it."""
    kept = set(range(32, 127)) - set(b'"\\?')  # two question marks can begin a trigraph
    return '"' + "".join(chr(byte) if byte in kept else f"\\{byte:03o}" for byte in name.encode()) + '"'


def _values(array: Array) -> str:
    """The values of an array as C has them between braces, in lines of at most 118 characters."""
    words = [f"{value!r}f" if array.dtype == np.float32 else str(value) for value in array.flatten().tolist()]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) > 116:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])
