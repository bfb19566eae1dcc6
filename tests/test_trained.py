import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import environment
from tinycifar import catalog, data, inference, library, models, recipes, resume, run, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES, Origin
from tinycifar.report import compare, run_page

ABOUT: dict[str, Any] = {
    "model_name": "c1c2c3c4o",
    "recipe": "reference-30",
    "classes": CLASSES,
    "data": "sample",
    "validation_images": 0,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "a run" / "model.safetensors"
    path.parent.mkdir()
    trained.save_weights(path, models.build("c1c2c3c4o"), **ABOUT, temperature=0.7)
    return path


def test_weights_load_from_their_file_and_from_the_run_directory(weights):
    model = trained.load(weights)
    assert (model.model_name, model.recipe, model.classes) == ("c1c2c3c4o", "reference-30", CLASSES)
    assert (model.data, model.validation_images, model.temperature) == ("sample", 0, 0.7)
    again = trained.load(weights.parent)
    images = data.sample().test_images[:5]
    assert torch.equal(inference.logits(model.model, images), inference.logits(again.model, images))


def test_equal_weights_are_equal_files_that_name_their_model_recipe_and_classes(tmp_path):
    model, path = models.build("c1c2c3c4o"), tmp_path / "0"
    for number in range(8):
        trained.save_weights(tmp_path / str(number), model, **{**ABOUT, "classes": ("a", "b")}, temperature=0.1)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
    with safe_open(path, framework="pt") as stored:
        metadata = json.loads(stored.metadata()["tinycifar"])
    expected: dict[str, Any] = {"model": "c1c2c3c4o", "width": 1.0, "image_size": 32, "fit": "crop", "channels": 3}
    expected |= {"recipe": "reference-30", "classes": ["a", "b"], "data": "sample", "data_digest": ""}
    assert list(metadata.items()) == list((expected | {"validation_images": 0, "temperature": 0.1}).items())


def test_what_is_no_weights_file_of_ours_is_refused_by_name(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "short.safetensors").write_bytes(weights.read_bytes()[:5000])
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    about = {"model": "c1c2c3c4o", "classes": CLASSES, "recipe": "x", "data": "sample"}
    metadata = {"tinycifar": json.dumps(about | {"validation_images": 0, "temperature": None})}
    save_file({"x": torch.zeros(1)}, tmp_path / "misfit.safetensors", metadata)
    for name, message in {
        "missing": "does not exist; name a run directory",
        "empty": "is no run directory: it holds no model.safetensors",
        "text.safetensors": "is not a readable safetensors file",
        "short.safetensors": "is not a readable safetensors file",
        "foreign.safetensors": "does not name its model, classes and data: this version of tinycifar",
        "misfit.safetensors": "weights that do not fit the model c1c2c3c4o",
    }.items():
        with pytest.raises(ValueError, match=message):
            trained.load(tmp_path / name)


def test_a_model_is_called_after_its_run_its_file_or_as_it_is_shipped(weights, tmp_path):
    weights.with_name("mine.safetensors").write_bytes(weights.read_bytes())
    names = [trained.load(source).name for source in (weights, weights.parent, weights.with_name("mine.safetensors"))]
    assert names == ["a run", "a run", "mine"]
    assert trained.load("minute").name == "minute"


def test_every_shipped_model_has_the_digest_size_and_score_that_its_json_says():
    results = Path(__file__).parents[1] / "results"
    assert "minute" in catalog.shipped()
    for name, about in catalog.shipped().items():
        model = trained.load(name)
        record = json.loads((results / name / "seed-0.json").read_text())
        parameters = sum(parameter.numel() for parameter in model.model.parameters())
        assert (about["parameters"], about["model"]) == (parameters, model.model_name)
        assert about["bytes"] == (catalog.WEIGHTS / f"{name}.safetensors").stat().st_size
        assert about["test_accuracy"] == record["test_accuracy"]
        assert model.temperature == pytest.approx(about["temperature"])
        assert model.validation_images == 0
        sample = data.sample()
        right = (inference.logits(model.model, sample.test_images).argmax(1) == sample.test_labels).float().mean()
        assert right == pytest.approx(about["test_accuracy"], abs=0.08)  # 200 images: three standard errors


def test_a_shipped_name_goes_before_a_folder_unless_it_is_written_as_a_path(weights, monkeypatch):
    assert trained.load(Path("minute")).model_name == "minutenet"  # there is no such folder
    weights.parent.rename("minute")
    assert trained.load(Path("minute")).model_name == "c1c2c3c4o"
    assert trained.load("minute").model_name == "minutenet"
    assert trained.load("./minute").model_name == "c1c2c3c4o"


def test_a_folder_of_seeds_or_runs_asks_for_one_of_them(tmp_path):
    for seed in (10, 2):
        (tmp_path / "many" / f"seed-{seed}").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds several seeds; name one of them, for example .*seed-2$"):
        trained.load(tmp_path / "many")
    for date in ("2026-11-28-100000", "2026-11-29-090000"):
        (tmp_path / "minute" / date).mkdir(parents=True)
        (tmp_path / "minute" / date / "recipe.json").write_text("{}")
    message = r"minute holds 2 runs; name one of them, for example .*2026-11-29-090000$"
    for read in (trained.load, compare.read, run_page.write):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "minute")
    with pytest.raises(ValueError, match=message):
        resume.merged(resume.Request(resume=tmp_path / "minute"))
    (tmp_path / "file").write_text("")
    for name, why in (("file", "file is no run directory: it is a file$"), ("nowhere", "nowhere does not exist$")):
        with pytest.raises(ValueError, match=why):
            compare.read(tmp_path / name)


