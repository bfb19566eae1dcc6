"""One channel: grey pictures from data to every form in which a model is used."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import tinycifar
from conftest import encoded
from tinycifar import data, inference, models, predictions, recipes, summary, trained, training
from tinycifar.data import pictures
from tinycifar.data.dataset import to_grey
from tinycifar.evaluation import corruptions
from tinycifar.formats import c_source, onnx_file, tflite
from tinycifar.report import run_page
from tinycifar.serve import app, served


def pillow_grey(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, H, W), each made grey by Pillow."""
    grey = [np.asarray(pictures.to_image(image).convert("L")) for image in images]
    return torch.from_numpy(np.stack(grey)[:, None])


def test_grey_is_that_of_pillow_in_every_shade():
    levels = torch.arange(256, dtype=torch.uint8)
    shades = torch.cartesian_prod(levels[::5], levels[::5], levels[::5]).T.reshape(3, 52, -1)[None].contiguous()
    assert torch.equal(to_grey(shades), pillow_grey(shades))
    alike = levels.expand(3, -1)[None, :, None].contiguous()
    assert torch.equal(to_grey(alike)[0, 0, 0], levels)


def test_data_in_grey_is_the_same_data_with_a_third_of_the_bytes_and_says_that_there_were_colours():
    colour, grey = data.sample(), data.load("sample", channels=1)
    assert (grey.channels, grey.known) == (1, "sample")
    assert torch.equal(grey.train_images, pillow_grey(colour.train_images))
    assert torch.equal(grey.split(60).images("validation"), grey.train_images[-60:])
    assert grey.split(60).known == "sample"
    assert grey.notes == ("The pictures have colours; channels=1 converts them to grey",)
    again = grey.with_channels(3)
    assert torch.equal(again.train_images, grey.train_images.expand(-1, 3, -1, -1))
    assert again.with_channels(1).notes == grey.notes
    (mean,), (std,) = grey.statistics()
    values = grey.train_images.double() / 255
    assert (mean, std) == (pytest.approx(values.mean().item()), pytest.approx(values.std(correction=0).item()))
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(red, green and blue\), not 2"):
        colour.with_channels(2)


def test_a_run_of_one_channel_has_a_first_layer_of_one_and_says_so_everywhere(grey_run):
    model = trained.load(grey_run.directory, "cpu")
    assert model.channels == model.model.channels == 1
    assert tuple(model.model.get_parameter("0.weight").shape) == (24, 1, 4, 4)
    log = (grey_run.directory.parent / "log").read_text()
    assert log.count("The pictures have colours; channels=1 converts them to grey") == 1
    evaluated = tinycifar.evaluate(grey_run.directory, grey_run.dataset)
    stored = json.loads((grey_run.directory / "evaluation.json").read_text())
    assert evaluated["accuracy"] == stored["accuracy"]
    assert tinycifar.load(grey_run.directory)(torch.rand(2, 1, 24, 24)).shape == (2, 3)


def test_the_report_of_a_run_of_one_channel_has_its_pictures(grey_run):
    page = run_page.write(grey_run.directory, grey_run.dataset).read_text()
    assert page.count("data:image/png;base64,") > 20
    assert "channels" in page


@pytest.mark.parametrize(
    "name", ["micronet", "minutenet", "whitenet", "nanonet", "nanonet32", "accuratenet", "c1c2c3c4o"]
)
def test_a_model_of_one_channel_has_a_third_of_the_multiplications_in_its_first_layer(name):
    grey, colour = (summary.summarize(models.build(name, channels=channels)) for channels in (1, 3))
    first, other = (next(layer for layer in table.layers if layer.macs) for table in (grey, colour))
    filters = (first.output_shape[0], other.output_shape[0])
    assert first.parameters * 3 * filters[1] == other.parameters * filters[0]
    assert first.macs * 3 * filters[1] == other.macs * filters[0]
    assert grey.parameters < colour.parameters
    assert grey.input_mb * 3 == pytest.approx(colour.input_mb)


def test_the_largest_width_of_a_budget_is_that_of_the_channels():
    recipe = recipes.with_settings(recipes.get("minute"), ["channels=1"])
    widest = recipes.widest(recipe, 50_000)
    count = summary.summarize(widest.build()).parameters
    assert count <= 50_000 < summary.summarize(replace(widest, width=widest.width + 0.01).build()).parameters


