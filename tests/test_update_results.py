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
    (tmp_path / "README.md").write_text(f"before\n{module.BEGIN}\n{module.END}\nafter\n", encoding="utf-8")
    for name, path in (("RESULTS", "results"), ("README", "README.md"), ("IMAGES", "images")):
        monkeypatch.setattr(module, name, tmp_path / path)
    return module


def test_the_table_holds_the_figures_of_the_records_and_keeps_what_stands_around_it(script: ModuleType) -> None:
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    text = script.README.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
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