def own_data(folder: Path, images: int = 6) -> Path:
    """A folder of pictures in two classes, made from the sample."""
    sample = data.sample()
    for split in ("train", "test"):
        for number in range(2 * images):
            path = folder / split / ("käse", "wurst")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.to_image(sample.train_images[number]).save(path)
    return folder


def trained_on(folder: Path, out: Path, **about: Any) -> trained.Trained:
    own = data.load(folder)
    model = models.build("whitenet", num_classes=2)
    out.mkdir()
    trained.save_weights(
        out / "model.safetensors",
        model,
        model_name="whitenet",
        recipe="minute",
        classes=own.classes,
        data=own.path,
        data_digest=own.digest,
        validation_images=0,
        **about,
    )
    return trained.load(out, "cpu")


def test_a_model_finds_its_own_data_again_and_notices_that_it_moved_or_changed(tmp_path):
    model = trained_on(own_data(tmp_path / "mine"), tmp_path / "run")
    own = model.dataset()
    assert own.classes == model.classes == ("käse", "wurst")
    assert model.trained_on(own)
    assert not model.trained_on(data.sample())
    (tmp_path / "mine").rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"mine does not exist.*run was trained on it: say where it is now with `data=`"
    ):
        model.dataset()
    assert model.trained_on(data.load(tmp_path / "moved"))
    own_data(tmp_path / "mine", images=7)
    with pytest.raises(ValueError, match="mine is not what run was trained on: its pictures have changed"):
        model.dataset()


def test_weights_of_other_widths_and_sizes_are_built_as_they_were(tmp_path):
    about = {**ABOUT, "model_name": "whitenet", "width": 0.5, "image_size": 40}
    trained.save_weights(tmp_path / "model.safetensors", models.build("whitenet", image_size=40, width=0.5), **about)
    model = trained.load(tmp_path / "model.safetensors", "cpu")
    assert (model.width, model.image_size, model.model.image_size) == (0.5, 40, 40)
    assert model.model(torch.rand(1, 3, 40, 40)).shape == (1, 10)


def test_a_start_takes_all_weights_for_the_same_classes_and_all_but_the_head_for_others():
    known = trained.load("minute", "cpu")
    head = f"{len(known.model) - 1}.weight"
    for classes, taken in ((known.classes, True), (known.classes[::-1], False), (("a", "b", "c"), False)):
        model = models.build("minutenet", num_classes=len(classes), image_size=48)
        drawn = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert trained.start_from(model, known, classes) == taken
        for name, tensor in model.state_dict().items():
            from_known = not name.startswith(head.removesuffix("weight")) or taken
            assert torch.equal(tensor, (known.model.state_dict() if from_known else drawn)[name]), name


@pytest.mark.parametrize(("name", "width"), [("nanonet", 1.0), ("minutenet", 0.5)])
def test_a_start_from_another_architecture_or_width_is_refused_with_what_would_do(name, width):
    model = models.build(name, width=width)
    with pytest.raises(ValueError, match=r"minute is a minutenet of width 1, .* `model=minutenet` and `width=1`, w"):
        trained.start_from(model, trained.load("minute", "cpu"), CLASSES)


