"""docs/API.md: what it covers, and that it is up to date."""

import sys
from pathlib import Path

import tinycifar

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import write_api


def test_the_page_is_what_the_docstrings_say():
    assert write_api.main(["--check"]) == 0, "run `make results`"


def test_the_page_covers_every_public_name_and_no_other():
    assert sorted([*write_api.FUNCTIONS, *write_api.CLASSES]) == sorted(tinycifar.__all__)
    text = write_api.page()
    for name in tinycifar.__all__:
        assert f"\n### {name}\n" in text
    prose = [line for line in text.splitlines() if not line.startswith(("|", "- `", "`", "    "))]
    assert [line for line in prose if len(line) > 120] == []


def test_a_stale_page_is_found_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write_api, "PAGE", tmp_path / "API.md")
    assert write_api.main(["--check"]) == 1
    assert "run `make results`" in capsys.readouterr().out
    assert write_api.main([]) == 0
    assert write_api.main(["--check"]) == 0
