"""What several test files share."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

import pytest
from filelock import FileLock

from tinycifar.data import cifar10

if TYPE_CHECKING:
    from PIL import Image
    from playwright.sync_api import Browser
    from rich.progress import Progress
    from torch import Tensor

    from tinycifar.data import Dataset
    from tinycifar.environment import Environment
    from tinycifar.models import Classifier
    from tinycifar.scores import Scores

# Tests are small: more threads gain nothing, and beside other processes they wait for each other.
# tests/processors.py sets another number.
os.environ["OMP_NUM_THREADS"] = os.environ.get("TEST_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"
# A shell that runs the tests in the background has Ctrl-C ignored, here and in every process started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64 what is written for float32, so that two orders of additions differ by 1e-15 and not by 1e-7.

    Training lets such a difference grow by a factor of up to a million within 20 steps. How much depends on the
    processor: in float32 it may hide a real mistake, in float64 it stays below 1e-8.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def environment(**fields: Any) -> Environment:
    """The environment of a run, of which a test cares only for these fields."""
    from tinycifar.environment import Environment

    others = {"device": "cpu: x", "threads": 1, "precision": "float32", "data": "sample", "train_images": 300}
    return Environment(**{**others, "seed": 0, "resumes": (), **fields})


def scores(**fields: Any) -> Scores:
    """The scores of a model, of which a test cares only for these fields."""
    from tinycifar.scores import Scores

    others = {"data": "cifar10", "split": "test", "images": 1000, "correct": 500, "accuracy_interval": (0.1, 0.2)}
    others |= dict.fromkeys(("classes", "confusion", "reliability"), ())
    names = ("accuracy", "loss", "accuracy_tta", "top2_accuracy", "top3_accuracy", "brier", "ece", "images_per_second")
    return Scores(**{**others, **dict.fromkeys(names, 0.5), **fields})


def distance(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of any two values, as a part of the largest value of their tensor."""
    assert tensors.keys() == others.keys()
    return max(
        ((tensor - others[name]).abs().max() / others[name].abs().max().clamp(min=1e-3)).item()
        for name, tensor in tensors.items()
    )


def load_script(name: str) -> ModuleType:
    """A program in `scripts/` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The content of a picture file."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def write_pictures(folder: Path, train: int = 20) -> None:
    """Pictures of three classes, 41 to 60 pixels a side: `train` of each in train, 5 in val, more in test."""
    from tinycifar import data
    from tinycifar.data import pictures

    sample = data.sample()
    for label, kind in enumerate(("car", "cat", "dog")):
        images = sample.train_images[sample.train_labels == label]
        for number, image in enumerate(images[:35]):
            file = (
                folder
                / ("train" if number < train else "val" if number < train + 5 else "test")
                / kind
                / f"{number}.png"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            pictures.to_image(image).resize((60, 41 + number % 7)).save(file)


def plain_loop(
    model: Classifier,
    sample: Dataset,
    epochs: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    step: Callable[[], None],
) -> None:
    """Train as `training.train` does with the seed 5, batches of 8 and no augmentation.

    `loss` is called with the logits of a batch, its labels and its rows in the sample; `step` updates the weights.
    """
    import torch

    from tinycifar.epochs import epoch_generator

    for epoch in range(epochs):
        for rows in torch.randperm(len(sample.train_labels), generator=epoch_generator(5, epoch)).split(8):
            images = (sample.train_images[rows] / 255).contiguous(memory_format=torch.channels_last)
            value = loss(model(images), sample.train_labels[rows], rows)
            model.zero_grad()
            value.backward()
            step()


def shown() -> tuple[Progress, io.StringIO]:
    """A display, and what is printed to it."""
    from rich.console import Console
    from rich.progress import Progress

    output = io.StringIO()
    return Progress(console=Console(file=output, soft_wrap=True), disable=True), output


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once for all processes of a run of the tests; none of them changes it."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, unfinished = shared / name, shared / f"{name}-unfinished"
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped `minute` in ONNX, in every int8 variant, and as C of `minute-u8u8.onnx`."""
    import onnx

    from tinycifar import data, trained
    from tinycifar.formats import c_source, onnx_file

    def make(folder: Path) -> None:
        model = trained.load("minute", "cpu")
        onnx_file.to_onnx(model, folder / "minute.onnx")
        onnx_file.to_int8(model, folder / "minute-int8.onnx")
        for variant in ("u8u8", "s8s8"):
            calibration = data.sample().train_images
            quantized = onnx_file.quantized(onnx.load(folder / "minute.onnx"), calibration, variant=variant)
            onnx.save(quantized, folder / f"minute-{variant}.onnx")
        c_source.write(c_source.read(folder / "minute-u8u8.onnx"), folder / "c", "minute")

    return made_once(tmp_path_factory, "exports", make)


@dataclass(frozen=True)
class Own:
    """A run on own data, and the data."""

    directory: Path
    dataset: Dataset


@pytest.fixture(scope="session")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """A run on images of 24x24 pixels in three classes, whose names are not in ASCII, with images held out.

    The classes can be learned (aircraft and ships, cars and trucks, animals), so that int8 files agree with the model.
    """
    import torch

    from tinycifar import data, recipes, training
    from tinycifar.report import run_page

    sample = data.sample(image_size=24)
    groups = torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 0, 1])
    names = {
        split: tuple(f"{split}/käse/bild {index}.png" for index in range(len(labels)))
        for split, labels in (("train", sample.train_labels), ("test", sample.test_labels))
    }
    dataset = data.Dataset(
        "mine",
        ("käse", "größe <1>", "猫"),
        sample.train_images,
        groups[sample.train_labels],
        sample.test_images,
        groups[sample.test_labels],
        names=names,
    )
    settings = ["epochs=8", "batch_size=64", "image_size=24", "width=0.5", "validation_images=60"]
    recipe = recipes.with_settings(recipes.get("minute"), settings)

    def make(folder: Path) -> None:
        training.train(recipe, dataset, out=folder / "run")
        run_page.write(folder / "run", dataset)

    return Own(made_once(tmp_path_factory, "own", make) / "run", dataset)


