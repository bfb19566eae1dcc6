import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tinycifar import data

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_run_keeps_the_evaluation_of_its_own_model_on_its_own_data(tinycifar, trained):
    shutil.copytree(trained, "other")
    before = Path("other/evaluation.json").read_bytes()
    for model, *words in (
        ("minute", "--data", "sample"),
        (trained,),
        ("other", "--data", "sample"),
        ("other", "--test"),
        ("other/model.safetensors", "--test"),
    ):
        for out in ("other", "other/../other"):
            refused = tinycifar("evaluate", model, *words, "--out", out)
            assert (refused.code, refused.out) == (2, "")
            assert refused.err == (
                f"tinycifar: --out {out} is a run, which holds the evaluation of its own model on its own data; "
                "name another folder\n"
            )
    assert Path("other/evaluation.json").read_bytes() == before
    done = tinycifar("evaluate", "other/model.safetensors", "--out", "other")
    assert (done.code, done.out.splitlines()[-1]) == (0, f"Results: {Path('other/evaluation.json')} (replaced)")


def test_a_file_is_no_folder_for_an_evaluation_and_other_data_is_not_that_of_a_report(tinycifar, trained):
    Path("file").write_bytes(b"mine")
    refused = tinycifar("evaluate", "minute", "--data", "sample", "--out", "file")
    assert (refused.code, refused.out, refused.err) == (
        2,
        "",
        "tinycifar: --out file exists and is not a folder; name a folder\n",
    )
    assert Path("file").read_bytes() == b"mine"
    for kind in ("cat", "dog"):
        for level in range(3):
            picture = Image.new("RGB", (32, 32), (level, 0, len(kind)))
            picture.putpixel((0, 0), (255, level, 0))
            Path("own", kind).mkdir(parents=True, exist_ok=True)
            picture.save(f"own/{kind}/{level}.png")
    refused = tinycifar("report", trained, "--data", "own")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "belongs to other data than --data names; name the run's own data, or evaluate the run again" in refused.err


def test_the_test_images_of_a_run_with_validation_images_are_opened_beside_its_own_evaluation(tinycifar):
    words = ["--data", "sample", "--epochs", "1", "--limit", "64", "--set", "validation_images=50", "--out", "runs/one"]
    assert tinycifar("train", *words).code == 0
    before = Path("runs/one/evaluation.json").read_bytes()
    done = tinycifar("evaluate", "runs/one", "--test", "--json").json
    assert (done["split"], done["images"]) == ("test", 200)
    assert json.loads(Path("evaluations/one/evaluation.json").read_text()) == done
    assert Path("runs/one/evaluation.json").read_bytes() == before
    assert tinycifar("report", "runs/one").code == 0


def test_a_run_is_evaluated_on_other_pictures_of_the_same_classes_alone(tinycifar, own):
    assert tinycifar("train", "--data", own, "--epochs", "1", "--out", "run").code == 0
    others = own.with_name("others")
    shutil.copytree(own / "train", others / "train")
    shutil.copytree(own / "val", others / "test")
    done = tinycifar("evaluate", "run", "--data", others, "--json").json
    assert (done["data"], done["split"], done["images"]) == ("others", "test", 15)
    assert Path("evaluations/run/evaluation.json").exists()
    (others / "train" / "dog").rename(others / "train" / "fox")
    (others / "test" / "dog").rename(others / "test" / "fox")
    refused = tinycifar("evaluate", "run", "--data", others)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "has class fox, which the model does not know; it knows 3 classes: car, cat, dog" in refused.err


def test_a_run_whose_pictures_are_gone_is_evaluated_where_they_are_now(tinycifar, own):
    assert tinycifar("train", "--data", own, "--epochs", "1", "--out", "run").code == 0
    own.rename("moved")
    lost = tinycifar("evaluate", "run")
    assert (lost.code, lost.err.count("\n"), "say where it is now with --data" in lost.err) == (2, 1, True)
    accuracy = json.loads(Path("run/evaluation.json").read_text())["accuracy"]
    assert tinycifar("evaluate", "run", "--data", "moved", "--json").json["accuracy"] == accuracy
    assert data.load("moved").validation_images is not None


def test_a_run_is_evaluated_on_labelled_pictures_without_training_images_or_all_classes(tinycifar, own_run, tmp_path):
    first, second = ("käse", "größe <1>")
    for folder in ("new/test", "flat"):
        for kind in (first, second):
            (tmp_path / folder / kind).mkdir(parents=True)
            for level in range(3):
                picture = Image.new("RGB", (24, 24), (level, len(kind), 9))
                picture.save(tmp_path / folder / kind / f"{level}.png")
    for folder in ("new", "flat"):
        done = tinycifar("evaluate", own_run.directory, "--data", tmp_path / folder, "--out", "scores", "--json").json
        assert (done["split"], done["images"]) == ("test", 6)
        assert [row["images"] for row in done["classes"]] == [3, 3, 0]
