"""Files that someone else made, or that something damaged: read, or refused in one line; never a crash, never slow."""

import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import encoded
from data.test_pictures import png
from tinycifar import data, run, trained, training
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.report import compare, run_page

MEGABYTE = 1 << 20


def originals() -> dict[str, bytes]:
    """Small pictures of many kinds, by name."""
    colour = pictures.to_image(data.sample().test_images[0]).resize((60, 48))
    frames = [pictures.to_image(data.sample().test_images[index]) for index in range(3)]
    kinds = {
        "colour.png": (colour, {}),
        "grey.png": (colour.convert("L"), {}),
        "palette.png": (colour.convert("P", palette=Image.Palette.ADAPTIVE), {"transparency": 3}),
        "alpha.png": (colour.convert("RGBA"), {}),
        "deep.png": (colour.convert("I;16"), {}),
        "frames.png": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "plain.jpg": (colour, {"quality": 80}),
        "progressive.jpg": (colour, {"progressive": True, "subsampling": 0}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "turned.jpg": (colour, {"exif": turned()}),
        "lossy.webp": (colour, {}),
        "lossless.webp": (colour.convert("RGBA"), {"lossless": True}),
        "frames.webp": (frames[0], {"save_all": True, "append_images": frames[1:]}),
    }
    return {
        name: encoded(image, {"jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        for name, (image, options) in kinds.items()
    }


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def mutants(contents: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Each a damaged copy of one of `contents`: bits flipped, cut, stretched, parts swapped, numbers made large."""
    chance = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(chance.choice(contents))
        for _ in range(chance.choice((1, 1, 2, 8))):
            place, kind = chance.randrange(len(mutant)), chance.randrange(6)
            if kind == 0:
                mutant[place] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del mutant[max(1, place) :]
            elif kind == 2:
                mutant[place:place] = chance.randbytes(chance.choice((1, 4, 1000)))
            elif kind == 3:
                mutant[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)))
            elif kind == 4:
                other = chance.choice(contents)
                mutant[place:] = other[chance.randrange(len(other)) :] or b"\0"
            else:
                del mutant[place : place + chance.randrange(1, 20)]
            mutant = mutant or bytearray(1)
        yield bytes(mutant)


def with_valid_checksums(content: bytes) -> bytes:
    """A PNG whose chunks are checked anew, so that a decoder goes on to what they hold."""
    chunks, place = bytearray(content[:8]), 8
    while place + 8 <= len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        body = content[place + 4 : place + 8 + length]
        chunks += struct.pack(">I", max(0, len(body) - 4)) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(chunks)


def most_memory() -> int:
    """The most bytes that this process has held; `ru_maxrss` would on Linux begin with those of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_all(folder: Path) -> dict[str, Any]:
    """Read each file but the first; gives sizes and refusals by name, and what that cost.

    `seconds` are the CPU seconds of the slowest one, `megabytes` by how much this process grew at most.
    """
    paths = sorted(folder.iterdir())
    pictures.to_array(pictures.read(paths[0]))  # libraries are loaded now
    before = most_memory()
    slowest, sizes, refusals = 0.0, {}, {}
    for path in paths[1:]:
        start = time.process_time()
        try:
            image = pictures.read(path)
            pictures.to_array(image)
            sizes[path.name] = image.size
        except ValueError as error:
            refusals[path.name] = str(error)
        slowest = max(slowest, time.process_time() - start)
    grown = most_memory() - before
    assert all(text.startswith(f"cannot read {folder}") and "\n" not in text for text in refusals.values())
    return {"seconds": slowest, "megabytes": grown / MEGABYTE, "refusals": refusals, "sizes": sizes}


def in_a_process(folder: Path) -> dict[str, Any]:
    """`read_all` in a process of its own, so that a crash is seen and the memory is its own."""
    command = f"import json, pathlib, test_strangers as t; print(json.dumps(t.read_all(pathlib.Path({str(folder)!r}))))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_damaged_pictures_are_read_or_refused_quickly_and_in_little_memory(tmp_path):
    contents = originals()
    (tmp_path / "0000-whole.png").write_bytes(contents["colour.png"])
    for number, mutant in enumerate(mutants(list(contents.values()), 500, seed=0)):
        if number % 3 == 0 and mutant.startswith(b"\x89PNG"):
            mutant = with_valid_checksums(mutant)
        (tmp_path / f"{number:04d}.png").write_bytes(mutant)
    found = in_a_process(tmp_path)
    assert len(found["refusals"]) > 125
    assert len(found["sizes"]) > 25
    assert (found["seconds"] < 2, found["megabytes"] < 300) == (True, True), found


def bombs() -> dict[str, Callable[[], bytes]]:
    """Small files that claim, or hold, very much."""

    def empty_png(width: int, height: int, rows: int, *chunks: tuple[bytes, bytes]) -> bytes:
        return png(8, 6, bytes(4 * width), *chunks, size=(width, height), rows=rows)

    def jpeg(mode: str, size: tuple[int, int], **options: Any) -> bytes:
        return encoded(Image.new(mode, size), "JPEG", **options)

    def many_scans(count: int) -> bytes:
        """A grey progressive JPEG whose last scan comes again and again."""
        content = jpeg("L", (1400, 1400), progressive=True)
        last = content.rindex(b"\xff\xda")
        return content[:last] + content[last:-2] * count + content[-2:]

    def scan_by_component(side: int) -> bytes:
        """A JPEG that is not progressive and has a scan of its own for each of three components."""
        content = jpeg("L", (side, side))
        head, place, of = b"\xff\xd8", 2, {}
        while content[place + 1] != 0xDA:
            end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
            of[content[place + 1]] = content[place:end]
            place = end
        scan = content[place + 10 : -2]  # behind the marker, the length and six bytes of one component
        frame = (
            of[0xC0][:2]
            + struct.pack(">HBHHB", 17, 8, side, side, 3)
            + b"".join(bytes([c, 0x11, 0]) for c in (1, 2, 3))
        )
        head += b"".join(segment for marker, segment in of.items() if marker not in (0xC0, 0xC4)) + frame
        tables = content[content.index(b"\xff\xc4") : place]
        scans = [b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, c, 0, 0, 63, 0) + scan for c in (1, 2, 3)]
        return head + tables + b"".join(scans) + content[-2:]

    def phone() -> bytes:
        return encoded(Image.new("RGB", (400, 300)), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])

    def turned_png() -> bytes:
        return encoded(Image.new("RGBA", (4096, 4096)), exif=turned(), compress_level=1)

    def webp() -> bytes:
        return encoded(Image.new("RGBA", (2828, 2828)), "WEBP", lossless=True, quality=0, method=0)

    return {
        "claims.png": lambda: empty_png(60_000, 60_000, 1),
        "largest.png": lambda: empty_png(4096, 4096, 4096),
        "over.png": lambda: empty_png(4097, 4096, 4096),
        "thin.png": lambda: empty_png(16_000_000, 1, 1),
        "text.png": lambda: empty_png(8, 8, 8, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 * MEGABYTE), 9))),
        "large.jpg": lambda: jpeg("RGB", (5000, 5000), progressive=True, subsampling=0),
        "cmyk.jpg": lambda: jpeg("CMYK", (4330, 4330), progressive=True, subsampling=0),
        "scans.jpg": lambda: many_scans(5_000),
        "some-scans.jpg": lambda: many_scans(50),
        "components.jpg": lambda: scan_by_component(7_000),
        "small-components.jpg": lambda: scan_by_component(4_992),
        "phone.jpg": phone,
        "over.jpg": lambda: jpeg("CMYK", (5100, 5100), progressive=True),
        "thin.jpg": lambda: jpeg("CMYK", (65_000, 765), exif=turned()),
        "turned.png": turned_png,
        "largest.webp": webp,
        "empty.png": lambda: b"",
        "zero.png": lambda: empty_png(0, 0, 0),
    }


