"""Architectures: what goes in, what comes out, and what the reference fixes."""

import pytest
import torch
from torch import nn

from conftest import float64
from tinycifar import data, models
from tinycifar.data.dataset import MEAN, STD
from tinycifar.models import MODELS, build

# In float64 two orders of additions differ by 1e-15 on any processor.
EQUAL: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_a_model_turns_images_into_one_logit_a_class(name):
    model = build(name, num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@every_model
def test_all_models_but_teachers_keep_to_the_budget_of_200_000_parameters(name):
    assert (0 < sum(p.numel() for p in build(name).parameters()) < 200_000) == (not name.endswith("teachernet"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("micronet", 31_604),
        ("nanonet32", 82_000),
        ("minutenet", 330_176),
        ("whitenet", 294_304),
        ("c1c2c3c4o", 195_946),
    ],
)
def test_written_out_every_mirrored_filter_counts_twice(name, parameters):
    assert models.written_out(build(name)) == parameters


@every_model
def test_every_parameter_that_is_trained_gets_a_gradient(name):
    torch.manual_seed(0)
    model = build(name)
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    trained = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []
    assert trained


@every_model
def test_an_image_gets_the_same_logits_alone_and_in_a_batch(name):
    torch.manual_seed(0)
    with float64(), torch.no_grad():
        model = build(name).eval()
        images = torch.rand(3, 3, 32, 32)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, **EQUAL)
        model.train()  # in which they depend on the other images
        assert not torch.allclose(model(images), alone, rtol=1e-3)


@every_model
def test_the_same_seed_gives_the_same_weights(name):
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.detach().flatten() for p in build(name).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@every_model
def test_images_are_normalised_inside_the_model(name):
    torch.manual_seed(0)
    with float64(), torch.no_grad():
        model = build(name).eval()
        images = torch.rand(2, 3, 32, 32)
        by_hand = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        expected = model(images)
        model.mean.fill_(0)
        model.std.fill_(1)
        assert not torch.allclose(model(images), expected, rtol=1e-3)
        torch.testing.assert_close(model(by_hand), expected, **EQUAL)


@every_model
def test_the_case_of_a_name_is_ignored(name):
    assert type(build(name.upper())) is type(build(name))


