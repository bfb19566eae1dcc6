from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import environment, scores
from tinycifar import atomic, recipes, run, typed
from tinycifar.recipes import Recipe
from tinycifar.report import compare, text
from tinycifar.scores import ClassScores

RECIPE = recipes.get("reference-30")
OTHER = replace(RECIPE, weight_decay=0.1)
LABELS = torch.arange(1000) % 10
TEN_CLASSES = tuple(ClassScores(str(number), 100, 0.5, 0.5, 0.5) for number in range(10))


def make(directory: Path, recipe: Recipe, right: range | list[int], seed: int = 0, **changes: Any) -> Path:
    """A run that has those of the 1,000 images right that `right` says."""
    directory.mkdir(parents=True)
    run.start(directory, recipe, environment(data="cifar10", train_images=50_000, seed=seed))
    accuracy = len(right) / 1000
    for epoch in (1, 2):
        entry = {"epoch": epoch, "train_accuracy": 0.3, "test_accuracy": accuracy * epoch / 2, "train_seconds": 5.0}
        run.append_metrics(directory, entry)
    predicted = (LABELS + 1) % 10
    predicted[list(right)] = LABELS[list(right)]
    logits = torch.nn.functional.one_hot(predicted, 10).float()
    save_file({"logits": logits, "logits_tta": logits.clone(), "labels": LABELS}, directory / "evaluation.safetensors")
    found = scores(accuracy=accuracy, correct=len(right), ece=0.05, classes=TEN_CLASSES)
    atomic.write_json(directory / "evaluation.json", typed.to_json(found) | changes)
    return directory


def test_two_single_runs_are_compared_on_the_same_images(tmp_path):
    first = make(tmp_path / "a", RECIPE, range(100, 900))
    near = compare.compare([first, make(tmp_path / "b", OTHER, [*range(105, 900), *range(910, 919)])])
    (verdict,) = near.verdicts
    assert (verdict["test"], verdict["only_first"], verdict["only_second"]) == ("mcnemar", 5, 9)
    assert verdict["p"] == pytest.approx(0.424, abs=1e-3)  # by hand: 2 * P(Binomial(14, 1/2) <= 5)
    assert verdict["significant"] is False
    assert "B is 0.40 points above A: within noise (McNemar p = 0.42" in verdict["text"]
    far = compare.compare([first, make(tmp_path / "c", OTHER, range(200, 900))])
    assert far.verdicts[0]["significant"] is True
    assert "B is 10.00 points below A: more than noise" in far.verdicts[0]["text"]


def seeds_of(directory: Path, recipe: Recipe, counts: list[int]) -> Path:
    for seed, count in enumerate(counts):
        make(directory / f"seed-{seed}", recipe, range(count), seed)
    return directory


def test_several_seeds_of_two_recipes_are_compared_by_welchs_interval(tmp_path):
    first = seeds_of(tmp_path / "a", RECIPE, [850, 852, 854])
    near = compare.compare([first, seeds_of(tmp_path / "b", OTHER, [851, 853, 856])])
    (verdict,) = near.verdicts
    assert (verdict["test"], verdict["significant"]) == ("welch", False)
    assert "within noise (Welch's 95% interval" in verdict["text"]
    far = compare.compare([first, seeds_of(tmp_path / "c", OTHER, [870, 872, 874])])
    assert far.verdicts[0]["significant"] is True
    low, high = far.verdicts[0]["interval"]
    assert (low + high) / 2 == pytest.approx(0.02)
    assert [len(of.runs) for of in far.contenders] == [3, 3]


def test_a_single_seed_is_held_against_what_another_seed_would_give(tmp_path):
    several = seeds_of(tmp_path / "a", RECIPE, [850, 852, 854])
    inside = compare.compare([several, make(tmp_path / "b", OTHER, range(856))]).verdicts[0]
    outside = compare.compare([several, make(tmp_path / "c", OTHER, range(870))]).verdicts[0]
    assert (inside["significant"], outside["significant"]) == (False, True)
    assert "B has only one seed" in inside["text"]


def test_runs_of_one_recipe_are_one_contender_however_they_are_named(tmp_path):
    runs = [make(tmp_path / str(seed), RECIPE, range(840 + seed), seed) for seed in range(3)]
    found = compare.compare(runs)
    assert (len(found.contenders), found.verdicts) == (1, ())
    (contender,) = found.contenders
    assert contender.accuracy == pytest.approx(0.841)
    assert (contender.parameters, contender.train_seconds) == (195_946, 10.0)
    again = make(tmp_path / "again", RECIPE, range(800), seed=1)
    with pytest.raises(ValueError, match=r"1 and .*again are the same recipe and seed; name one"):
        compare.compare([*runs, again])