def test_a_model_that_may_have_seen_what_is_held_out_is_no_start_and_no_teacher(weights):
    known = trained.load(weights, "cpu")  # of the sample, with nothing held out
    sample = data.sample()
    assert trained.check_unseen(known, "model", sample) == []
    with pytest.raises(ValueError, match="trained with 0 validation images held out, fewer than the 40 of this run"):
        trained.check_unseen(known, "model", sample.split(40))
    assert trained.check_unseen(replace(known, validation_images=40), "model", sample.split(40)) == []
    with pytest.raises(
        ValueError, match="the teacher a run was trained on cifar10 and may have seen the held-out images"
    ):
        trained.check_unseen(replace(known, data="cifar10"), "teacher", sample.split(40))
    (line,) = trained.check_unseen(replace(known, data="pets", data_digest="0" * 64), "model", sample.split(40))
    assert line == "Warning: the model a run was trained on pets and may have seen the held-out images"


def test_images_that_a_run_has_seen_are_found_in_data_that_has_grown(tmp_path):
    """The same folder and one picture more is other data by its digest, and has been seen all the same."""
    known = trained_on(own_data(tmp_path / "mine", images=10), tmp_path / "run")
    run.start(tmp_path / "run", recipes.get("minute"), environment(data="mine"))
    run.write_seen(tmp_path / "run", [data.load(tmp_path / "mine").digests("train")])
    pictures.to_image(data.sample().train_images[99]).save(tmp_path / "mine/train/wurst/one-more.png")
    grown = data.load(tmp_path / "mine")
    assert not known.trained_on(grown)
    with pytest.raises(ValueError, match=r"the model run has seen [789] of the 8 validation images of this run"):
        trained.check_unseen(known, "model", grown.split(8))
    new = replace(grown, validation_images=grown.test_images + 1, validation_labels=grown.test_labels)
    assert trained.check_unseen(known, "model", new) == []
    leaked = replace(grown, test_images=grown.train_images, test_labels=grown.train_labels, origins={})
    assert trained.check_unseen(known, "model", leaked) == []  # of other files, as far as is known
    leaked = replace(leaked, origins={"test": Origin(leaked.test_images, grown.digests("train"))})
    (line,) = trained.check_unseen(known, "model", leaked)
    assert line == "Warning: the model run has seen 20 of the 21 test images of this run: scores will be optimistic"


def test_a_damaged_list_of_seen_images_is_refused(tmp_path):
    assert run.read_seen(tmp_path) is None
    huge = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 32), }".ljust(117) + b"\n"
    for content in (b"", b"no array", b"PK\3\4 no archive", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00v\x00" + huge):
        (tmp_path / "seen.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"seen\.npy is damaged; remove it, or train again"):
            run.read_seen(tmp_path)
    for array in (np.zeros((3, 31), np.uint8), np.zeros((3, 32)), np.array([{}])):
        np.save(tmp_path / "seen.npy", array, allow_pickle=True)
        with pytest.raises(ValueError, match=r"seen\.npy is damaged"):
            run.read_seen(tmp_path)
    digests = np.random.default_rng(0).integers(0, 256, (5, 32), np.uint8)
    run.write_seen(tmp_path, [digests[:3], digests[2:]])
    seen = run.read_seen(tmp_path)
    assert sorted(map(bytes, seen)) == sorted(map(bytes, digests))
    assert trained.count_seen(seen, digests) == 5
    assert trained.count_seen(seen, digests ^ 1) == 0


@pytest.mark.parametrize("name", catalog.shipped())
def test_a_loaded_model_has_contiguous_weights_and_so_has_what_torch_export_makes_of_it(name):
    model = library.load(name)
    exported = torch.export.export(model, (torch.rand(1, 3, 32, 32),))
    for tensors in (model.state_dict(), exported.state_dict):
        assert all(tensor.is_contiguous() for tensor in tensors.values())
    images = data.sample().test_images[:4] / 255
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(model.to(memory_format=torch.channels_last)(images), expected, rtol=0, atol=1e-4)


def test_a_model_loaded_in_inference_mode_and_with_another_default_type_can_be_trained_and_explained(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pictures.to_image(data.sample().test_images[0]).save("cat.png")
    with torch.inference_mode():
        model = library.load("minute")
        (explained,) = library.explain("minute", "cat.png")
    model(torch.rand(1, 3, 32, 32)).sum().backward()
    assert Path(explained["picture"]).exists()
    torch.set_default_dtype(torch.float64)
    try:
        assert library.load("minute").state_dict()["mean"].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
