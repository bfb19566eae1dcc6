"""A model as C: a header and a source file with weights, plan of memory and inference in integers."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import torch
from torch import Tensor

from tinycifar import atomic, inference
from tinycifar.data import Dataset
from tinycifar.evaluation import outside
from tinycifar.formats import c_memory, integer, onnx_file, parity
from tinycifar.formats.int8_graph import read as read
from tinycifar.formats.integer import Array, Network, Step
from tinycifar.formats.parity import Parity
from tinycifar.trained import Trained

# Of the integer evaluation and the int8 ONNX model, whose arithmetic is the same but for roundings: shipped models have
# the same classes on 400 images, and errors of 0.05%.
TOLERANCE = parity.Tolerance(classes=0.99, logits=0.01)
KEEP = (0.9, 0.95, 0.99)  # shares of right answers whose thresholds a header states
FIT_WORDS = {  # what a program does with a picture that is not square before it resizes it
    "crop": "the central square of a picture is resized to the image size",
    "pad": "a picture keeps its proportions and lies in the middle of a square of grey, 128",
    "squash": "both sides of a picture are resized to the image size",
}
# A header of such a name would hide the standard one from a program that is compiled with its folder.
STANDARD_HEADERS = (
    "arm_acle arm_mve assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign "
    "stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype"
).split()
OVERREAD = 12  # bytes behind the last filter, which MVE reads 16 at a time


@dataclass(frozen=True)
class Size:
    """Bytes of flash and of RAM that something needs on a core."""

    flash_bytes: int
    ram_bytes: int


# What the code and its library functions take in flash, and the stack of a program that calls it in RAM: as
# results/boards.json has it, compiled by gcc 12.2 with -O2; the code is the same for every model, but for that of
# depthwise convolutions and separable blocks.
CORES = {
    "Cortex-M0": Size(4650, 640),
    "Cortex-M3": Size(3750, 640),
    "Cortex-M4F": Size(3260, 640),
    "Cortex-M7": Size(3300, 640),
    "Cortex-M55": Size(3100, 640),
    "RV32IMC": Size(4380, 640),
}
DEPTHWISE_CODE_BYTES = 680


@dataclass(frozen=True)
class ExportedC:
    """A pair of files, what they need, and how they compare with the model they were made from.

    `weight_bytes` and `constant_bytes` are needed in flash besides the code; `memory_bytes` and `pixel_bytes` in RAM
    besides the stack; `cores` has the sums for each of `CORES`. `parity` is that of the integer evaluation with the
    model, `parity_int8` with the int8 ONNX file. `not_compiled` says why the compiled code was not run; None if it was,
    and gave the bits of the integer evaluation.
    """

    header: Path
    source: Path
    weight_bytes: int
    constant_bytes: int
    memory_bytes: int
    pixel_bytes: int
    cores: dict[str, Size]
    parity: Parity
    parity_int8: Parity
    not_compiled: str | None


class NotRunError(Exception):
    """Compiled code cannot be run here; the message says why."""


def export_c(trained: Trained, folder: Path, dataset: Dataset | None = None) -> ExportedC:
    """Write a model as `NAME.h` and `NAME.c`, int8 weights and inference in integers, into a folder.

    The integer evaluation is compared with the int8 ONNX model on the images that `onnx_file.to_int8` takes, and the
    compiled code with the integer evaluation, bit for bit, if there is a C compiler. Raises `parity.ParityError`, and
    writes no file, unless the former agree within `TOLERANCE` and the latter in every bit. Raises ValueError for a
    model with an operator or attribute that C lacks; else as `onnx_file.to_int8` does.
    """
    dataset = parity.known_data(trained, dataset)
    images = parity.spread_out(dataset.test_images, parity.COMPARED_IMAGES)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "int8.onnx"
        onnx_file.to_int8(trained, path, dataset, variant="u8u8")  # all 8 bits of the weights
        network = read(path)
        written = write(network, Path(name), trained.name)
        scores = integer.scores(network, images)
        logits = integer.logits(network, scores)
        compared_int8 = TOLERANCE.check(
            onnx_file.logits(path, images), logits, "the integer arithmetic of C differs from the int8 model"
        )
        not_compiled = None
        try:
            compiled_scores, compiled_logits = run_compiled(written[1], network, images)
            if not (compiled_scores.equal(scores) and compiled_logits.equal(logits)):
                raise parity.ParityError(
                    "the compiled C does not give the bits of its own arithmetic; it is not written"
                )
        except NotRunError as error:
            not_compiled = str(error)
        folder.mkdir(parents=True, exist_ok=True)
        header, source = (folder / path.name for path in written)
        for path in reversed(written):  # the large source first: without it a new header would lie beside an old one
            atomic.write_bytes(folder / path.name, path.read_bytes())
    return ExportedC(
        header,
        source,
        weight_bytes(network),
        constant_bytes(network),
        c_memory.memory_bytes(network),
        network.pixels.bytes,
        sizes(network),
        parity.compare(inference.logits(trained.model, images), logits),
        compared_int8,
        not_compiled,
    )


def sizes(network: Network) -> dict[str, Size]:
    """What a model needs on each of `CORES`: about, as compilers differ."""
    flash, ram = constant_bytes(network), c_memory.memory_bytes(network) + network.pixels.bytes
    flash += DEPTHWISE_CODE_BYTES * c_memory.has_depthwise(network)
    return {name: Size(flash + code.flash_bytes, ram + code.ram_bytes) for name, code in CORES.items()}


def run_compiled(
    source: Path, network: Network, images: Tensor, options: Sequence[str] = ("-std=c99", "-O2")
) -> tuple[Tensor, Tensor]:
    """Scores int32 (N, classes) and logits float32 (N, classes) of the compiled code for images uint8 (N, C, S, S).

    Raises NotRunError without a C compiler that works, or if programs in the temporary folder may not be run.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NotRunError("there is no C compiler here")
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "model.so"
        command = [compiler, *options, "-shared", "-fPIC", "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and not _compiles(compiler, Path(name)):
            raise NotRunError(f"{compiler} does not compile any program: {' '.join(done.stderr.split())[:200]}")
        if done.returncode:
            raise parity.ParityError(f"{source.name} does not compile: {' '.join(done.stderr.split())[:300]}")
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError:
            raise NotRunError(f"programs in {tempfile.gettempdir()} may not be run (noexec)") from None
    classify, score = loaded[f"{source.stem}_classify"], loaded[f"{source.stem}_scores"]
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    memory = np.zeros(c_memory.memory_bytes(network), np.uint8)
    scores = np.zeros((len(images), len(network.head)), np.int32)
    logits = np.zeros(scores.shape, np.float32)
    for image, *results in zip(pixels, scores, logits, strict=True):
        for function, result in zip((score, classify), results, strict=True):
            function(*(ctypes.c_void_p(array.ctypes.data) for array in (image, memory, result)))
    return torch.from_numpy(scores), torch.from_numpy(logits)


def _compiles(compiler: str, folder: Path) -> bool:
    """Whether a compiler, with its C library, is complete."""
    source = folder / "any.c"
    source.write_text("#include <stdint.h>\n#include <string.h>\nint any(void) { return 0; }\n")
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "any.so"), str(source)]
    return subprocess.run(command, capture_output=True).returncode == 0