def test_only_the_dilated_convolution_of_the_reference_has_a_bias():
    convolutions = [module for module in build("c1c2c3c4o").modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 10
    assert [module.dilation for module in convolutions if module.bias is not None] == [(3, 3)]


def test_the_blocks_of_the_reference_give_the_sizes_of_its_table():
    model = build("c1c2c3c4o").eval()
    images, sides = torch.rand(1, 3, 32, 32), []
    with torch.no_grad():
        for block in list(model)[:4]:
            images = block(images)
            sides.append(tuple(images.shape[1:]))
    assert sides == [(32, 28, 28), (64, 12, 12), (128, 4, 4), (64, 9, 9)]


def test_the_whitening_stem_makes_patches_uncorrelated_and_of_unit_variance():
    images = data.sample().train_images
    model = build("whitenet")
    model.prepare(images)
    stem = next(model.children())
    assert isinstance(stem, models.WhiteningStem)
    normalised = (torch.cat([images, images.flip(3)]) / 255 - model.mean) / model.std
    with torch.no_grad():
        # Without the zeros beyond the border, which are no patches of the images.
        whitened = torch.nn.functional.conv2d(normalised, stem.weight, stride=2)
    half = stem.out_channels // 2
    torch.testing.assert_close(stem.weight[half:], -stem.weight[:half])
    values = whitened[:, :half].transpose(0, 1).flatten(1)
    second_moments = values @ values.T / values.shape[1]
    off_diagonal = second_moments - torch.diag(second_moments.diagonal())
    assert off_diagonal.abs().max() < 1e-3
    assert second_moments.diagonal()[0] == pytest.approx(1, abs=0.01)
    assert second_moments.diagonal().min() > 0.8  # the smallest components, which EPSILON holds back most


def test_the_whitening_stem_is_fixed_and_travels_with_the_weights():
    model = build("whitenet")
    assert [key for key, p in model.named_parameters() if p.dim() == 4 and not p.requires_grad] == ["0.weight"]
    assert "0.weight" in model.state_dict()


@pytest.mark.parametrize(("size", "grey"), [(32, False), (32, True), (16, False), (24, False), (64, False)])
@pytest.mark.parametrize("name", [name for name in MODELS if isinstance(build(name), models.MirroredNet)])
def test_mirrored_nets_give_an_image_and_its_mirror_image_the_same_logits(name, size, grey):
    torch.manual_seed(0)
    images = data.sample(size).train_images[:100]
    if grey:  # patches then fill a third of their space
        images = images[:, :1].expand(-1, 3, -1, -1)
    with float64(), torch.no_grad():
        model = build(name, image_size=size, width=1.0 if size == 32 else 0.5)
        model.prepare(images)
        for parameter, values in model.named_parameters():
            if parameter.endswith("shift"):
                values.normal_()
        images = images[:10]
        for _ in range(3):  # statistics of both halves, which differ as the images are not mirrored
            model.train()(images / 255)
        model.eval()
        logits, mirrored = model(images / 255), model(images.flip(3) / 255)
        upside_down = model(images.flip(2) / 255)
    assert logits.isfinite().all()
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, mirrored, **EQUAL)
    assert not torch.allclose(logits, upside_down, rtol=1e-3)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_mirrored_convolution_is_a_plain_one_whose_second_half_are_mirror_images(kernel_size):
    torch.manual_seed(0)
    conv = models.MirroredConv(4, 6, kernel_size)
    mirrored = conv.weight.flip(3)[:, [2, 3, 0, 1]]
    inputs = torch.randn(2, 4, 5, 5)
    weight = torch.cat([conv.weight, mirrored])
    expected = torch.nn.functional.conv2d(inputs, weight, padding=kernel_size // 2)
    torch.testing.assert_close(conv(inputs), expected)
    seen = conv(inputs.flip(3)[:, [2, 3, 0, 1]]).flip(3)[:, [3, 4, 5, 0, 1, 2]]
    torch.testing.assert_close(seen, expected)


def test_a_mirrored_depthwise_convolution_is_a_plain_one_whose_second_half_are_mirror_images():
    torch.manual_seed(0)
    conv = models.MirroredDepthwise(6)
    filters = torch.cat([conv.weight, conv.weight.flip(3)])
    inputs, mirror = torch.randn(2, 6, 5, 5), [3, 4, 5, 0, 1, 2]
    expected = torch.nn.functional.conv2d(inputs, filters, padding=1, groups=6)
    torch.testing.assert_close(conv(inputs), expected)
    seen = conv(inputs.flip(3)[:, mirror]).flip(3)[:, mirror]
    torch.testing.assert_close(seen, expected)


def test_filters_of_a_new_block_pass_their_input_on():
    block = models.MirroredBlock(4, 6).eval()
    inputs = torch.rand(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(block(inputs)[:, [0, 1, 3, 4]], inputs / (1 + 1e-5) ** 0.5)


def test_a_mirrored_norm_in_training_is_batch_normalisation_with_a_shift_for_each_pair():
    torch.manual_seed(0)
    norm, plain = models.MirroredNorm(4), torch.nn.BatchNorm2d(4, momentum=0.2)
    with torch.no_grad():
        norm.shift.copy_(torch.tensor([1.0, 2.0]))
        plain.bias.copy_(torch.tensor([1.0, 2.0, 1.0, 2.0]))
    for _ in range(3):
        inputs = torch.randn(5, 4, 3, 3)
        torch.testing.assert_close(norm(inputs), plain(inputs))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_blocks_that_add_their_input_give_it_back_if_their_filters_are_zero():
    inputs = torch.randn(2, 8, 6, 6)
    for block in (
        models.MirroredBlock(8, 8, residual=True),
        models.MirroredBottleneck(8, 4),
        models.MirroredBlock(8, 8, residual=True, separable=True),
    ):
        with torch.no_grad():
            for layer in block.layers:
                if isinstance(layer, models.MirroredConv):
                    layer.weight.zero_()
            assert torch.equal(block.eval()(inputs), inputs.relu()), "added before the activation"


@pytest.mark.parametrize("separable", [False, True])
def test_a_pooling_block_takes_the_largest_of_four_behind_its_first_convolution(separable):
    torch.manual_seed(0)
    block = models.MirroredBlock(4, 6, pool=True, separable=separable).eval()
    inputs = torch.randn(2, 4, 6, 6)
    conv, _, *rest = block.layers
    with torch.no_grad():
        outputs = conv(inputs).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        for layer in rest:
            outputs = layer(outputs)
        torch.testing.assert_close(block(inputs), torch.relu(outputs))


@every_model
def test_a_model_takes_every_size_of_image_that_it_says_it_takes(name):
    sizes = models.image_sizes(name)
    assert sizes[-1] == 64
    for size in sizes if not name.endswith("teachernet") else (16, 64):
        model = build(name, 3, image_size=size, width=1.0 if name.endswith("teachernet") else 0.1).eval()
        assert model.image_size == size
        with torch.no_grad():
            assert model(torch.rand(1, 3, size, size)).shape == (1, 3)
    for size in (sizes[0] - 1, sizes[-1] + 1):
        with pytest.raises(ValueError, match=f"image_size must lie between {sizes[0]} and 64.*, not be {size}"):
            build(name, image_size=size)


@every_model
def test_width_scales_the_parameters_by_about_its_square_and_one_leaves_them_as_they_are(name):
    widths = [0.1, 0.5, 0.75, 1.0, 1.5, 2.0, 8.0]
    counts = [sum(parameter.numel() for parameter in build(name, width=width).parameters()) for width in widths]
    assert counts == sorted(set(counts))
    assert counts[3] == sum(parameter.numel() for parameter in build(name).parameters())
    assert 3.1 < counts[5] / counts[3] < 4.1


def test_on_grey_images_the_whitening_stem_leaves_out_the_colours_that_are_not_there():
    model = build("whitenet", width=2.0)
    grey = data.sample().train_images.float().mean(1, keepdim=True).byte().expand(-1, 3, -1, -1)
    values = grey.float() / 255
    model.mean.fill_(values.mean())  # as training does, where no channel differs from another
    model.std.fill_(values.std())
    model.prepare(grey)
    stem = model[0]
    assert isinstance(stem, models.WhiteningStem)
    (size,) = {len(stem.weight) // 2}
    used = stem.weight[:size].flatten(1).abs().sum(1) > 0
    assert int(used.sum()) == 16  # a third of the 48 values of a patch: those of its grey levels
    whitened = stem(model.normalize(grey / 255))[:, :16]
    deviations = whitened.transpose(0, 1).flatten(1).square().mean(1).sqrt()
    assert deviations.min() > 0.5
    assert deviations.max() < 1.5
    assert stem.weight.isfinite().all()
    assert stem.weight.abs().max() < 50


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_are_normalized_to_the_same_bits_in_both_memory_formats(channels, memory_format):
    model = build("whitenet", channels=channels)
    images = torch.rand(5, channels, 32, 24, generator=torch.Generator().manual_seed(0))
    expected = (images - model.mean) / model.std
    normalized = model.normalize(images.contiguous(memory_format=memory_format))
    assert normalized.equal(expected)
    assert normalized.is_contiguous(memory_format=memory_format)