@pytest.fixture(scope="session")
def grey_run(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """A run of one channel and `fit=pad` on pictures with colours, 24 pixels a side; `log` has what was printed."""
    from dataclasses import replace

    from tinycifar import data, recipes, training

    sample = data.sample(24)
    dataset = replace(
        sample,
        name="mine",
        classes=("a", "b", "c"),
        train_labels=sample.train_labels % 3,
        test_labels=sample.test_labels % 3,
    )
    changes = ["epochs=2", "image_size=24", "width=0.5", "validation_images=60", "channels=1", "fit=pad"]
    folder = tmp_path_factory.mktemp("grey")
    display, output = shown()
    recipe = recipes.with_settings(recipes.get("minute"), changes)
    training.train(recipe, dataset, out=folder / "run", display=display)
    (folder / "log").write_text(output.getvalue())
    return Own(folder / "run", dataset)


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """A run, as far as there is one without training, whose model has a thousand classes."""
    import torch

    from tinycifar import data, models, recipes, run
    from tinycifar.trained import save_weights

    torch.manual_seed(0)
    sample = data.sample()
    classes = tuple(f"class {index:03d}" for index in range(1000))
    labels = torch.arange(400) * 5 % 1000, torch.arange(200) * 5
    dataset = data.Dataset("many", classes, sample.train_images, labels[0], sample.test_images, labels[1])
    model = models.build("whitenet", 1000)
    model.prepare(sample.train_images)
    directory = tmp_path_factory.mktemp("thousand") / "run"
    directory.mkdir()
    recipe = recipes.get("minute")
    run.start(directory, recipe, environment(data="many", train_images=400, data_digest=dataset.digest))
    save_weights(
        directory / "model.safetensors",
        model,
        model_name="whitenet",
        recipe="minute",
        classes=classes,
        data="many",
        data_digest=dataset.digest,
        validation_images=0,
    )
    return Own(directory, dataset)


class Outcome:
    """What a command did: exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def tinycifar(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line with the given words, in this process."""

    def command(*words: str | Path) -> Outcome:
        from tinycifar.cli import main

        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return Outcome(int(ended.value.code or 0), *capfd.readouterr())

    return command


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the sample of one epoch, which no test changes."""
    import tinycifar

    def make(folder: Path) -> None:
        tinycifar.train("minute", "sample", epochs=1, limit=64, out=folder / "run", quiet=True)

    return made_once(tmp_path_factory, "trained", make) / "run"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but saved empty: drawing them takes most of the time of a short training with its report."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save(figure: Figure, file: Any, *, format: str, **options: Any) -> None:
        if format == "svg":
            file.write('<svg width="1pt" height="1pt"></svg>')
        else:
            Image.new("RGB", (1, 1)).save(file, format)

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A run directory trained on the sample for an epoch, a copy that the test may change."""
    return Path(shutil.copytree(trained_once, tmp_path / "a run with spaces and ü"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of `write_pictures`."""
    write_pictures(tmp_path / "own")
    return tmp_path / "own"


def skip(name: str, reason: str) -> NoReturn:
    """Skip the test because `reason`; with REQUIRE_`name` in the environment, as in .ci/run, fail instead."""
    if f"REQUIRE_{name}" in os.environ:
        pytest.fail(f"{reason}, and REQUIRE_{name} is set")
    pytest.skip(reason)


@pytest.fixture
def chromium() -> Iterator[Browser]:
    """The system's Chromium, headless."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        skip("CHROMIUM", "Chromium is not installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip("CHROMIUM", "playwright, which drives Chromium, is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def fashion_mnist() -> Path:
    """The folder of Debian's package dataset-fashion-mnist."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.exists():
        skip("FASHION_MNIST", "Debian's package dataset-fashion-mnist is not installed")
    return folder


@pytest.fixture
def compiler() -> str:
    """A C compiler."""
    path = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if path is None:
        skip("COMPILER", "no C compiler is installed")
    return path


@pytest.fixture
def onnxruntime_web() -> None:
    """The package onnxruntime-web, which a page of a model contains: in the cache, or from npm."""
    from tinycifar.formats import web

    cached = cifar10.cache_directory() / f"{web.PACKAGE}-{web.VERSION}.tgz"
    if not cached.exists() and shutil.which("npm") is None:
        skip("NPM", "npm is not installed and onnxruntime-web is not cached")


@pytest.fixture(autouse=True)
def own_folder_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every test runs in a folder of its own; only those marked for the full data see the user's cache.

    Only the tests of `cifar10` fill a cache, from sources of their own: none uses the network.
    """

    def fill(*arguments: object) -> None:
        raise AssertionError("a test asked for CIFAR-10 from the network")

    monkeypatch.chdir(tmp_path)
    if not {"full_data", "end_to_end"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setenv("TINYCIFAR_CACHE", str(tmp_path / "cache"))
        if request.module.__name__ != "data.test_cifar10":
            monkeypatch.setattr(cifar10, "_fill", fill)
