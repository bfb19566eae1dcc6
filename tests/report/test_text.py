from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import Own, scores
from tinycifar import inference, recipes, trained
from tinycifar.evaluation import corruptions
from tinycifar.report import text
from tinycifar.scores import Accuracy, ClassScores, Robustness, Scores


@pytest.fixture(scope="module")
def of_thousand(thousand: Own) -> Scores:
    return inference.evaluate(trained.load(thousand.directory, "cpu").model, thousand.dataset).scores


def test_of_a_thousand_classes_the_worst_and_best_are_told_and_where_the_rest_is(of_thousand):
    lines = text.by_class(of_thousand)
    assert len(lines) < 50
    assert lines[0] == "The 10 worst of 1,000 classes"
    assert "The 10 best" in lines
    assert "Most often confused" in lines
    assert any(" taken for class " in line for line in lines)
    assert lines[-1].startswith("evaluation.json has all classes")


def test_thirty_classes_are_told_in_full():
    confusion = torch.eye(30, dtype=torch.int64).tolist()
    classes = tuple(ClassScores(f"c{i}", 1, 1.0, 1.0, 1.0) for i in range(30))
    lines = text.by_class(scores(classes=classes, confusion=confusion))
    assert len(lines) == 31 + 2 + 31


def test_the_target_of_a_recipe_is_not_held_against_other_data(own_run):
    evaluation = inference.evaluate(trained.load(own_run.directory, "cpu").model, own_run.dataset).scores
    record: dict[str, Any] = {"train_accuracy": None, "best_test_accuracy": None, "images_per_second": None}
    recipe = recipes.get("minute")
    assert not any("Target" in line for line in text.closing_summary(recipe, record, evaluation, False))
    asked = recipes.with_settings(recipe, ["target_accuracy=0.3"])
    assert any("Target of 30.00%" in line for line in text.closing_summary(asked, record, evaluation, False))
    known = replace(evaluation, data_digest="")
    assert any("Target of 85.00%" in line for line in text.closing_summary(recipe, record, known, False))


def test_subsets_are_printed_with_what_they_count_and_nothing_without_them():
    found = Accuracy(images=200, correct=181, accuracy=0.905, accuracy_interval=(0.8564, 0.9382), loss=0.3)
    lines = text.subsets(scores(subsets={"mlperf-tiny": found}))
    interval = "95% interval 85.64% to 93.82%; 181 of 200 images"
    assert lines == [f"On MLPerf Tiny's test images: 90.50% ({interval})"]
    assert text.subsets(scores()) == []


def test_the_note_on_corruptions_counts_those_of_the_benchmark_in_files_of_earlier_versions_too():
    accuracy = dict.fromkeys(corruptions.CORRUPTIONS, (0.5,) * 5)
    note = text.corruption_note(Robustness(9, 0.8, 0.5, accuracy))
    assert note.startswith(
        "The mean is of these 17: 14 of CIFAR-10-C's fifteen (without frost) and 3 of its extra ones"
    )
    del accuracy["snow"]
    note = text.corruption_note(Robustness(9, 0.8, 0.5, accuracy))
    assert "these 16: 13 of CIFAR-10-C's fifteen (without snow and frost)" in note


def test_classes_that_would_look_alike_above_the_confusion_are_numbered():
    classes = tuple(ClassScores(f"class {i}", 1, 1.0, 1.0, 1.0) for i in ("one", "two"))
    heading, first, second = text.by_class(scores(classes=classes, confusion=((3, 0), (1, 2))))[-3:]
    assert (heading.split(), first.split(), second.split()) == (
        ["1", "2"],
        ["1", "class", "one", "3", "0"],
        ["2", "class", "two", "1", "2"],
    )


def test_a_rare_class_that_is_not_recognised_is_warned_of():
    classes = ClassScores("cat", 95, 1.0, 1.0, 1.0), ClassScores("dog", 5, 1.0, 0.2, 0.3)
    evaluation = scores(classes=classes, accuracy=0.96, balanced_accuracy=0.6, macro_f1=0.65)
    assert text.balance(evaluation) == [
        "Balanced accuracy: 60.00%, macro F1: 65.00% (every class has the same weight)",
        "Warning: accuracy alone misleads: 95.0% of the images are of class cat, but of class dog only 20.0% are "
        "recognised; see class_weights",
    ]
    alike = tuple(ClassScores(name, 50, 0.9, 0.9, 0.9) for name in ("cat", "dog"))
    assert text.balance(replace(evaluation, classes=alike, accuracy=0.9, balanced_accuracy=0.9)) == []
    assert text.balance(scores(classes=classes, accuracy=0.9)) == []