def test_other_channels_are_refused_in_one_line(tmp_path, grey_run):
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(red, green and blue\), not 2"):
        recipes.with_settings(recipes.get("minute"), ["channels=2"])
    recipe = recipes.with_settings(recipes.get("minute"), ["epochs=1", "image_size=24", "width=0.5"])
    with pytest.raises(ValueError, match="run takes images of 1 channel, and the model of this recipe of 3: take the"):
        training.train(recipe, "sample", out=tmp_path / "a", init=trained.load(grey_run.directory, "cpu"))
    student = recipes.with_settings(recipes.get("nano"), ["teacher=minute", "channels=1", "epochs=1"])
    with pytest.raises(ValueError, match="the teacher minute takes images of 3 channels, and nano has channels=1"):
        training.train(student, "sample", out=tmp_path / "b", teachers=[trained.load("minute", "cpu")])
    assert not list(tmp_path.iterdir())


def test_a_model_of_ones_own_without_channels_takes_colours_only(monkeypatch):
    class Own(models.WhiteNet):
        def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
            super().__init__(num_classes, width)

    monkeypatch.setitem(models.MODELS, "own", Own)
    assert models.build("own").channels == 3
    with pytest.raises(ValueError, match="the model own has no argument `channels`: it takes images in RGB only"):
        models.build("own", channels=1)


@pytest.mark.parametrize(
    "augmentation",
    ["none", "translate", "translate-hole", "reference", "reference-as-run", "albumentations", "albumentations-as-run"],
)
def test_every_augmentation_takes_one_channel(augmentation, tmp_path):
    recipe = recipes.with_settings(recipes.get("minute"), ["channels=1", f"augmentation={augmentation}", "epochs=1"])
    training.train(recipe, data.sample().limit(64), out=tmp_path / "run", evaluate=False)
    assert trained.load(tmp_path / "run", "cpu").channels == 1


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_grey_images_are_corrupted_as_pictures_are(name):
    images = data.sample(channels=1).test_images[:4]
    expected = to_grey(corruptions.corrupt(images.expand(-1, 3, -1, -1).contiguous(), name, 3))
    assert torch.equal(corruptions.corrupt(images, name, 3), expected)


def forms(image: np.ndarray[Any, Any], folder: Path) -> list[Any]:
    """A picture (H, W, 3) in all forms that `predict` takes."""
    picture = Image.fromarray(image)
    content = encoded(picture)
    (folder / "a.png").write_bytes(content)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return [folder / "a.png", content, picture, image, tensor, tensor.numpy(), image / 255]


def test_pictures_in_every_form_are_seen_in_grey(grey_run, tmp_path, tinycifar):
    model = trained.load(grey_run.directory, "cpu")
    rng = np.random.default_rng(0)
    image = np.array(Image.fromarray(rng.integers(0, 256, (8, 11, 3), np.uint8)).resize((110, 80)))
    seen = pictures.to_array(pictures.upright(Image.fromarray(image), "pad"), 24, "pad", 1)
    assert seen.shape == (1, 24, 24)
    logits = inference.logits(model.model, torch.from_numpy(seen[None])) / (model.temperature or 1)
    expected = dict(zip(model.classes, logits.softmax(1)[0].tolist(), strict=True))
    for entry in inference.predict(model, predictions.listed(forms(image, tmp_path))):
        assert {of["class"]: of["probability"] for of in entry["classes"]} == pytest.approx(expected, abs=1e-6)
    outcome = tinycifar("predict", tmp_path / "a.png", "--model", grey_run.directory, "--csv")
    (row,) = csv.DictReader(io.StringIO(outcome.out))
    assert float(row["probability_1"]) == pytest.approx(max(expected.values()), abs=1e-5)


