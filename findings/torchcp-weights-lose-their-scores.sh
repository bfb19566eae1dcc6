#!/usr/bin/env bash
# `WeightedPredictor` of TorchCP is conformal prediction under covariate shift by Tibshirani et al. (2019): each score
# of the calibration set has the weight of its own image, and the threshold is a quantile of the weighted scores.
# TorchCP sorts the scores, and sorts the weights as well, each by itself. The largest weight thus goes to the largest
# score, whichever image it belongs to. No other order gives a higher threshold: sets are never too small, so that the
# coverage looks fine, but they are larger than needed. Where the test images are easier than those of calibration,
# nearly every set holds the right class, and the sets are larger than without any weights. Without shift all weights
# are equal, and the result is right. The same sums in NumPy give the values by definition with each weight at its
# score, and those of TorchCP with sorted weights.
# The "images" are a number that says how hard they are, and ten logits. The number is normal with a mean of 0 in
# calibration and of 0, 1 or -1 in the test, so that the exact weights are known; they are given as `domain_classifier`.
# TorchCP's other parts import torch_geometric, torchsort and transformers, which are replaced by empty modules here.
#
# Seen with torchcp 1.2.1 and torch 2.13.0, Python 3.11, alpha=0.1, 2,000 images each, means of five draws; share of the
# sets with the right class, and mean size of the sets:
#   as calibrated: without weights 0.904 (0.99), by definition 0.904 (0.99), TorchCP 0.904 (0.99), sorted 0.904 (0.99)
#   harder images: without weights 0.685 (0.91), by definition 0.911 (3.32), TorchCP 0.944 (4.43), sorted 0.944 (4.43)
#   easier images: without weights 0.984 (1.00), by definition 0.900 (0.90), TorchCP 0.999 (1.58), sorted 0.999 (1.58)
# Exit code 0 while TorchCP agrees with the sorted weights, and with the definition only without shift, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "torch==2.13.0" "scikit-learn==1.9.1" "tqdm==4.70.1" "networkx<4" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torchcp==1.2.1"
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.abc
import importlib.machinery
import sys
import types

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset


class Empty(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch_geometric", "torchsort", "transformers"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Unused())
from torchcp.classification.predictor import SplitPredictor, WeightedPredictor
from torchcp.classification.score import LAC

ALPHA, CLASSES, IMAGES = 0.1, 10, 2000


class Model(torch.nn.Module):
    def forward(self, images):
        return images[:, 1:]


class Domain(torch.nn.Module):
    """Probabilities of the calibration's and the test's distribution for two normal ones, 0 and shift apart."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, features):
        log_ratio = self.shift * features[:, 0] - self.shift**2 / 2
        return torch.softmax(torch.stack([torch.zeros_like(log_ratio), log_ratio], 1), 1)


def draw(seed, shift):
    """An "image" is how hard it is and the logits of its classes, of which the right one is larger in easy images."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.randn(IMAGES, generator=generator) + shift
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    logits = torch.randn(IMAGES, CLASSES, generator=generator)
    logits[torch.arange(IMAGES), labels] += 4 - 1.5 * hard
    return torch.cat([hard[:, None], logits], 1), labels


def loader(images, labels):
    return DataLoader(TensorDataset(images, labels), batch_size=500)


def scores(images):
    logits = images[:, 1:].double().numpy()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    return 1 - probabilities / probabilities.sum(1, keepdims=True)


def by_definition(calibration, test, shift, sort_weights=False):
    """Coverage and size with the threshold of the paper's equation, in NumPy."""
    (images, labels), (test_images, test_labels) = calibration, test
    own = scores(images)[np.arange(IMAGES), labels.numpy()]
    order = np.argsort(own)
    weights = np.exp(shift * images[:, 0].double().numpy() - shift**2 / 2)
    weights = np.sort(weights) if sort_weights else weights[order]
    new = np.exp(shift * test_images[:, 0].double().numpy() - shift**2 / 2)
    reached = np.cumsum(weights)[None] / (weights.sum() + new)[:, None] >= 1 - ALPHA
    thresholds = np.where(reached.any(1), own[order][reached.argmax(1)], np.inf)
    sets = scores(test_images) <= thresholds[:, None]
    return sets[np.arange(IMAGES), test_labels.numpy()].mean(), sets.sum(1).mean()


stands = True
for name, shift in (("as calibrated", 0.0), ("harder images", 1.0), ("easier images", -1.0)):
    results = []
    for seed in range(5):
        calibration, test = draw(seed, 0.0), draw(100 + seed, shift)
        split = SplitPredictor(LAC(), Model(), device="cpu")
        split.calibrate(loader(*calibration), alpha=ALPHA)
        weighted = WeightedPredictor(
            LAC(),
            Model(),
            image_encoder=torch.nn.Identity(),
            domain_classifier=Domain(shift),
            device="cpu",
        )
        weighted.calibrate(loader(*calibration), alpha=ALPHA)
        found = [predictor.evaluate(loader(*test)) for predictor in (split, weighted)]
        found = [(row["coverage_rate"], row["average_size"]) for row in found]
        results.append(
            [*found, by_definition(calibration, test, shift), by_definition(calibration, test, shift, True)]
        )
    without, torchcp, paper, sorted_weights = np.mean(results, 0)
    print(
        f"{name}: without weights {without[0]:.3f} ({without[1]:.2f}), by definition {paper[0]:.3f} ({paper[1]:.2f}), "
        f"TorchCP {torchcp[0]:.3f} ({torchcp[1]:.2f}), sorted {sorted_weights[0]:.3f} ({sorted_weights[1]:.2f})"
    )
    stands &= abs(paper[0] - 1 + ALPHA) < 0.02 and np.allclose(torchcp, sorted_weights, atol=5e-3)
    stands &= np.allclose(torchcp, paper, atol=5e-3) if not shift else torchcp[1] > paper[1] + 0.2
sys.exit(0 if stands else 1)
PY
