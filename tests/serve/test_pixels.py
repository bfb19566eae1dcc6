"""All that classifies a picture sees the same pixels, also where browsers decode otherwise than Python."""

from __future__ import annotations

import asyncio
import json
import runpy
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from conftest import encoded
from serve.test_app import ROUNDED, Page, by_class, in_a_thread, request
from serve.test_app import minute as minute
from test_trained import ABOUT
from tinycifar import data, inference, models, predictions, trained
from tinycifar.data import pictures
from tinycifar.formats import onnx_file
from tinycifar.serve import app, served

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
    a, c = (np.concatenate([np.zeros(step, int), row[:-step]]) for row in (values, b))
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

    exact = {f"grey of {bits} bits": deep_png(grey[..., None].astype(int) << bits - 8) for bits in (8, 10, 16)}
    exact["colour of 12 bits"] = deep_png(colour.astype(int) << 4)
    exact["interlaced"] = deep_png(colour.astype(int) << 2, interlaced=True)
    key = tuple(16 * int(value) for value in colour[0, 0])
    exact["a transparent colour"] = deep_png(colour.astype(int) << 4, key=key)
    exact["transparent black"] = deep_png((grey.astype(int) * disc)[..., None] << 2, key=(0,))
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    exact["palette"] = encoded(palette, transparency=bytes([0, 255] * 100))
    for name, level in alone.items():
        whole = np.concatenate([np.broadcast_to(level, (44, 52, 3)), 255 * disc[..., None]], 2).astype(np.uint8)
        exact[f"{name} on nothing"] = encoded(Image.fromarray(whole))
    alpha = np.concatenate([colour, shape[..., None]], 2)
    rounded = {
        "half transparent": encoded(Image.fromarray(alpha)),
        "half transparent, 16 bits": deep_png(alpha.astype(int) << 8),
    }
    return {name: (content, 2 if name in rounded else 0) for name, content in (exact | rounded).items()}


def test_the_service_sees_in_a_picture_what_predict_sees(minute, tmp_path):
    service = app.Service(minute)
    for name, (content, _) in contents().items():
        (tmp_path / f"{name}.png").write_bytes(content)
        answer = json.loads(bytes(asyncio.run(service.predict(request(content))).body))
        (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / f"{name}.png"], top=10)
        assert by_class(answer) == pytest.approx(by_class(expected), abs=ROUNDED), name


def test_in_a_browser_the_page_sees_in_a_picture_what_predict_sees(minute, chromium, tmp_path):
    with in_a_thread(minute) as client:
        page = Page(chromium, client.port)
        for name, (content, rounded) in contents().items():
            path = tmp_path / f"{name}.png"
            path.write_bytes(content)
            page.classify(path)
            expected = pictures.to_array(pictures.read(path)).transpose(1, 2, 0).astype(int)
            assert np.abs(page.seen(32) - expected).max() <= rounded, name
            assert expected.max() - expected.min() > 50, "a picture of one level would not differ"


# --- Python, the example for onnxruntime, the service and the page ------------------------------------------------

SIZES = [(151, 90), (33, 97), (32, 45), (9, 7), (400, 3)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "classify.py"


def in_the_example(onnx: Path, picture: Path) -> Array:
    """The pixels, uint8 (C, S, S), that the example gives to onnxruntime."""
    session = onnxruntime.InferenceSession
    with (
        mock.patch.object(session, "run", autospec=True, side_effect=session.run) as run,
        mock.patch.object(sys, "argv", ["classify.py", str(onnx), str(picture)]),
    ):
        runpy.run_path(str(EXAMPLE))
    pixels: Array = np.rint(run.call_args.args[2]["images"][0] * 255).astype(np.uint8)
    return pixels


def in_python(model: trained.Trained, picture: Path) -> Any:
    """The pixels, uint8 (C, S, S), that `predict` gives to a model."""
    classify = mock.Mock(side_effect=lambda images: np.full((len(images), 10), 0.1))
    list(predictions.predict(model, [picture], classify))
    return classify.call_args.args[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(("fit", "channels"), [("crop", 3), ("pad", 3), ("squash", 3), ("pad", 1)])
def test_every_consumer_sees_the_same_pixels(fit, channels, chromium, tmp_path):
    torch.manual_seed(0)
    model = models.build("whitenet", width=0.25, channels=channels)
    model.prepare(data.sample(channels=channels).train_images)
    about = {**ABOUT, "model_name": "whitenet", "width": 0.25, "fit": fit, "channels": channels}
    trained.save_weights(tmp_path / "own.safetensors", model, **about)
    loaded = trained.load(tmp_path / "own.safetensors", "cpu")
    onnx_file.to_onnx(loaded, tmp_path / "own.onnx")
    service = app.Service(served.open_model(str(tmp_path / "own.onnx")))
    assert (service.model.about.fit, service.model.about.channels) == (fit, channels)

    rng = np.random.default_rng(0)
    paths, expected = [], []
    for index, (width, height) in enumerate(SIZES):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        if index == 0:  # not in a browser, which rounds what is half transparent in its own way
            picture.putalpha(Image.fromarray(rng.integers(0, 2, (height, width), np.uint8) * 255))
        paths.append(tmp_path / f"{index}.png")
        picture.save(paths[-1])
        expected.append(pictures.to_array(pictures.read(paths[-1], fit), 32, fit, channels))
        assert np.array_equal(in_python(loaded, paths[-1]), expected[-1])
        assert np.array_equal(in_the_example(tmp_path / "own.onnx", paths[-1]), expected[-1])
        assert np.array_equal(service.decode(paths[-1].read_bytes()), expected[-1])
    assert len({pixels.tobytes() for pixels in expected}) == len(SIZES)

    with in_a_thread(service.model) as client:
        page = Page(chromium, client.port)
        predictions = inference.predict(loaded, paths, top=10)
        for path, pixels, prediction in zip(paths, expected, predictions, strict=True):
            assert page.classify(path).keys() == by_class(prediction).keys()
            seen = page.seen(32).transpose(2, 0, 1)
            assert np.array_equal(seen, np.broadcast_to(pixels, seen.shape)), (path, fit)
