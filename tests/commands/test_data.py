from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from tinycifar import data, recipes, run
from tinycifar.data import cifar10


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_shown_as_a_file_that_is_the_recipe(tinycifar, name):
    shown = tinycifar("recipes", "show", name)
    assert (shown.code, shown.err) == (0, "")
    Path("shown.toml").write_text(shown.out)
    assert recipes.get("shown.toml") == recipes.get(name)
    assert tinycifar("recipes", "show", "shown.toml").out == shown.out
    assert tinycifar("recipes", "show", name, "--json").json == asdict(recipes.get(name))


def test_recipes_are_listed_as_before_beside_the_command_that_shows_one(tinycifar):
    assert [line.split()[0] for line in tinycifar("recipes").out.splitlines()] == list(recipes.RECIPES)
    assert [of["name"] for of in tinycifar("recipes", "--json").json["recipes"]] == list(recipes.RECIPES)


def test_info_says_what_pictures_of_ones_own_are(tinycifar, own):
    (own / "train" / "dog" / "notes.txt").write_text("not a picture")
    found = tinycifar("data", "info", "--data", own, "--json").json
    loaded = data.load(own)
    assert (found["name"], found["folder"], found["sha256"]) == ("own", str(own), loaded.digest)
    assert [found[f"{split}_images"] for split in ("train", "validation", "test")] == [60, 15, len(loaded.test_images)]
    assert (found["classes"], found["train_images_by_class"]) == (["car", "cat", "dog"], [20, 20, 20])
    assert (found["shorter_sides"], found["image_shape"]) == ([41, 47], [3, 32, 32])
    left_out, cropped = found["notes"]
    assert left_out == f"Left out in {own / 'train'}: 1 x .txt file"
    assert cropped.startswith("30 of the pictures lose more than 30% of their area to the crop; ")
    assert sorted(path.suffix for path in Path(found["cache"]).iterdir()) == [".json", ".npy"]
    told = tinycifar("data", "info", "--data", own)
    assert (told.code, told.err) == (0, "")
    assert "classes: car, cat, dog\ntrain images by class: 20, 20, 20\n" in told.out


def test_info_of_the_sample_and_of_cifar10(tinycifar):
    found = tinycifar("data", "info", "--data", "sample", "--json").json
    assert (found["name"], found["train_images"], found["cache"]) == ("sample", 400, None)
    assert tinycifar("data", "info", "--data", "cifar10").out == tinycifar("data", "info").out


def test_cifar10_is_fetched_by_its_name_too(tinycifar, tmp_path):
    with mock.patch.object(cifar10, "fetch", return_value=tmp_path) as fetch:
        assert tinycifar("data", "fetch", "--data", "cifar10").code == 0
    fetch.assert_called_once_with(None)


@pytest.mark.parametrize("command", [("data", "info", "--data", "sample"), ("summary", "micronet")])
def test_a_drawing_of_another_name_than_that_of_a_png_is_refused(tinycifar, command):
    refused = tinycifar(*command, "--plot", "drawing.jpg")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "drawing.jpg does not end in .png; the file is written as PNG" in refused.err
    assert not Path("drawing.jpg").exists()


def test_the_summary_of_a_model_of_another_size_and_width_is_that_of_its_own(tinycifar, own_run):
    narrow = tinycifar("summary", own_run.directory, "--plot", "fields.png", "--json").json
    assert narrow["parameters"] < tinycifar("summary", "minutenet", "--json").json["parameters"] / 2
    assert run.read_recipe(own_run.directory).image_size == 24
    with Image.open("fields.png") as drawn:
        assert min(drawn.size) > 500
