"""Which images an epoch takes, in which batches."""

import pytest

from tinycifar import recipes
from tinycifar.epochs import batch_sizes, plan


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (256 * 3, [256] * 3),
        (256 * 3 + 1, [257, 256, 256]),
        (256 * 3 + 63, [277] * 3),
        (256 * 3 + 64, [256, 256, 256, 64]),
        (256 * 3 - 1, [256, 256, 255]),
        (257, [257]),
        (255, [255]),
        (2, [2]),
        (1, [1]),
    ],
)
def test_few_images_that_are_left_over_are_spread_over_the_other_batches(images, sizes):
    assert batch_sizes(images, 256) == sizes


@pytest.mark.parametrize("batch_size", [2, 3, 7, 128, 250, 256])
@pytest.mark.parametrize("least", [2, 4, 6])
def test_no_image_is_left_out_and_no_batch_is_small(batch_size, least):
    for images in range(1, 4 * batch_size):
        sizes = batch_sizes(images, batch_size, least)
        assert sum(sizes) == images
        if images >= batch_size >= least:
            assert min(sizes) >= max(batch_size / 4, least)
        assert max(sizes) <= max(batch_size, least) * 2


def test_recipes_on_cifar10_have_the_batches_that_they_always_had():
    for name, images, last in (("minute", 50_000, 80), ("reference-30", 50_000, 80), ("teacher", 45_000, 250)):
        sizes = plan(recipes.get(name), images).batches[0]
        assert set(sizes[:-1]) == {recipes.get(name).batch_size}
        assert sizes[-1] == last


def test_an_epoch_of_one_image_is_refused():
    with pytest.raises(ValueError, match="an epoch of 1 image is too small to train on"):
        plan(recipes.get("minute"), 1)
    assert plan(recipes.with_settings(recipes.get("minute"), ["skip_easiest=0.9"]), 5).images == [5, 2, 2, 2]


@pytest.mark.parametrize(
    ("model", "image_size", "side"),
    [("minutenet", 32, 24), ("minutenet", 64, 48), ("minutenet", 40, 24), ("minutenet", 24, 16), ("c1c2c3c4o", 32, 24)],
)
def test_the_first_steps_have_images_of_the_largest_side_up_to_three_quarters(model, image_size, side):
    settings = [f"model={model}", f"image_size={image_size}", "small_fraction=0.5", "batch_size=10"]
    found = plan(recipes.with_settings(recipes.get("minute"), settings), 100)
    assert (found.small_steps, found.small_side) == (5, side)


def test_images_of_the_smallest_side_are_never_reduced():
    assert plan(recipes.with_settings(recipes.get("minute"), ["image_size=16", "batch_size=10"]), 100).small_steps == 0
