"""The static page: what is in its folder, and what it answers in a real browser."""

from __future__ import annotations

import functools
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from tinycifar import data, inference, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import onnx_file, parity, web

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def exported(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ONNX file of every page is that of `minute`, which is there already."""

    def to_onnx(_: object, path: Path, __: object) -> parity.Exported:
        shutil.copyfile(exports / "minute.onnx", path)
        compared = parity.Parity(200, 200, 0, 0.0, 0.0)
        return parity.Exported(path, path.stat().st_size, "ONNX", "onnxruntime", compared)

    monkeypatch.setattr(onnx_file, "to_onnx", to_onnx)


@pytest.fixture
def empty_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of onnxruntime-web whose files are empty."""
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as tar:
        for name in web.FILES:
            tar.addfile(tarfile.TarInfo(f"package/dist/{name}"))
    monkeypatch.setattr(web, "_package", package.getvalue)


@pytest.fixture
def folder(tmp_path: Path, exported: None, onnxruntime_web: None) -> Path:
    """A page of the shipped `minute`."""
    (tmp_path / "page").mkdir()  # empty, which is allowed
    assert web.write(trained.load("minute", "cpu"), tmp_path / "page").path == tmp_path / "page" / "model.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    return tmp_path / "page"


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Where a plain static server serves the page."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture
def page(address: str, chromium: Browser) -> Page:
    """The page in a browser, ready for pictures."""
    page = chromium.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    return page


def seen(page: Page) -> np.ndarray:
    """The pixels that the page shows as those that the model sees, (32, 32, 3)."""
    pixels = page.evaluate("[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 32, 32).data]")
    return np.array(pixels).reshape(32, 32, 4)[:, :, :3]


def make_pictures(folder: Path) -> list[Path]:
    """Twenty pictures: PNG, JPEG and WebP, of 32x32 pixels and larger, wide and high, one partly transparent."""
    rng = np.random.default_rng(0)
    paths = []
    for index, tensor in enumerate(data.sample().test_images[20:40]):
        picture = pictures.to_image(tensor)
        if index >= 8:
            size = tuple(int(side) for side in rng.integers(33, 400, 2))
            large = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(int)
            picture = Image.fromarray((large + rng.integers(-9, 9, large.shape)).clip(0, 255).astype(np.uint8))
        if index == 13:
            picture.putalpha(Image.fromarray(rng.integers(0, 255, picture.size[::-1]).astype(np.uint8)))
        path = folder / f"{index}.{'png' if index < 14 else 'jpg' if index < 17 else 'webp'}"
        picture.save(path)
        paths.append(path)
    return paths


def answer(page: Page, turn: int) -> dict[str, float]:
    """The probabilities that the page shows once it has answered for the `turn`-th time."""
    page.wait_for_selector(f"html[data-answers='{turn}']")
    bars = "[...document.querySelectorAll('#bars button')].map(bar => [bar.dataset.class, +bar.dataset.probability])"
    return dict(page.evaluate(bars))


@pytest.mark.end_to_end  # the first export fetches onnxruntime-web
@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (390, "dark")])
def test_in_a_browser_the_page_answers_as_python_does(address, chromium, tmp_path, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    paths = make_pictures(tmp_path)
    expected = inference.predict(trained.load("minute", "cpu"), paths, top=10)
    for turn, (path, of) in enumerate(zip(paths, expected, strict=True), 1):
        page.set_input_files("#file", path)
        found = answer(page, turn)
        assert list(found) == [each["class"] for each in of["classes"]]
        assert all(abs(found[each["class"]] - each["probability"]) < 1e-3 for each in of["classes"]), path
        if path.suffix == ".png" and turn != 14:  # the one that is transparent is rounded otherwise
            np.testing.assert_array_equal(seen(page), pictures.to_array(pictures.read(path)).transpose(1, 2, 0))
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert brightness < 150 if scheme == "dark" else brightness > 600
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []

    page.keyboard.press("Home")  # with the keyboard alone: a sample, then the class to explain
    page.locator("#choose").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    answer(page, len(paths) + 1)
    before = page.evaluate("document.getElementById('heat').toDataURL()")
    page.locator("#bars button").nth(0).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#bars button").nth(1).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.getElementById('heat').toDataURL()") != before

    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.png")
    page.wait_for_selector("#problem:visible")
    assert page.inner_text("#problem") == "text.png cannot be read: it is damaged."
    assert not page.is_visible("#result")
    assert said == []
    page.screenshot(path=tmp_path / f"page-{scheme}.png", full_page=True)


@pytest.mark.end_to_end
def test_a_picture_can_be_pasted_and_dropped(page):
    event = """async ([kind, sample]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([await (await fetch(sample)).blob()], "picture.png", { type: "image/png" }));
        const about = { bubbles: true, cancelable: true };
        document.dispatchEvent(kind === "paste"
            ? new ClipboardEvent("paste", { ...about, clipboardData: transfer })
            : new DragEvent("drop", { ...about, dataTransfer: transfer }));
    }"""
    for turn, (kind, label) in enumerate([("paste", 0), ("drop", 9)], 1):
        page.evaluate(event, [kind, f"samples/{label}.png"])
        found = answer(page, turn)
        images = data.sample().test_images[(data.sample().test_labels == label).nonzero()[0]]
        model = trained.load("minute", "cpu")
        expected = (inference.logits(model.model, images) / model.temperature)[0].softmax(0)
        probabilities = torch.tensor([found[name] for name in CLASSES])
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-3)


