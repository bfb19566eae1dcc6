"""The corruptions against other libraries, where one computes the same, and against what their parameters say."""

import hashlib

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from scipy import ndimage
from torch import Tensor

from tinycifar import data
from tinycifar.evaluation import corruptions
from tinycifar.evaluation.corruptions import CORRUPTIONS, corrupt

SPREADS = (  # in the order of CORRUPTIONS
    52.2, 51.7, 56.5, 51.8, 39.9, 44.2, 40.6, 38.8, 40.8, 29.4, 56.9, 7.6, 57.4, 42.1, 44.1, 45.4, 46.2,
)  # fmt: skip


@pytest.fixture
def photos() -> Tensor:
    return data.sample().test_images[:40]


def grey(level: int, count: int = 200) -> Tensor:
    return torch.full((count, 3, 32, 32), level, dtype=torch.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_gives_the_same_images_again_and_they_keep_their_form(name, photos):
    before = photos.clone()
    one, again = corrupt(photos, name, 3, seed=1), corrupt(photos, name, 3, seed=1)
    assert torch.equal(one, again)
    assert torch.equal(photos, before)
    assert (one.dtype, one.shape) == (torch.uint8, photos.shape)
    assert not torch.equal(one, photos)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("saturate", "elastic", "glass-blur")])
def test_a_higher_severity_is_further_from_the_image(name, photos):
    distances = [(corrupt(photos, name, s).float() - photos.float()).abs().mean().item() for s in (1, 3, 5)]
    assert distances == sorted(distances)
    assert distances[0] > 0.5


@pytest.mark.parametrize(
    ("name", "deviation"), [("gaussian-noise", 0.08), ("shot-noise", (0.5 / 100) ** 0.5), ("speckle-noise", 0.5 * 0.12)]
)
def test_noise_has_the_deviation_that_its_parameter_says(name, deviation):
    noisy = corrupt(grey(128), name, 3).float() / 255
    assert noisy.mean().item() == pytest.approx(0.5, abs=0.003)
    assert noisy.std().item() == pytest.approx(deviation, rel=0.02)


def test_impulse_noise_is_as_often_black_as_white_and_as_often_as_it_says():
    noisy = corrupt(grey(128), "impulse-noise", 5)
    assert (noisy == 0).float().mean().item() == pytest.approx(0.035, abs=0.001)
    assert (noisy == 255).float().mean().item() == pytest.approx(0.035, abs=0.001)
    assert set(noisy.unique().tolist()) == {0, 128, 255}


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name.endswith("blur")])
def test_a_blur_leaves_a_plain_image_as_it_is(name):
    assert (corrupt(grey(200, 3), name, 5).int() - 200).abs().max() <= 1


def test_zoom_blur_equals_scipys_zoom(photos):
    x = photos[:3].numpy() / 255
    found = corruptions._zoom_blur(x, 1.11, np.random.default_rng(0))
    total = x.copy()
    factors = np.arange(1, 1.11, 0.01)
    for factor in factors:
        cut = int(np.ceil(32 / factor))
        start = (32 - cut) // 2
        part = ndimage.zoom(x[:, :, start : start + cut, start : start + cut], (1, 1, factor, factor), order=1)
        trim = (part.shape[2] - 32) // 2
        total += part[:, :, trim : trim + 32, trim : trim + 32]
    np.testing.assert_allclose(found, total / (len(factors) + 1), atol=1e-6)


def test_motion_blur_smears_a_point_along_a_line_to_one_side():
    point = np.zeros((1, 3, 32, 32))
    point[:, :, 16, 20] = 1

    class Level(np.random.Generator):
        def uniform(self, *_: object, **__: object) -> np.ndarray:
            return np.zeros(1)

    blurred = corruptions._motion_blur(point, (6, 2.0), Level(np.random.PCG64()))[0, 0]
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    np.testing.assert_allclose(blurred[16, 20:7:-1], weights / weights.sum())
    assert np.delete(blurred, 16, axis=0).sum() == 0


def test_brightness_adds_to_the_value_in_hsv(photos):
    hsv = rgb_to_hsv(photos.numpy().transpose(0, 2, 3, 1) / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.15, 0, 1)
    expected = hsv_to_rgb(hsv).transpose(0, 3, 1, 2) * 255
    assert np.abs(corrupt(photos, "brightness", 3).numpy() - expected).max() < 1.01


@pytest.mark.parametrize(("severity", "factor", "offset"), [(1, 0.3, 0), (3, 1.5, 0), (5, 2.5, 0.2)])
def test_saturate_scales_and_shifts_the_saturation_in_hsv(photos, severity, factor, offset):
    images = torch.cat([photos, grey(100, 1)])
    hsv = rgb_to_hsv(images.numpy().transpose(0, 2, 3, 1) / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + offset, 0, 1)
    expected = hsv_to_rgb(hsv).transpose(0, 3, 1, 2) * 255
    assert np.abs(corrupt(images, "saturate", severity).numpy() - expected).max() < 1.01


