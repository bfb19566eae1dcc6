"""All that classifies a picture sees the same pixels: Python, the example for onnxruntime, the service and the page."""

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from serve.test_app import start
from test_trained import ABOUT
from tinycifar import data, inference, models, predictions, trained
from tinycifar.data import pictures
from tinycifar.formats import onnx_file
from tinycifar.serve import app

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIZES = [(151, 90), (33, 97), (32, 45), (9, 7), (400, 3)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "classify.py"
Pixels = np.ndarray[Any, Any]


def in_the_example(onnx: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """The pixels, uint8 (C, S, S), that the example gives to onnxruntime."""
    seen = []
    run = onnxruntime.InferenceSession.run

    def watched(self: Any, outputs: list[str], inputs: dict[str, Pixels]) -> list[Pixels]:
        seen.append(inputs["images"])
        found: list[Pixels] = run(self, outputs, inputs)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "run", watched)
        patch.setattr(sys, "argv", ["classify.py", str(onnx), str(picture)])
        runpy.run_path(str(EXAMPLE))
    pixels: Pixels = np.rint(seen[0][0] * 255).astype(np.uint8)
    return pixels


def in_python(model: trained.Trained, picture: Path) -> Pixels:
    """The pixels, uint8 (C, S, S), that `predict` gives to a model."""
    seen = []

    def watched(images: Pixels) -> Pixels:
        seen.append(images)
        return np.full((len(images), 10), 0.1)

    list(predictions.predict([picture], model.classes, 32, watched, fit=model.fit, channels=model.channels))
    return seen[0][0]


@pytest.mark.parametrize(("fit", "channels"), [("crop", 3), ("pad", 3), ("squash", 3), ("pad", 1)])
def test_every_consumer_sees_the_same_pixels(
    fit: str, channels: int, chromium: "Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = models.build("whitenet", width=0.25, channels=channels)
    model.prepare(data.sample(channels=channels).train_images)
    about = {**ABOUT, "model_name": "whitenet", "width": 0.25, "fit": fit, "channels": channels}
    trained.save_weights(tmp_path / "own.safetensors", model, **about)
    loaded = trained.load(tmp_path / "own.safetensors", "cpu")
    onnx_file.to_onnx(loaded, tmp_path / "own.onnx")
    service = app.Service(app.open_model(str(tmp_path / "own.onnx")))
    assert (service.model.form.fit, service.model.form.channels) == (fit, channels)

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
        assert np.array_equal(in_the_example(tmp_path / "own.onnx", paths[-1], monkeypatch), expected[-1])
        assert np.array_equal(service.decode(paths[-1].read_bytes()), expected[-1])
    assert len({pixels.tobytes() for pixels in expected}) == len(SIZES)

    running = start(tmp_path / "own.safetensors", tmp_path / "log")
    try:
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{running.port}/")
        page.wait_for_selector("html[data-ready]")
        answers = inference.predict(loaded, paths, top=10)
        for turn, (path, pixels, answer) in enumerate(zip(paths, expected, answers, strict=True), 1):
            page.set_input_files("#file", path)
            page.wait_for_selector(f"html[data-answers='{turn}']")
            shown = page.evaluate("[...$('seen').getContext('2d').getImageData(0, 0, 32, 32).data]")
            seen = np.array(shown).reshape(32, 32, 4)[:, :, :3].transpose(2, 0, 1)
            assert np.array_equal(seen, np.broadcast_to(pixels, seen.shape)), (path, fit)
            bars = page.evaluate("[...document.querySelectorAll('#bars button')].map(bar => bar.dataset.class)")
            assert set(bars) == {each["class"] for each in answer["classes"]}
    finally:
        running.stop()
