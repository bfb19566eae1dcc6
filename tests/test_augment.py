"""Tests of tinycifar.augment, most of them against Albumentations 2.0.8 where that is installed."""

from __future__ import annotations

import math
import pickle
import random
import runpy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor

from tinycifar import augment, data
from tinycifar.augment import AUGMENTATIONS, Augmentation, Parameters, Translation, affine, build, fill_holes, flip
from tinycifar.epochs import epoch_generator

TENSOR_NAMES = [name for name in AUGMENTATIONS if not name.startswith("albumentations")]
ON_ALBUMENTATIONS = {"reference": "albumentations", "reference-as-run": "albumentations-as-run"}
DRAWS = 20_000
KEPT = 3_000  # of them, the images looked at

# Two sides that are equal in distribution exceed these once in some 15,000 comparisons; the seeds are fixed.
SIGMAS = 4.0
KOLMOGOROV = 2.25


def make(name: str) -> Augmentation:
    if name.startswith("albumentations"):
        pytest.importorskip("albumentations")
    return build(name)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """The 400 real images of the sample, (400, 3, 32, 32), uint8."""
    return data.sample().train_images


class Recorder:
    """Stands in front of an Albumentations pipeline and keeps what its transforms drew for each image."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.drawn: list[tuple[dict[str, Any], ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        result: dict[str, np.ndarray] = self.pipeline(image=image)
        self.drawn.append(tuple(transform.params for transform in self.pipeline.transforms))
        return result


def run_albumentations(name: str, images: Tensor, seed: int) -> tuple[Parameters, Tensor]:
    """Augment on Albumentations; also returns what it drew, as parameters of the tensor pipeline."""
    augmentation = make(name)
    assert isinstance(augmentation, augment.AlbumentationsAugmentation)
    augmentation.pipeline = recorder = Recorder(augmentation.pipeline)
    results = augmentation.apply(images, augmentation.draw(len(images), seeded(seed)))

    flips, warps, drops = zip(*recorder.drawn, strict=True)  # each {} where the transform was not applied
    forward = np.stack([warp["matrix"] if warp else np.eye(3) for warp in warps])
    to_pixels = np.array([[16, 0, 15.5], [0, 16, 15.5], [0, 0, 1]])  # from the image spanning [-1, 1]
    matrices = np.linalg.inv(to_pixels) @ np.linalg.inv(forward) @ to_pixels
    holes = np.zeros((len(images), 2, 4), dtype=np.int64)
    for corners, drop in zip(holes, drops, strict=True):
        if drop:
            corners[: len(drop["holes"])] = drop["holes"][:, [1, 0, 3, 2]]
    parameters = {
        "flipped": torch.tensor([bool(flip) for flip in flips]),
        "matrices": torch.from_numpy(matrices[:, :2]).float(),
        "holes": torch.from_numpy(holes),
    }
    return parameters, results


class Pair(NamedTuple):
    """Many draws of a tensor pipeline and of its original, and what the first of them make of one photo."""

    name: str
    ours: Parameters
    theirs: Parameters
    our_images: Tensor
    their_images: Tensor


@pytest.fixture(scope="module", params=["reference", pytest.param("reference-as-run", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, photos: Tensor) -> Pair:
    name: str = request.param
    tensors = build(name)
    # Half as many do for the intended form: it differs in the holes alone, and Albumentations takes its time.
    photo = photos[:1].expand(DRAWS if name == "reference-as-run" else DRAWS // 2, -1, -1, -1)
    ours = tensors.draw(DRAWS, seeded(1))
    our_images = tensors.apply(photo[:KEPT], {key: value[:KEPT] for key, value in ours.items()})
    theirs, their_images = run_albumentations(ON_ALBUMENTATIONS[name], photo, seed=2)
    return Pair(name, ours, theirs, our_images, their_images[:KEPT])


def of_warps(parameters: Parameters) -> dict[str, np.ndarray]:
    """Angle in degrees, scales and shifts in pixels of those images that were warped, read back from the matrices."""
    matrices = parameters["matrices"].double()
    matrices = matrices[(matrices != torch.eye(2, 3)).flatten(1).any(1)]
    linear, offset = matrices[:, :, :2], matrices[:, :, 2:]
    shift = -16 * torch.linalg.solve(linear, offset)[..., 0]
    assert (shift - shift.round()).abs().max() < 1e-4, "shifts are whole pixels and come last"
    assert (linear[:, 0] * linear[:, 1]).sum(dim=1).abs().max() < 1e-6, "scales come before the rotation"
    return {
        "angle": torch.atan2(linear[:, 1, 0], linear[:, 1, 1]).rad2deg().numpy(),
        "x scale": (1 / linear[:, 0].norm(dim=1)).numpy(),
        "y scale": (1 / linear[:, 1].norm(dim=1)).numpy(),
        "x shift": shift[:, 0].round().long().numpy(),
        "y shift": shift[:, 1].round().long().numpy(),
    }


def of_holes(parameters: Parameters) -> dict[str, np.ndarray]:
    """Heights, widths and edges in pixels of all the holes there are."""
    holes = parameters["holes"].flatten(0, 1)
    top, left, bottom, right = holes[holes.any(dim=1)].numpy().T
    edges = {"top": top, "left": left, "bottom": bottom, "right": right}
    return {"height": bottom - top, "width": right - left} | edges


def of_images(parameters: Parameters) -> dict[str, np.ndarray]:
    """For every image: was it flipped, was it warped, and how many holes does it have."""
    return {
        "flipped": parameters["flipped"].long().numpy(),
        "warped": (parameters["matrices"] != torch.eye(2, 3)).flatten(1).any(1).long().numpy(),
        "holes": parameters["holes"].any(dim=2).sum(dim=1).numpy(),
    }


def farthest_frequency(ours: np.ndarray, theirs: np.ndarray) -> float:
    """By how many standard errors the frequencies of a whole number differ, at most, between two samples."""
    sigmas = []
    for value in np.union1d(ours, theirs):
        mine, other, both = (ours == value).mean(), (theirs == value).mean(), np.append(ours, theirs) == value
        error = math.sqrt(both.mean() * (1 - both.mean()) * (1 / len(ours) + 1 / len(theirs)))
        sigmas.append(abs(mine - other) / error if error else 0.0)
    return max(sigmas)


def kolmogorov_smirnov(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov distance, scaled so that it does not depend on the samples' sizes."""
    scale = math.sqrt(len(ours) * len(theirs) / (len(ours) + len(theirs)))
    return float(scale * ks_2samp(ours, theirs, method="asymp").statistic)


