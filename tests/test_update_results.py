"""The README's figures: written from the records, and found out when they are stale."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from conftest import load_script
from tinycifar.recipes import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a copy of the records and on a README of its own."""
    module = load_script("update_results")
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    for path, blocks in module.TEXTS.items():
        marks = [
            (f"<!-- {block.__name__}: written by `make results` -->", f"<!-- {block.__name__} end -->")
            for block in blocks
        ]
        text = "".join(f"before\n{begin}\n{end}\nafter\n" for begin, end in marks)
        (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_documents_hold_the_figures_of_the_records_and_are_stale_once_a_record_changes(script, capsys):
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    text = (script.ROOT / "docs/RESULTS.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("after\nbefore\n") == len(script.TEXTS["docs/RESULTS.md"]) - 1
    path = script.RESULTS / "reference-30-as-run" / "seed-0.json"
    record = json.loads(path.read_text())
    (row,) = [line for line in text.splitlines() if line.startswith("| `reference-30-as-run`")]
    assert f"| {100 * record['test_accuracy']:.2f} |" in row
    assert row.endswith("| 87.20, 85.52, 85.52 |")

    record["test_accuracy"] = record["history"][-1]["test_accuracy"] = 0.9
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert script.main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "docs/RESULTS.md: differs from results/" in printed
    assert "reference-30-as-run.png: differs from results/" in printed


def test_the_headline_is_the_mean_of_the_seeds_with_students_interval(script):
    for seed, accuracy in enumerate([0.85, 0.86, 0.87]):
        path = script.RESULTS / "minute" / f"seed-{seed}.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"test_accuracy": accuracy, "train_seconds": 10.0 + seed}))
    for path in (script.RESULTS / "minute").glob("seed-[3-9].json"):
        path.unlink()
    text = script.headline()
    # The deviation is a point; of the mean of three, with Student's quantile 4.303, the interval is 2.48 points.
    for part in ("**86.00 ± 1.00%", "after 11.0 seconds", "mean of 3 seeds", "83.52 to 88.48"):
        assert part in text


def test_only_ten_seeds_that_are_surely_above_85_percent_enter_the_leaderboard(script):
    assert "| `minute` |" in script.leaderboard()
    assert "| `reference-30-as-run` |" not in script.leaderboard()
    path = script.RESULTS / "minute" / "seed-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_accuracy": 0.5}))
    assert "| `minute` |" not in script.leaderboard()
    path.unlink()
    assert "| `minute` |" not in script.leaderboard()


def test_every_processor_that_was_measured_has_a_row_and_the_headline_is_of_that_of_its_records(script):
    folder = script.RESULTS / "minute" / "bench-train"
    kept, *others = sorted(folder.glob("*.json"))
    for path in others:
        path.unlink()
    bench = json.loads(kept.read_text())
    (first,) = script.processors().splitlines()[2:-2]
    assert first.startswith(
        f"| {bench['processor']} | {bench['threads']}, {bench['torch_version']} | {bench['train_seconds']:.1f} "
        f"| {bench['ratios']['float32']:.1f} |"
    )
    another = bench | {
        "processor": "AVX2, on another",
        "device": "cpu: another",
        "instruction_set": "avx2",
        "precision": "float32",
        "ratios": {"float32": 12.3},
        "reference_seconds": {"float32": 500.0},
        "train_seconds": 999.9,
    }
    (folder / "avx2-on-another.json").write_text(json.dumps(another))
    rows = script.processors().splitlines()[2:-2]
    assert rows[0] == first
    assert rows[1].startswith("| AVX2, on another | 2, 2.13.0+cpu | 999.9 | 12.3 | 12.3 in float32 | ")
    assert f"{bench['reference_seconds']['float32'] / 60:.1f} minutes" in script.headline()
    for path in (script.RESULTS / "minute").glob("seed-*.json"):
        record = json.loads(path.read_text()) | {"device": "cpu: another", "instruction_set": "avx2"}
        path.write_text(json.dumps(record))
    assert "8.3 minutes" in script.headline()


