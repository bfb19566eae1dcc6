"""Execute docs/tour.ipynb anew and store it with what it shows; `make tour`."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"


def digest(notebook: Any) -> str:
    """The SHA-256 of the code, which says whether what is stored was shown by this code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def execute(folder: Path, data: str = "") -> Any:
    """The notebook as it comes out when run in a folder; nbclient's CellExecutionError where a cell fails.

    `data` replaces the values of the first cell: data and number of validation images, as `"sample", 100`.
    """
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    if data:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source, count = re.subn(r"(?m)^(SOURCE, HELD_OUT = )[^#\n]*", rf"\g<1>{data} ", first.source)
        if count != 1:
            raise ValueError(f"{NOTEBOOK.name} does not begin with its data")
    # What tests set for themselves would keep pictures out of the notebook, and a core idle.
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "OMP_NUM_THREADS")}
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
    notebook.metadata["code_sha256"] = digest(notebook)
    return notebook


def main() -> None:
    """Execute and store."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(Path(folder))
    nbformat.write(notebook, NOTEBOOK)  # type: ignore[no-untyped-call]
    print(f"{NOTEBOOK.name}: executed, {NOTEBOOK.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
