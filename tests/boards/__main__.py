"""Exported models on emulated microcontrollers: a table; with --record also results/boards.json. Run by `make boards`.

Exit code 1 if any bit differs from the integer evaluation or a limit is exceeded, 2 if programs are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
import tempfile
import types
from dataclasses import asdict
from pathlib import Path

import onnx
import torch

from boards import emulate
from boards.emulate import CORES, FOLDER, Measured
from tinycifar import data, models, trained
from tinycifar.formats import c_memory, c_source, int8_graph, onnx_file, parity
from tinycifar.formats.integer import Network
from tinycifar.trained import Trained

ROOT = FOLDER.parents[1]
RECORD = ROOT / "results" / "boards.json"
IN_CI = ("Cortex-M0", "Cortex-M4F", "Cortex-M55", "RV32IMC")
# Limits by model: instructions per image on some cores, and bytes of flash and RAM on every core.
MOST_INSTRUCTIONS = {
    "nano": {"Cortex-M0": 92e6, "Cortex-M4F": 34e6, "Cortex-M55": 15e6, "RV32IMC": 57e6},
    "nanonet": {"Cortex-M0": 100.6e6, "Cortex-M4F": 17.0e6, "Cortex-M55": 5.6e6, "RV32IMC": 83.1e6},
    "micro": {"Cortex-M0": 36e6, "Cortex-M4F": 13e6, "Cortex-M55": 6e6, "RV32IMC": 21e6},
}
MOST_BYTES = {"nano": (60_000, 42_000), "micro": (32_000, 20_000)}


def nano() -> Trained:
    """The shipped model for microcontrollers."""
    return trained.load("nano", "cpu")


def micro() -> Trained:
    """The smallest shipped model, with depthwise convolutions."""
    return trained.load("micro", "cpu")


def plainnet() -> Trained:
    """The model of docs/EXTENDING.md, trained for an epoch on the sample."""
    import tinycifar
    from tinycifar.recipes import Recipe

    text = (ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "docs/EXTENDING.md", "exec"), types.ModuleType("mine").__dict__)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        recipe = Recipe("plain", model="plainnet", epochs=1, augmentation="translate")
        tinycifar.train(recipe, data="sample", out=f"{name}/plain")
        return trained.load(f"{name}/plain", "cpu")


def untrained(name: str, num_classes: int = 10, channels: int = 3) -> Trained:
    """An architecture of ours with random weights."""
    torch.manual_seed(0)
    model = models.build(name, num_classes, channels=channels)
    model.prepare(data.sample(channels=channels).train_images)
    return dataclasses.replace(nano(), model=model.eval(), model_name=name, channels=channels)


def nanonet() -> Trained:
    """The former architecture of `nano`, of 3x3 convolutions."""
    return untrained("nanonet")


def thousand() -> Trained:
    """An architecture with a thousand classes."""
    return dataclasses.replace(untrained("whitenet", 1000), classes=tuple(f"class {n:03d}" for n in range(1000)))


def grey() -> Trained:
    """The architecture of `nano` for images of one channel."""
    return untrained("nanonet32", channels=1)


MODELS = {"nano": nano, "micro": micro, "nanonet": nanonet, "plainnet": plainnet, "thousand": thousand, "grey": grey}


def network(model: Trained) -> Network:
    """The integer network of a model, whatever its accuracy."""
    images = parity.spread_out(data.sample(channels=model.channels).train_images, parity.CALIBRATION_IMAGES)
    int8 = onnx_file.quantized(onnx_file._described(model), images, variant="u8u8")
    with tempfile.TemporaryDirectory() as name:
        onnx.save(int8, f"{name}/int8.onnx")
        return int8_graph.read(Path(name) / "int8.onnx")


def table(rows: list[tuple[str, int, Measured]]) -> str:
    """Measurements as text; each with its model and that model's multiplications."""
    heads = ["model", "core", "instructions", "per MAC", "flash", "RAM", "stack", "bits"]
    cells = [
        [name, row.core, f"{row.instructions:,}", f"{row.instructions / macs:.2f}", f"{row.flash_bytes:,}",
         f"{row.ram_bytes:,}", f"{row.stack_bytes:,}", "equal" if row.same_bits else "DIFFERENT"]
        for name, macs, row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    lines = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in [heads, *cells]]
    return "\n".join("  ".join(line) for line in lines)


def failures(name: str, row: Measured) -> list[str]:
    """What is wrong with a measurement."""
    lines = [] if row.same_bits else [f"{name} on {row.core}: bits differ from the integer evaluation"]
    if name in MOST_BYTES:
        most_flash, most_ram = MOST_BYTES[name]
        limits = {
            "instructions": (row.instructions, MOST_INSTRUCTIONS[name].get(row.core, float("inf"))),
            "bytes of flash": (row.flash_bytes, most_flash),
            "bytes of RAM": (row.ram_bytes, most_ram),
        }
        lines += [
            f"{name} on {row.core}: {value:,} {what}, at most {most:,.0f} allowed"
            for what, (value, most) in limits.items()
            if value > most
        ]
    return lines


def version(program: str) -> str:
    """The first line of what a program says of its version."""
    return subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> int:
    """Measure, print, and with --record write."""
    parser = argparse.ArgumentParser(prog="make boards", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="images of the packaged sample")
    parser.add_argument(
        "--core", action="append", choices=CORES, help="default: all for nano and micro, four for the others"
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--record", action="store_true", help="write results/boards.json")
    options = parser.parse_args()
    if missing := emulate.missing_programs():
        print(f"missing: {', '.join(missing)}; `make boards` installs them", file=sys.stderr)
        return 2
    if options.record and (options.core or options.model or options.images != 20):
        parser.error("--record is for all models, all cores and 20 images")
    rows, entries, wrong = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or MODELS:
            model = MODELS[name]()
            built, images = network(model), emulate.example_images(options.images, channels=model.channels)
            cores = options.core or (CORES if name in ("nano", "micro") else IN_CI)
            measured = [emulate.measure(built, CORES[core], images, Path(folder) / core) for core in cores]
            rows += [(name, built.macs, row) for row in measured]
            wrong += [line for row in measured for line in failures(name, row)]
            entries.append(
                {
                    "model": name,
                    "macs": built.macs,
                    "constant_bytes": c_source.constant_bytes(built),
                    "memory_bytes": c_memory.memory_bytes(built),
                    "pixel_bytes": built.pixels.bytes,
                    "cores": [asdict(row) for row in measured],
                }
            )
    print(table(rows))
    for line in wrong:
        print(line, file=sys.stderr)
    if options.record and not wrong:
        record = {
            "images": options.images,
            "options": emulate.OPTIONS[0],
            "tools": [version(program) for program in emulate.PROGRAMS[:-1]],
            "models": entries,
        }
        RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