# --- Names and what they need ---------------------------------------------------------------------------------------


def test_without_albumentations_the_message_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ValueError, match=r"^.*pip install albumentations==2\.0\.8 opencv-python-headless$"):
        build("albumentations")


def test_another_version_of_albumentations_is_refused(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("albumentations"), "__version__", "1.4.0")
    with pytest.raises(ValueError, match=r"2\.0\.8, not 1\.4\.0"):
        build("albumentations-as-run")


def test_the_tensor_pipelines_need_no_albumentations(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    fresh = runpy.run_path(augment.__file__)
    for name in TENSOR_NAMES:
        fresh["build"](name)


# --- What holds of every augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_uint8_images_become_float_images_from_0_to_1_in_steps_of_a_255th(name, photos):
    augmentation = make(name)
    result = augmentation.apply(photos, augmentation.draw(len(photos), seeded(3)))
    assert result.dtype == torch.float32
    assert result.shape == photos.shape
    assert result.is_contiguous()
    assert result.min() >= 0
    assert 0.9 < result.max() <= 1
    levels = result * 255
    assert (levels - levels.round()).abs().max() < 1e-4, "only the 256 levels that uint8 images have"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_equal_seeds_draw_equal_parameters_and_other_seeds_others(name):
    first, again, other = (make(name).draw(50, seeded(seed)) for seed in (4, 4, 5))
    assert all(len(value) == 50 for value in first.values())
    for key in first:
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_depends_on_its_own_row_alone(name, photos):
    augmentation = make(name)
    images = photos[:37]  # no multiple of the processor's vector width
    parameters = augmentation.draw(len(images), seeded(6))
    together = augmentation.apply(images, parameters)

    order = torch.randperm(len(images), generator=seeded(7))
    shuffled = augmentation.apply(images[order], {key: value[order] for key, value in parameters.items()})
    assert torch.equal(shuffled, together[order])

    for i in range(len(images)):
        alone = augmentation.apply(images[i : i + 1], {key: value[i : i + 1] for key, value in parameters.items()})
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_global_random_state_is_read_or_moved(name, photos):
    augmentation = make(name)
    results = []
    for seed in (8, 9):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = global_random_states()
        results.append(augmentation.apply(photos[:20], augmentation.draw(20, seeded(10))))
        assert global_random_states() == before
    assert torch.equal(*results)


def global_random_states() -> bytes:
    return pickle.dumps((torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()))


def test_every_translation_is_a_window_of_the_reflected_image_and_all_are_as_likely(photos):
    augmentation = build("translate")
    drawn = augmentation.draw(5000, seeded(1))
    shifts, counts = drawn["shift"].unique(dim=0, return_counts=True)
    assert shifts.tolist() == [[y, x] for y in range(-2, 3) for x in range(-2, 3)]
    assert counts.min() > 140  # of 200 expected, with a standard deviation of 14
    assert counts.max() < 260
    rows = {"shift": drawn["shift"][: len(photos)]}
    moved = augmentation.apply(photos, rows)
    for image, result, (y, x) in zip(photos.numpy(), moved, rows["shift"].tolist(), strict=True):
        padded = np.pad(image, [(0, 0), (2, 2), (2, 2)], mode="reflect")
        expected = padded[:, 2 + y : 34 + y, 2 + x : 34 + x] / np.float32(255)
        np.testing.assert_array_equal(result.numpy(), expected)


def test_the_hole_in_a_translated_image_is_square_in_the_mean_colour_and_cut_by_the_border(photos):
    augmentation = build("translate-hole")
    drawn = augmentation.draw(20_000, seeded(1))
    top, left, bottom, right = drawn["holes"][:, 0].unbind(1)
    for start, end in ((top, bottom), (left, right)):
        starts, counts = start.unique(return_counts=True)
        assert starts.tolist() == list(range(28))
        assert counts[1:].min() > 500  # of 625 expected, with a standard deviation of 25
        assert counts[0] > 5 * 500  # centres 0 to 4
        assert torch.equal(end, torch.where(start > 0, (start + 8).clamp(max=32), end))
        assert sorted(set((end - start)[start == 0].tolist())) == [4, 5, 6, 7, 8]
    rows = {name: values[: len(photos)] for name, values in drawn.items()}
    plain = Translation(4).apply(photos, rows)
    for image, before, (y, x, end_y, end_x) in zip(
        augmentation.apply(photos, rows), plain, rows["holes"][:, 0].tolist(), strict=True
    ):
        before[:, y:end_y, x:end_x] = torch.tensor((125, 122, 113)).view(3, 1, 1) / 255
        assert torch.equal(image, before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_images_given_are_left_as_they_were(name, photos):
    augmentation = make(name)
    images = photos[:20].clone()
    augmentation.apply(images, augmentation.draw(20, seeded(11)))
    assert torch.equal(images, photos[:20])


def test_no_augmentation_is_division_by_255(photos):
    assert torch.equal(build("none").apply(photos, {}), photos / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images_within_one_level(photos):
    for augmentation in map(build, TENSOR_NAMES):
        parameters = augmentation.draw(len(photos), seeded(12))
        on_cpu = augmentation.apply(photos, parameters)
        on_gpu = augmentation.apply(photos.cuda(), {key: value.cuda() for key, value in parameters.items()})
        assert on_gpu.is_cuda
        assert (on_gpu.cpu() - on_cpu).abs().max() * 255 < 1.01


# --- The functions --------------------------------------------------------------------------------------------------


def test_flip_mirrors_the_chosen_images_left_and_right():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    result = flip(images, torch.tensor([True, False]))
    assert torch.equal(result[0], images[0, :, :, [4, 3, 2, 1, 0]])
    assert torch.equal(result[1], images[1])


def test_the_identity_matrix_gives_every_pixel_back(photos):
    identity = torch.eye(2, 3).expand(len(photos), -1, -1)
    assert torch.equal(affine(photos.float(), identity).round(), photos.float())


def test_an_offset_of_one_pixel_moves_the_image_one_pixel_and_black_comes_in(photos):
    matrices = torch.tensor([[1, 0, -2 / 32], [0, 1, 0.0]]).expand(len(photos), -1, -1)
    result = affine(photos.float(), matrices).round()
    assert torch.equal(result[..., 1:], photos[..., :-1].float())
    assert not result[..., 0].any()


def test_holes_are_filled_from_top_left_to_before_bottom_right():
    images = torch.ones(2, 3, 6, 8)
    holes = torch.tensor([[[1, 2, 3, 5], [2, 4, 6, 8]], [[0, 0, 0, 0], [5, 7, 6, 8]]])
    expected = images.clone()
    fill = torch.tensor([0.1, 0.2, 0.3])
    expected[0, :, 1:3, 2:5] = fill[:, None, None]
    expected[0, :, 2:6, 4:8] = fill[:, None, None]
    expected[1, :, 5, 7] = fill
    assert torch.equal(fill_holes(images, holes, fill), expected)


# --- The reference's distribution -----------------------------------------------------------------------------------


def whole_part(low: float, high: float) -> dict[int, float]:
    """Probabilities of `int(x)` for x uniform between `low` and `high`."""
    ends = {value: (value - (value <= 0), value + (value >= 0)) for value in range(int(low), int(high) + 1)}
    parts = {value: (min(high, end) - max(low, start)) / (high - low) for value, (start, end) in ends.items()}
    return {value: part for value, part in parts.items() if part > 0}


def test_shifts_and_hole_sizes_have_the_probabilities_that_follow_from_their_limits():
    parameters = build("reference-as-run").draw(50_000, seeded(13))
    warps, holes = of_warps(parameters), of_holes(parameters)
    reach = 32 * augment.SHIFT_LIMIT
    expected = [(shift, whole_part(-reach, reach)) for shift in ("x shift", "y shift")]
    expected += [(side, {3: 0.8 / 3.2, 4: 1 / 3.2, 5: 1 / 3.2, 6: 0.4 / 3.2}) for side in ("height", "width")]
    for quantity, probabilities in expected:
        drawn = (warps | holes)[quantity]
        assert set(drawn.tolist()) == set(probabilities)
        for value, probability in probabilities.items():
            error = math.sqrt(probability * (1 - probability) / len(drawn))
            assert abs((drawn == value).mean() - probability) < SIGMAS * error, (quantity, value)


def test_the_intended_hole_is_one_of_16_by_16_in_the_mean_colour_anywhere_inside(photos):
    augmentation = build("reference")
    parameters = augmentation.draw(20_000, seeded(14))
    assert parameters["holes"].shape == (20_000, 1, 4)
    holes = of_holes(parameters)
    assert set(holes["height"].tolist()) == set(holes["width"].tolist()) == {16}
    assert set(holes["top"].tolist()) == set(holes["left"].tolist()) == set(range(17))

    rows = parameters["holes"].any(dim=2)[:, 0].nonzero()[:10, 0]
    result = augmentation.apply(photos[:10], {key: value[rows] for key, value in parameters.items()})
    for image, (top, left, bottom, right) in zip(result * 255, parameters["holes"][rows, 0].tolist(), strict=True):
        hole = image[:, top:bottom, left:right].flatten(1).round()
        assert torch.equal(hole, torch.tensor([[125.0], [122.0], [113.0]]).expand(3, 256))


@pytest.mark.parametrize("quantities", [of_images, of_warps, of_holes])
def test_every_quantity_is_distributed_as_in_albumentations(pair, quantities):
    ours, theirs = quantities(pair.ours), quantities(pair.theirs)
    for quantity in ours:
        if quantity in ("angle", "x scale", "y scale"):
            assert kolmogorov_smirnov(ours[quantity], theirs[quantity]) < KOLMOGOROV, quantity
        else:
            assert farthest_frequency(ours[quantity], theirs[quantity]) < SIGMAS, quantity


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_what_is_drawn_for_one_thing_says_nothing_about_another(pair, side):
    parameters: Parameters = getattr(pair, side)
    size_and_place = of_holes(parameters)
    independent_holes = {key: size_and_place[key] for key in ("height", "width") if np.ptp(size_and_place[key])}
    independent_holes["row"] = size_and_place["top"] + size_and_place["bottom"]
    independent_holes["column"] = size_and_place["left"] + size_and_place["right"]
    for quantities in (of_images(parameters), of_warps(parameters), independent_holes):
        correlations = np.corrcoef(np.stack(list(quantities.values())))
        worst = np.abs(correlations - np.eye(len(quantities))).max()
        assert worst * math.sqrt(len(next(iter(quantities.values())))) < SIGMAS, list(quantities)


def test_two_holes_of_an_image_are_drawn_independently(pair):
    for parameters in (pair.ours, pair.theirs):
        holes = parameters["holes"]
        two = holes[holes.any(dim=2).sum(dim=1) == 2].numpy()
        assert (len(two) > DRAWS / 5) == (pair.name == "reference-as-run")
        if len(two):
            top, left, bottom, right = two.transpose(2, 1, 0)  # each of them: first and second hole, images
            for first, second in (bottom - top, right - left, top + bottom, left + right):
                assert abs(np.corrcoef(first, second)[0, 1]) * math.sqrt(len(two)) < SIGMAS


def test_the_mean_image_and_the_variance_of_every_pixel_are_those_of_albumentations(pair):
    mean, variance, error_of_mean, error_of_variance = zip(
        *(moments(images) for images in (pair.our_images, pair.their_images)), strict=True
    )
    for value, error in ((mean, error_of_mean), (variance, error_of_variance)):
        sigmas = (value[0] - value[1]) / (error[0] ** 2 + error[1] ** 2).sqrt()
        assert sigmas.abs().max() < SIGMAS + 1  # the farthest of 3,072 pixels
        assert sigmas.square().mean() < 2  # near 1, but neighbouring pixels are far from independent


def moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance of each pixel over the images, and the standard errors of both."""
    deviation = images.double() - images.double().mean(dim=0)
    variance = deviation.square().mean(dim=0)
    error_of_variance = (deviation.square() - variance).square().mean(dim=0).sqrt() / math.sqrt(len(images))
    return images.double().mean(dim=0), variance, (variance / len(images)).sqrt(), error_of_variance


def test_both_backends_follow_the_limits_of_the_module(photos, monkeypatch):
    monkeypatch.setattr(augment, "SHIFT_LIMIT", 0.2)
    monkeypatch.setattr(augment, "SCALE_LIMIT", 0.3)
    monkeypatch.setattr(augment, "ROTATE_LIMIT", 40)
    theirs, _ = run_albumentations("albumentations", photos, seed=16)
    for parameters in (build("reference").draw(400, seeded(17)), theirs):
        farthest = {quantity: float(np.abs(values).max()) for quantity, values in of_warps(parameters).items()}
        assert farthest["x shift"] == farthest["y shift"] == 6
        assert 1.2 < farthest["x scale"] < 1.3
        assert 1.2 < farthest["y scale"] < 1.3
        assert 35 < farthest["angle"] < 40


# --- Pixel by pixel -------------------------------------------------------------------------------------------------

# OpenCV 5.0 differs by one level in 2 of 100,000 pixels. OpenCV 4.11 rounds positions to 1/32 pixel: it differs by 0.2
# levels on average and by up to 5 in 400 photos. The mistakes
# tried below differ by 1.6 to 31 on average.
MEAN_LEVELS = 0.4
MOST_LEVELS = 12


class Compared(NamedTuple):
    """Photos, the parameters that Albumentations drew for them, and what it made of them."""

    tensors: Augmentation
    photos: Tensor
    parameters: Parameters
    images: Tensor

    def levels_apart(self, parameters: Parameters) -> Tensor:
        """By how many levels of 0-255 each pixel differs if the tensor pipeline is given these parameters."""
        return (self.tensors.apply(self.photos, parameters) - self.images).abs() * 255


@pytest.fixture(scope="module", params=list(ON_ALBUMENTATIONS))
def compared(request: pytest.FixtureRequest, photos: Tensor) -> Compared:
    return Compared(
        build(request.param), photos, *run_albumentations(ON_ALBUMENTATIONS[request.param], photos, seed=15)
    )


def test_with_equal_parameters_the_pixels_are_those_of_albumentations(compared):
    apart = compared.levels_apart(compared.parameters)
    warped = of_images(compared.parameters)["warped"] > 0
    assert apart[~warped].max() < 0.01
    assert apart[warped].mean() < MEAN_LEVELS
    assert apart.max() < MOST_LEVELS


def rotation_after_scale(matrices: Tensor) -> Tensor:
    """The linear part is (rotation / scale of its row); here the scale divides its column instead."""
    scale = 1 / matrices[:, :, :2].norm(dim=2)
    swapped = matrices[:, :, :2] * scale[:, :, None] / scale[:, None, :]
    return torch.cat([swapped, matrices[:, :, 2:]], dim=2)


def shift_before_the_rest(matrices: Tensor) -> Tensor:
    offset = torch.linalg.solve(matrices[:, :, :2], matrices[:, :, 2:])
    return torch.cat([matrices[:, :, :2], offset], dim=2)


def centre_half_a_pixel_off(matrices: Tensor) -> Tensor:
    """About the corner shared by the four middle pixels in coordinates where pixels' centres are whole: (16, 16)."""
    centre = torch.full((2, 1), 1 / 32)
    return torch.cat([matrices[:, :, :2], matrices[:, :, 2:] + centre - matrices[:, :, :2] @ centre], dim=2)


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored rotation": lambda matrices: matrices * torch.tensor([[1, -1, 1], [-1, 1, 1]]),
    "rotation after scale": rotation_after_scale,
    "shift before the rest": shift_before_the_rest,
    "centre half a pixel off": centre_half_a_pixel_off,
    "half a pixel off": lambda matrices: matrices + torch.tensor([[0, 0, 1 / 32], [0, 0, 0]]),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_comparison_by_pixels_would_notice(mistake, compared):
    warped = of_images(compared.parameters)["warped"] > 0
    mistaken = compared.parameters | {"matrices": mistake(compared.parameters["matrices"])}
    assert compared.levels_apart(mistaken)[warped].mean() > 2 * MEAN_LEVELS


@pytest.mark.parametrize("name", [name for name in augment.AUGMENTATIONS if name != "none"])
def test_augmentations_of_larger_images_move_and_cover_them_in_proportion(name):
    """What changes of an image of twice the size is as much as of a small one."""
    changed = {}
    for size in (32, 64):
        made = augment.build(name, size, mean=(0, 0, 0))
        images = data.sample(size).train_images[:100]
        out = made.apply(images, made.draw(len(images), epoch_generator(0, 0)))
        assert out.shape == images.shape
        changed[size] = (out - images / 255).abs().mean().item()
    assert changed[64] == pytest.approx(changed[32], rel=0.35)


def test_a_hole_has_the_mean_colour_of_the_data():
    made = augment.build("reference", 32, mean=(0.2, 0.4, 0.6))
    out = made.apply(torch.full((50, 3, 32, 32), 255, dtype=torch.uint8), made.draw(50, epoch_generator(0, 0)))
    levels = (255 * out).round().permute(0, 2, 3, 1).flatten(0, 2).unique(dim=0)
    assert [51, 102, 153] in levels.tolist()


def test_a_reduced_image_is_that_of_pillow_with_a_bilinear_filter(photos):
    found = augment.reduced(photos[:4] / 255, 24)
    for image, reduced in zip(photos[:4], found, strict=True):
        for channel, values in zip(image.numpy(), reduced, strict=True):
            picture = Image.fromarray(channel.astype(np.float32) / 255)
            expected = np.asarray(picture.resize((24, 24), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