@pytest.mark.slow
def test_bombs_are_refused_or_read_in_little_memory(tmp_path):
    (tmp_path / "0000-whole.png").write_bytes(originals()["colour.png"])
    for name, make in bombs().items():
        (tmp_path / name).write_bytes(make())
    found = in_a_process(tmp_path)
    assert (found["seconds"] < 2, found["megabytes"] < 300) == (True, True), found
    refusals, sizes = found["refusals"], found["sizes"]
    for name, message in {
        "claims.png": "far more pixels than the 50,000,000 allowed",
        "over.png": "16,781,312 pixels, allowed are 16,777,216",
        "over.jpg": "26,010,000 pixels, allowed are 18,750,000 in a JPEG of several scans",
        "scans.jpg": "more than 64 scans",
        "components.jpg": "49,000,000 pixels, allowed are 25,000,000 in a JPEG of several scans",
        "empty.png": "no PNG, JPEG, WEBP, .* image",
        "zero.png": "no PNG, JPEG, WEBP, .* image",
    }.items():
        assert re.search(message, refusals[name])
    assert sizes["largest.png"] == [4096, 4096]
    assert sizes["large.jpg"] == [1250, 1250]
    assert sizes["small-components.jpg"] == [1248, 1248]
    assert sizes["some-scans.jpg"] == [1400, 1400]
    assert sizes["phone.jpg"] == [300, 300]


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    (tmp_path / "large.png").write_bytes(originals()["colour.png"])
    with pytest.raises(ValueError, match=r"large\.png: [\d,]+ bytes, allowed are 100"):
        pictures.read(tmp_path / "large.png")


