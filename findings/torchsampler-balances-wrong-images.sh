#!/usr/bin/env bash
# `ImbalancedDatasetSampler` of torchsampler "rebalances the class distributions" by its README: it weighs each image
# inversely to its class's frequency. For a part of a data set it takes the part's `indices`, and its labels in the same
# order (as `labels` or from `callback_get_label`). It sorts the labels by index, computes the weights, and draws with
# them from the indices as they were given. If these are not sorted, as after any random split into training and
# validation, each image has the weight of another one. Nothing is balanced then: the classes keep their frequencies, as
# without a sampler, but the weights of some 120 images of the two rarest classes go to as many images of any class,
# most of them frequent ones, and these are drawn about 15 and 25 times an epoch, most others less than once. With
# sorted indices all is right.
# The labels are CIFAR-10's usual long tail, of which nine tenths are a random part. The reference is the definition,
# drawn by NumPy. torchvision, which is imported for the classes of its data sets, is replaced by an empty module here.
#
# Seen with torchsampler 0.1.2, torch 2.13.0 and pandas 2.3.3, Python 3.11, means of 20 epochs; the shares of the rarest
# and the most frequent class, and how often an image of the largest class is drawn per epoch at most:
#   no sampler               classes  0.40% to 40.41% of an epoch, images of the largest class up to  1.00 times
#   NumPy                    classes  9.92% to 10.11% of an epoch, images of the largest class up to  0.75 times
#   all images               classes  9.94% to 10.07% of an epoch, images of the largest class up to  0.70 times
#   part, sorted             classes  9.86% to 10.09% of an epoch, images of the largest class up to  0.75 times
#   part, as split           classes  0.48% to 41.35% of an epoch, images of the largest class up to 26.85 times
#   part, callback           classes  0.48% to 41.35% of an epoch, images of the largest class up to 26.85 times
# Exit code 0 while unsorted indices are not balanced and sorted ones are, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "pandas==2.3.3" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torchsampler==0.1.2"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys
import types

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

sys.modules["torchvision"] = types.ModuleType("torchvision")
from torchsampler import ImbalancedDatasetSampler

# CIFAR-10's usual long tail: ten classes with 5,000 to 50 images, mixed as in a data set's file.
counts = (5000 * 0.01 ** (np.arange(10) / 9)).astype(int)
random = np.random.default_rng(0)
labels = random.permutation(np.repeat(np.arange(10), counts))
images = np.arange(len(labels))
dataset = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
part = random.permutation(len(labels))[: len(labels) * 9 // 10]
EPOCHS = 20


def drawn(sampler):
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=256, sampler=sampler)
    return np.concatenate([batch[0].numpy() for _ in range(EPOCHS) for batch in loader])


def balanced(indices):
    """Each image drawn with the inverse of its class's size, as the package's README defines it, in NumPy."""
    weights = 1 / np.bincount(labels[indices])[labels[indices]]
    return random.choice(indices, EPOCHS * len(indices), p=weights / weights.sum())


def report(name, chosen, indices):
    shares = np.bincount(labels[chosen], minlength=10) / len(chosen)
    times = np.bincount(chosen, minlength=len(labels))[indices] / EPOCHS
    own = labels[indices] == 0
    print(
        f"{name:24} classes {shares.min():6.2%} to {shares.max():6.2%} of an epoch, "
        f"images of the largest class up to {times[own].max():5.2f} times"
    )
    return shares.min(), shares.max(), times[own].max()


everything = report("no sampler", np.tile(part, EPOCHS), part)
by_hand = report("NumPy", balanced(part), part)
results = {}
for name, indices in (("all images", images), ("part, sorted", np.sort(part)), ("part, as split", part)):
    indices = indices.tolist()
    sampler = ImbalancedDatasetSampler(dataset, labels=labels[indices].tolist(), indices=indices)
    results[name] = report(name, drawn(sampler), indices)
sampler = ImbalancedDatasetSampler(
    dataset, indices=part.tolist(), callback_get_label=lambda data: data.tensors[1][part].tolist()
)
results["part, callback"] = report("part, callback", drawn(sampler), part)

stands = all(low > 0.08 for low, _, _ in (by_hand, results["all images"], results["part, sorted"]))
for name in ("part, as split", "part, callback"):
    low, high, times = results[name]
    stands &= low < 0.006 and high > 0.38 and times > 5 * by_hand[2]
sys.exit(0 if stands else 1)
PY
