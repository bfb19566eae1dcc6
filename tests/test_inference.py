from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from test_trained import ABOUT
from tinycifar import atomic, data, inference, models, run, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.scores import Robustness


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    trained.save_weights(path, models.build("c1c2c3c4o"), **ABOUT, temperature=0.5)
    return path


def test_logits_do_not_depend_on_batch_size_or_on_the_mode_the_model_was_in():
    model = models.build("c1c2c3c4o").train()
    images = data.sample().test_images[:50]
    whole = inference.logits(model, images)
    assert model.training
    torch.testing.assert_close(inference.logits(model.eval(), images, batch_size=7), whole)
    assert not model.training
    assert (whole.dtype, whole.shape) == (torch.float32, (50, 10))


def test_uint8_images_and_their_floats_give_the_same_logits():
    model = models.build("c1c2c3c4o")
    images = data.sample().test_images[:20]
    assert torch.equal(inference.logits(model, images), inference.logits(model, images.float() / 255))


def test_flip_averaging_is_the_mean_over_an_image_and_its_mirror_image():
    model = models.build("c1c2c3c4o")
    images = data.sample().test_images[:20]
    plain, mirrored = inference.logits(model, images), inference.logits(model, images.flip(3))
    assert not torch.allclose(plain, mirrored)
    torch.testing.assert_close(inference.logits(model, images, flip=True), (plain + mirrored) / 2)


def test_evaluation_sees_validation_images_where_there_are_some_else_the_test_images():
    sample = data.sample()
    assert inference.evaluation_split(sample)[0] == "test"
    split, images, labels = inference.evaluation_split(sample.split(100))
    assert split == "validation"
    assert torch.equal(images, sample.train_images[-100:])
    assert torch.equal(labels, sample.train_labels[-100:])


def save_sample(path: Path, index: int) -> torch.Tensor:
    image = data.sample().test_images[index]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return image


def test_predictions_are_the_three_largest_softmax_probabilities_at_the_models_temperature(weights, tmp_path):
    image = save_sample(tmp_path / "image.png", 3)
    model = trained.load(weights)
    (prediction,) = inference.predict(model, [tmp_path / "image.png"])
    probabilities = (inference.logits(model.model, image[None]) / 0.5).softmax(1)[0]
    order = probabilities.argsort(descending=True)[:3].tolist()
    assert [entry["class"] for entry in prediction["classes"]] == [CLASSES[i] for i in order]
    assert [entry["probability"] for entry in prediction["classes"]] == pytest.approx(probabilities[order].tolist())


def test_of_hundreds_of_files_the_unreadable_ones_are_named_and_the_others_predicted_in_order(weights, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(300)]
    for index, path in enumerate(paths):
        if index in (0, 255, 256, 299):
            path.write_text("no picture")
        else:
            save_sample(path, index % 7)
    model = trained.load(weights)
    found = list(inference.predict(model, paths))
    assert [entry["file"] for entry in found] == [str(path) for path in paths]
    assert [index for index, entry in enumerate(found) if "problem" in entry] == [0, 255, 256, 299]
    (alone,) = inference.predict(model, [paths[5]])
    assert found[5]["classes"][0]["probability"] == pytest.approx(alone["classes"][0]["probability"], rel=1e-5)
    assert found[12]["classes"][0]["class"] == found[5]["classes"][0]["class"]


def test_on_test_images_a_given_temperature_is_applied_and_on_validation_images_one_is_fitted():
    torch.manual_seed(0)
    model, sample = models.build("c1c2c3c4o"), data.sample()
    assert inference.evaluate(model, sample).scores.calibrated is None
    given = inference.evaluate(model, sample, 3.0)
    scaled = torch.nn.functional.cross_entropy(given.logits.double() / 3.0, given.labels)
    assert given.scores.temperature == 3.0
    assert given.scores.calibrated.loss == pytest.approx(scaled.item(), abs=1e-6)
    fitted = inference.evaluate(model, sample.split(100), 3.0).scores
    assert fitted.temperature != 3.0


def test_an_evaluation_keeps_what_was_measured_on_corrupted_images_of_the_same_weights(tmp_path):
    torch.manual_seed(0)
    model, sample = models.build("c1c2c3c4o"), data.sample()
    evaluation = inference.evaluate(model, sample)
    measured = Robustness(5, 0.8, 0.5, {"fog": (0.5,) * 5})
    replace(evaluation, scores=replace(evaluation.scores, robustness=measured)).save(tmp_path)
    inference.evaluate(model, sample).save(tmp_path)
    assert run.read_evaluation(tmp_path).robustness == measured
    inference.evaluate(models.build("c1c2c3c4o"), sample).save(tmp_path)
    assert "robustness" not in atomic.read_json(tmp_path / "evaluation.json")


def test_pictures_are_seen_at_the_models_own_size_and_named_with_its_own_classes(own_run, tmp_path):
    large = Image.effect_noise((90, 70), 60).convert("RGB")
    large.save(tmp_path / "large.png")
    model = trained.load(own_run.directory, "cpu")
    (found,) = inference.predict(model, [tmp_path / "large.png"], top=9)
    assert {of["class"] for of in found["classes"]} == {"käse", "größe <1>", "猫"}
    seen = pictures.to_tensor(large.crop((10, 0, 80, 70)), 24)
    expected = (inference.logits(model.model, seen[None]) / (model.temperature or 1)).softmax(1).max()
    assert found["classes"][0]["probability"] == pytest.approx(float(expected), abs=1e-6)