def test_other_networks_have_what_they_reach_in_the_time_of_minute_and_when_they_pass_the_target(script):
    path = script.RESULTS / "others.json"
    common = {"parameters": 1_000_000, "macs": 557_000_000, "seconds_an_epoch": 1234.4}
    rows = {
        "`minute`": {"test_accuracy": 0.8568, "images": 117_500, "seconds_to_target": 99.7, "train_seconds": 99.7},
        "small": {"test_accuracy": 0.5, "images": 25_000, "seconds_to_target": 2700.4, "recorded_epochs": 27},
        "slow": {"test_accuracy": 0.3, "images": 2_500, "seconds_to_target": None},
        "poor": {
            "test_accuracy": 0.7, "images": 50_000, "seconds_to_target": None, "whole_accuracy": 0.84,
            "whole_seconds": 500.2,
        },
        "large": {
            "test_accuracy": 0.4, "images": 10_000, "seconds_to_target": 605.7, "whole_accuracy": 0.8782,
            "whole_seconds": 605.7,
        },
    }  # fmt: skip
    content = {name: common | {"precision": "float32"} | row for name, row in rows.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": content}))
    lines = script.others().splitlines()
    assert "test % after 100 seconds | seconds until 85% |" in lines[0]
    assert lines[2:7] == [
        "| `minute` | 1,000,000 | 557.0M | 85.68 (2.4 epochs) | 100 |",
        "| poor | 1,000,000 | 557.0M | 70.00 (1.0 epochs) | not reached; 84.00% after 500 |",
        "| small | 1,000,000 | 557.0M | 50.00 (50% of an epoch) | 2700 (27 epochs) |",
        "| large | 1,000,000 | 557.0M | 40.00 (20% of an epoch) | 606; 87.82% in the end |",
        "| slow | 1,000,000 | 557.0M | 30.00 (5% of an epoch) | not trained so long; an epoch takes 1234 |",
    ]
    content["`minute`"]["seconds_to_target"] = None
    del content["`minute`"]["seconds_an_epoch"]  # its record has none, as it always trains to its end
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": content}))
    assert script.others().splitlines()[2].endswith("| 85.68 (2.4 epochs) | not reached |")


def records_of_a_student(script: ModuleType, accuracies: list[float]) -> None:
    shutil.rmtree(script.RESULTS / "nano", ignore_errors=True)
    (script.RESULTS / "nano").mkdir()
    record = json.loads((ROOT / "results" / "minute" / "seed-0.json").read_text())
    record |= {"parameters": 41_432, "macs": 11_270_784, "train_seconds": 600.0}
    record["teachers"] = [{"train_seconds": 600.0, "accuracy": 0.93}] * 2
    for seed, accuracy in enumerate(accuracies):
        path = script.RESULTS / "nano" / f"seed-{seed}.json"
        path.write_text(json.dumps(record | {"test_accuracy": accuracy}))


def test_the_frontier_tells_one_run_as_one_run_and_what_it_learned_from(script):
    records_of_a_student(script, [0.9])
    (line,) = [line for line in script.frontier().splitlines() if "`nano`" in line]
    for words in (
        "- `nano`: 90.00% with 41,432 parameters and 11.3M multiply-accumulates an image (",
        "one run, 95% interval over the test images 89.40 to 90.57",
        "82,000 parameters if mirrored filters were written out",
        "Training: 10 minutes, after 20 minutes for 2 teachers of 1,318,944 and 988,832 parameters with 93.00",
    ):
        assert words in line
    assert "**" not in line  # one seed is no headline
    records_of_a_student(script, [0.9, 0.91, 0.92])
    assert "- **`nano`: 91.00 ± 1.00% with 41,432 parameters" in script.frontier()
    assert "mean of 3 seeds, 95% interval of the mean 88.52 to 93.48" in script.frontier()


def test_what_was_not_run_is_not_drawn(script):
    shutil.rmtree(script.RESULTS / "nano")
    labels = {text.get_text() for axes in script.pareto()[0].axes for text in axes.texts}
    assert not any(label.startswith(("nano", "teacher")) for label in labels)
    assert "minute (10 seeds)" in labels
    records_of_a_student(script, [0.9])
    labels = {text.get_text() for axes in script.pareto()[0].axes for text in axes.texts}
    assert "nano (1 seed)" in labels


def test_shipped_weights_have_a_row_of_their_subsets_and_what_was_not_scored_says_so(script, monkeypatch):
    scored = {"without-near-duplicates": 0.8525838995264566, "mlperf-tiny": 0.87}
    weights = {"minute": {"test_accuracy": 0.856, "test_subsets": scored}, "old": {"test_accuracy": 0.9}}
    monkeypatch.setattr(script, "shipped", lambda: weights)
    rows = script.subsets().splitlines()[2:4]
    assert rows == ["| `minute` | 85.60 | 85.26 | 87.00 |", "| `old` | 90.00 | not measured | not measured |"]


def test_every_published_figure_has_a_source_and_a_name_in_the_picture_that_overlaps_no_other(script):
    rows = script.published()
    assert len(rows) > 5
    for row in rows:
        assert row["source"].startswith(("https://", "its own log, results/original/"))
        assert 0.8 < float(row["test_accuracy"]) < 1
        assert row["name"] in script.sources()
    figure, _ = script.pareto()
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
        assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    by_parameters, by_macs = figure.axes
    for row in rows:
        assert row["name"] in [text.get_text() for text in by_parameters.texts]
        assert (row["name"] in [text.get_text() for text in by_macs.texts]) == bool(row["macs"])
    (own,) = [row for row in rows if row["name"].startswith("the original")]
    log = script.original(40)
    assert float(own["test_accuracy"]) == log[-1]["test_accuracy"]


def test_the_table_of_recipe_fields_has_a_meaning_and_allowed_values_for_each(script):
    rows = {line.split("`")[1]: line for line in script.recipe_fields().splitlines()[2:]}
    assert list(rows) == [field.name for field in dataclasses.fields(Recipe)]
    assert all("|  | " not in row.rsplit(" | ", 1)[0] for row in rows.values())  # only defaults may be missing
    assert rows["epochs"].endswith("| 1 to 100000 |  |")
    assert rows["optimizer"].endswith('| sgd, muon | `"sgd"` |')
    assert rows["nesterov"].endswith("| true or false | `false` |")
    assert rows["skip_easiest"].startswith("| `skip_easiest` | Fraction of the images that every epoch")
