from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from conftest import environment, scores
from tinycifar import data, heatmaps, inference, models, recipes, run, summary
from tinycifar.report import plots
from tinycifar.scores import Bin, ClassScores, Robustness, Scores

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.25, "test_loss": 1.9, "test_accuracy": 0.3},
    {"epoch": 2, "train_loss": 1.5, "train_accuracy": 0.45, "test_loss": 1.4, "test_accuracy": 0.5},
]


def lines(figure: Figure) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[0].lines}


@pytest.fixture(scope="module")
def evaluation() -> Scores:
    torch.manual_seed(0)
    return inference.evaluate(models.build("c1c2c3c4o"), data.sample(), 1.5).scores


def test_curves_show_each_split_that_was_looked_at_with_axes_named():
    figure = plots.curves(HISTORY, "accuracy", "title")
    assert lines(figure) == {"training, last 45.00 %": [25.0, 45.0], "test, last 50.00 %": [30.0, 50.0]}
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("epoch", "accuracy (%)")
    unwatched = [{key: value for key, value in entry.items() if "test" not in key} for entry in HISTORY]
    assert lines(plots.curves(unwatched, "loss", "title")) == {"training, last 1.50": [2.0, 1.5]}


def test_a_run_gets_its_two_plots_and_one_without_an_epoch_gets_none(tmp_path):
    run.start(tmp_path, recipes.get("reference-30"), environment())
    assert plots.save_curves(tmp_path) == []
    for entry in HISTORY:
        run.append_metrics(tmp_path, entry)
    assert plots.save_curves(tmp_path) == [tmp_path / "loss.png", tmp_path / "accuracy.png"]
    with Image.open(tmp_path / "loss.png") as image:
        assert min(image.size) > 400


def test_a_folder_that_is_no_run_has_no_plots(tmp_path):
    with pytest.raises(ValueError, match=r"recipe\.json is missing"):
        plots.save_curves(tmp_path)


def test_the_confusion_picture_holds_every_count_and_its_title_the_most_common_mistake(evaluation):
    figure = plots.confusion(evaluation)
    counts = np.array(evaluation.confusion)
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert drawn == [str(count) for count in counts.flatten()]
    worst = (counts - np.diag(counts.diagonal())).max()
    assert f", {worst} of " in figure.axes[0].get_title()
    perfect = replace(evaluation, confusion=np.diag(counts.sum(1)).tolist())
    assert "no image taken for another class" in plots.confusion(perfect).axes[0].get_title()


def test_long_names_of_classes_leave_room_for_the_matrix():
    classes = (ClassScores("long " * 9, 1, 1.0, 1.0, 1.0),) * 30
    many = scores(confusion=np.eye(30, dtype=int).tolist(), classes=classes)
    names = {label.get_text() for label in plots.confusion(many).axes[0].get_yticklabels()}
    assert names == {"long long long long lon…"}


def test_the_reliability_picture_draws_filled_bins_and_says_which_way_confidence_errs(evaluation):
    figure = plots.reliability(evaluation)
    drawn = figure.axes[0].collections[0].get_offsets()
    expected = [[row.confidence, row.accuracy] for row in evaluation.reliability if row.images]
    assert np.allclose(np.asarray(drawn), expected)
    assert len(figure.axes[0].collections) == 2
    timid = replace(evaluation, reliability=(Bin(images=200, confidence=0.5, accuracy=0.75),))
    title = plots.reliability(timid).axes[0].get_title()
    assert "25.0 points below accuracy: underconfident" in title


def test_the_robustness_picture_holds_every_accuracy_and_names_the_hardest_corruption():
    accuracy = {"jpeg": (0.5, 0.4, 0.4, 0.3, 0.2), "fog": (0.7, 0.6, 0.6, 0.5, 0.4)}
    figure = plots.robustness(Robustness(9, 0.8, 0.5, accuracy))
    assert "50.0% right on average, least with jpeg (36.0%)" in figure.axes[0].get_title()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["fog", "jpeg"]
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["70%", "60%", "60%", "50%", "40%", "56%", "50%", "40%", "40%", "30%", "20%", "36%"]


def test_names_that_look_like_mathematics_or_lack_a_glyph_are_drawn_as_they_are(tmp_path):
    square = Image.new("RGB", (32, 32))
    plots.save(tmp_path / "new" / "x.png", plots.explanation, square, square, torch.zeros(32, 32), r"$\frac$ 猫 a$b$")
    assert (tmp_path / "new" / "x.png").exists()


def test_compared_curves_name_the_split_of_each():
    runs = [(0, "A", "test", HISTORY), (1, "B", "train", HISTORY), (1, "B", "train", HISTORY)]
    figure = plots.compared_curves(runs)
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["A, test", "B, training"]
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert drawn == [[30, 50], [25, 45], [25, 45]]


def test_a_figure_for_a_page_is_well_formed_takes_its_colours_and_shares_no_id_with_another(evaluation):
    ids: list[str] = []
    for name, draw in (("one", plots.confusion), ("two", plots.reliability), ("three", plots.confusion)):
        drawn = plots.svg(name, draw, evaluation)
        assert drawn["title"]
        assert plots.INK not in drawn["markup"]
        assert "currentColor" in drawn["markup"]
        ids += [
            element.attrib["id"] for element in ElementTree.fromstring(drawn["markup"]).iter() if "id" in element.attrib
        ]
    assert len(set(ids)) == len(ids)


def test_the_hottest_place_of_an_overlay_is_the_brightest():
    heat = torch.zeros(32, 32)
    heat[10, 20] = 1
    overlay = np.asarray(plots.heat_overlay(Image.new("RGB", (32, 32), (90, 90, 90)), heat)).sum(2)
    assert np.unravel_index(overlay.argmax(), overlay.shape) == (10, 20)


def test_the_effective_side_is_that_of_the_square_that_holds_the_share():
    field = torch.zeros(32, 32)
    field[10:15, 10:15] = 1
    assert plots.effective_side(field, 12, 0.99) == 4  # pixels count by their middles
    field[0, 0] = 100
    assert plots.effective_side(field, 12, 0.99) == 24
    corner = torch.zeros(32, 32)
    corner[31, 0] = 1
    assert plots.effective_side(corner, 11.5) == 39


def test_the_receptive_fields_are_drawn_around_the_same_place():
    torch.manual_seed(0)
    model, images = models.build("c1c2c3c4o").eval(), data.sample().test_images[:5]
    table = summary.summarize(model)
    figure = plots.receptive_fields(table, heatmaps.effective_receptive_field(model, images), images[0], "label")
    theoretical, effective = figure.axes[0].patches
    assert theoretical.get_width() == 45
    assert effective.get_width() < 45
    for patch in (theoretical, effective):
        assert patch.get_x() + patch.get_width() / 2 == table.map_centre
