"""Exported C on emulated cores: every shape of a convolution with SMLAD and MVE, and the measurement itself."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from boards import __main__ as boards
from boards import emulate
from conftest import skip
from formats.test_c_source import single
from formats.test_integer import SHAPES, convolution
from tinycifar import data, inference, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import c_source

RECORD = json.loads(boards.RECORD.read_text(encoding="utf-8"))


@pytest.fixture
def emulator() -> None:
    """Compilers for microcontrollers, and QEMU."""
    if missing := emulate.missing_programs():
        skip("BOARDS", f"not installed: {', '.join(missing)}")


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("core", ["Cortex-M4F", "Cortex-M55"])
@pytest.mark.slow
def test_kernels_for_simd_give_the_bits_of_the_integer_evaluation(core, tmp_path):
    for index, shape in enumerate(SHAPES):
        network = single(convolution(np.random.default_rng(0), **shape))
        size = (3, network.pixels.channels, network.pixels.size, network.pixels.size)
        images = torch.randint(256, size, generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        assert emulate.measure(network, emulate.CORES[core], images, tmp_path / str(index)).same_bits, shape


@pytest.mark.usefixtures("emulator")
def test_a_difference_of_one_bit_is_seen_and_counts_are_exact(tmp_path, monkeypatch):
    network = single(convolution(np.random.default_rng(0), inputs=3, outputs=4))
    images = torch.randint(256, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    core = emulate.CORES["Cortex-M4F"]
    first, second = (emulate.measure(network, core, images, tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert first.same_bits
    assert 1000 < first.instructions < 100_000
    write = c_source.write
    damaged = dataclasses.replace(network, head_bias=network.head_bias + np.float32(0.01))
    monkeypatch.setattr(c_source, "write", lambda _, *arguments: write(damaged, *arguments))
    assert not emulate.measure(network, core, images, tmp_path / "damaged").same_bits


@pytest.mark.usefixtures("emulator")
def test_code_that_does_not_compile_is_an_error_with_the_compilers_words(tmp_path, monkeypatch):
    network = single(convolution(np.random.default_rng(0), inputs=3, outputs=4))
    images = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    with pytest.raises(emulate.EmulationError, match=r"arm-none-eabi-gcc ended with 1: .*unrecognized"):
        emulate.measure(network, emulate.CORES["Cortex-M0"], images, tmp_path, ("-funrecognized",))


@pytest.mark.usefixtures("emulator")
@pytest.mark.end_to_end
def test_the_example_project_names_the_class_of_its_image(tmp_path):
    shutil.copytree(boards.ROOT / "examples" / "embedded", tmp_path / "embedded")
    tools = [f"PYTHON={sys.executable}", f"TINYCIFAR={sys.executable} -m tinycifar"]
    command = ["make", "--silent", "-C", tmp_path / "embedded", "run", *tools]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    model = trained.load("nano", "cpu")
    expected = model.classes[int(inference.logits(model.model, data.sample().test_images[:1]).argmax())]
    assert done.stderr.splitlines()[-1] == expected


def test_the_example_project_classifies_the_picture_that_is_named_last(tmp_path):
    folder, header = boards.ROOT / "examples" / "embedded", tmp_path / "build" / "image.h"
    images = data.sample().test_images[:2]
    for name, image in zip(("first", "the second"), images, strict=True):
        pictures.to_image(image).save(tmp_path / f"{name}.png")
    os.utime(tmp_path / "the second.png", (0, 0))  # older than the header of the first one
    for name, image in zip(("first", "the second"), images, strict=True):
        variables = [f"PYTHON={sys.executable}", f"BUILD={tmp_path / 'build'}", f"PICTURE={tmp_path / name}.png"]
        subprocess.run(["make", "--silent", "-C", folder, *variables, header], check=True)
        assert (
            f"image[3072] = {{{', '.join(map(str, image.permute(1, 2, 0).flatten().tolist()))}}};" in header.read_text()
        )


def test_the_hash_is_fnv1a():
    assert emulate.fnv1a(b"") == 0x811C9DC5
    assert emulate.fnv1a(b"foobar") == 0xBF9CF968


def test_the_record_is_within_the_limits_and_has_equal_bits():
    for entry in RECORD["models"]:
        for row in entry["cores"]:
            assert boards.failures(entry["model"], emulate.Measured(**row)) == []
    assert [entry["model"] for entry in RECORD["models"]] == list(boards.MODELS)
    for entry in RECORD["models"][:2]:
        assert [row["core"] for row in entry["cores"]] == list(emulate.CORES)


def test_a_limit_that_is_exceeded_and_bits_that_differ_are_reported():
    row = emulate.Measured("Cortex-M55", 15_100_000, 60_001, 42_001, 500, same_bits=False)
    assert boards.failures("nano", row) == [
        "nano on Cortex-M55: bits differ from the integer evaluation",
        "nano on Cortex-M55: 15,100,000 instructions, at most 15,000,000 allowed",
        "nano on Cortex-M55: 60,001 bytes of flash, at most 60,000 allowed",
        "nano on Cortex-M55: 42,001 bytes of RAM, at most 42,000 allowed",
    ]


def test_flash_and_ram_that_the_export_prints_are_those_of_the_record():
    nano = RECORD["models"][0]
    assert set(c_source.CORES) == {row["core"] for row in nano["cores"]}
    for entry in RECORD["models"]:
        # The measured program does not use the names of classes, so they are not in its flash.
        classes = [f"class {index:03d}" for index in range(1000)] if entry["model"] == "thousand" else CLASSES
        names = sum(len(name) + 1 + 4 for name in classes)
        for row in entry["cores"]:
            needed = c_source.CORES[row["core"]]
            code = row["flash_bytes"] - (entry["constant_bytes"] - names)
            expected = needed.flash_bytes + (
                c_source.DEPTHWISE_CODE_BYTES if entry["model"] in ("nano", "micro", "grey") else 0
            )
            # Pooling and addition are left out of models that do not need them; the linker aligns.
            assert expected - 1100 <= code <= expected + 50, (entry["model"], row["core"], code)
            assert row["stack_bytes"] <= needed.ram_bytes
