"""None of these: thresholds, what they keep and reject, and every place that answers with them."""

import csv
import io
import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import tinycifar as package
from serve.test_app import png, start
from tinycifar import catalog, data, inference, numpy_model, trained
from tinycifar.evaluation import outside
from tinycifar.formats import c_source, onnx_file
from tinycifar.serve import app, served


def drawn(count: int, lead: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, 5) whose label stands out by about `lead`, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    return rng.normal(size=(count, 5)) + lead * np.eye(5)[labels], labels


def test_a_score_is_how_far_the_largest_logit_lies_above_the_mean():
    logits = np.array([[1.0, 5.0, 0.0], [2.0, 2.0, 2.0]], np.float32)
    assert outside.scores(logits).tolist() == [3.0, 0.0]
    assert outside.scores(logits + 7).tolist() == [3.0, 0.0]


def test_a_threshold_keeps_the_share_of_right_answers_that_it_is_named_for():
    logits, labels = drawn(4000, 3)
    kept = outside.thresholds(logits, labels)
    assert len(kept) == 50
    assert sorted(kept, reverse=True) == kept
    scores, right = outside.scores(logits), logits.argmax(1) == labels
    assert right.mean() < 0.99
    for keep in (0.5, 0.9, 0.945, 0.99):
        limit = outside.threshold(kept, keep, "m")
        assert (scores[right] >= limit).mean() == pytest.approx(keep, abs=2e-3)
    assert (scores >= limit).mean() != pytest.approx(keep, abs=2e-3)  # of all answers it is another share


def test_few_right_answers_give_no_thresholds():
    logits, labels = drawn(99, 50)
    assert outside.thresholds(logits, labels) == []
    assert len(outside.thresholds(*drawn(100, 50))) == 50


@pytest.mark.parametrize(
    ("kept", "keep", "value", "words"),
    [
        ([], 0.95, None, "m has no thresholds, as it was trained without validation images, or with too few; give a"),
        ([1.0] * 50, 0.995, None, r"the share of right answers to keep lies between 0.5 and 0.99, not 0.995"),
        ([1.0] * 50, float("nan"), None, "keep must be a number, not nan"),
        ([1.0] * 50, 0.95, 1.0, "`keep=` and `threshold=` exclude each other"),
        ([], None, float("nan"), "threshold must be a number, not nan"),
        ([], "0.95", None, "keep must be a number, not '0.95'"),
    ],
)
def test_what_gives_no_threshold_is_refused(kept, keep, value, words):
    with pytest.raises(ValueError, match=words):
        outside.chosen(kept, keep, value, "m")


def test_without_a_share_or_a_value_there_is_no_threshold():
    assert outside.chosen([], None, None, "m") is None
    assert outside.chosen([], None, 2.0, "m") == 2.0


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    inside, others = rng.integers(3, 9, 50).astype(float), rng.integers(0, 7, 70).astype(float)
    expected = roc_auc_score(np.repeat([1, 0], [50, 70]), np.concatenate([inside, others]))
    assert outside.auroc(inside, others) == pytest.approx(expected, abs=1e-12)


def test_what_a_threshold_keeps_and_rejects_is_counted():
    logits = np.array([[9.0, 0, 0], [0, 3, 0], [3, 0, 0], [0, 0, 0.3]])
    labels = np.array([0, 1, 2, 2])
    found = outside.compare(logits, labels, np.array([[6.0, 0, 0], [0, 0.3, 0], [0, 0, 0]]), 1.0)
    assert (found["images"], found["right"], found["outside"]) == (4, 3, 3)
    assert (found["right_kept"], found["wrong_kept"]) == (pytest.approx(2 / 3), 1.0)
    assert found["outside_rejected"] == pytest.approx(2 / 3)


def test_on_validation_images_each_half_has_the_threshold_of_the_other():
    logits, labels = drawn(2000, 3)
    logits[::2] *= 3  # the halves differ, so thresholds of one's own half would keep the share exactly
    found = outside.crossfit(logits, labels, drawn(500, 0)[0], 0.9, "m")
    first, second = (outside.threshold(outside.thresholds(logits[h::2], labels[h::2]), 0.9, "m") for h in range(2))
    assert found["threshold"] == pytest.approx((first + second) / 2)
    scores, right = outside.scores(logits), logits.argmax(1) == labels
    halves = [(scores[h::2][right[h::2]] >= limit).mean() for h, limit in enumerate((second, first))]
    assert found["right_kept"] == pytest.approx(sum(halves) / 2)
    assert abs(found["right_kept"] - 0.9) > 0.02


