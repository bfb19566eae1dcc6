"""Exported C on emulated microcontrollers: builds it, runs it under QEMU, compares bits and counts instructions."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinycifar.formats import c_memory, c_source, integer
from tinycifar.formats.integer import Network

FOLDER = Path(__file__).parent
OPTIONS = ["-O2", "-ffunction-sections", "-fdata-sections", "-g"]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Werror"]
PROGRAMS = ("arm-none-eabi-gcc", "riscv64-unknown-elf-gcc", "qemu-system-arm", "qemu-system-riscv32", "gcc")
TIMEOUT_S = 540


@dataclass(frozen=True)
class Core:
    """A processor core: options of its compiler, the board that QEMU has it on, and where that has memory."""

    name: str
    options: tuple[str, ...]
    machine: str
    flash: tuple[int, int] = (0x0, 4 << 20)  # address, bytes
    ram: tuple[int, int] = (0x20000000, 4 << 20)
    riscv: bool = False

    @property
    def compiler(self) -> list[str]:
        """The compiler with the core's options."""
        if self.riscv:
            return ["riscv64-unknown-elf-gcc", "--specs=picolibc.specs", *self.options]
        return ["arm-none-eabi-gcc", "-mthumb", *self.options]

    def emulator(self, program: Path, plugin: str) -> list[str]:
        """QEMU with a program and a plugin."""
        qemu = ["qemu-system-riscv32", "-bios", "none"] if self.riscv else ["qemu-system-arm"]
        quiet = ["-nographic", "-monitor", "none", "-serial", "null"]
        semihosting = ["-semihosting-config", "enable=on,target=native"]
        return [*qemu, "-M", self.machine, *quiet, *semihosting, "-plugin", plugin, "-kernel", str(program)]


HARD_FLOAT = "-mfloat-abi=hard"
CORES = {
    core.name: core
    for core in (
        Core("Cortex-M0", ("-mcpu=cortex-m0",), "mps2-an385"),
        Core("Cortex-M3", ("-mcpu=cortex-m3",), "mps2-an385"),
        Core("Cortex-M4F", ("-mcpu=cortex-m4", HARD_FLOAT, "-mfpu=fpv4-sp-d16"), "mps2-an386"),
        Core("Cortex-M7", ("-mcpu=cortex-m7", HARD_FLOAT, "-mfpu=fpv5-d16"), "mps2-an500"),
        Core(
            "Cortex-M55", ("-mcpu=cortex-m55", HARD_FLOAT), "mps3-an547", (0x10000000, 1 << 19), (0x21000000, 2 << 20)
        ),
        Core("RV32IMC", ("-march=rv32imc", "-mabi=ilp32"), "virt", (0x80000000, 4 << 20), (0x80400000, 4 << 20), True),
    )
}


@dataclass(frozen=True)
class Measured:
    """One model on one core. `flash_bytes` is what the model adds to a program, with the library functions it uses.

    `ram_bytes` is working memory, pixels and the program's stack, `stack_bytes`. `instructions` are those of an image,
    the mean over all images. `same_bits` says whether classes, scores and logits of all images are those of the integer
    evaluation.
    """

    core: str
    instructions: int
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    same_bits: bool


class EmulationError(Exception):
    """A program that could not be built or run; the message has the output of the tool."""


