"""Models written out in plain layers give what they gave before."""

import pytest
import torch
from torch import nn

from conftest import float64
from tinycifar import data, inference, models
from tinycifar.formats import onnx_file, plain


@torch.no_grad()
def set_statistics(model: nn.Module) -> None:
    """Give normalisations random statistics."""
    for key, values in model.named_buffers():
        if key.endswith("running_var"):
            values.uniform_(0.5, 2)
        elif key.endswith("running_mean"):
            values.normal_()


def trained_looking(name: str) -> models.Classifier:
    """A model whose parameters and statistics all matter, as they do after training."""
    torch.manual_seed(0)
    model = models.build(name)
    model.prepare(data.sample().train_images)
    set_statistics(model)
    with torch.no_grad():
        for values in model.parameters():
            if values.dim() == 1:
                values.normal_()
    return model


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_written_out_has_plain_layers_alone_and_gives_the_same_logits(name):
    images = data.sample().test_images[:20]
    with float64(), torch.inference_mode():
        model = trained_looking(name)
        before = {key: values.clone() for key, values in model.state_dict().items()}
        expected = inference.logits(model, images)
        written = plain.write_out(model)
        kinds = {type(layer) for layer in written.modules()} - {plain.Plain, plain.Residual, nn.Sequential}
        assert kinds <= {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Linear}
        found, activation = written(images / 255)
        # In float64 they differ by 1e-13 of the largest logit; a first layer that is off by a thousandth, by more.
        most = 1e-10 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=most)
        torch.testing.assert_close(activation.mean((2, 3)) + written.head.bias, found, rtol=0, atol=most)
        next(layer for layer in written.modules() if isinstance(layer, nn.Conv2d)).weight.mul_(1.001)
        assert (written(images / 255)[0] - expected).abs().max() > most
    for key, values in model.state_dict().items():
        assert torch.equal(values, before[key]), key
    assert model.training


def test_a_negative_scale_behind_pooling_is_refused():
    norm = nn.BatchNorm2d(8)
    model = models.Classifier(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), norm, *TAIL)
    plain.write_out(model)
    nn.init.constant_(norm.weight, -1.0)
    with pytest.raises(ValueError, match="negative scale behind max-pooling"):
        plain.write_out(model)


class Doubled(nn.Conv2d):
    """A convolution with a `forward` of its own."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


class Skip(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = super().forward(inputs)
        return outputs + inputs


TAIL = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    "layers",
    [
        [Doubled(3, 8, 3)],
        [nn.Conv2d(3, 8, 3), Skip(nn.Conv2d(8, 8, 3, padding=1))],
        [nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.SiLU()],
        [nn.Conv2d(3, 8, 3), nn.Identity(), nn.Dropout2d(), plain.Residual(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))],
    ],
)
def test_layers_that_compute_something_of_their_own_are_kept(layers):
    torch.manual_seed(0)
    model = models.Classifier(*layers, *TAIL).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(plain.write_out(model)(images)[0], model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), *TAIL], "BatchNorm2d that does not follow a convolution"),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), *TAIL], "BatchNorm2d that does not follow a convolution"),
        ([Doubled(3, 8, 3), nn.BatchNorm2d(8), *TAIL], "BatchNorm2d that does not follow a convolution"),
        (
            [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), *TAIL],
            "BatchNorm2d without running statistics",
        ),
        (
            [nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 10)],
            "only models that end in global average pooling and a linear layer",
        ),
        ([nn.Conv2d(3, 10, 32), nn.Flatten()], "only models that end in global average pooling and a linear layer"),
    ],
)
def test_what_cannot_be_written_out_is_named(layers, message):
    with pytest.raises(ValueError, match=message):
        plain.write_out(models.Classifier(*layers))


class Bessel(nn.Module):
    """A layer for which ONNX has no operator."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(inputs)


def test_an_operator_that_onnx_lacks_is_named_in_one_line():
    model = models.Classifier(nn.Conv2d(3, 8, 3), Bessel(), *TAIL)
    with pytest.raises(ValueError, match=r"cannot be exported to ONNX: there is no ONNX operator for .*bessel_j0$"):
        onnx_file.float_model(plain.write_out(model))
