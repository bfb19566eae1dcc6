"""The tour: what is stored of it, and that it runs from its first cell to its last."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from conftest import load_script

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
PICTURES = 7


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures_in(notebook: dict[str, Any]) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture
def stored() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return content


def test_the_stored_notebook_shows_what_its_own_cells_gave_in_order(stored):
    cells = code_cells(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not [output for cell in cells for output in cell["outputs"] if output.get("name") == "stderr"]
    code = "\0".join("".join(cell["source"]) for cell in cells)
    assert stored["metadata"]["code_sha256"] == hashlib.sha256(code.encode()).hexdigest(), "run `make tour`"
    assert pictures_in(stored) >= PICTURES
    assert NOTEBOOK.stat().st_size < 650_000


def test_the_stored_notebook_trained_as_well_as_its_recipe_does(stored):
    (accuracy,) = re.findall(r"Validation accuracy: (\d+\.\d+)%", json.dumps(stored))[-1:]
    assert float(accuracy) == pytest.approx(86.4, abs=2)


def test_the_stored_notebook_tells_no_place_of_the_machine_that_it_ran_on(stored):
    told = [
        json.dumps({kind: value for kind, value in output.get("data", output).items() if kind != "image/png"})
        for cell in code_cells(stored)
        for output in cell["outputs"]
    ]
    assert told
    assert re.findall(r"/(?:tmp|root|home|work|Users|usr)\b\S*", " ".join(told)) == []


@pytest.mark.end_to_end
def test_the_notebook_runs_on_the_sample_and_shows_its_pictures(tmp_path, stored):
    notebook = load_script("tour").execute(tmp_path, data='"sample", 100')  # an error of a cell would be raised
    assert pictures_in(notebook) == pictures_in(stored)
    assert "Validation accuracy: " in json.dumps(notebook)
    assert len(list(tmp_path.glob("runs/minute/*/report.html"))) == 3
