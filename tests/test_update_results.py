"""The README's figures: written from the records, and found out when they are stale."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a copy of the records and on a README of its own."""
    spec = importlib.util.spec_from_file_location("update_results", ROOT / "scripts" / "update_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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


def test_the_table_holds_the_figures_of_the_records_and_keeps_what_stands_around_it(script: ModuleType) -> None:
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    text = (script.ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("after\nbefore\n") == 1
    record = json.loads((ROOT / "results" / "reference-30-as-run" / "seed-0.json").read_text())
    (row,) = [line for line in text.splitlines() if line.startswith("| `reference-30-as-run`")]
    assert f"| {100 * record['test_accuracy']:.2f} |" in row
    assert row.endswith("| 87.20, 85.52, 85.52 |")


def test_a_changed_record_makes_the_table_and_the_picture_stale(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([])
    path = script.RESULTS / "reference-30-as-run" / "seed-0.json"
    record = json.loads(path.read_text())
    record["test_accuracy"] = record["history"][-1]["test_accuracy"] = 0.9
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert script.main(["--check"]) == 1
    told = capsys.readouterr().out
    assert "README.md: differs from results/" in told
    assert "reference-30-as-run.png: differs from results/" in told


def test_the_headline_is_the_mean_of_the_seeds_with_students_interval(script: ModuleType) -> None:
    for seed, accuracy in enumerate([0.85, 0.86, 0.87]):
        path = script.RESULTS / "minute" / f"seed-{seed}.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"test_accuracy": accuracy, "train_seconds": 10.0 + seed}))
    for path in (script.RESULTS / "minute").glob("seed-[3-9].json"):
        path.unlink()
    text = script.headline()
    # The deviation is a point; of the mean of three, with Student's quantile 4.303, the interval is 2.48 points.
    for told in (
        "**86.00%",
        "after 11.0 seconds",
        "mean of 3 seeds",
        "83.52 to 88.48",
        "deviation 1.00",
        "worst seed 85.00",
    ):
        assert told in text


def test_only_ten_seeds_that_are_surely_above_85_percent_enter_the_leaderboard(script: ModuleType) -> None:
    assert "| `minute` |" in script.leaderboard()
    assert "| `reference-30-as-run` |" not in script.leaderboard()
    path = script.RESULTS / "minute" / "seed-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_accuracy": 0.5}))
    assert "| `minute` |" not in script.leaderboard()
    path.unlink()
    assert "| `minute` |" not in script.leaderboard()
