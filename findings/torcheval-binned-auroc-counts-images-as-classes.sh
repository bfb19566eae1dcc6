#!/usr/bin/env bash
# `multiclass_binned_auroc` of TorchEval and its class `MulticlassBinnedAUROC` promise the area under the ROC curve
# "for each class separately" and its mean over the classes. They sum over the wrong axis: the curve is drawn through
# the classes of one image instead of the images of one class, and the mean is one over images. With average=None, for
# "the metric for every class", there is a value for each image; so an example in the documentation has five values
# for three classes. What is measured is how many wrong classes are below the right one in the same image, which
# depends on how classes compare and says nothing of a ranking of images: a net that gives the same numbers to every
# image, the frequencies of the classes, gets 0.80, where AUROC is 0.5 by definition, and a good one that prefers a
# class gets far less than it has. No message tells of it.
# `binary_binned_auroc` for one class at a time and `multiclass_auroc`, without thresholds, are right. Both functions
# with thresholds take, by their documentation, "probabilities or logits", but the thresholds are between 0 and 1: of
# logits, those above 1 are all equal, and those below 0 too.
#
# Seen with torcheval 0.0.7, torch 2.13.0 and numpy 2.4.6, Python 3.11, 1,000 images of four classes, 200 thresholds:
#   good net                          binned 0.981, of 1000 'classes'; exact 0.996
#                                     by definition 0.996 with the thresholds, 0.996 exactly
#   good net, first class preferred   binned 0.633, of 1000 'classes'; exact 0.962
#                                     by definition 0.793 with the thresholds, 0.962 exactly
#   0.7, 0.1, 0.1, 0.1 for each image binned 0.797, of 1000 'classes'; exact 0.500
#                                     by definition 0.500 with the thresholds, 0.500 exactly
#   first class alone: from logits 0.814, from their sigmoid 0.975, by definition 0.975
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torcheval==0.0.7"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import torch
from torcheval.metrics import MulticlassBinnedAUROC
from torcheval.metrics.functional import binary_binned_auroc, multiclass_auroc, multiclass_binned_auroc

torch.set_num_threads(1)
CLASSES, IMAGES, THRESHOLDS = 4, 1000, 200


def by_definition(scores, labels, thresholds=None):
    """For each class the share of pairs with one of its images and another that are in order; ties count half."""
    if thresholds is not None:  # what no threshold tells apart is equal
        scores = np.searchsorted(thresholds, scores, side="right")
    areas = []
    for k in range(scores.shape[1]):
        inside, others = scores[labels == k, k][:, None], scores[labels != k, k][None]
        areas.append((inside > others).mean() + (inside == others).mean() / 2)
    return np.array(areas)


def by_image(scores, labels, thresholds):
    """The same with images and classes exchanged: for each image the share of wrong classes below the right one."""
    scores = np.searchsorted(thresholds, scores, side="right")
    right = np.take_along_axis(scores, labels[:, None], 1)
    wrong = np.arange(scores.shape[1]) != labels[:, None]
    return ((right > scores) * wrong + (right == scores) * wrong / 2).sum(1) / (scores.shape[1] - 1)


def softmax(logits):
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


generator = np.random.default_rng(0)
thresholds = np.linspace(0, 1, THRESHOLDS, dtype=np.float32)
even, uneven = generator.integers(CLASSES, size=IMAGES), generator.choice(CLASSES, IMAGES, p=[0.7, 0.1, 0.1, 0.1])
good = generator.standard_normal((IMAGES, CLASSES)) + 3 * np.eye(CLASSES)[even]
frequencies = np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (IMAGES, 1))
stands = True
for name, scores, labels in (
    ("good net", softmax(good), even),
    ("good net, first class preferred", softmax(good + [8, 0, 0, 0]), even),
    ("0.7, 0.1, 0.1, 0.1 for each image", frequencies, uneven),
):
    tensors = torch.tensor(scores), torch.tensor(labels)
    settings = {"num_classes": CLASSES, "threshold": THRESHOLDS}
    macro, _ = multiclass_binned_auroc(*tensors, **settings)
    found = multiclass_binned_auroc(*tensors, average=None, **settings)[0].numpy()
    metric = MulticlassBinnedAUROC(**settings).update(*tensors).compute()[0]
    one_by_one = [
        binary_binned_auroc(tensors[0][:, k], (tensors[1] == k).long(), threshold=THRESHOLDS)[0].item()
        for k in range(CLASSES)
    ]
    exact = multiclass_auroc(*tensors, num_classes=CLASSES).item()
    right, binned = by_definition(scores, labels).mean(), by_definition(scores, labels, thresholds)
    print(
        f"{name:33} binned {macro:.3f}, of {len(found)} 'classes'; exact {exact:.3f}\n"
        f"{'':33} by definition {binned.mean():.3f} with the thresholds, {right:.3f} exactly"
    )
    stands &= bool(np.allclose(found, by_image(scores, labels, thresholds), atol=1e-6) and macro == metric)
    stands &= bool(np.allclose(one_by_one, binned, atol=1e-6) and np.isclose(exact, right, atol=1e-5))
    stands &= len(found) == IMAGES
    if "each" in name:
        stands &= macro.item() > 0.75 and right == 0.5
logits, labels = torch.tensor(good[:, 0]), torch.tensor(even == 0).long()
found = [binary_binned_auroc(scores, labels)[0].item() for scores in (logits, logits.sigmoid())]
right = by_definition(good[:, :1], np.where(even == 0, 0, 1))[0]
print(f"first class alone: from logits {found[0]:.3f}, from their sigmoid {found[1]:.3f}, by definition {right:.3f}")
stands &= found[0] < 0.85 and abs(found[1] - right) < 0.005
sys.exit(0 if stands else 1)
PY