def test_grey_arrays_are_taken_by_models_of_one_channel_and_of_three(grey_run):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 24, 1), np.uint8)
    for source in (grey_run.directory, "minute"):
        colour = tinycifar.predict(source, np.repeat(image, 3, 2))
        assert tinycifar.predict(source, image) == colour
        for entry in tinycifar.predict(source, np.stack([image, image])):
            for found, of in zip(entry["classes"], colour[0]["classes"], strict=True):
                assert (found["class"], found["probability"]) == (of["class"], pytest.approx(of["probability"]))
        assert tinycifar.predict(source, torch.from_numpy(image).permute(2, 0, 1)) == colour
    (as_float,) = tinycifar.predict(grey_run.directory, image / np.float32(255))
    (as_bytes,) = tinycifar.predict(grey_run.directory, image)
    assert [of["class"] for of in as_float["classes"]] == [of["class"] for of in as_bytes["classes"]]
    with pytest.raises(ValueError, match="with 1 in the place of 3 for grey ones, not"):
        tinycifar.predict("minute", np.zeros((24, 24, 2), np.uint8))


def test_a_heat_map_and_receptive_fields_are_drawn_for_one_channel(grey_run, tmp_path, tinycifar):
    pictures.to_image(data.sample().test_images[0]).save(tmp_path / "a.png")
    assert tinycifar("explain", tmp_path / "a.png", "--model", grey_run.directory, "--out", tmp_path / "e").code == 0
    assert (tmp_path / "e" / "a-explained.png").stat().st_size > 1000
    outcome = tinycifar("summary", grey_run.directory, "--plot", tmp_path / "fields.png", "--json")
    assert outcome.json["layers"][0]["parameters"] == 24 * 16


@pytest.mark.parametrize("int8", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_onnx_files_of_one_channel_agree_and_say_so(int8, grey_run, tmp_path):
    model = trained.load(grey_run.directory, "cpu")
    write = onnx_file.to_int8 if int8 else onnx_file.to_onnx
    exported = write(model, tmp_path / "grey.onnx", grey_run.dataset)  # of three channels: it is converted
    assert exported.parity.images == 200
    stored = onnx.load(tmp_path / "grey.onnx")
    assert [dim.dim_value for dim in stored.graph.input[0].type.tensor_type.shape.dim[1:]] == [1, 24, 24]
    about = {item.key: item.value for item in stored.metadata_props}
    assert (about["channels"], about["fit"]) == ("1", "pad")
    assert about["preprocessing"].startswith("grey (Pillow's L: 0.299 R + 0.587 G + 0.114 B), 24x24 pixels")


@pytest.mark.parametrize("int8", [False, True])
def test_the_tflite_files_of_one_channel_agree(int8, grey_run, tmp_path):
    exported = tflite.to_tflite(trained.load(grey_run.directory, "cpu"), tmp_path / "a", grey_run.dataset, int8=int8)
    assert exported.parity.images == 200


@pytest.mark.usefixtures("compiler")
def test_c_of_one_channel_takes_a_byte_a_pixel_and_says_so(grey_run, tmp_path):
    exported = c_source.export_c(trained.load(grey_run.directory, "cpu"), tmp_path, grey_run.dataset)
    header = exported.header.read_text()
    assert exported.not_compiled is None
    assert exported.pixel_bytes == 24 * 24
    for line in (
        "#define RUN_IMAGE_SIZE 24\n",
        "#define RUN_CHANNELS 1 /* grey: 0.299 red + 0.587 green + 0.114 blue */\n",
        '#define RUN_FIT "pad" /* a picture keeps its proportions and lies in the middle of a square of grey, 128 */\n',
        "pixels: 24 * 24 * 1 bytes, one of each pixel, row by row.\n",
    ):
        assert line in header


def test_the_service_answers_in_grey_as_predict_does(grey_run, tmp_path):
    exported = onnx_file.to_onnx(trained.load(grey_run.directory, "cpu"), tmp_path / "g.onnx", grey_run.dataset)
    service = app.Service(served.open_model(str(exported.path)))
    about = service.model.about
    assert (about.image_size, about.fit, about.channels) == (24, "pad", 1)
    content = forms(np.random.default_rng(3).integers(0, 256, (70, 41, 3), np.uint8), tmp_path)[1]
    (answer,) = service.classify([service.decode(content)], [app.Asked(3)])
    (expected,) = tinycifar.predict(grey_run.directory, content)
    for found, of in zip(answer["classes"], expected["classes"], strict=True):
        assert (found["class"], found["probability"]) == (of["class"], pytest.approx(of["probability"], abs=1e-4))