def missing_programs() -> list[str]:
    """Programs that the measurement needs and that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def measure(network: Network, core: Core, images: Tensor, folder: Path, options: tuple[str, ...] = ()) -> Measured:
    """Run a network on a core for images, uint8 (N, C, S, S), in a folder for files."""
    folder.mkdir(parents=True, exist_ok=True)
    c_source.write(network, folder, "model")
    _write_images(folder / "images.h", images)
    plugin = folder / "count.so"
    _run(["gcc", "-O2", "-shared", "-fPIC", "-o", plugin, FOLDER / "count.c"])
    program = _build(core, folder, folder / "model.c", options)
    (folder / "empty.c").write_text(_EMPTY)
    without = _build(core, folder, folder / "empty.c", options)
    counts = folder / "counts.txt"
    symbols = _symbols(core, program)
    arguments = f"{plugin},first={symbols['model_classify']},last={symbols['finished']},counts={counts}"
    done = _run(core.emulator(program, arguments))
    # ARM's semihosting writes to standard error, RISC-V's to standard output.
    *lines, stack = (done.stdout + done.stderr).strip().splitlines()
    stack_bytes = int(stack.split()[1])
    instructions = [int(line) for line in counts.read_text().split()]
    if len(instructions) != len(images):
        raise EmulationError(f"{len(instructions)} of {len(images)} images were counted on {core.name}")
    ram_bytes = c_memory.memory_bytes(network) + network.pixels.bytes + _bytes(core, program)[1]
    ram_bytes += stack_bytes - _bytes(core, without)[1]
    return Measured(
        core.name,
        round(statistics.mean(instructions)),
        _bytes(core, program)[0] - _bytes(core, without)[0],
        ram_bytes,
        stack_bytes,
        [line.split() for line in lines] == _expected(network, images),
    )


_EMPTY = """#include "model.h"
int model_classify(const uint8_t *pixels, uint8_t *memory, float *logits)
{
    (void)pixels, (void)memory, (void)logits;
    return 0;
}
int model_scores(const uint8_t *pixels, uint8_t *memory, int32_t *scores)
{
    (void)pixels, (void)memory, (void)scores;
    return 0;
}
"""


def _build(core: Core, folder: Path, source: Path, options: tuple[str, ...]) -> Path:
    compiler = [*core.compiler, *OPTIONS, *options]
    compiled = source.with_suffix(".o")
    _run([*compiler, *STRICT, "-c", source, "-o", compiled])
    program = source.with_suffix(".elf")
    places = {"flash": core.flash, "ram": core.ram}
    regions = [f"-Wl,--defsym={name}_{key}={value}" for name, place in places.items()
               for key, value in zip(("at", "bytes"), place, strict=True)]  # fmt: skip
    prefixes = ["-DMODEL_classify=model_classify", "-DMODEL_scores=model_scores"]
    libraries = ["-nostartfiles", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments"]
    libraries += [] if core.riscv else ["--specs=nano.specs", "--specs=nosys.specs"]
    files = [FOLDER / "start.c", FOLDER / "main.c", compiled]
    _run([*compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", folder, "-I", FOLDER, *prefixes, *regions,
          *libraries, "-T", FOLDER / "board.ld", *files, "-o", program])  # fmt: skip
    return program


def _expected(network: Network, images: Tensor) -> list[list[str]]:
    """Class and hash of the logits of each image, and of the first one's scores, as main.c prints them."""
    scores = integer.scores(network, images)
    rows = [*integer.logits(network, scores), scores[0]]
    return [[str(int(row.argmax())), str(fnv1a(row.numpy().tobytes()))] for row in rows]


def fnv1a(content: bytes) -> int:
    """The hash of 32 bits that main.c computes."""
    value = 2166136261
    for byte in content:
        value = (value ^ byte) * 16777619 % 2**32
    return value


def _write_images(path: Path, images: Tensor) -> None:
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy().reshape(len(images), -1)
    rows = ",\n".join("{" + ",".join(map(str, row)) + "}" for row in pixels.tolist())
    size = f"[IMAGES][{pixels.shape[1]}]"
    head = f"#include <stdint.h>\n#define IMAGES {len(images)}\n"
    path.write_text(f"{head}static const uint8_t images{size} = {{\n{rows}}};\n")


def _tool(core: Core, name: str) -> str:
    return core.compiler[0].removesuffix("gcc") + name


def _symbols(core: Core, program: Path) -> dict[str, int]:
    """Addresses of functions, without ARM's bit for Thumb."""
    lines = _run([_tool(core, "nm"), program]).stdout.splitlines()
    found = (line.split() for line in lines)
    return {parts[2]: int(parts[0], 16) & ~1 for parts in found if len(parts) == 3 and parts[1] in "Tt"}


def _bytes(core: Core, program: Path) -> tuple[int, int]:
    """Bytes of flash and of static RAM, images and this program's own included."""
    text, data, bss = map(int, _run([_tool(core, "size"), program]).stdout.splitlines()[1].split()[:3])
    return text + data, data + bss


def _run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise EmulationError(f"{command[0]} ran longer than {TIMEOUT_S} seconds") from None
    if done.returncode:
        raise EmulationError(f"{command[0]} ended with {done.returncode}: {(done.stderr + done.stdout)[:2000]}")
    return done


def example_images(count: int, size: int = 32, channels: int = 3) -> Tensor:
    """Images of the packaged sample, evenly spread, uint8 (N, channels, size, size)."""
    from tinycifar import data

    images = data.sample(size, channels).test_images
    return images[torch.from_numpy(np.arange(count) * len(images) // count)]
