from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conftest import environment
from tinycifar import atomic, data, inference, recipes, run, trained, training
from tinycifar.data import cifar10
from tinycifar.data.dataset import CLASSES
from tinycifar.report import run_page

RECIPE = recipes.with_settings(recipes.get("minute"), ["epochs=2", "validation_images=100"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the sample with validation images, evaluated on corrupted ones too."""
    directory = tmp_path_factory.mktemp("reported") / "run"
    training.train(RECIPE, "sample", out=directory)
    found = inference.evaluate_model(trained.load(directory), corrupted=5)
    found.save(directory)
    run_page.write(directory)
    return directory


class Addresses(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]


def test_a_page_needs_nothing_but_itself(finished):
    page = (finished / "report.html").read_text()
    parser = Addresses()
    parser.feed(page)
    assert len(parser.found) > 20
    assert all(address.startswith(("data:", "#")) for address in parser.found)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_a_page_holds_everything_that_is_known_of_a_run_and_its_validation_images(finished):
    page = (finished / "report.html").read_text()
    evaluation = atomic.read_json(finished / "evaluation.json")
    assert f"{100 * evaluation['accuracy']:.2f} %" in page
    assert "test images" not in page
    for text in (
        *("of 100 validation images right", "the test set was not evaluated", "166,240", "skip_easiest"),
        *("Confusion: most often", "Calibration: confidence is", "Corrupted images: ", "Learning rate over"),
        *("MirroredConv-3", "torch_version", "threads", "The mean is of these 17", "fitted to these images"),
    ):
        assert text in page


def test_the_gallery_shows_the_most_confident_mistakes_first(finished):
    page = (finished / "report.html").read_text()
    logits, labels = (run_page.read_logits(finished / "evaluation.safetensors")[key] for key in ("logits", "labels"))
    temperature = atomic.read_json(finished / "evaluation.json")["temperature"]
    confidence, predicted = (logits / temperature).softmax(1).max(1)
    confidence[predicted == labels] = 0
    expected = confidence.argsort(descending=True, stable=True)[: run_page.MISTAKES].tolist()
    gallery = page[page.index("Its most confident mistakes") : page.index("Check these labels first")]
    assert [int(index) for index in re.findall(r"\(#(\d+)\)", gallery)] == expected
    first = re.search(r"<b>(\w+)</b> ([\d.]+) %<br>is (\w+)", page)
    assert first.group(1) == CLASSES[predicted[expected[0]]]
    assert float(first.group(2)) == pytest.approx(100 * float(confidence[expected[0]]), abs=0.06)
    assert first.group(3) == CLASSES[labels[expected[0]]]


def test_the_names_of_classes_and_folders_cannot_become_markup(tmp_path):
    from dataclasses import replace

    classes = ("<script>alert(1)</script>", *CLASSES[1:])
    directory = tmp_path / "<b>run"
    training.train(replace(RECIPE, epochs=1), replace(data.sample(), name="mine", classes=classes), out=directory)
    page = run_page.write(directory).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_run_that_was_stopped_is_reported_as_far_as_it_went(tmp_path):
    run.start(tmp_path, RECIPE, environment())
    assert "0 <small>epochs: stopped during the first" in run_page.write(tmp_path).read_text()
    entry = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.2, "learning_rate": 0.1, "train_seconds": 3.0}
    run.append_metrics(tmp_path, entry)
    assert "1 <small>of 2 epochs: stopped before evaluation" in run_page.write(tmp_path).read_text()


def test_a_run_that_ended_early_does_not_pass_as_whole(tmp_path):
    training.train(RECIPE, "sample", out=tmp_path / "run", limit=60, stop_after_epoch=1)
    page = run_page.write(tmp_path / "run").read_text()
    assert "one run of 1 of 2 epochs, <strong>stopped early</strong>" in page


def test_a_report_begins_no_download(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    model = trained.load(finished)
    about = {"model_name": model.model_name, "recipe": model.recipe, "classes": model.classes, "data": "cifar10"}
    trained.save_weights(tmp_path / "run" / "model.safetensors", model.model, **about, validation_images=100)
    content = json.loads((finished / "environment.json").read_text()) | {"data": "cifar10"}
    (tmp_path / "run/environment.json").write_text(json.dumps(content))
    assert "CIFAR-10 is not in the cache" in run_page.write(tmp_path / "run").read_text()


def test_a_report_names_no_path_of_this_machine(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    about = {
        "recipe": "minute",
        "source": "/home/j.doe/runs/a/model.safetensors",
        "sha256": "00",
        "data": "/home/j.doe",
    }
    content = json.loads((finished / "environment.json").read_text())
    content |= {"teachers": [about], "init": {"name": "a", **about}, "data": "/home/j.doe/patients"}
    (tmp_path / "run/environment.json").write_text(json.dumps(content))
    page = run_page.write(tmp_path / "run").read_text()
    assert "j.doe" not in page
    assert "patients" in page


def test_images_that_are_not_at_hand_cost_the_gallery_alone(finished, monkeypatch):
    def gone(source: str, **_: object) -> None:
        raise cifar10.DataError(f"{source} is gone")

    monkeypatch.setattr(data, "load", gone)
    before = (finished / "report.html").read_text()
    try:
        page = run_page.write(finished).read_text()
    finally:
        (finished / "report.html").write_text(before)
    assert "The images are not available: sample is gone" in page
    assert "Confusion: most often" in page


def test_logits_of_other_images_and_a_folder_of_seeds_are_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    other = dataclasses.replace(data.sample(), test_labels=data.sample().test_labels.flip(0))
    inference.evaluate(trained.load(finished).model, other).save(tmp_path / "run")
    with pytest.raises(ValueError, match="belongs to other data than `data=` names"):
        run_page.write(tmp_path / "run")
    (tmp_path / "run" / "evaluation.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"evaluation\.safetensors is missing or damaged"):
        run_page.write(tmp_path / "run")
    (tmp_path / "several" / "seed-0").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds several seeds"):
        run_page.write(tmp_path / "several")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_the_page_opens_from_disk_without_error_or_overflow(finished, chromium, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((finished / "report.html").as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(finished / "report.html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert (page.evaluate("document.images.length") > 20, page.evaluate(broken)) == (True, 0)
    assert page.locator("figure svg").count() == 6
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")


def test_a_run_on_own_data_is_reported_with_its_names_and_what_was_changed(own_run):
    page = (own_run.directory / "report.html").read_text()
    assert "<dt>data</dt><dd>mine</dd>" in page
    assert "<dt>image size</dt><dd>24 x 24 pixels</dd>" in page
    changed = "epochs = 8, width = 0.5, image_size = 24, batch_size = 64, validation_images = 60"
    assert f"Changed fields of the recipe minute: {changed}." in page
    assert re.search(r"is (käse|größe &lt;1&gt;|猫) <span class=\"soft\">\(train/käse/bild 3[4-9]\d\.png\)", page)
    assert "größe <1>" not in page
    assert "CIFAR-10" not in page


def test_a_run_can_be_reported_on_the_images_it_opened_last_and_without_its_data(own_run, tmp_path):
    directory = shutil.copytree(own_run.directory, tmp_path / "run")
    inference.evaluate(trained.load(directory, "cpu").model, own_run.dataset).save(directory)
    page = run_page.write(directory, own_run.dataset).read_text()
    assert "of 200 test images right" in page
    assert "(test/käse/bild " in page
    assert "near-duplicates" not in page
    page = run_page.write(directory).read_text()
    assert re.search("The images are not available: .*mine.*with --data", page)
    assert "Confusion: most often" in page
    with pytest.raises(ValueError, match="belongs to other data than `data=` names"):
        run_page.write(directory, data.sample(image_size=24))


def test_data_that_is_called_as_cifar10_is_not_taken_for_it(own_run, tmp_path):
    directory = shutil.copytree(own_run.directory, tmp_path / "run")
    for name in ("cifar10", "sample"):
        evaluation = atomic.read_json(directory / "evaluation.json") | {"data": name, "split": "test"}
        atomic.write_json(directory / "evaluation.json", evaluation)
        page = run_page.write(directory).read_text()
        assert "near-duplicates" not in page
        assert "a trial, not a result" not in page


def test_a_thousand_classes_are_reported_by_their_best_and_worst(thousand, tmp_path, chromium):
    directory = shutil.copytree(thousand.directory, tmp_path / "run")
    inference.evaluate(trained.load(directory, "cpu").model, thousand.dataset).save(directory)
    path = run_page.write(directory, thousand.dataset)
    page = path.read_text()
    assert len(page) < 600_000
    for expected in ("The 10 worst of 1,000 classes", "The 10 best", "Most often confused", "evaluation.json"):
        assert expected in page
    assert page.count("<td>class ") == 30  # ten in each table
    shown = chromium.new_page(viewport={"width": 390, "height": 900})
    shown.goto(path.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_shows_the_hardest_training_images_with_their_labels(own_run):
    page = (own_run.directory / "report.html").read_text()
    index, loss = run.read_hardest(own_run.directory)[0]
    section = page[page.index("Check these labels first") :]
    assert f"(train/käse/bild {index}.png)" in section
    assert f"loss {loss:.2f}" in section
    assert section.count('alt="training image ') == run_page.MISTAKES