def test_two_runs_of_one_recipe_are_compared_with_each_other(tmp_path):
    runs = [make(tmp_path / str(seed), RECIPE, range(840 + 30 * seed), seed) for seed in range(2)]
    found = compare.compare(runs)
    assert [len(of.runs) for of in found.contenders] == [1, 1]
    assert found.verdicts[0]["test"] == "mcnemar"


def test_a_seed_that_was_not_finished_is_left_out_and_named(tmp_path):
    many = seeds_of(tmp_path / "many", RECIPE, [850, 852, 854])
    (many / "seed-1" / "evaluation.json").unlink()
    found = compare.compare([many])
    assert [member.environment.seed for member in found.contenders[0].runs] == [0, 2]
    assert f"{many / 'seed-1'} is not finished and is left out." in found.lines()
    for seed in (0, 2):
        (many / f"seed-{seed}" / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="no seed was finished"):
        compare.compare([many])


def test_equal_accuracies_are_level_and_intervals_stay_between_0_and_1(tmp_path):
    found = compare.compare([make(tmp_path / "a", RECIPE, range(850)), make(tmp_path / "b", OTHER, range(850))])
    assert found.verdicts[0]["text"].startswith("B is level with A: within noise")
    spread = compare.compare([seeds_of(tmp_path / "c", RECIPE, [10, 600])])
    assert spread.contenders[0].interval == (0.0, 1.0)


def test_each_curve_is_of_the_split_that_was_watched(tmp_path):
    first = make(tmp_path / "a", RECIPE, range(850))
    second = make(tmp_path / "b", OTHER, range(700), split="validation")
    found = compare.compare([first, second])
    assert any("accuracy over the epochs: A test, B training" in line for line in found.lines())
    compare.write(found, tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text()
    assert "A, test" in page
    assert "B, training" in page


def test_on_other_images_no_verdict_is_given(tmp_path):
    first = make(tmp_path / "a", RECIPE, range(850))
    second = make(tmp_path / "b", RECIPE, range(850), split="validation", data="mine")
    (verdict,) = compare.compare([first, second]).verdicts
    assert verdict["test"] is None
    assert "on different images: this says little" in verdict["text"]


def test_the_text_and_the_page_hold_labels_with_what_was_changed_table_curves_and_verdict(tmp_path):
    found = compare.compare([make(tmp_path / "a", RECIPE, range(850)), make(tmp_path / "b", OTHER, range(700))])
    heading, first, second = found.table()
    assert first[0] == "A  reference-30, 2 of its epochs"
    assert second[0] == "B  reference-30, weight_decay=0.1, 2 of its epochs"
    assert dict(zip(heading, first, strict=True))["accuracy"] == "85.00%"
    assert dict(zip(heading, first, strict=True))["95% interval"] == "10.00% to 20.00%"
    lines = found.lines()
    assert any(line.startswith(first[0]) for line in lines)
    assert any("|" in line and "A" in line for line in lines)
    assert found.verdicts[0]["text"] in lines
    compare.write(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for text_in_page in ("more than noise", "Accuracy over the epochs", "weight_decay=0.1"):
        assert text_in_page in page


def test_a_run_that_was_not_evaluated_or_lacks_its_epochs_is_refused_by_name(tmp_path):
    for name in ("evaluation.json", "metrics.jsonl"):
        (make(tmp_path / name, RECIPE, range(5)) / name).unlink()
    (make(tmp_path / "damaged", RECIPE, range(5)) / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for folder, message in (
        ("evaluation.json", "evaluation.json was not evaluated"),
        ("metrics.jsonl", r"metrics\.jsonl lacks epochs"),
        ("damaged", r"metrics\.jsonl lacks epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            compare.compare([tmp_path / folder])


def test_more_recipes_than_there_are_letters_are_refused(tmp_path):
    assert len(set(compare.LETTERS)) == len(compare.LETTERS)
    runs = [make(tmp_path / str(n), replace(RECIPE, weight_decay=n / 100), range(9)) for n in range(53)]
    with pytest.raises(ValueError, match="53 recipes are too many to compare; allowed are 52"):
        compare.compare(runs)


def test_a_chart_has_letters_where_curves_run_and_asterisks_where_they_meet():
    lines = text.chart([("A test", [1, 2], [50.0, 70.0]), ("B test", [1, 2], [50.0, 60.0])], width=20, height=5)
    assert lines[1] == " 70% |                   A"
    assert lines[3] == "     |                   B"
    assert lines[5] == " 50% |*"
    assert lines[7].split() == ["epoch", "1", "2"]