def weight_bytes(network: Network) -> int:
    """Bytes of weights, of filters and head; mirrored filters are stored once."""
    layers = sum(int(_stored_weights(step).nbytes) for step in c_memory.convolutions(network))
    return layers + int(integer.head(network).weights.nbytes)


def constant_bytes(network: Network) -> int:
    """Bytes of everything that is constant but the code: weights, tables, and descriptions of 32 bits a field."""
    layers = c_memory.convolutions(network)
    rest = sum((4 + 4 + 1) * len(step.weights) for step in layers)  # bias, multiplier and shift of a stored filter
    descriptions = 48 * len(layers) + 16 * len(c_memory.maps(network))  # the structures of templates/model.c
    names = sum(len(name.encode()) + 1 + 4 for name in json.loads(network.about["classes"]))
    tables = int(integer.head(network).bias.nbytes + network.table.nbytes)
    return weight_bytes(network) + rest + descriptions + names + tables


def _stored_weights(step: Step) -> Array:
    """The filters as C stores them, int8, in one row, with `OVERREAD` zeros behind.

    They are (stored filters, 1 or 2, taps), or of a depthwise convolution (stored filters / 4, taps, 4).
    """
    weights = step.weights
    if step.depthwise:
        fours = np.pad(weights.reshape(len(weights), -1), ((0, -len(weights) % 4), (0, 0)))
        return np.pad(fours.reshape(-1, 4, step.kernel**2).transpose(0, 2, 1).flatten(), (0, OVERREAD))
    parts = [weights]
    if step.mirrored:
        half = weights.shape[3] // 2
        parts = [weights[..., :half], weights[:, :, ::-1, half:]]
    rows = [part.reshape(len(part), -1) for part in parts]
    filled = [np.pad(row, ((0, 0), (0, c_memory.taps(step) - row.shape[1]))) for row in rows]
    return np.pad(np.stack(filled, axis=1).flatten(), (0, OVERREAD))


def _layer(step: Step, scratch: int) -> dict[str, object]:
    """What templates/model.c needs to know of a convolution."""
    stored = len(step.weights)
    # Maps hold v - 128, and patches too; their zero times the weights is taken off here.
    zero = step.inputs[0].zero - 128
    bias = step.bias[:stored].astype(np.int64) - zero * integer.filters(step)[:stored].astype(np.int64).sum((1, 2, 3))
    rescaling = integer.rescaling(step)
    return {
        "step": step,
        "weights": _stored_weights(step),
        "bias": bias.astype(np.int32),
        "multipliers": rescaling.multipliers[:stored],
        "shifts": rescaling.shifts[:stored],
        "gain": rescaling.gain,
        "scratch": scratch,
    }


