import json
from dataclasses import fields
from pathlib import Path

import pytest

from tinycifar import recipes
from tinycifar.recipes import RECIPES, Recipe, with_settings

RESULTS = Path(__file__).parents[1] / "results"


def test_the_reference_recipes_are_what_the_original_describes() -> None:
    for name, epochs, augmentation in [
        ("reference-30", 30, "reference"),
        ("reference-40", 40, "reference"),
        ("reference-30-as-run", 30, "reference-as-run"),
        ("reference-40-as-run", 40, "reference-as-run"),
    ]:
        recipe = recipes.get(name)
        assert (recipe.name, recipe.epochs, recipe.augmentation) == (name, epochs, augmentation)
        assert (recipe.model, recipe.batch_size, recipe.weight_decay) == ("c1c2c3c4o", 128, 5e-4)
        assert (recipe.watch_test, recipe.validation_images) == (True, 0)


def test_the_expected_score_of_every_recipe_is_that_of_its_records() -> None:
    for recipe in RECIPES.values():
        records = [json.loads(path.read_text()) for path in sorted((RESULTS / recipe.name).glob("seed-*.json"))]
        if not records:
            assert (recipe.expected_accuracy, recipe.expected_minutes) == (None, None)
            continue
        opened = "validation_accuracy" if recipe.validation_images else "test_accuracy"
        accuracy = sum(record[opened] for record in records) / len(records)
        minutes = sum(record["train_seconds"] for record in records) / len(records) / 60
        assert recipe.expected_accuracy == pytest.approx(accuracy, abs=5e-5)
        assert recipe.expected_minutes == pytest.approx(minutes, abs=0.05)


def test_an_unknown_recipe_is_refused_with_the_list_of_names() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'resnet'; allowed are: .*reference-30"):
        recipes.get("resnet")


def test_settings_change_fields_and_keep_their_types() -> None:
    changed = with_settings(
        recipes.get("reference-30"),
        ["batch_size=64", "max_learning_rate=1e-2", "watch_test=false", "model=C1C2C3C4O"],
    )
    assert (changed.batch_size, changed.max_learning_rate, changed.watch_test) == (64, 0.01, False)
    assert (changed.model, changed.name) == ("C1C2C3C4O", "reference-30")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size", "a setting is field=value"),
        ("name=x", "unknown recipe field 'name'"),
        ("expected_accuracy=1", "unknown recipe field 'expected_accuracy'"),
        ("colour=red", "unknown recipe field 'colour'; allowed are: model, epochs"),
        ("epochs=2.5", "epochs takes a whole number"),
        ("weight_decay=much", "weight_decay takes a number"),
        ("watch_test=perhaps", "watch_test takes true or false"),
        ("model=vgg", "unknown model 'vgg'; allowed are: c1c2c3c4o"),
        ("augmentation=mixup", "unknown augmentation 'mixup'; allowed are: none"),
        ("epochs=0", "epochs must lie between 1 and"),
        ("batch_size=1", "batch_size must lie between 2 and"),
        ("weight_decay=nan", "weight_decay must lie between 0 and 1, not nan"),
        ("max_learning_rate=-1", "max_learning_rate must lie between"),
        ("warmup_fraction=1", "warmup_fraction must lie between"),
        ("validation_images=50000", "validation_images must lie between 0 and 49"),
    ],
)
def test_a_bad_setting_is_refused_saying_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(recipes.get("reference-30"), [setting])


def test_every_number_of_a_recipe_has_a_range() -> None:
    for field in fields(Recipe):
        if field.type in ("int", "float") and field.name not in ("expected_accuracy", "expected_minutes"):
            with pytest.raises(ValueError, match=f"{field.name} must lie"):
                with_settings(recipes.get("reference-30"), [f"{field.name}=-1"])