def test_a_shipped_model_has_thresholds_that_keep_what_they_promise_in_numpy_too():
    for name in catalog.shipped():
        model = trained.load(name, "cpu")
        assert numpy_model.load(name).kept == model.kept
        assert len(model.kept) == 50
        assert catalog.shipped()[name]["kept_from"] == "CIFAR-10's test images 0 to 4,999"


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `nano` as of a run that has thresholds of its own."""
    path = tmp_path_factory.mktemp("judging") / "judging.safetensors"
    nano = trained.load("nano", "cpu")
    about = {"model_name": nano.model_name, "recipe": "nano", "classes": nano.classes, "data": "cifar10"}
    kept = np.linspace(9, 4, 50).round(4).tolist()
    trained.save_weights(path, nano.model, **about, validation_images=0, kept=kept)
    return path


def grey(folder: Path) -> Path:
    """A folder with a picture of one colour, which is nothing."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (40, 40), (90, 90, 90)).save(folder / "nothing.png")
    return folder


def test_python_and_the_command_say_none_of_these(judging, tmp_path, tinycifar):
    grey(tmp_path / "in")
    (tmp_path / "in" / "cat.png").write_bytes(png(0))
    cat, nothing = package.predict(judging, tmp_path / "in", keep=0.99)
    logits = inference.logits(trained.load(judging, "cpu").model, data.sample().test_images[:1]).numpy()
    assert cat["score"] == pytest.approx(float(outside.scores(logits)[0]), abs=1e-4)
    assert (cat["none_of_these"], nothing["none_of_these"]) == (False, True)
    assert [entry["none_of_these"] for entry in package.predict(judging, tmp_path / "in", threshold=99.0)] == [True] * 2
    assert "score" not in package.predict(judging, tmp_path / "in")[0]
    for model in (judging, "nano"):  # NumPy alone answers for the latter
        limit = ["--threshold", "4"]
        shown = tinycifar("predict", tmp_path / "in", "--model", model, *limit)
        lines = shown.out.splitlines()
        assert "none of these" not in lines[0]
        assert "nothing.png  none of these (score " in lines[1]
        rows = list(
            csv.DictReader(io.StringIO(tinycifar("predict", tmp_path / "in", "--model", model, *limit, "--csv").out))
        )
        assert [row["none_of_these"] for row in rows] == ["no", "yes"]
        found = tinycifar("predict", tmp_path / "in", "--model", model, *limit, "--json").json
        assert found["threshold"] == 4
        assert [entry["none_of_these"] for entry in found["predictions"]] == [False, True]


def test_evaluate_counts_foreign_pictures_from_a_folder_and_from_data(judging, tmp_path, tinycifar, monkeypatch):
    folder = grey(tmp_path / "foreign")
    out = ["--out", tmp_path / "out"]
    words = ["evaluate", judging, "--data", "sample", "--outside", folder, "--keep", "0.9", *out]
    outcome = tinycifar(*words)
    assert outcome.code == 0, outcome.err
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())["outside"]
    assert (stored["outside"], stored["outside_rejected"], stored["keep"]) == (1, 1.0, 0.9)
    scores = outside.scores(inference.logits(trained.load(judging).model, data.sample().test_images).numpy())
    right = int((scores >= stored["threshold"]).sum())
    assert stored["right_kept"] * stored["right"] + stored["wrong_kept"] * (200 - stored["right"]) == pytest.approx(
        right
    )
    limit = f"None of these below a score of {stored['threshold']:.3f}, chosen to keep 90% of right answers"
    assert limit in outcome.out.splitlines()
    assert any(
        line.startswith("Rejected: 100.0% of the 1 picture of foreign (area") for line in outcome.out.splitlines()
    )
    found = package.evaluate(judging, "sample", outside="sample", threshold=3.0)["outside"]
    assert (found["outside"], found["auroc"]) == (200, 0.5)
    monkeypatch.setattr(inference, "evaluate", None)  # what is wrong is found before the evaluation
    for words, message in (
        (["--outside", tmp_path / "gone"], "does not exist"),
        (["--outside", "sample", "--keep", "2"], "right answers to keep lies between 0.5 and 0.99, not 2"),
    ):
        refused = tinycifar("evaluate", judging, "--data", "sample", *words, *out)
        assert (refused.code, message in refused.err) == (2, True)