def _calls(network: Network) -> Iterable[str]:
    """The steps as calls in C."""
    index = {item: f"&maps[{number}]" for number, item in enumerate(c_memory.maps(network))}
    layers = {step: f"&conv_{number}" for number, step in enumerate(c_memory.convolutions(network))}
    blocks = 0
    for group in c_memory.groups(network):
        step = group.steps[0]
        inputs, output = [index[item] for item in step.inputs], index[step.output]
        if group.is_separable:
            maps = [inputs[0], output, index[group.mixing.inputs[0]], index[group.mixing.output]]
            yield f"separable(&block_{blocks}, {', '.join(maps)}, {index[group.steps[-1].output]}, start);"
            blocks += 1
        elif step.kind == "conv":
            yield f"{'depthwise' if step.depthwise else 'convolve'}({layers[step]}, {inputs[0]}, {output}, start);"
        elif step.kind == "pool":
            yield f"pool({inputs[0]}, {output}, start);"
        else:
            given = integer.addition(step)
            yield f"add({inputs[0]}, {given.first}, {inputs[1]}, {given.second}, {given.shift}, {output}, start);"


def _blocks(network: Network) -> Iterable[dict[str, object]]:
    """What templates/model.c needs to know of each separable block."""
    convolutions = c_memory.convolutions(network)
    offsets, _ = c_memory.plan(network)
    for group in c_memory.groups(network):
        if not group.is_separable:
            continue
        first, last = group.steps[0], group.steps[-1]
        product, added, shift = 0, 0, 0
        if last.kind == "add":
            given = integer.addition(last)
            product, added, shift = given.first, given.second, given.shift
            if last.inputs[0] is first.inputs[0]:
                product, added = added, product
        yield {
            "layers": [convolutions.index(step) for step in (first, group.mixing)],
            "results": offsets[group],
            "delay": group.delay,
            "product": product,
            "added": added,
            "shift": shift,
        }


def write(network: Network, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `NAME.h` and `NAME.c` into a folder; gives their paths."""
    written = paths(folder, name)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinycifar.formats"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(values=_values, c_string=_c_string, c_float=_c_float)
    offsets, _ = c_memory.plan(network)
    maps = c_memory.maps(network)
    calls = list(_calls(network))
    kept = json.loads(network.about.get("kept", "[]"))
    given = {
        "prefix": written[0].stem,
        "size": network.pixels.size,
        "kinds": {step.kind for step in network.steps},
        "used": {call.partition("(")[0] for call in calls},
        "depthwise": c_memory.has_depthwise(network),
        "patches": not all(step.depthwise for step in c_memory.convolutions(network)),
        "table": network.table.astype(np.int16) - 128,
        "layers": [_layer(step, offsets[step]) for step in c_memory.convolutions(network)],
        "head": integer.head(network),
        "classes": json.loads(network.about["classes"]),
        "temperature": network.about["temperature"],
        "fit": network.about.get("fit", "crop"),
        "kept": [(round(100 * keep), outside.threshold(kept, keep, name)) for keep in KEEP if kept],
        "fit_words": FIT_WORDS[network.about.get("fit", "crop")],
        "maps": [
            {"offset": offsets[item], "channels": item.channels, "size": item.size, "zero": item.zero - 128}
            for item in maps
        ],
        "features": maps.index(network.features),
        "calls": calls,
        "blocks": list(_blocks(network)),
        "sums_offset": offsets[c_memory.SUMS],
        "scores_offset": offsets[c_memory.SCORES],
        "weight_bytes": weight_bytes(network),
        "constant_bytes": constant_bytes(network),
        "memory_bytes": c_memory.memory_bytes(network),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path in written:
        path.write_text(environment.get_template(f"model{path.suffix}").render(given), encoding="utf-8")
    return written


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The header and the source of a model of that name in a folder; their names are C identifiers of its own."""
    prefix = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not re.match(r"[A-Za-z]", prefix) or prefix.lower() in STANDARD_HEADERS:
        prefix = f"model_{prefix}"
    return folder / f"{prefix}.h", folder / f"{prefix}.c"


def _c_string(name: str) -> str:
    """A C string with a name in UTF-8, whatever is in it."""
    plain = set(range(32, 127)) - set(b'"\\?')  # two question marks can begin a trigraph
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in name.encode()) + '"'


def _c_float(value: float | str) -> str:
    """A constant of type float."""
    return f"{float(np.float32(value))!r}f"


def _values(array: Array) -> str:
    """The values of an integer array as C has them between braces, in lines of at most 118 characters."""
    lines, line = [], "   "
    for word in map(str, array.flatten().tolist()):
        if len(line) + len(word) > 116:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])
