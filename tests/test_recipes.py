import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tinycifar import recipes
from tinycifar.recipe import INFO
from tinycifar.recipes import RECIPES, Recipe, with_settings

RESULTS = Path(__file__).parents[1] / "results"


def test_the_reference_recipes_are_what_the_original_describes():
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


def test_the_expected_score_of_every_recipe_is_that_of_its_records():
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


def test_settings_change_fields_and_keep_their_types():
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
        ("teacher=minute+", r"teacher takes recipes' names joined by \+, or nothing, not 'minute\+'"),
        ("weight_decay=nan", "weight_decay must lie between 0 and 1, not nan"),
    ],
)
def test_a_bad_setting_is_refused_saying_what_is_allowed(setting, message):
    with pytest.raises(ValueError, match=message):
        with_settings(recipes.get("reference-30"), [setting])


@pytest.mark.parametrize("name", ['say "hi"', "../../x", "", "a b", "x\n", "a" * 101, ".hidden", "a/b", "a\\b"])
def test_a_name_that_cannot_be_a_folder_or_a_value_in_a_file_is_refused(name):
    with pytest.raises(ValueError, match="name takes letters, digits"):
        replace(recipes.get("minute"), name=name)
    with pytest.raises(ValueError, match=r"(teacher|name) takes"):
        replace(recipes.get("minute"), name=name, teacher=name)


@pytest.mark.parametrize("name", ["größe", "猫-1", "\U0001d49c.b", "a" * 100])
def test_a_recipe_with_any_allowed_name_and_teacher_is_read_back_from_its_file(tmp_path, name):
    recipe = replace(recipes.get("minute"), name=name, teacher=name)
    (tmp_path / "recipe.toml").write_text(recipes.to_toml(recipe), encoding="utf-8")
    assert recipes.same(recipes.read(tmp_path / "recipe.toml"), recipe)


def test_every_range_is_checked_at_both_ends_where_the_field_states_it():
    ranges = {name: info for name, info in INFO.items() if info.low is not None}
    numbers = {field.name for field in fields(Recipe) if field.type in ("int", "float")}
    assert ranges.keys() == numbers - {"channels", "image_size"}
    for name, info in ranges.items():
        kind = type(getattr(recipes.get("minute"), name))
        assert info.low is not None
        assert info.high is not None
        changed = {"warmup_fraction": 0.01} if name == "hold_fraction" else {}
        changed |= {"hold_fraction": 0.0} if name == "warmup_fraction" else {}
        for value, outside in ((info.low, info.low - 1), (info.high, info.high * 2 + 1)):
            if name != "hold_fraction" or value == info.low:
                replace(recipes.get("reference-30"), **{**changed, name: kind(value)})
            with pytest.raises(ValueError, match=f"{name} must lie between"):
                replace(recipes.get("reference-30"), **{**changed, name: kind(outside)})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_written_as_a_file_is_read_as_the_same_one(recipe, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(recipes.to_toml(recipe))
    assert recipes.get(str(file)) == recipe


def test_an_edited_file_is_a_recipe_of_its_own_with_defaults_for_what_it_leaves_out(tmp_path):
    file = tmp_path / "small-one.toml"
    file.write_text('model = "nanonet"\nepochs = 3\naugmentation = "none"\nwidth = 0.5\n')
    expected = Recipe("small-one", model="nanonet", epochs=3, augmentation="none", width=0.5)
    assert recipes.get(str(file)) == expected
    file.write_text("\ufeff" + recipes.to_toml(recipes.get("minute")).replace("epochs = 4", "epochs = 5"))
    assert recipes.changed(recipes.get(str(file))) == {"epochs": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 4\nmodle = 'x'\n", r"mine.toml, line 2: unknown recipe field 'modle'; allowed are: name, model, ep"),
        ("[model]\nx = 1\n", r"mine.toml: a recipe needs epochs, augmentation too"),
        ("epochs = \n", r"mine.toml is no TOML file: .*line 1"),
        ("epochs = 4\nepochs = 5\n", r"mine.toml is no TOML file: .*line 2"),
        ("\xff", r"mine.toml is no TOML file: it is not in UTF-8"),
        ("x = " + "[" * 100_000, r"mine.toml is no"),
        ("# one\nname = '../up'\n", r"mine.toml, line 2: name takes letters"),
        ("WHOLE\nimage_size = 33\n", r"mine.toml, line 4: image_size must lie between 16 and 64 in steps of 8 for whi"),
        ("WHOLE\n\nepochs = '4'\n", r"mine.toml, line 5: epochs takes a whole number, not '4'"),
        ("WHOLE\nwidth = nan\n", r"mine.toml, line 4: width must lie between 0.1 and 8, not nan"),
        (
            f"WHOLE\nepochs = 1{'0' * 400}\n",
            r"mine.toml, line 4: epochs must lie between 1 and 100000, not one with as",
        ),
        (f"WHOLE\nepochs = 1{'0' * 5000}\n", r"mine.toml is no TOML file: "),
        ("WHOLE\nwatch_test = 1\n", r"mine.toml, line 4: watch_test takes true or false, not 1"),
        ("WHOLE\nexpected_minutes = 1\n", r"mine.toml, line 4: unknown recipe field 'expected_minutes'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line_and_field(text, message, tmp_path):
    text = text.replace("WHOLE", 'model = "whitenet"\nepochs = 4\naugmentation = "none"')
    if text.count("epochs =") > 1 and text.startswith("model"):
        text = text.replace("epochs = 4\n", "batch_size = 4\n")
    (tmp_path / "mine.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        recipes.get(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(("name", "most"), [("minute", 100_000), ("nano", 41_432), ("reference-30", 500_000)])
def test_the_widest_recipe_of_a_budget_fits_it_and_one_hundredth_more_does_not(name, most):
    def parameters(width: float) -> int:
        model = replace(recipe, width=width).build(num_classes=7)
        return sum(parameter.numel() for parameter in model.parameters())

    recipe = recipes.widest(recipes.get(name), most, num_classes=7)
    assert parameters(recipe.width) <= most
    assert parameters(round(recipe.width + 0.01, 2)) > most
    assert replace(recipe, width=1.0) == recipes.get(name)


def test_a_budget_below_the_narrowest_model_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"minutenet has at least 1,\d+ parameters with 10 classes, more than 1,000"):
        recipes.widest(recipes.get("minute"), 1_000)
