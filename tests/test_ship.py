import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tinycifar import atomic, catalog, data, distill, inference, recipes, run, trained, training

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import keep_run
import ship

SHORT = recipes.with_settings(recipes.get("minute"), ["epochs=4", "batch_size=64"])


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a run and its twin, made on the sample, and the run's record."""
    folder = tmp_path_factory.mktemp("trainings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "minute", SHORT)
        record = training.train(SHORT, "sample", out=folder / "run").record
        held_out = recipes.with_settings(SHORT, ["validation_images=100"])
        training.train(held_out, "sample", out=folder / "twin")
    return folder, record


@pytest.fixture
def runs(trainings: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies of a run and its twin, dressed up as if on CIFAR-10, and the run's record."""
    monkeypatch.setitem(recipes.RECIPES, "minute", SHORT)
    monkeypatch.setattr(ship, "ROOT", tmp_path)
    monkeypatch.setattr(ship, "VALIDATION_IMAGES", 100)
    monkeypatch.setattr(catalog, "WEIGHTS", tmp_path / "weights")
    folder, record = trainings
    directory, twin = (Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("run", "twin"))
    change(twin / "environment.json", data="cifar10", train_images=49_900)
    path = tmp_path / "results" / "minute" / "seed-0.json"
    path.parent.mkdir(parents=True)
    atomic.write_json(path, record)
    return directory, twin


def test_a_run_is_shipped_with_the_temperature_of_its_twin(runs):
    directory, twin = runs
    content = ship.ship(directory, twin)
    model = trained.load("minute")
    assert model.temperature == run.read_evaluation(twin).temperature
    assert content == catalog.shipped()["minute"]
    images = data.sample().test_images
    own = inference.logits(trained.load(directory).model, images)
    assert (inference.logits(model.model, images) == own).all()
    assert not {"command", "platform"} & content["environment"].keys()


@pytest.mark.parametrize(
    ("which", "file", "changes", "message"),
    [
        (0, "recipe.json", {"weight_decay": 0.1}, "changed its recipe"),
        (0, "environment.json", {"seed": 3}, "is not seed 0 with the test accuracy of its record"),
        (0, "evaluation.json", {"accuracy": 0.99}, "is not seed 0 with the test accuracy of its record"),
        (1, "recipe.json", {"epochs": 7}, "is not the same recipe with 100 validation images"),
        (1, "environment.json", {"seed": 3}, "is not of seed 0 on 49900 images"),
        (1, "environment.json", {"train_images": 40_000}, "is not of seed 0 on 49900 images"),
        (1, "environment.json", {"data": "sample"}, "is not of seed 0 on 49900 images"),
        (1, "evaluation.json", {"split": "test"}, "was not trained to its end and evaluated on its validation images"),
    ],
)
def test_runs_that_are_not_fit_are_refused(runs, which, file, changes, message):
    change(runs[which] / file, **changes)
    with pytest.raises(ValueError, match=message):
        ship.ship(*runs)
    assert not catalog.WEIGHTS.exists()


def test_a_kept_run_can_be_used_like_any_other_and_does_not_say_by_which_command_it_was_trained(
    runs, tmp_path, monkeypatch
):
    monkeypatch.setattr(keep_run, "ROOT", tmp_path)
    kept = keep_run.keep(runs[0])
    assert kept == tmp_path / "results" / "minute" / "seed-0"
    assert run.read_environment(kept).command == ()
    (model,) = distill.load(kept.parent)
    original = trained.load(runs[0])
    assert model.sha256 == original.sha256
    seen, seen_by_original = model.seen(), original.seen()
    assert (seen == seen_by_original).all()
    change(runs[0] / "evaluation.json", accuracy=0.99)
    with pytest.raises(ValueError, match="does not have the accuracy of its record"):
        keep_run.keep(runs[0])


def test_the_kept_teachers_have_the_accuracy_of_their_records_and_may_teach_a_recorded_run():
    results = Path(__file__).parents[1] / "results"
    teachers = [teacher for name in ("teacher", "large-teacher") for teacher in distill.load(results / name)]
    distill.check(recipes.get("nano"), teachers)
    distill.check_record(recipes.get("nano"), teachers)
    records = [atomic.read_json(Path(f"{teacher.run}.json")) for teacher in teachers]
    accuracies = [run.read_evaluation(teacher.run).accuracy for teacher in teachers if teacher.run]
    assert accuracies == [record["validation_accuracy"] for record in records]
