from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import nn

from conftest import float64
from tinycifar import data, heatmaps, inference, models, summary, trained
from tinycifar.data import pictures
from tinycifar.models import Classifier
from tinycifar.report import explanations

# In float64 two orders of additions differ by 1e-14 on any processor.
EQUAL: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


def model_of(name: str) -> Classifier:
    """A model of the registry with weights that are not those of its start."""
    torch.manual_seed(1)
    model = models.build(name)
    model.prepare(data.sample().train_images)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", models.MODELS)
def test_activations_are_captums_grad_cam_and_both_parts_of_every_model_give_its_logits(name):
    images, classes = data.sample().test_images[:6], torch.tensor([0, 3, 9, 1, 5, 5])
    with float64():
        model = model_of(name)
        trunk, head = heatmaps.split_head(model)
        logits = head(trunk((images.float() / 255 - model.mean) / model.std)).detach()
        torch.testing.assert_close(logits, inference.logits(model, images), **EQUAL)
        oracle = LayerGradCam(model, trunk[-1])
        expected = oracle.attribute(images.float() / 255, classes).detach()[:, 0]
        found = heatmaps.class_activation(model, images, classes)
        of_other_classes = heatmaps.class_activation(model, images, (classes + 1) % 10)
    torch.testing.assert_close(found, expected, **EQUAL)
    assert not torch.allclose(of_other_classes, expected, rtol=1e-3)


def test_a_model_without_a_feature_map_is_refused():
    with pytest.raises(ValueError, match="no feature map"):
        heatmaps.split_head(Classifier(nn.Flatten(), nn.Linear(3072, 10)))


def test_explaining_leaves_a_model_as_it_was():
    model = model_of("c1c2c3c4o").train()
    images = data.sample().test_images[:2]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heatmaps.heat_maps(model, images, torch.tensor([0, 1]))
    heatmaps.effective_receptive_field(model, images)
    floats = images.float() / 255
    heatmaps.effective_receptive_field(model, floats)
    assert not floats.requires_grad
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_heat_lies_where_the_only_thing_that_speaks_for_the_class_is():
    model = Classifier(nn.Conv2d(3, 1, 1), nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    for layer, weight, bias in ((model[0], [[1.0, 1.0, 1.0]], [0.0]), (model[4], [[1.0], [-1.0]], [0.0, 0.0])):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layer.weight.data = torch.tensor(weight).view_as(layer.weight)
        layer.bias.data = torch.tensor(bias)
    image = (model.mean * 255).expand(1, 3, 32, 32).round().to(torch.uint8).clone()
    image[:, :, 4:8, 20:24] = 255
    (heat,) = heatmaps.heat_maps(model, image, torch.tensor([0]))
    assert divmod(int(heat.argmax()), 32)[0] in range(4, 8)
    assert divmod(int(heat.argmax()), 32)[1] in range(20, 24)
    assert (heat.max(), heat.shape) == (1, (32, 32))
    assert heat[20:, :12].max() < 0.01


@pytest.mark.parametrize("name", models.MODELS)
def test_the_effective_receptive_field_lies_within_the_theoretical_one_and_around_its_centre(name):
    field = heatmaps.effective_receptive_field(model_of(name), data.sample().test_images[:20])
    table = summary.summarize(models.build(name))
    places = torch.arange(32.0)
    outside = (places - table.map_centre).abs() > table.map_field / 2
    assert field[outside].sum() == 0
    assert field[:, outside].sum() == 0
    for weights in (field.sum(0), field.sum(1)):
        assert int(weights.argmax()) == pytest.approx(table.map_centre, abs=4)  # the last maps have 4x4 places


def test_pictures_of_one_name_from_several_folders_are_all_drawn(tmp_path):
    paths = [tmp_path / "a" / "cat.png", tmp_path / "b" / "cat.png", tmp_path / "b" / "broken.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        pictures.to_image(data.sample().test_images[0]).save(path)
    paths[2].write_text("no picture")
    found = list(explanations.explain_files(trained.load("minute"), paths, tmp_path))
    assert [entry.get("picture") for entry in found] == [
        *(str(tmp_path / f"cat-explained{end}.png") for end in ("", "-2")),
        None,
    ]
    assert "broken.png: no PNG" in found[2]["problem"]
    assert found[0]["class"] == "cat"
    with Image.open(found[1]["picture"]) as drawn:
        assert min(drawn.size) > 300


def test_another_class_than_the_predicted_one_can_be_explained_and_an_unknown_one_is_refused(tmp_path):
    pictures.to_image(data.sample().test_images[0]).save(tmp_path / "x.png")
    model = trained.load("minute")
    (found,) = explanations.explain_files(model, [tmp_path / "x.png"], tmp_path, "dog")
    assert found["class"] == "dog"
    assert found["probability"] < 0.5
    with pytest.raises(ValueError, match="unknown class 'unicorn'; the classes are: airplane, "):
        list(explanations.explain_files(model, [tmp_path / "x.png"], tmp_path, "unicorn"))


def test_a_model_of_another_size_is_explained_and_many_classes_are_not_all_listed(own_run, thousand, tmp_path):
    model = trained.load(own_run.directory, "cpu")
    images = own_run.dataset.test_images[:3]
    assert heatmaps.heat_maps(model.model, images, torch.tensor([0, 1, 2])).shape == (3, 24, 24)
    pictures.to_image(images[0]).resize((80, 60)).save(tmp_path / "x.png")
    (found,) = explanations.explain_files(model, [tmp_path / "x.png"], tmp_path, "猫")
    assert found["class"] == "猫"
    assert Path(found["picture"]).exists()
    many = trained.load(thousand.directory, "cpu")
    with pytest.raises(ValueError, match=r"unknown class 'x'; the classes are: 1,000 classes \(class 000, .{,40}$"):
        list(explanations.explain_files(many, [tmp_path / "x.png"], tmp_path, "x"))
