"""C source: compiled strictly, run under sanitizers, and compared with the int8 model that it comes from."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from conftest import Own
from tinycifar import data, trained
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import c_source, onnx_file, parity

EXAMPLES = Path(__file__).parents[2] / "examples"
STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]


@pytest.mark.usefixtures("compiler")
def test_the_compiled_code_agrees_with_the_int8_model(exports: Path) -> None:
    network = c_source.read(exports / "minute-u8u8.onnx")
    images = torch.cat([data.sample().test_images, data.sample().train_images])
    found = c_source.compiled_logits(exports / "c" / "minute.c", network, images, [*STRICT[1:]])
    assert found is not None
    expected = onnx_file.logits(exports / "minute-u8u8.onnx", images)
    assert c_source.TOLERANCE.check(expected, found, "C").largest_difference < 0.1


def test_the_example_runs_clean_under_sanitizers_and_names_the_classes(
    exports: Path, tmp_path: Path, compiler: str
) -> None:
    program = tmp_path / "classify"
    sanitized = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compiler, *STRICT, *sanitized, "-I", exports / "c"]
    subprocess.run([*command, "-o", program, EXAMPLES / "main.c", exports / "c" / "minute.c"], check=True)
    images = data.sample().test_images[:20]
    done = subprocess.run(
        [program], check=True, capture_output=True, input=images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    )
    expected = onnx_file.logits(exports / "minute-u8u8.onnx", images).argmax(1)
    assert done.stdout.decode().split() == [CLASSES[index] for index in expected]


def test_mirrored_filters_are_stored_once(exports: Path) -> None:
    network = c_source.read(exports / "minute-u8u8.onnx")
    shape = [(step.mirrored, step.weights.size) for step in network.steps if step.kind == "conv"]
    # The stem's halves are negatives of each other, and the first block sees the stem's own mirroring.
    assert shape[:2] == [(False, 48 * 48), (False, 48 * 48 * 9)]
    assert shape[2:] == [(True, count // 2) for count in (48 * 48 * 9, 48 * 64 * 9, 64 * 128 * 9, 128 * 128 * 9)]
    assert network.weight_bytes == sum(count for _, count in shape) + 4 * 10 * 128


def test_no_two_maps_that_are_needed_at_once_share_memory(exports: Path) -> None:
    network = c_source.read(exports / "minute-u8u8.onnx")
    maps = [network.pixels, *(step.output for step in network.steps)]
    for index, one in enumerate(maps):
        assert one.offset + one.bytes <= network.memory_bytes
        for other in maps[:index]:
            together = one.first <= other.last and other.first <= one.last
            apart = one.offset + one.bytes <= other.offset or other.offset + other.bytes <= one.offset
            assert apart or not together
    assert network.features.last == len(network.steps)


def test_another_onnx_file_is_refused(exports: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no int8 file that tinycifar exported"):
        c_source.read(exports / "minute.onnx")
    onnx.save(onnx.ModelProto(), tmp_path / "empty.onnx")
    with pytest.raises(ValueError, match="is no int8 file that tinycifar exported"):
        c_source.read(tmp_path / "empty.onnx")


@pytest.mark.parametrize(
    ("name", "stem"), [("minute", "minute"), ("2026-11-23", "model_2026_11_23"), ("über cat", "model__ber_cat")]
)
def test_a_name_becomes_one_that_c_allows(exports: Path, tmp_path: Path, name: str, stem: str) -> None:
    network = c_source.read(exports / "minute-u8u8.onnx")
    header, source = c_source.write(network, tmp_path, name)
    assert (header.name, source.name) == (f"{stem}.h", f"{stem}.c")
    assert f"int {stem}_classify(" in source.read_text()


def test_class_names_of_any_letters_come_out_of_c_as_they_were(exports: Path, tmp_path: Path, compiler: str) -> None:
    network = c_source.read(exports / "minute-u8u8.onnx")
    names = ['"quoted"', "back\\slash", "k\u00e4se 1", "\U0001f431", "what??/", "*/", "%s", *CLASSES[7:]]
    about = {**network.about, "classes": json.dumps(names)}
    _, source = c_source.write(dataclasses.replace(network, about=about), tmp_path, "odd")
    loop = "int main(void) { for (int i = 0; i < 10; i++) puts(odd_class_names[i]); }"
    main = f'#include <stdio.h>\n#include "odd.h"\n{loop}'
    (tmp_path / "main.c").write_text(main)
    subprocess.run([compiler, *STRICT, "-o", tmp_path / "names", tmp_path / "main.c", source], check=True)
    assert subprocess.run([tmp_path / "names"], check=True, capture_output=True).stdout.decode().splitlines() == names


@pytest.mark.usefixtures("compiler")
def test_a_scale_that_is_a_whole_number_compiles(exports: Path, tmp_path: Path) -> None:
    network = c_source.read(exports / "minute-u8u8.onnx")
    network.pixels.scale = 1.0
    _, source = c_source.write(network, tmp_path, "minute")
    found = c_source.compiled_logits(source, network, data.sample().test_images[:2], [*STRICT[1:]])
    assert found is not None
    assert found.isfinite().all()


@pytest.mark.usefixtures("compiler")
def test_code_that_disagrees_is_not_written(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(_: object, path: Path, __: object, **___: object) -> None:
        shutil.copyfile(exports / "minute-u8u8.onnx", path)

    monkeypatch.setattr(onnx_file, "to_int8", copied)
    monkeypatch.setattr(
        c_source, "compiled_logits", lambda *_: torch.from_numpy(np.eye(10, dtype=np.float32)[[0] * 200])
    )
    with pytest.raises(
        parity.ParityError, match=r"differs from the int8 model: 1[78]. of 200 images get another class"
    ):
        c_source.export_c(trained.load("minute", "cpu"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.end_to_end
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", trained.shipped())
def test_the_compiled_code_agrees_on_a_thousand_test_images(name: str, tmp_path: Path) -> None:
    dataset = data.load()
    images, labels = dataset.test_images[:1000], dataset.test_labels[:1000]
    model = trained.load(name, "cpu")
    onnx_file.to_int8(model, tmp_path / "int8.onnx", variant="u8u8")
    exported = c_source.export_c(model, tmp_path / "c")
    network = c_source.read(tmp_path / "int8.onnx")
    found = c_source.compiled_logits(exported.source, network, images)
    assert found is not None
    expected = onnx_file.logits(tmp_path / "int8.onnx", images)
    c_source.TOLERANCE.check(expected, found, "C")
    correct, expected_correct = (int((values.argmax(1) == labels).sum()) for values in (found, expected))
    assert abs(correct - expected_correct) <= 5
    if name == "nano":
        assert exported.weight_bytes <= 96 * 1024
        assert exported.memory_bytes <= 64 * 1024


@pytest.mark.parametrize("name", ["own_run", "thousand"])
def test_c_of_other_sizes_and_of_a_thousand_classes_agrees(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, compiler: str
) -> None:
    own: Own = request.getfixturevalue(name)
    exported = c_source.export_c(trained.load(own.directory, "cpu"), tmp_path, own.dataset)
    size, classes = own.dataset.image_size, own.dataset.classes
    header = exported.header.read_text()
    assert f"for {size}x{size} pictures" in header
    assert f"pixels: {size} * {size} * 3 bytes" in header
    assert f"#define RUN_CLASSES {len(classes)}\n" in header
    loop = "int main(void) { for (int i = 0; i < RUN_CLASSES; i++) puts(run_class_names[i]); }"
    (tmp_path / "main.c").write_text(f'#include <stdio.h>\n#include "run.h"\n{loop}')
    subprocess.run([compiler, *STRICT, "-o", tmp_path / "names", tmp_path / "main.c", exported.source], check=True)
    done = subprocess.run([tmp_path / "names"], check=True, capture_output=True)
    assert done.stdout.decode().splitlines() == list(classes)
    assert exported.parity_int8 is not None
    assert exported.parity_int8.images == 200