def test_damaged_weights_are_loaded_or_refused_in_one_line(trained_once, tmp_path):
    content = (trained_once / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "weights.safetensors"
    refusals = []
    for number, mutant in enumerate(mutants([content[:header]], 300, seed=1)):
        path.write_bytes(mutant + content[header:] if number % 3 else mutant)
        start = time.perf_counter()
        try:
            trained.load(path)
        except ValueError as error:
            refusals.append(str(error))
        assert time.perf_counter() - start < 2
    assert len(refusals) > 200
    assert not any("\n" in text for text in refusals)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2_000_000) + b" " * 2_000_000, "is too large for weights of tinycifar"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is not a readable safetensors file"),
        (struct.pack("<Q", 10_000) + b"[" * 10_000, "is not a readable safetensors file"),
        (b"", "is not a readable safetensors file"),
    ],
)
def test_headers_that_are_too_large_too_deep_or_missing_are_refused(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        trained.load(tmp_path / "x.safetensors")


def write_weights(path: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> None:
    about = {"model": "whitenet", "recipe": "x", "classes": list(CLASSES), "data": "sample"}
    about |= {"validation_images": 0, "temperature": None, **changes}
    save_file(tensors, path, {"tinycifar": json.dumps(about)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, "do not fit the model whitenet"),
        ({"model": "resnet"}, "unknown model 'resnet'"),
        *(
            (changes, "does not name its model, classes and data")
            for changes in (
                {"classes": ["\x1b[31mred"] * 10},
                {"classes": ["x"] * 100_000},
                {"classes": 10},
                {"kept": [1.0]},
                {"temperature": -1},
                {"temperature": "1e999"},
                {"temperature": 10**400},
                {"validation_images": "many"},
                {"validation_images": -5},
                {"validation_images": float("inf")},
            )
        ),
    ],
    ids=range(12),
)
def test_weights_of_other_shapes_and_names_that_are_no_names_are_refused(trained_once, tmp_path, changes, message):
    write_weights(tmp_path / "x.safetensors", load_file(trained_once / "model.safetensors"), **changes)
    with pytest.raises(ValueError, match=message):
        trained.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.complex64, torch.bool, torch.float64])
def test_weights_of_another_type_of_numbers_are_refused(trained_once, tmp_path, kind):
    tensors = load_file(trained_once / "model.safetensors")
    write_weights(tmp_path / "x.safetensors", {name: tensor.to(kind) for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=r"do not fit the model whitenet|is not a readable safetensors file"):
        trained.load(tmp_path / "x.safetensors")


OTHER = "^{}.* is not as tinycifar writes it"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("recipe.json", {"epochs": 2.0}, "recipe.json"),
        ("recipe.json", {"nesterov": 1}, "recipe.json"),
        ("recipe.json", {"model": None}, "recipe.json"),
        ("recipe.json", {"colour": "red"}, "recipe.json"),
        ("recipe.json", {"weight_decay": "0.1"}, "recipe.json"),
        ("environment.json", {"limit": "abc"}, "environment.json"),
        ("environment.json", {"limit": 1.5}, "environment.json"),
        ("environment.json", {"threads": True}, "environment.json"),
        ("environment.json", {"train_images": 0}, OTHER),
        ("environment.json", {"train_images": 1 << 60}, OTHER),
        ("evaluation.json", {"accuracy_interval": []}, OTHER),
        ("evaluation.json", {"temperature": "x", "calibrated": {"ece": 0.0, "loss": 0.0, "brier": 0.0}}, OTHER),
        ("evaluation.json", {"images": 0}, OTHER),
    ],
)
def test_values_that_no_run_has_are_refused_by_name(trained_once, tmp_path, name, changes, message):
    shutil.copytree(trained_once, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message.format(tmp_path / "run")):
        run_page.write(tmp_path / "run")


@pytest.mark.parametrize("name", ["recipe.json", "environment.json", "evaluation.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, '{"data": {"data": 1}}', "\x00"])
def test_a_run_with_a_file_of_another_form_is_refused_in_one_line_or_read(trained_once, tmp_path, name, content):
    shutil.copytree(trained_once, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    if name != "metrics.jsonl" or content:
        message = rf"(?s)^[^\n]*{'' if name == 'metrics.jsonl' else re.escape(name)}[^\n]*$"
        with pytest.raises(ValueError, match=message):
            run_page.write(tmp_path / "run")
    for reader in (compare.read, resume):
        told = ""
        try:
            reader(tmp_path / "run")
        except ValueError as error:
            told = str(error)
        assert "\n" not in told


def test_a_model_of_a_run_whose_environment_is_damaged_names_that_file(trained_once, tmp_path):
    shutil.copytree(trained_once, tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"environment\.json is not valid JSON"):
        trained.load(tmp_path / "run")


@pytest.mark.parametrize("entry", ["1", *(f'{{"image": {image}, "loss": 1}}' for image in ("1e999", '"x"', "null"))])
def test_hardest_images_that_are_no_numbers_are_refused_by_name(tmp_path, entry):
    (tmp_path / "hardest.json").write_text(f"[{entry}]")
    with pytest.raises(ValueError, match=r"hardest\.json is not as tinycifar writes it; remove it"):
        run.read_hardest(tmp_path)


def resume(directory: Path) -> None:
    """Resume a run on the sample."""
    training.train(run.read_recipe(directory), "sample", resume=directory, limit=64)
