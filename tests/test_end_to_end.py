"""Real training on all of CIFAR-10, through the command line; minutes long, so not part of `make test`."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ORIGINAL = Path(__file__).parents[1] / "results" / "original"


@pytest.mark.end_to_end
def test_one_real_epoch_lands_where_the_original_logged_its_first(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "reference-30-as-run", "--stop-after-epoch", "1", "--out", str(out), "--json"]
    finished = subprocess.run([sys.executable, "-m", "tinycifar", *arguments], stdout=subprocess.PIPE, check=True)
    record = json.loads(finished.stdout)
    logged = next(csv.DictReader((ORIGINAL / "log-30-epochs.csv").read_text().splitlines()))
    (entry,) = record["history"]
    assert record["train_images"] == 50_000
    assert entry["learning_rate"] == pytest.approx(float(logged["learning_rate"]), abs=1e-6)
    # The bands are some five times the spread between seeds seen in this epoch: docs/LOG.md.
    assert entry["train_loss"] == pytest.approx(float(logged["train_loss"]), abs=0.12)
    assert entry["train_accuracy"] == pytest.approx(float(logged["train_accuracy"]), abs=0.05)
    assert entry["test_accuracy"] == pytest.approx(float(logged["test_accuracy"]), abs=0.10)

    again = subprocess.run(
        [sys.executable, "-m", "tinycifar", "evaluate", str(out), "--json"], stdout=subprocess.PIPE, check=True
    )
    assert json.loads(again.stdout)["accuracy"] == record["test_accuracy"]
