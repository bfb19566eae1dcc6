"""C source: compiled strictly, run under sanitizers, and compared bit for bit with the integer evaluation."""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from conftest import Own
from formats.test_integer import SHAPES, convolution
from tinycifar import atomic, catalog, data, models, trained
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import c_memory, c_source, integer, onnx_file, parity
from tinycifar.models import norm_act

EXAMPLES = Path(__file__).parents[2] / "examples"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Werror"]
STRICT = ["-std=c99", "-O2", *WARNINGS]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
needs_compiler = pytest.mark.usefixtures("compiler")
needs_cpp = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def network(exports: Path) -> integer.Network:
    """The shipped `minute` in integers."""
    return c_source.read(exports / "minute-u8u8.onnx")


def assert_same_bits(network: integer.Network, source: Path, images: Tensor, *options: str) -> None:
    scores, logits = c_source.run_compiled(source, network, images, [*STRICT, *options])
    expected = integer.scores(network, images)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    torch.testing.assert_close(logits, integer.logits(network, expected), rtol=0, atol=0)


def printed_names(source: Path, folder: Path) -> list[str]:
    """The names of classes that a program with the exported code prints."""
    prefix = source.stem
    loop = f"for (int i = 0; i < {prefix.upper()}_CLASSES; i++) puts({prefix}_class_names[i]);"
    (folder / "main.c").write_text(f'#include <stdio.h>\n#include "{prefix}.h"\nint main(void) {{ {loop} }}')
    command = ["gcc", *STRICT, "-I", source.parent, "-o", folder / "names", folder / "main.c", source]
    subprocess.run(command, check=True)
    return subprocess.run([folder / "names"], check=True, capture_output=True).stdout.decode().splitlines()


@needs_compiler
@pytest.mark.parametrize(("images", "options"), [(100, []), (10, ["-O3", "-ffast-math"])])
def test_the_compiled_code_gives_the_bits_of_the_integer_evaluation(network, exports, images, options):
    assert_same_bits(network, exports / "c" / "minute.c", data.sample().test_images[:images], *options)


@needs_compiler
@pytest.mark.parametrize("options", [["-std=c99"], ["-std=c11"], ["-O3", "-std=gnu11"], ["-Os", "-Wshadow"]])
def test_the_code_compiles_without_warnings_as_c(exports, tmp_path, options):
    source = exports / "c" / "minute.c"
    subprocess.run(["gcc", *WARNINGS, *options, "-c", source, "-o", tmp_path / "minute.o"], check=True)


@needs_compiler
@needs_cpp
def test_a_cpp_program_links_the_code_compiled_as_c_or_as_cpp(exports, tmp_path):
    main = """#include "minute.h"
    static uint8_t pixels[32 * 32 * 3], memory[MINUTE_MEMORY_BYTES];
    int main() { float logits[MINUTE_CLASSES]; return minute_classify(pixels, memory, logits) >= MINUTE_CLASSES; }"""
    (tmp_path / "main.cpp").write_text(main)
    for compiler in (["gcc", "-std=c11"], ["g++", "-x", "c++", "-std=c++17"]):
        command = [*compiler, "-O1", *WARNINGS, "-c", exports / "c" / "minute.c", "-o", tmp_path / "minute.o"]
        subprocess.run(command, check=True)
        command = ["g++", "-I", exports / "c", tmp_path / "main.cpp", tmp_path / "minute.o", "-o", tmp_path / "main"]
        subprocess.run(command, check=True)
        subprocess.run([tmp_path / "main"], check=True)


@needs_compiler
def test_tables_are_constant_and_the_code_has_no_state(network, exports, tmp_path):
    subprocess.run(["gcc", *STRICT, "-c", exports / "c" / "minute.c", "-o", tmp_path / "minute.o"], check=True)
    done = subprocess.run(["size", "-A", tmp_path / "minute.o"], check=True, capture_output=True, text=True)
    sizes = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(".")}
    assert {name for name in sizes if name.startswith((".data", ".bss")) and sizes[name]} <= {".data.rel.ro.local"}
    assert sizes[".rodata"] + sizes.get(".data.rel.ro.local", 0) >= c_source.constant_bytes(network)