def test_a_run_with_validation_images_stores_its_thresholds_and_judges_each_half_by_the_other(own_run):
    model = trained.load(own_run.directory, "cpu")
    evaluation = inference.evaluate(model.model, own_run.dataset.split(60))
    assert list(model.kept) == list(evaluation.scores.kept or ()) == []  # 60 images are too few
    found = inference.evaluate_model(model, source=own_run.dataset, others="sample", threshold=0.5).scores.outside
    assert (found.images, found.outside) == (60, 200)
    with pytest.raises(ValueError, match="run has no thresholds"):
        inference.evaluate_model(model, source=own_run.dataset, others="sample")
    with mock.patch.object(inference, "evaluate", None), pytest.raises(ValueError, match=r"0\.5 and 0\.99, not 2"):
        inference.evaluate_model(model, source=own_run.dataset, others="sample", keep=2.0)


def test_pictures_without_labels_come_from_folders_and_from_data(own, tmp_path):
    loaded = data.load(own, image_size=24, channels=1)
    assert torch.equal(data.load_pictures(own, image_size=24, channels=1), loaded.test_images)
    folder = tmp_path / "loose" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(3))
    found = data.load_pictures(tmp_path / "loose")
    assert torch.equal(found, data.sample().test_images[3:4])
    assert torch.equal(data.load_pictures(folder / "a.png"), found)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        data.load_pictures(tmp_path / "empty")


def test_the_service_says_none_of_these_if_asked(judging, tmp_path):
    exported = onnx_file.to_onnx(trained.load(judging, "cpu"), tmp_path / "judging.onnx")
    service = app.Service(served.open_model(str(exported.path)))
    assert service.model.about.kept == trained.load(judging).kept
    image = service.decode(png(0))
    plain, below, above = service.classify([image] * 3, [app.Asked(), app.Asked(threshold=1), app.Asked(threshold=99)])
    assert "none_of_these" not in plain
    assert (below["none_of_these"], above["none_of_these"]) == (False, True)
    assert below["classes"] == above["classes"]


def test_a_header_of_c_states_thresholds(judging, tmp_path):
    model = trained.load(judging, "cpu")
    onnx_file.to_int8(model, tmp_path / "int8.onnx", variant="u8u8")
    header, _ = c_source.write(c_source.read(tmp_path / "int8.onnx"), tmp_path, "judging")
    limit = outside.threshold(model.kept, 0.95, "")
    found = re.search(r"#define JUDGING_KEEP_95 ([0-9.]+)f /\* none of these if the largest logit", header.read_text())
    assert float(found[1]) == pytest.approx(limit)


@pytest.mark.slow
def test_in_a_browser_the_page_says_none_of_these_if_its_visitor_wants_to(judging, chromium, tmp_path):
    grey(tmp_path / "in")
    running = start(judging, tmp_path / "log")
    try:
        for query, status in (("keep=2", 400), ("threshold=x", 400), ("keep=0.9&threshold=1", 400), ("keep=0.9", 200)):
            answer = running.ask("POST", f"/predict?{query}", png(0))
            assert answer[0] == status, answer
        assert answer[1]["none_of_these"] is False
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{running.port}/")
        page.wait_for_selector("html[data-ready]")
        page.set_input_files("#file", tmp_path / "in" / "nothing.png")
        page.wait_for_selector("html[data-answers='1']")
        before = page.inner_text("#top")
        assert "None" not in before
        page.select_option("#keep", label="and keep 95% of right answers")
        page.wait_for_selector("html[data-answers='2']")
        assert page.inner_text("#top") == f"None of these ({before})"
    finally:
        running.stop()
