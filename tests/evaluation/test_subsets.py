"""The subsets of CIFAR-10's test images: their lists, and to which data they belong."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from tinycifar import data, inference, trained
from tinycifar.evaluation import subsets


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Images and labels of CIFAR-10's shape that are taken for its test set."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 3, 2, 2), dtype=torch.uint8, generator=generator)
    labels = torch.arange(10_000) % 10
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    monkeypatch.setattr(subsets, "TEST_SET", digest)
    return images, labels


def test_the_lists_have_the_published_sizes_and_name_test_images_once():
    assert len(subsets.NEAR_DUPLICATES) == 286
    assert len(subsets.MLPERF_TINY) == 200
    for indices in (subsets.NEAR_DUPLICATES, subsets.MLPERF_TINY):
        assert list(indices) == sorted(set(indices))
        assert 0 <= indices[0] < indices[-1] < 10_000
    assert len(set(subsets.NEAR_DUPLICATES) & set(subsets.MLPERF_TINY)) == 3


def test_a_score_counts_the_images_of_its_subset_alone(stand_in):
    images, labels = stand_in
    answers = labels.clone()
    answers[list(subsets.NEAR_DUPLICATES[:100])] = (labels[list(subsets.NEAR_DUPLICATES[:100])] + 1) % 10
    other = next(index for index in subsets.MLPERF_TINY if index not in subsets.NEAR_DUPLICATES)
    answers[other] = (labels[other] + 1) % 10
    in_both = len(set(subsets.NEAR_DUPLICATES[:100]) & set(subsets.MLPERF_TINY))
    found = subsets.scores(torch.nn.functional.one_hot(answers).float(), images, labels)
    assert found["without-near-duplicates"].images == 9_714
    assert found["without-near-duplicates"].correct == 9_713
    assert (found["mlperf-tiny"].images, found["mlperf-tiny"].correct) == (200, 199 - in_both)
    low, high = found["mlperf-tiny"].accuracy_interval
    assert low < found["mlperf-tiny"].accuracy < high


def test_other_images_labels_or_numbers_of_them_have_no_subsets(stand_in):
    images, labels = stand_in
    assert list(subsets.members(images, labels)) == ["without-near-duplicates", "mlperf-tiny"]
    changed, relabelled = images.clone(), labels.clone()
    changed[5, 0, 0, 0] += 1
    relabelled[7] = (labels[7] + 1) % 10
    assert subsets.members(changed, labels) == {}
    assert subsets.members(images, relabelled) == {}
    assert subsets.members(images[:5_000], labels[:5_000]) == {}


def test_an_evaluation_of_other_data_has_no_subsets():
    model = trained.load("minute", "cpu").model
    assert inference.evaluate(model, data.sample()).scores.subsets == {}


@pytest.mark.end_to_end
def test_mlperf_tinys_images_are_those_that_its_script_draws_from_the_labels():
    labels = data.load().test_labels.numpy()
    generator = np.random.default_rng(8108)
    drawn = [generator.choice(np.flatnonzero(labels == label), size=20, replace=False) for label in range(10)]
    assert sorted(np.concatenate(drawn)) == list(subsets.MLPERF_TINY)


@pytest.mark.end_to_end
def test_near_duplicates_are_nearer_to_a_training_image_of_their_class_than_other_test_images_are():
    dataset = data.load()

    def standard(images: Tensor) -> Tensor:
        pixels = images[:, :, ::2, ::2].flatten(1).float()
        pixels = pixels - pixels.mean(1, keepdim=True)
        return pixels / pixels.norm(dim=1, keepdim=True)

    train, generator = standard(dataset.train_images), torch.Generator().manual_seed(0)
    rows = torch.randperm(10_000, generator=generator)[:300]
    nearest = {
        name: (standard(dataset.test_images[indices]) @ train.T).max(1).values
        for name, indices in (("listed", torch.tensor(subsets.NEAR_DUPLICATES)), ("others", rows))
    }
    assert nearest["listed"].median() > nearest["others"].quantile(0.95)
