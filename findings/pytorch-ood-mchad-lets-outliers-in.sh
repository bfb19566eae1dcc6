#!/usr/bin/env bash
# `MCHADLoss(radius=r, margin=m)` of PyTorch-OOD puts the images of each class into a sphere. By its documentation a
# known image at a distance d from the center of its class costs max(0, d^2 - r^2), nothing within the radius, and an
# outlier max(0, (r + m)^2 - d^2) for each center, so that it is pushed out to a distance of r + m. The distances that
# the loss is given are squared already, as its method `distance` returns them. It subtracts r instead of r^2, so that
# the spheres end at the root of r; and it squares the distances of outliers once more and leaves r out, max(0,
# m^2-d^4), which ends at the root of m. With r=3 and m=1 known images are left alone up to 1.73, and outliers from 1.00
# on: the term that should keep them apart lets outliers stay inside the spheres. radius=r^2 and margin=(r + m)^2 put
# both limits where the documentation has them (the last line, for r=3 and m=1).
# PyTorch-OOD imports torchvision for other parts, which is replaced by empty modules here.
#
# Seen with pytorch-ood 0.4.0 and torch 2.13.0, Python 3.11; the distances where each term becomes more than 0 and where
# it ends, found by bisection, and the same for the documented formulas:
#   r=3    m=1    known images free up to 1.73, documented 3.00; outliers pushed out to 1.00, documented 4.00
#   r=3    m=0.25 known images free up to 1.73, documented 3.00; outliers pushed out to 0.50, documented 3.25
#   r=2    m=3    known images free up to 1.41, documented 2.00; outliers pushed out to 1.73, documented 5.00
#   r=1    m=1    known images free up to 1.00, documented 1.00; outliers pushed out to 1.00, documented 2.00
#   r=9    m=16   known images free up to 3.00, documented 9.00; outliers pushed out to 4.00, documented 25.00
# Exit code 0 while the limits are the roots of r and m, 1 if this has changed.
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
import math
import sys
import types

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
from pytorch_ood.loss import MCHADLoss


def package(radius, margin, label):
    """A function from an image's distance to its center to one term of the loss; the other center is far away."""
    known = float(label >= 0)
    criterion = MCHADLoss(2, 2, radius=radius, margin=margin, weight_center=known, weight_nll=0.0, weight_oe=1 - known)
    with torch.no_grad():
        criterion.centers.params.copy_(torch.tensor([[0.0, 0.0], [1000.0, 0.0]]))
    return lambda distance: criterion(criterion.distance(torch.tensor([[0.0, distance]])), torch.tensor([label])).item()


def limit(holds):
    """The largest distance up to which this holds."""
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


stands = True
for radius, margin in ((3.0, 1.0), (3.0, 0.25), (2.0, 3.0), (1.0, 1.0), (9.0, 16.0)):
    known, outlier = package(radius, margin, 0), package(radius, margin, -1)
    free = limit(lambda distance: known(distance) < 1e-6)
    pushed = limit(lambda distance: outlier(distance) > 1e-6)
    documented_free = limit(lambda distance: max(0, distance**2 - radius**2) < 1e-6)
    documented_pushed = limit(lambda distance: max(0, (radius + margin) ** 2 - distance**2) > 1e-6)
    print(
        f"r={radius:<4g} m={margin:<4g} known images free up to {free:.2f}, documented {documented_free:.2f}; "
        f"outliers pushed out to {pushed:.2f}, documented {documented_pushed:.2f}"
    )
    stands &= abs(free - math.sqrt(radius)) < 0.001 and abs(pushed - math.sqrt(margin)) < 0.001
sys.exit(0 if stands else 1)
PY