def test_contrast_draws_pixels_towards_the_mean_of_their_channel(photos):
    before, after = (images.double() for images in (photos, corrupt(photos, "contrast", 2)))
    means = before.mean((2, 3), keepdim=True)
    assert (after - (before + means) / 2).abs().max() < 1.01


def test_fog_lightens_towards_clouds_that_span_the_whole_range():
    clouds = corruptions._plasma(20, 32, 2.0, np.random.default_rng(0))
    assert clouds.shape == (20, 32, 32)
    assert clouds.min(axis=(1, 2)).tolist() == [0] * 20
    assert clouds.max(axis=(1, 2)).tolist() == [1] * 20
    neighbours = np.abs(np.diff(clouds, axis=2)).mean()
    assert neighbours < np.abs(clouds - clouds[:, :, ::-1]).mean() / 2, "near places are alike"


def test_clouds_of_another_size_are_cut_from_those_of_a_power_of_two():
    whole = corruptions._plasma(3, 32, 2.0, np.random.default_rng(0))[:, :24, :24]
    lowest, highest = whole.min(axis=(1, 2), keepdims=True), whole.max(axis=(1, 2), keepdims=True)
    part = corruptions._plasma(3, 24, 2.0, np.random.default_rng(0))
    np.testing.assert_allclose(part, (whole - lowest) / (highest - lowest))


def test_snow_falls_on_a_whitened_image_and_its_half_turn_gets_the_same_flakes(photos):
    x = photos.numpy() / 255
    grey = (x * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdims=True)
    whitened = 0.9 * x + 0.1 * np.maximum(x, 1.5 * grey + 0.5)
    nothing_falls = corruptions._snow(x, (0.1, 0.2, 1, 9, 10, 4, 0.9), np.random.default_rng(0))
    np.testing.assert_allclose(nothing_falls, whitened)
    flakes = corruptions._snow(x, (0.1, 0.2, 1, 0.5, 10, 4, 0.9), np.random.default_rng(0)) - whitened
    np.testing.assert_allclose(flakes, flakes[:, :, ::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(flakes[:, 0], flakes[:, 2], atol=1e-12)
    assert flakes.min() > -1e-12
    # Smeared from above: neighbours in a column are more alike than neighbours in a row.
    assert np.abs(np.diff(flakes, axis=2)).mean() < 0.7 * np.abs(np.diff(flakes, axis=3)).mean()


def test_the_flakes_of_snow_are_as_many_as_the_noise_above_the_threshold():
    black = np.zeros((200, 3, 32, 32))
    mean, deviation, least = 0.1, 0.2, 0.5
    snowy = corruptions._snow(black, (mean, deviation, 1, least, 10, 4, 1.0), np.random.default_rng(0))
    draws = np.random.default_rng(1).normal(mean, deviation, 1_000_000)
    expected = 2 * np.where(draws < least, 0, draws.clip(0, 1)).mean()
    assert snowy.mean() == pytest.approx(expected, rel=0.05)  # a blur keeps the sum, but for the border


def test_snow_grows_with_the_zoom():
    black = np.zeros((100, 3, 32, 32))

    def roughness(zoom: float) -> float:
        layer = corruptions._snow(black, (0.1, 0.3, zoom, -9, 0, 1, 1.0), np.random.default_rng(0))[:, 0]
        return float(np.abs(np.diff(layer, axis=2)).mean() / layer.std())

    assert roughness(1) > 1.3 * roughness(1.75) > 1.5 * roughness(3)


def test_elastic_without_jitter_or_shifts_is_the_image(photos):
    x = photos.numpy() / 255
    np.testing.assert_allclose(corruptions._elastic(x, (0, 0, 0), np.random.default_rng(0)), x, atol=1e-9)


def test_an_unknown_corruption_or_severity_is_refused(photos):
    with pytest.raises(ValueError, match="unknown corruption 'rain'; allowed are: gaussian-noise, "):
        corrupt(photos, "rain", 1)
    with pytest.raises(ValueError, match="between 1 and 5, not 6"):
        corrupt(photos, "fog", 6)


def test_parameters_are_the_published_ones_with_which_they_were_compared():
    parameters = {name: parameters for name, (_, parameters) in CORRUPTIONS.items()}
    assert hashlib.sha256(repr(parameters).encode()).hexdigest() == (
        "fa74a8ffef19734cbb68403208c91ab384295736930be900f190b4b84f6e7442"
    )


def test_corruptions_give_the_images_that_they_gave_when_they_were_looked_at():
    # Standard deviations of an image of the sample at severity 5, so that no change of a formula goes unseen.
    image = data.sample().test_images[:1]
    spreads = {name: corrupt(image, name, 5).float().std().item() for name in CORRUPTIONS}
    assert spreads == pytest.approx(dict(zip(CORRUPTIONS, SPREADS, strict=True)), abs=0.6)
