"""Pictures that a model was trained on, and such that look like them, are reported where it is evaluated."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import scores
from tinycifar import data, inference, recipes, run, trained, training
from tinycifar.data import contents, loading, pictures
from tinycifar.report import run_page, text
from tinycifar.scores import Seen

SMALL = ["epochs=1", "image_size=16", "width=0.1", "augmentation=none"]


@pytest.fixture
def leaking(own: Path, tmp_path: Path) -> Path:
    """A folder of pictures to score: one that was trained on, one made of another, and what is new."""
    folder = tmp_path / "new" / "test"
    shutil.copytree(own / "test", folder)
    shutil.copyfile(own / "train" / "cat" / "3.png", folder / "cat" / "seen.png")
    Image.open(own / "train" / "dog" / "4.png").save(folder / "dog" / "alike.jpg", quality=90)
    return tmp_path / "new"


def test_a_model_that_is_evaluated_on_what_it_was_trained_on_says_so(own, leaking, tmp_path, tinycifar):
    recipe = recipes.with_settings(recipes.get("minute"), SMALL)
    training.train(recipe, str(own), out=tmp_path / "run")
    outcome = tinycifar("evaluate", tmp_path / "run", "--data", leaking, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    images = found["images"]
    assert found["seen"] == {"images": 1, "first": ["test/cat/seen.png"]}
    line = f"Warning: the model was trained on 1 of the {images} test images: scores are too good (test/cat/seen.png)"
    assert line in outcome.out.splitlines()
    clean = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert clean["near_duplicates"] == 0
    assert text.leaks(run.read_evaluation(tmp_path / "run")) == []
    of_its_own = inference.evaluate_model(trained.load(tmp_path / "run", "cpu")).scores
    assert of_its_own.seen == Seen(0, ())


def test_near_duplicates_across_the_split_are_counted_in_evaluation_and_report(own, tmp_path, tinycifar):
    shutil.rmtree(own / "val")
    Image.open(own / "train" / "dog" / "4.png").save(own / "test" / "dog" / "alike.jpg", quality=90)
    recipe = recipes.with_settings(recipes.get("minute"), SMALL)
    training.train(recipe, str(own), out=tmp_path / "run")
    outcome = tinycifar("evaluate", tmp_path / "run")
    evaluation = run.read_evaluation(tmp_path / "run")
    assert evaluation.near_duplicates == 1
    (line,) = text.leaks(evaluation)
    assert line.startswith(f"1 of the {evaluation.images} test images look like training images (perceptual hashes)")
    assert line in outcome.out.splitlines()
    assert line in run_page.write(tmp_path / "run").read_text()


def test_names_are_the_first_three_and_unnamed_images_are_numbered():
    seen = Seen(5, ("a", "b\n", "c"))
    (line,) = text.leaks(scores(images=9, split="validation", seen=seen))
    assert line == (
        "Warning: the model was trained on 5 of the 9 validation images: scores are too good (a, b\\n, c, ...)"
    )
    assert text.leaks(scores(images=9)) == []


@pytest.mark.parametrize(
    ("size", "wide", "noted"), [((60, 41), 12, True), ((60, 45), 12, False), ((41, 60), 12, True), ((60, 41), 1, False)]
)
def test_a_note_says_if_much_of_the_pictures_is_cropped_away(size, wide, noted, tmp_path):
    for number, image in enumerate(data.sample().test_images[:12]):
        file = tmp_path / "own" / "train" / ("a", "b")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pictures.to_image(image).resize(size if number < wide else (60, 60)).save(file)
    note = f"{wide} of the pictures {contents.CROPPED}{contents.ADVICE}"
    for _ in range(2):  # decoded, and from the cache
        assert (note in data.load(tmp_path / "own").notes) == noted
    assert not any("crop" in line for line in data.load(tmp_path / "own", fit="pad").notes)
    scored = loading.load_to_score(tmp_path / "own", ("a", "b"))  # by a model, whose fit is given
    assert (note.removesuffix(contents.ADVICE) in scored.notes) == noted
    pixels = np.stack([pictures.to_image(image).resize(size) for image in data.sample().test_images[:12]])
    np.savez(tmp_path / "own.npz", train_images=pixels, train_labels=np.arange(12) % 2)
    assert any(contents.CROPPED in line for line in data.load(tmp_path / "own.npz").notes) == (noted or wide == 1)
