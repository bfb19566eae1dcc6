"""Pictures that browsers decode otherwise than Python: the page and the service see in them what `predict` sees."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from serve.test_app import ROUNDED, in_a_thread, request
from tinycifar import data, inference, trained
from tinycifar.data import pictures
from tinycifar.serve import app

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
Array = np.ndarray[Any, np.dtype[Any]]


def deep_png(samples: Array, key: tuple[int, ...] = (), interlaced: bool = False) -> bytes:
    """A PNG of 16 bits a channel from (H, W, C), with a transparent colour `key`; Pillow writes grey ones only."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = samples.shape
    rows = []
    for left, top, right, down in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        above = np.zeros(0, np.uint8)
        for number, row in enumerate(samples[top::down, left::right]):
            line = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
            before = above if len(above) else np.zeros_like(line)
            kind = number % 5
            rows.append(bytes([kind]) + filtered(line, before, 2 * channels, kind).tobytes())
            above = line
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, int(interlaced))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + transparent + body + chunk(b"IEND", b"")


def filtered(line: Array, above: Array, step: int, kind: int) -> Array:
    """A line of a PNG under one of its five filters."""
    values, b = line.astype(int), above.astype(int)
    a, c = (np.concatenate([np.zeros(step, int), of[:-step]]) for of in (values, b))
    nearest = np.abs(np.stack([b - c, a - c, a + b - 2 * c])).argmin(0)  # the first of equals, as Paeth's has it
    predicted = (0 * a, a, b, (a + b) // 2, np.choose(nearest, (a, b, c)))[kind]
    return (values - predicted).astype(np.uint8)


def contents() -> dict[str, tuple[bytes, int]]:
    """Files by name, and by how much the browser's rounding of half transparent pixels may change a level."""
    picture = pictures.to_image(data.sample().test_images[3]).resize((52, 44))
    colour, grey = np.asarray(picture), np.asarray(picture.convert("L"))
    shape = np.asarray(Image.effect_noise((52, 44), 90))
    down, across = np.mgrid[:44, :52]
    disc = (down - 22) ** 2 + (across - 26) ** 2 < 300
    alone = {"white": (255, 255, 255), "black": (0, 0, 0)}

    def saved(image: Image.Image, **options: Any) -> bytes:
        content = io.BytesIO()
        image.save(content, "PNG", **options)
        return content.getvalue()

    found = {f"grey of {bits} bits": deep_png(grey[..., None].astype(int) << bits - 8) for bits in (8, 10, 16)}
    found["colour of 12 bits"] = deep_png(colour.astype(int) << 4)
    found["interlaced"] = deep_png(colour.astype(int) << 2, interlaced=True)
    key = tuple(16 * int(value) for value in colour[0, 0])
    found["a transparent colour"] = deep_png(colour.astype(int) << 4, key=key)
    found["transparent black"] = deep_png((grey.astype(int) * disc)[..., None] << 2, key=(0,))
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    found["palette"] = saved(palette, transparency=bytes([0, 255] * 100))
    for name, level in alone.items():
        whole = np.concatenate([np.broadcast_to(level, (44, 52, 3)), 255 * disc[..., None]], 2).astype(np.uint8)
        found[f"{name} on nothing"] = saved(Image.fromarray(whole))
    exact = dict.fromkeys(found, 0)
    alpha = np.concatenate([colour, shape[..., None]], 2)
    found["half transparent"] = saved(Image.fromarray(alpha))
    found["half transparent, 16 bits"] = deep_png(alpha.astype(int) << 8)
    return {name: (content, exact.get(name, 2)) for name, content in found.items()}


def test_the_service_sees_in_a_picture_what_predict_sees(exports: Path, tmp_path: Path) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")))
    for name, (content, _) in contents().items():
        (tmp_path / f"{name}.png").write_bytes(content)
        body = asyncio.run(service.predict(request(content))).body
        (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / f"{name}.png"], top=10)
        found = {of["class"]: of["probability"] for of in json.loads(bytes(body))["classes"]}
        assert found == pytest.approx({of["class"]: of["probability"] for of in expected["classes"]}, abs=ROUNDED), name


@pytest.fixture
def address(exports: Path) -> Iterator[str]:
    """A service in a thread."""
    with in_a_thread(str(exports / "minute.onnx")) as url:
        yield url


def test_in_a_browser_the_page_sees_in_a_picture_what_predict_sees(
    address: str, chromium: Browser, tmp_path: Path
) -> None:
    page = chromium.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    for turn, (name, (content, rounded)) in enumerate(contents().items(), 1):
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        page.set_input_files("#file", path)
        page.wait_for_selector(f"html[data-answers='{turn}']")
        seen = page.evaluate("[...$('seen').getContext('2d').getImageData(0, 0, 32, 32).data]")
        expected = pictures.to_array(pictures.read(path)).transpose(1, 2, 0).astype(int)
        assert np.abs(np.array(seen).reshape(32, 32, 4)[:, :, :3] - expected).max() <= rounded, name
        assert expected.max() - expected.min() > 50, "a picture of one level would not differ"
