from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tinycifar import data
from tinycifar.data.dataset import MEAN, STD, Dataset, Draws, Origin, ranks, stratified


def draws(count: int, seed: int = 0) -> Draws:
    return np.random.PCG64(seed).random_raw(count)


def made(images: torch.Tensor, **more: object) -> Dataset:
    labels = torch.arange(len(images)) % 2
    return Dataset("mine", ("a", "b"), images, labels, images[:2], labels[:2], **more)


def test_statistics_are_those_of_the_training_images():
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 3
    mean, std = made(images).statistics()
    values = images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert made(images).limit(5).statistics() != (mean, std)


def test_a_channel_without_contrast_can_be_divided_by():
    images = torch.full((4, 3, 8, 8), 51, dtype=torch.uint8)
    assert made(images).statistics() == ((pytest.approx(0.2),) * 3, (1 / 255,) * 3)


def test_cifar_10_has_its_known_statistics():
    assert data.sample().statistics() == (MEAN, STD)


def test_the_identity_of_data_is_lost_with_any_change_of_images_labels_or_classes():
    sample = data.sample()
    assert (sample.known, sample.data_digest) == ("sample", "")
    assert replace(sample, name="renamed", notes=("a line",)).known == "sample"
    assert replace(sample, train_images=sample.train_images.clone()).known == "sample"
    changes: dict[str, Any] = {
        "classes": sample.classes[::-1],
        "train_labels": (sample.train_labels + 1) % 10,
        "test_labels": sample.test_labels.flip(0),
        "train_images": sample.train_images + 1,
        "test_images": sample.test_images.flip(0),
    }
    digests = {sample.digest}
    for name, value in changes.items():
        changed = replace(sample, name="sample copy", **{name: value})
        assert (changed.known, changed.data_digest) == ("", changed.digest), name
        assert changed.statistics() != (MEAN, STD)
        digests.add(changed.digest)
    assert len(digests) == 6
    sample.train_images[0, 0, 0, 0] += 1
    assert sample.digest not in digests
    assert sample.known == ""


@pytest.mark.parametrize("size", [24, 48])
def test_the_sample_is_the_same_data_at_every_size_and_with_images_held_out(size):
    sample = data.sample(size)
    assert sample.known == sample.split(60).known == "sample"
    assert sample.limit(399).known == ""
    assert np.array_equal(sample.split(60).digests("validation"), data.sample().digests("train")[340:])
    assert np.array_equal(sample.limit(30).digests("train"), data.sample().digests("train")[:30])


def test_what_a_loader_decoded_images_from_is_known_of_these_images_only():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    digests = np.arange(128, dtype=np.uint8).reshape(4, 32)
    loaded = made(images, origins={"train": Origin(images, digests)})
    assert np.array_equal(loaded.digests("train"), digests)
    assert np.array_equal(loaded.split(1).digests("validation"), digests[3:])
    assert not replace(loaded, train_images=images.clone()).origins
    assert np.array_equal(replace(loaded, train_labels=1 - loaded.train_labels).digests("train"), digests)
    before = loaded.digest
    images[2] += 1
    assert loaded.digest != before
    assert not np.array_equal(loaded.digests("train"), digests)


def test_names_and_notes_go_with_the_images():
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    whole = made(images, names={"train": tuple("pqrstu"), "test": ("v", "w")}, notes=("a line",))
    parts = whole.split(2).limit(3)
    assert parts.names == {"train": ("p", "q", "r"), "validation": ("t", "u"), "test": ("v", "w")}
    assert parts.notes == ("a line",)
    assert whole.split(2).digest == whole.digest != parts.digest
    assert whole.names["train"] == tuple("pqrstu")


def test_classes_that_lose_all_their_images_are_told():
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    whole = Dataset("mine", ("a", "b"), images, labels, images, labels)
    assert whole.split(1).notes == ("Validation images lack 1 class of 2: a",)
    assert whole.split(2).notes == ("Validation images lack 1 class of 2: a", "Training images lack 1 class of 2: b")
    assert whole.limit(3).notes == ("Training images lack 1 class of 2: b",)
    assert whole.limit(5).notes == ()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"classes": ("a", "a")}, "2 to 1,000 classes of different names"),
        ({"classes": ("a",)}, "2 to 1,000 classes of different names"),
        ({"classes": tuple(map(str, range(1001)))}, "not 1,001"),
        ({"classes": ("a", 5)}, "must be text that can be printed, not 5"),
        ({"classes": ("a", "b\n")}, "must be text that can be printed"),
        ({"name": "sample"}, "sample is the name of data that comes with the package"),
        ({"train_images": torch.zeros(4, 3, 8, 8)}, "train images must be a tensor of uint8"),
        ({"train_images": np.zeros((4, 3, 8, 8), np.uint8)}, "train images must be a tensor of uint8, .* not ndarray"),
        ({"train_labels": torch.zeros(4, dtype=torch.int32)}, "train labels must be a tensor of int64"),
        ({"train_labels": torch.tensor([0, 1, 2, 0])}, "train labels must be 0 to 1"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "there are 4 train images, but 3 labels"),
        ({"test_images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, "all of one size"),
        ({"train_images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, "in three colours"),
        ({"train_images": torch.zeros(4, 2, 8, 8, dtype=torch.uint8)}, "or one channel of grey, square"),
        ({"train_images": torch.zeros(4, 3, 8, 16, dtype=torch.uint8)}, "square"),
        ({"test_images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "one at least"),
        ({"validation_images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "give both or neither"),
        ({"groups": torch.tensor([0, 1, 0, 2])}, "groups must be .* and those of one group lie together"),
        ({"groups": torch.zeros(3)}, "groups must be a number for each training image"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused_in_one_line(changed, told):
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=told):
        replace(made(images), **changed)


def test_lists_of_classes_are_as_good_and_validation_images_are_part_of_the_digest():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    one = Dataset("mine", ["a", "b"], images, labels, images, labels, images, labels)
    assert one.classes == ("a", "b")
    assert one.digest != replace(one, validation_images=images + 1).digest


def test_ranks_number_the_images_of_each_class():
    labels = torch.tensor([2, 0, 2, 2, 0, 3])
    found = ranks(labels, draws(6))
    assert sorted(found[labels == 2].tolist()) == [0, 1, 2]
    assert sorted(found[labels == 0].tolist()) == [0, 1]
    assert found[5] == 0
    assert torch.equal(found, ranks(labels, draws(6)))
    assert len({tuple(ranks(torch.zeros(9, dtype=torch.int64), draws(9, seed)).tolist()) for seed in range(5)}) == 5


def test_every_part_of_a_stratified_order_has_the_classes_in_proportion():
    labels = torch.from_numpy(np.repeat(range(7), [400, 400, 200, 100, 50, 10, 1]))
    order = stratified(labels, draws(len(labels)))
    assert sorted(order.tolist()) == list(range(len(labels)))
    shares = labels.bincount() / len(labels)
    seen = torch.nn.functional.one_hot(labels[order]).cumsum(0)
    expected = torch.arange(1, len(labels) + 1)[:, None] * shares
    assert (seen - expected).abs().max() <= 2
    assert (labels[order].diff() == 0).float().mean() < 0.35  # what chance alone gives is 0.26


def test_the_stratified_order_is_this_one_for_good():
    """A run that is resumed with another version of NumPy or tinycifar must see the same images in the same order."""
    labels = torch.tensor([0] * 4 + [1] * 6 + [2] * 2)
    assert stratified(labels, draws(12)).tolist() == [8, 3, 11, 6, 2, 7, 4, 1, 10, 5, 0, 9]