def single(step: integer.Step) -> integer.Network:
    """A network of one convolution, from random pixels to three classes."""
    source, output = step.inputs[0], step.output
    source.first, source.last, output.first, output.last = 0, 0, 0, 1
    table = np.random.default_rng(1).integers(0, 256, (source.channels, 256), np.uint8)
    about = {"classes": json.dumps(["a", "b", "c"]), "temperature": "2"}
    return integer.Network([step], source, output, table, **head(output.channels), about=about)


def head(channels: int) -> dict[str, np.ndarray]:
    """A random head on so many features, for three classes."""
    generator = np.random.default_rng(2)
    weights, bias = generator.normal(size=(3, channels)), generator.normal(size=3)
    return {"head": weights.astype(np.float32), "head_bias": bias.astype(np.float32)}


def separable(
    *,
    channels: int,
    outputs: int,
    size: int,
    kernel: int = 3,
    mirrored: bool = False,
    pool: bool = False,
    residual: bool = False,
    swapped: bool = False,
    needed_later: bool = False,
) -> integer.Network:
    """A network of a separable block; with `needed_later` its input is added to what follows."""
    generator = np.random.default_rng(0)
    shape = {"size": size, "scale": 4e-3, "mirrored": mirrored}
    steps = [
        convolution(generator, inputs=channels, outputs=channels, kernel=kernel, padding=kernel // 2, groups=channels,
                    **shape)
    ]  # fmt: skip
    if pool:
        steps.append(integer.Step("pool", [steps[0].output], integer.Map(channels, size // 2, 0.05, 130, 0, 0)))
    for _ in range(1 + needed_later):
        steps.append(convolution(generator, inputs=steps[-1].output.channels, outputs=outputs, kernel=1, padding=0,
                                 **shape | {"size": steps[-1].output.size}))  # fmt: skip
    for before, step in itertools.pairwise(steps):
        step.inputs = [before.output]
    if residual or needed_later:
        inputs = [steps[-1].output, steps[0].inputs[0]]
        result = integer.Map(outputs, size, 0.07, 99, 0, 0)
        steps.append(integer.Step("add", inputs[::-1] if swapped else inputs, result))
    network = dataclasses.replace(single(steps[0]), steps=steps, features=steps[-1].output, **head(outputs))
    for number, step in enumerate(steps):
        step.output.first, step.output.last = number, number + 1
    network.pixels.last = len(steps) - 1 if residual or needed_later else 0
    return network


@needs_compiler
@pytest.mark.parametrize("kind", ["minute", "depthwise", "separable"])
@pytest.mark.parametrize("address", range(0, 8, 3))
def test_memory_may_lie_at_any_address_and_not_a_byte_beyond_is_used(network, tmp_path, address, kind):
    if kind == "depthwise":  # three channels are read as four
        network = single(convolution(np.random.default_rng(0), inputs=3, outputs=3, size=32, groups=3))
    if kind == "separable":
        network = separable(channels=3, outputs=3, size=32, residual=True)
    c_source.write(network, tmp_path, "model")
    classes = len(network.head)
    program = tmp_path / "program"
    (tmp_path / "main.c").write_text(
        f"""#include <stdio.h>
        #include <stdlib.h>
        #include "model.h"
        int main(void) {{
            uint8_t *block = (uint8_t *)malloc(MODEL_MEMORY_BYTES + {address}), *memory = block + {address};
            static uint8_t pixels[32 * 32 * 3];
            int32_t scores[MODEL_CLASSES];
            for (int i = 0; i < MODEL_MEMORY_BYTES; i++) memory[i] = (uint8_t)rand();
            for (int i = 0; i < 32 * 32 * 3; i++) pixels[i] = (uint8_t)(i * i >> 4);
            model_scores(pixels, memory, scores);
            for (int i = 0; i < {classes}; i++) printf("%d\\n", (int)scores[i]);
            free(block);
        }}"""
    )
    files = [tmp_path / "main.c", tmp_path / "model.c"]
    subprocess.run(["gcc", "-O1", *SANITIZED, "-I", tmp_path, "-o", program, *files], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    pixels = np.array([(i * i >> 4) % 256 for i in range(32 * 32 * 3)], np.uint8).reshape(1, 32, 32, 3)
    expected = integer.scores(network, torch.from_numpy(pixels).permute(0, 3, 1, 2))[0].tolist()
    assert [int(line) for line in done.stdout.split()] == expected


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_convolution_gives_the_same_bits(shape, tmp_path):
    network = single(convolution(np.random.default_rng(0), **shape))
    _, source = c_source.write(network, tmp_path, "single")
    generator = torch.Generator().manual_seed(0)
    size = (20, network.pixels.channels, network.pixels.size, network.pixels.size)
    assert_same_bits(network, source, torch.randint(256, size, generator=generator, dtype=torch.uint8))


@needs_compiler
def test_the_example_runs_clean_under_sanitizers_and_names_the_classes(network, exports, tmp_path):
    program = tmp_path / "classify"
    command = ["gcc", *STRICT, *SANITIZED, "-I", exports / "c"]
    subprocess.run([*command, "-o", program, EXAMPLES / "main.c", exports / "c" / "minute.c"], check=True)
    images = data.sample().test_images[:20]
    done = subprocess.run(
        [program], check=True, capture_output=True, input=images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    )
    expected = integer.scores(network, images).argmax(1)
    assert done.stdout.decode().split() == [CLASSES[index] for index in expected]


def test_mirrored_filters_are_stored_once(network):
    shape = [(step.mirrored, step.weights.size) for step in network.steps if step.kind == "conv"]
    # The stem's halves are negatives of each other, and the first block sees the stem's own mirroring.
    assert shape[:2] == [(False, 48 * 48), (False, 48 * 32)]
    pairs = ((32, 48), (48, 48), (48, 96), (96, 96), (96, 96), (96, 96))
    assert shape[2:] == [(True, before * after * 9 // 2) for before, after in pairs]
    padding = c_source.OVERREAD * len(shape)
    assert c_source.weight_bytes(network) == sum(count for _, count in shape) + padding + 2 * 10 * 96


def test_mirrored_depthwise_filters_are_stored_once_and_by_four_channels(tmp_path):
    onnx_file.to_int8(trained.load("micro", "cpu"), tmp_path / "int8.onnx", variant="u8u8")
    network = c_source.read(tmp_path / "int8.onnx")
    depthwise = [step for step in network.steps if step.depthwise]
    assert [step.weights.shape for step in depthwise] == [(20, 5, 5, 1)] * 2 + [(30, 5, 5, 1)] * 4
    assert all(step.mirrored for step in depthwise)
    last = depthwise[-1].weights[:, :, :, 0]
    stored = c_source._stored_weights(depthwise[-1])
    assert stored.size == 32 * 25 + c_source.OVERREAD
    assert stored[4 * 7 + 2] == last[2, 1, 2]  # of the first four filters, the eighth weight
    assert not stored[-c_source.OVERREAD - 2 :].any()  # the last four are two


@pytest.mark.parametrize(("name", "overwriting", "separable_blocks"), [("minute", 7, 0), ("micro", 7, 6)])
def test_what_steps_need_does_not_overlap_in_memory_but_for_an_output_that_overwrites_an_input(
    name, overwriting, separable_blocks, tmp_path
):
    model = trained.load(name, "cpu")
    onnx_file.to_int8(model, tmp_path / "int8.onnx", variant="u8u8")
    network = c_source.read(tmp_path / "int8.onnx")
    offsets, needed = c_memory.plan(network)
    groups = c_memory.groups(network)
    end = len(groups)
    assert [step for group in groups for step in group.steps] == network.steps
    times = [number for number, group in enumerate(groups) for _ in group.steps] + [end]
    inner = {step.output for group in groups for step in group.steps[:-1]}
    assert sum(group.is_separable for group in groups) == separable_blocks
    blocks: list[tuple[object, int, int, int]] = [
        *(
            (item, item.bytes, times[item.first], times[item.last])
            for item in c_memory.maps(network)
            if item not in inner
        ),
        *(
            (key, size, *[time] * 2)
            for time, group in enumerate(groups)
            for key, size in c_memory._scratch(group).items()
        ),
        (c_memory.SUMS, 4 * network.features.channels, end, end),
        (c_memory.SCORES, 4 * 10, end, end),
    ]
    assert {key for key, *_ in blocks} | inner == set(offsets)
    over = {(group.steps[-1].output, group.overwrites) for group in groups}
    overlapping = set()
    for index, (key, size, first, last) in enumerate(blocks):
        assert offsets[key] % c_memory.ALIGNMENT == 0
        assert offsets[key] + size <= needed
        for other, other_size, other_first, other_last in blocks[:index]:
            together = first <= other_last and other_first <= last
            if together and offsets[key] < offsets[other] + other_size and offsets[other] < offsets[key] + size:
                assert offsets[key] == offsets[other]
                overlapping.add((key, other))
    assert overlapping == {(output, source) for output, source in over if source is not None}
    assert len(overlapping) == overwriting  # of a 1x1 convolution, and two poolings and four additions or six blocks
    assert network.features.last == len(network.steps)


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "steps", "delay"),
    [
        ({"channels": 6, "outputs": 6, "size": 7, "residual": True}, [3], 1),
        ({"channels": 8, "outputs": 8, "size": 6, "residual": True, "swapped": True, "mirrored": True}, [3], 1),
        ({"channels": 5, "outputs": 5, "size": 9, "kernel": 5, "residual": True}, [3], 2),
        ({"channels": 6, "outputs": 10, "size": 8, "pool": True}, [3], 0),
        ({"channels": 4, "outputs": 16, "size": 8, "kernel": 5, "pool": True}, [3], 1),
        ({"channels": 4, "outputs": 6, "size": 7, "pool": True}, [3], 0),  # a row and a column are left over
        ({"channels": 4, "outputs": 5, "size": 6}, [2], 2),
        ({"channels": 4, "outputs": 40, "size": 6}, [2], None),
        ({"channels": 4, "outputs": 4, "size": 1, "residual": True}, [3], 0),
        ({"channels": 6, "outputs": 6, "size": 6, "needed_later": True}, [2, 1, 1], None),
    ],
)
def test_a_separable_block_runs_by_rows_over_its_input_and_gives_the_same_bits(shape, steps, delay, tmp_path):
    network = separable(**shape)
    groups = c_memory.groups(network)
    assert [len(group.steps) for group in groups] == steps
    assert (groups[0].overwrites is network.pixels, groups[0].delay) == (delay is not None, delay or 0)
    offsets, _ = c_memory.plan(network)
    assert (offsets[groups[0].steps[-1].output] == offsets[network.pixels]) == (delay is not None)
    _, source = c_source.write(network, tmp_path, "block")
    size = (20, network.pixels.channels, network.pixels.size, network.pixels.size)
    images = torch.randint(256, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert len(integer.scores(network, images).unique()) > 20  # no value hides the others
    assert_same_bits(network, source, images)


@pytest.mark.parametrize("change", [{"stride": 2}, {"padding": 0}, {"padding": 2, "dilation": 2}])
def test_a_depthwise_convolution_that_changes_the_size_or_is_dilated_begins_no_block(change):
    network = separable(channels=4, outputs=4, size=8)
    step = dataclasses.replace(network.steps[0], **change)
    assert c_memory._separable([step, *network.steps[1:]]) == ()
    assert c_memory._separable(network.steps[:1]) == ()
    assert len(c_memory._separable(network.steps)) == 2


@needs_compiler
@pytest.mark.parametrize("outputs", [8, 6, 10])
def test_a_1x1_convolution_overwrites_its_input_unless_it_has_more_channels(outputs, tmp_path):
    network = single(convolution(np.random.default_rng(0), inputs=8, outputs=outputs, size=7, kernel=1, padding=0))
    (step,) = network.steps
    assert (c_memory.groups(network)[0].overwrites is network.pixels) == (outputs <= 8)
    offsets, _ = c_memory.plan(network)
    assert (offsets[step.output] == offsets[network.pixels]) == (outputs <= 8)
    _, source = c_source.write(network, tmp_path, "single")
    images = torch.randint(256, (20, 8, 7, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert_same_bits(network, source, images)


def test_another_onnx_file_is_refused(exports, tmp_path):
    with pytest.raises(ValueError, match="is no int8 file that tinycifar exported"):
        c_source.read(exports / "minute.onnx")
    onnx.save(onnx.ModelProto(), tmp_path / "empty.onnx")
    with pytest.raises(ValueError, match="is no int8 file that tinycifar exported"):
        c_source.read(tmp_path / "empty.onnx")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("minute", "minute"),
        ("2026-11-23", "model_2026_11_23"),
        ("über cat", "model__ber_cat"),
        ("string", "model_string"),  # <string.h> would be this one
        ("Signal", "model_Signal"),
    ],
)
def test_a_name_becomes_one_that_c_allows(network, tmp_path, name, stem):
    header, source = c_source.write(network, tmp_path, name)
    assert (header.name, source.name) == (f"{stem}.h", f"{stem}.c")
    assert f"int {stem}_classify(" in source.read_text()


@needs_compiler
def test_class_names_of_any_letters_come_out_of_c_as_they_were(network, tmp_path):
    names = ['"quoted"', "back\\slash", "k\u00e4se 1", "\U0001f431", "what??/", "*/", "%s", *CLASSES[7:]]
    about = {**network.about, "classes": json.dumps(names)}
    _, source = c_source.write(dataclasses.replace(network, about=about), tmp_path, "odd")
    assert printed_names(source, tmp_path) == names


@needs_compiler
def test_a_temperature_and_a_scale_that_are_whole_numbers_compile(network, tmp_path):
    about = {**network.about, "temperature": "1"}
    header, _ = c_source.write(dataclasses.replace(network, about=about), tmp_path, "minute")
    assert "#define MINUTE_TEMPERATURE 1.0f " in header.read_text()
    (tmp_path / "main.c").write_text(
        '#include "minute.h"\nint main(void) { return !(1 / (MINUTE_TEMPERATURE * MINUTE_SCORE_SCALE) > 0); }'
    )
    subprocess.run(["gcc", *STRICT, "-o", tmp_path / "main", tmp_path / "main.c"], check=True)


@pytest.fixture
def exported_before(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The int8 file of every model is that of `minute`, which is there already."""

    def to_int8(_: object, path: Path, *__: object, **___: object) -> None:
        shutil.copyfile(exports / "minute-u8u8.onnx", path)

    monkeypatch.setattr(onnx_file, "to_int8", to_int8)


@pytest.mark.usefixtures("exported_before")
def test_arithmetic_that_disagrees_is_not_written_without_a_compiler_either(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    read = c_source.read

    def damaged(path: Path) -> integer.Network:
        network = read(path)
        network.steps[1].weights[0] *= -1  # one filter of 48
        return network

    monkeypatch.setattr(c_source, "read", damaged)
    with pytest.raises(parity.ParityError, match="integer arithmetic of C differs from the int8 model"):
        c_source.export_c(trained.load("minute", "cpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(c_source, "read", read)
    exported = c_source.export_c(trained.load("minute", "cpu"), tmp_path / "out")
    assert exported.not_compiled == "there is no C compiler here"
    assert exported.parity_int8.same_class >= 198


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("exported_before")
def test_compiled_code_of_other_bits_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "COMPARED_IMAGES", 4)
    write = c_source.write

    def damaged(*arguments: object) -> tuple[Path, Path]:
        header, source = write(*arguments)
        source.write_text(source.read_text().replace("(int32_t)1 << (shift - 1)", "0"))
        return header, source

    monkeypatch.setattr(c_source, "write", damaged)
    with pytest.raises(parity.ParityError, match="does not give the bits of its own arithmetic"):
        c_source.export_c(trained.load("minute", "cpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("exported_before")
def test_a_source_that_does_not_fit_on_the_disk_leaves_the_header_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "COMPARED_IMAGES", 4)
    (tmp_path / "minute.h").write_text("before")
    write_bytes = atomic.write_bytes

    def write_small(path: Path, content: bytes) -> None:
        if len(content) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, content)

    monkeypatch.setattr(atomic, "write_bytes", write_small)
    with pytest.raises(OSError, match="No space left on device"):
        c_source.export_c(trained.load("minute", "cpu"), tmp_path)
    assert (tmp_path / "minute.h").read_text() == "before"


@needs_compiler
@pytest.mark.parametrize(("includes", "error"), [("", parity.ParityError), ("-nostdinc", c_source.NotRunError)])
def test_a_broken_compiler_is_told_from_broken_code(network, tmp_path, monkeypatch, includes, error):
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("gcc") or "clang"} {includes} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    source = tmp_path / "minute.c"
    source.write_text("no C")
    with pytest.raises(error, match="does not compile"):
        c_source.run_compiled(source, network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def random_model(*layers: nn.Module) -> trained.Trained:
    """Layers with random weights, between images and a head, as a trained model."""
    torch.manual_seed(0)
    channels = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    model = models.Classifier(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
    return dataclasses.replace(trained.load("minute", "cpu"), model=model.eval())


def test_a_pooling_of_other_windows_is_rejected_by_name_before_anything_is_written(tmp_path):
    model = random_model(nn.Conv2d(3, 8, 3, padding=1, bias=False), *norm_act(8), nn.MaxPool2d(3, 2, 1))
    with pytest.raises(ValueError, match=r"MaxPool .*has kernel_shape \[3, 3\]; C is written for \[2, 2\] only"):
        c_source.export_c(model, tmp_path / "out", data.sample())
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_groups_dilation_and_odd_channels_are_exported(tmp_path):
    model = random_model(
        nn.Conv2d(3, 12, 3, padding=1, stride=2, bias=False),
        *norm_act(12),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12, bias=False),
        *norm_act(12),
        nn.Conv2d(12, 15, 3, padding=1, groups=3, bias=False),
        *norm_act(15),
        nn.Conv2d(15, 9, 1, bias=False),
        *norm_act(9),
    )
    assert c_source.export_c(model, tmp_path, data.sample()).not_compiled is None


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux and a mount as root")
def test_c_is_written_where_programs_in_the_temporary_folder_may_not_be_run(exports, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o noexec tmpfs "$1" && shift && exec "$@"', "sh"]
    if subprocess.run([*mount, temporary, "true"], capture_output=True).returncode:
        pytest.skip("this container allows no mounts")
    code = """import sys, torch
from pathlib import Path
from tinycifar.formats import c_source
network = c_source.read(Path(sys.argv[1]))
_, source = c_source.write(network, Path(sys.argv[2]), "minute")
try:
    c_source.run_compiled(source, network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
except c_source.NotRunError as error:
    print(error)"""
    command = [*mount, temporary, sys.executable, "-c", code, exports / "minute-u8u8.onnx", tmp_path / "out"]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert done.stdout == f"programs in {temporary} may not be run (noexec)\n"


@pytest.mark.end_to_end
@needs_compiler
@pytest.mark.parametrize("name", catalog.shipped())
def test_the_compiled_code_gives_the_same_bits_on_a_thousand_test_images(name, tmp_path):
    dataset = data.load()
    images, labels = dataset.test_images[:1000], dataset.test_labels[:1000]
    model = trained.load(name, "cpu")
    onnx_file.to_int8(model, tmp_path / "int8.onnx", variant="u8u8")
    exported = c_source.export_c(model, tmp_path / "c")
    network = c_source.read(tmp_path / "int8.onnx")
    scores, logits = c_source.run_compiled(exported.source, network, images)
    assert scores.equal(integer.scores(network, images))
    expected = onnx_file.logits(tmp_path / "int8.onnx", images)
    c_source.TOLERANCE.check(expected, logits, "C")
    correct, expected_correct = (int((values.argmax(1) == labels).sum()) for values in (logits, expected))
    assert abs(correct - expected_correct) <= 5
    if name == "nano":
        assert exported.constant_bytes <= 56 * 1024
        assert exported.memory_bytes <= 38 * 1024


@needs_compiler
@pytest.mark.parametrize("name", ["own_run", "thousand"])
@pytest.mark.slow
def test_c_of_other_sizes_and_of_a_thousand_classes_agrees(name, tmp_path, request):
    own: Own = request.getfixturevalue(name)
    exported = c_source.export_c(trained.load(own.directory, "cpu"), tmp_path, own.dataset)
    size, classes = own.dataset.image_size, own.dataset.classes
    header = exported.header.read_text()
    assert f": {size}x{size} images" in header
    assert f"pixels: {size} * {size} * 3 bytes" in header
    assert f"#define RUN_CLASSES {len(classes)}\n" in header
    assert printed_names(exported.source, tmp_path) == list(classes)
    assert exported.parity_int8.images == 200
    assert exported.not_compiled is None
