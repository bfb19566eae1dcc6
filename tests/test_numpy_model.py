import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tinycifar import catalog, data, inference, models, numpy_model, predictions, trained


@pytest.mark.parametrize("name", catalog.shipped())
def test_a_shipped_model_gives_the_same_logits_in_numpy_as_in_pytorch(name):
    images = data.sample().test_images
    expected = inference.logits(trained.load(name, "cpu").model, images)
    quick = numpy_model.load(name)
    torch.testing.assert_close(torch.from_numpy(quick.logits(images.numpy())), expected, atol=1e-3, rtol=1e-4)
    as_floats = torch.from_numpy(quick.logits(images.numpy().astype(np.float32) / 255))
    torch.testing.assert_close(as_floats, expected, atol=1e-3, rtol=1e-4)
    probabilities = (expected / (quick.temperature or 1)).softmax(1)
    found = predictions.softmax(quick.logits(images.numpy()) / (quick.temperature or 1))
    torch.testing.assert_close(torch.from_numpy(found), probabilities, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["micronet", "minutenet", "whitenet", "nanonet", "nanonet32", "accuratenet", "teachernet", "largeteachernet"],
)
def test_every_mirrored_architecture_gives_the_same_logits_in_numpy(name, channels):
    torch.manual_seed(0)
    model = models.build(name, 3, image_size=24, width=0.25, channels=channels)
    images = data.sample(24, channels).train_images[:50]
    model.prepare(images)
    model(images / 255)  # running statistics
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    residual = catalog.ARCHITECTURES[name].residual
    quick = numpy_model.NumpyModel(tensors, residual, ("a", "b", "c"), catalog.Form(24, channels=channels), None)
    expected = inference.logits(model, images)
    assert expected.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(quick.logits(images.numpy())), expected, atol=1e-3, rtol=1e-3)


def test_weights_that_are_not_those_shipped_are_refused(monkeypatch, tmp_path):
    shutil.copytree(catalog.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(catalog, "WEIGHTS", tmp_path / "weights")
    numpy_model.load("nano")
    save_file({"mean": np.zeros(3, np.float32)}, tmp_path / "weights" / "nano.safetensors", {"tinycifar": "{}"})
    for load in (numpy_model.load, trained.load):
        with pytest.raises(ValueError, match=r"nano\.safetensors is damaged or missing; install tinycifar again"):
            load("nano")
    (tmp_path / "weights" / "nano.safetensors").unlink()
    with pytest.raises(ValueError, match="damaged or missing; install tinycifar again"):
        numpy_model.load("nano")
