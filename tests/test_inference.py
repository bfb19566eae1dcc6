import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tinycifar import data, inference, models, run


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    run.save_weights(path, models.build("c1c2c3c4o"), "c1c2c3c4o", "reference-30", data.CLASSES)
    return path


def test_logits_do_not_depend_on_batch_size_or_on_the_mode_the_model_was_in() -> None:
    model = models.build("c1c2c3c4o").train()
    images = data.sample().test_images[:50]
    whole = inference.logits(model, images)
    assert model.training
    torch.testing.assert_close(inference.logits(model.eval(), images, batch_size=7), whole)
    assert not model.training
    assert (whole.dtype, whole.shape) == (torch.float32, (50, 10))


def test_uint8_images_and_their_floats_give_the_same_logits() -> None:
    model = models.build("c1c2c3c4o")
    images = data.sample().test_images[:20]
    assert torch.equal(inference.logits(model, images), inference.logits(model, images.float() / 255))


def test_flip_averaging_is_the_mean_over_an_image_and_its_mirror_image() -> None:
    model = models.build("c1c2c3c4o")
    images = data.sample().test_images[:20]
    plain, mirrored = inference.logits(model, images), inference.logits(model, images.flip(3))
    assert not torch.allclose(plain, mirrored)
    torch.testing.assert_close(inference.logits(model, images, flip=True), (plain + mirrored) / 2)


def test_evaluation_sees_validation_images_where_there_are_some_else_the_test_images() -> None:
    sample = data.sample()
    assert inference.evaluation_split(sample)[0] == "test"
    split, images, labels = inference.evaluation_split(sample.split(100))
    assert split == "validation"
    assert torch.equal(images, sample.train_images[-100:])
    assert torch.equal(labels, sample.train_labels[-100:])


def test_weights_load_from_their_file_and_from_the_run_directory(weights: Path) -> None:
    trained = inference.load(weights)
    assert (trained.model_name, trained.recipe, trained.classes) == ("c1c2c3c4o", "reference-30", data.CLASSES)
    again = inference.load(weights.parent)
    images = data.sample().test_images[:5]
    assert torch.equal(inference.logits(trained.model, images), inference.logits(again.model, images))


def test_what_is_no_weights_file_of_ours_is_refused_by_name(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "short.safetensors").write_bytes(weights.read_bytes()[:5000])
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    metadata = {"model": "c1c2c3c4o", "classes": json.dumps(data.CLASSES)}
    save_file({"x": torch.zeros(1)}, tmp_path / "misfit.safetensors", metadata)
    save_file({"x": torch.zeros(1)}, tmp_path / "unknown.safetensors", metadata | {"model": "vgg"})
    save_file({"x": torch.zeros(1)}, tmp_path / "classes.safetensors", metadata | {"classes": "10"})
    for name, message in {
        "missing": "does not exist; name a run directory",
        "empty": "is no run directory: it holds no model.safetensors",
        "text.safetensors": "is no readable safetensors file",
        "short.safetensors": "is no readable safetensors file",
        "foreign.safetensors": "does not name its model and classes; it was not written",
        "misfit.safetensors": "weights that do not fit the model c1c2c3c4o",
        "unknown.safetensors": "unknown model 'vgg'",
        "classes.safetensors": "does not name its model and classes",
    }.items():
        with pytest.raises(ValueError, match=message):
            inference.load(tmp_path / name)


def test_a_cifar_image_saved_as_png_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    image = data.sample().test_images[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    assert torch.equal(inference.read_picture(tmp_path / "image.png"), image)


def test_a_large_picture_is_cropped_to_its_centre_and_reduced(tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 32:96] = 200  # the central square; all else is outside
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (inference.read_picture(tmp_path / "wide.png") == 200).all()


def test_a_picture_is_turned_upright_as_its_camera_noted(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    read = inference.read_picture(tmp_path / "turned.png")
    assert (read[:, :16] == 0).all()
    assert (read[:, 16:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_other_modes_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (40, 40), "white").convert(mode).save(path)
    assert inference.read_picture(path).float().mean() > 250


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 128 * 256 + 7, np.uint16)).save(tmp_path / "deep.png")
    assert (inference.read_picture(tmp_path / "deep.png") == 128).all()


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 16))
    picture.save(tmp_path / "half.png")
    read = inference.read_picture(tmp_path / "half.png")
    assert (read[:, :16] == 255).all()
    assert read[:, 20, 20].tolist() == [255, 0, 0]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"large\.png: more than 1,000 pixels"):
        inference.read_picture(tmp_path / "large.png")


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.gif")
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "notes.png": "notes.png: no PNG or JPEG image",
        "cut.png": "cut.png: no PNG or JPEG image",
        "other.gif": "other.gif: no PNG or JPEG image",
        "folder.png": "folder.png: Is a directory",
        "none.png": "none.png: No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            inference.read_picture(tmp_path / name)


def test_predictions_are_the_three_largest_softmax_probabilities(weights: Path, tmp_path: Path) -> None:
    image = data.sample().test_images[3]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    trained = inference.load(weights)
    (prediction,) = inference.predict(trained, [tmp_path / "image.png"])
    probabilities = inference.logits(trained.model, image[None]).softmax(1)[0]
    order = probabilities.argsort(descending=True)[:3].tolist()
    assert [entry["class"] for entry in prediction["classes"]] == [data.CLASSES[i] for i in order]
    assert [entry["probability"] for entry in prediction["classes"]] == pytest.approx(probabilities[order].tolist())
