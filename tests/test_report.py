from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tinycifar import recipes, report, run

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.25, "test_loss": 1.9, "test_accuracy": 0.3},
    {"epoch": 2, "train_loss": 1.5, "train_accuracy": 0.45, "test_loss": 1.4, "test_accuracy": 0.5},
]


def lines(figure: Figure) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[0].lines}  # type: ignore[arg-type]


def test_curves_show_each_split_that_was_looked_at_with_axes_named() -> None:
    figure = report.plot_curves(HISTORY, "accuracy", "title")
    assert lines(figure) == {"training, last 45.00 %": [25.0, 45.0], "test, last 50.00 %": [30.0, 50.0]}
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("epoch", "accuracy (%)")
    unwatched = [{key: value for key, value in entry.items() if "test" not in key} for entry in HISTORY]
    assert lines(report.plot_curves(unwatched, "loss", "title")) == {"training, last 1.50": [2.0, 1.5]}


def test_a_run_gets_its_two_plots_and_one_without_an_epoch_gets_none(tmp_path: Path) -> None:
    run.start(tmp_path, recipes.get("reference-30"), {})
    assert report.plot_run(tmp_path) == []
    for entry in HISTORY:
        run.append_metrics(tmp_path, entry)
    assert report.plot_run(tmp_path) == [tmp_path / "loss.png", tmp_path / "accuracy.png"]
    with Image.open(tmp_path / "loss.png") as image:
        assert min(image.size) > 400


def test_a_folder_that_is_no_run_has_no_plots(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe\.json is missing"):
        report.plot_run(tmp_path)