@pytest.mark.end_to_end
def test_the_folder_names_the_runtime_and_its_licence(folder):
    assert {path.name for path in folder.iterdir()} == {
        "index.html", "page.css", "deep.js", "page.js", "model.json", "model.onnx", "ort", "samples",
    }  # fmt: skip
    assert "Permission is hereby granted" in (folder / "ort" / "LICENSE.txt").read_text()
    about = json.loads((folder / "model.json").read_text())
    assert about["classes"] == list(CLASSES)
    assert [sample["label"] for sample in about["samples"]] == list(CLASSES)


@pytest.mark.end_to_end
def test_opened_as_a_file_the_page_says_what_it_needs(folder, chromium):
    page = chromium.new_page()
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#problem:visible")
    assert "python -m http.server" in page.inner_text("#problem")


@pytest.mark.end_to_end
def test_a_sample_that_comes_late_does_not_replace_a_picture_chosen_since(page, tmp_path):
    (path,) = make_pictures(tmp_path)[:1]
    page.evaluate("""() => {
        const real = window.fetch;
        window.fetch = async (address) => {
            if (address === "samples/4.png") return new Response("", { status: 404 });
            await new Promise((resolve) => setTimeout(resolve, 500));
            return real(address);
        };
    }""")
    page.locator("#samples button").nth(3).click()
    page.set_input_files("#file", path)
    answer(page, 1)
    page.wait_for_timeout(1000)
    np.testing.assert_array_equal(seen(page), pictures.to_array(pictures.read(path)).transpose(1, 2, 0))
    page.locator("#samples button").nth(4).click()
    page.wait_for_selector("#problem:visible")
    assert page.inner_text("#problem") == "samples/4.png is missing."


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is in use; name a new or an empty one"):
        web.write(trained.load("minute", "cpu"), tmp_path)


@pytest.mark.usefixtures("exported", "empty_runtime")
def test_a_page_in_the_current_folder_is_replaced_whole_or_not_at_all_and_other_files_stay(tmp_path, monkeypatch):
    model, rename = trained.load("minute", "cpu"), Path.rename
    (tmp_path / f"{web.UNFINISHED}killed").mkdir()
    web.write(model, Path())
    (tmp_path / "CNAME").write_text("example.org")
    (tmp_path / "index.html").write_text("before")
    with pytest.raises(ValueError, match="holds a page already; name another output, or pass `overwrite="):
        web.write(model, Path())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(path: Path, target: Path) -> Path:
        if path.parent.name == "page" and path.name == "samples":
            raise PermissionError("samples")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(PermissionError, match="samples"):
            web.write(model, Path(), overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    web.write(model, Path(), overwrite=True)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before | {tmp_path / "index.html": (web.PAGE / "index.html").read_bytes()}


@pytest.mark.parametrize("cached", [None, b"changed"])
def test_without_npm_and_the_published_runtime_in_the_cache_the_page_says_what_it_needs(tmp_path, monkeypatch, cached):
    if cached is not None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / f"{web.PACKAGE}-{web.VERSION}.tgz").write_bytes(cached)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs onnxruntime-web .* from npm, which is not installed"):
        web.write(trained.load("minute", "cpu"), tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo tampered > onnxruntime-web.tgz", "whose digest is not the published one"),
        ("echo npm error code E404 >&2; exit 1", "npm did not bring onnxruntime-web .*: npm error code E404"),
        ("sleep 5", "npm did not bring onnxruntime-web within 0.2 seconds"),
    ],
)
def test_a_runtime_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch, script, message):
    (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(web, "NPM_SECONDS", 0.2 if "sleep" in script else 60)
    with pytest.raises(ValueError, match=message):
        web.write(trained.load("minute", "cpu"), tmp_path / "page")
    assert not (tmp_path / "page").exists()
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("empty_runtime")
def test_a_page_of_own_data_names_its_size_classes_and_samples(own_run, thousand, tmp_path):
    for own in (own_run, thousand):
        folder = tmp_path / str(len(own.dataset.classes))
        exported = web.write(trained.load(own.directory, "cpu"), folder, own.dataset)
        assert exported.parity.images == 200
        about = json.loads((folder / "model.json").read_text())
        assert about["classes"] == list(own.dataset.classes)
        assert about["image_size"] == own.dataset.image_size
        for sample in about["samples"]:
            with Image.open(folder / sample["file"]) as image:
                assert image.size == (own.dataset.image_size,) * 2
    assert "knows 1,000 classes, among them class 000, class 001 and class 002, and takes" in about["text"]
    assert len(about["samples"]) == 10
