#!/usr/bin/env bash
# Class anchor clustering (Miller et al., 2021) trains a net for open sets: an image's distance to the anchor of its own
# class, d_y, should be small, and those to all others large. `CACLoss` of PyTorch-OOD documents the loss as d_y + log(1
# + sum of exp(d_y - d_c) over the classes c other than y). But for each class except the last, the sum takes the own
# distance in place of the one to the last anchor. Images of these classes are never pushed away from the last anchor,
# wherever they are. Images of the last class have the right loss.
# `CACLoss.score` does not give the rejection score of the paper either. There an image is unknown if the smallest of
# d_c (1 - softmin(d)_c) is large; here the score is minus the largest. Its documentation says that only the sign is
# flipped, to make outliers larger, which they are by the paper already. Images near the origin get a high score by both
# rules; those far from all anchors get the lowest by this one, lower than any known image.
# The paper's distances are Euclidean, those of the package squared, as documented. PyTorch-OOD imports torchvision for
# other parts, which is replaced by empty modules here.
#
# Seen with pytorch-ood 0.4.0 and torch 2.13.0, Python 3.11, four classes, 500 images of each kind; the loss, its
# difference from the documented formula in NumPy, the anchors whose distance has a negative gradient, and the area
# under the ROC curve of known images (normal noise around anchors at 10) against unknown ones (the same around other
# places):
#   class 0: loss 4.484, differs by -0.126, pushed away from anchors [1, 2]
#   class 1: loss 4.428, differs by -0.103, pushed away from anchors [0, 2]
#   class 2: loss 4.727, differs by -0.164, pushed away from anchors [0, 1]
#   class 3: loss 4.710, differs by  0.000, pushed away from anchors [0, 1, 2]
#   unknown at the origin        AUROC 0.998, by the paper 1.000
#   unknown between two anchors  AUROC 0.951, by the paper 1.000
#   unknown behind the origin    AUROC 0.000, by the paper 1.000
#   unknown beyond an anchor     AUROC 0.000, by the paper 0.965
# Exit code 0 while all of this stands, 1 if some of it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "torch==2.13.0" "scipy==1.17.1" "pillow==12.0.0" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "pytorch-ood==0.4.0"
"$folder/venv/bin/python" - <<'PY'
import importlib.abc
import importlib.machinery
import sys
import types

import numpy as np
import torch


class Empty(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *arguments, **options: None})


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Unused())
from pytorch_ood.loss import CACLoss

CLASSES, MAGNITUDE, IMAGES = 4, 10.0, 500
criterion = CACLoss(n_classes=CLASSES, magnitude=MAGNITUDE)


def documented_loss(distances, label):
    own = distances[:, [label]]
    return (own[:, 0] + np.log(1 + np.exp(own - np.delete(distances, label, 1)).sum(1))).mean()


def paper_score(points):
    distances = np.sqrt(((points.double().numpy()[:, None] - anchors.double().numpy()) ** 2).sum(2))
    closeness = np.exp(distances.min(1, keepdims=True) - distances)
    return (distances * (1 - closeness / closeness.sum(1, keepdims=True))).min(1)


def area(known, unknown):
    return (known[:, None] < unknown[None]).mean()


stands = True
generator = torch.Generator().manual_seed(0)
for label in range(CLASSES):
    # Squared distances to the anchors as of a net that has learnt little.
    distances = (5 * torch.rand(IMAGES, CLASSES, generator=generator)).requires_grad_()
    loss = criterion(distances, torch.full((IMAGES,), label))
    (gradient,) = torch.autograd.grad(loss, distances)
    away = [other for other in range(CLASSES) if other != label and bool((gradient[:, other] < 0).any())]
    difference = loss.item() - documented_loss(distances.detach().double().numpy(), label)
    print(f"class {label}: loss {loss.item():.3f}, differs by {difference:6.3f}, pushed away from anchors {away}")
    others = [other for other in range(CLASSES - 1) if other != label]
    stands &= away == others and (abs(difference) < 1e-4) == (label == CLASSES - 1)

anchors = criterion.centers.params.detach()
noise = torch.randn(IMAGES, CLASSES, generator=generator)
labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
known = anchors[labels] + noise
for name, places, right in (
    ("at the origin", 0 * anchors[labels], True),
    ("between two anchors", (anchors[labels] + anchors[labels - 1]) / 2, True),
    ("behind the origin", -anchors[labels], False),
    ("beyond an anchor", 3 * anchors[labels], False),
):
    unknown = places + noise
    package = area(*(criterion.score(criterion.distance(points)).numpy() for points in (known, unknown)))
    paper = area(paper_score(known), paper_score(unknown))
    print(f"unknown {name:20} AUROC {package:.3f}, by the paper {paper:.3f}")
    stands &= bool(paper > 0.95) and bool(package > 0.9 if right else package < 0.01)
sys.exit(0 if stands else 1)
PY
