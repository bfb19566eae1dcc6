#!/usr/bin/env bash
# Ablation-CAM (Desai and Ramaswamy 2020) shows where a net looks: each channel of a layer is set to zero, and what the
# class's score loses is the channel's weight. In grad-cam (`pytorch_grad_cam.AblationCAM`), whose README says the same,
# this holds where the layer's lowest value is exactly 0, as after a ReLU. Otherwise, as a comment in the source admits,
# a channel is set to "very negative values", 10 million below the lowest value. But the lowest value is looked up again
# for each channel of a batch, after those before it were set: the second gets 20 million below, the tenth 100 million,
# and a channel's weight grows with its place in the batch. So the map depends on `batch_size`, which is a matter of
# speed, and on the order in which channels are stored, which changes nothing about a net. SiLU, GELU, Hardswish and
# LeakyReLU are all concerned, with nets like EfficientNet, ConvNeXt and MobileNetV3. Nothing is said at run time.
# The map is that of NumPy in float64 for ReLU with every batch size. For the others it is that of the definition with
# these millions in place of zero, to a correlation above 0.999. matplotlib, SciPy, scikit-learn and torchvision, which
# are imported for other parts, are replaced by empty modules here.
#
# Seen with grad-cam 1.5.7, torch 2.13.0 and numpy 2.4.6, Python 3.11, 40 channels, three images, lowest correlation of
# the maps of the same image, with batch_size 1, 4, 32 (the default) and 64:
#   ReLU      with the definition              1.000, 1.000, 1.000, 1.000
#             with the map of batches of 1     1.000, 1.000, 1.000, 1.000
#             after the channels are reordered 1.000, 1.000, 1.000, 1.000
#   SiLU      with the definition              0.868, 0.727, 0.721, 0.503
#             with the map of batches of 1     1.000, 0.729, 0.782, 0.775
#             after the channels are reordered 1.000, 0.879, 0.474, 0.783
#   GELU      with the definition              0.928, 0.836, 0.734, 0.802
#             with the map of batches of 1     1.000, 0.836, 0.831, 0.867
#             after the channels are reordered 1.000, 0.761, 0.672, 0.893
#   Hardswish with the definition              0.816, 0.693, 0.714, 0.425
#             with the map of batches of 1     1.000, 0.726, 0.780, 0.769
#             after the channels are reordered 1.000, 0.879, 0.453, 0.782
#   LeakyReLU with the definition              0.934, 0.842, 0.741, 0.854
#             with the map of batches of 1     1.000, 0.893, 0.832, 0.863
#             after the channels are reordered 1.000, 0.736, 0.671, 0.877
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" \
    "opencv-python-headless==5.0.0.93" "pillow==13.0.0" "tqdm==4.70.1"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "grad-cam==1.5.7" "ttach==0.0.3"
TQDM_DISABLE=1 "$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.abc
import importlib.machinery
import sys
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "scipy", "sklearn", "torchvision"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return MagicMock()

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Unused())
from pytorch_grad_cam import AblationCAM

torch.set_num_threads(1)
CHANNELS, CLASSES, BATCHES = 40, 10, (1, 4, 32, 64)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def build(activation, order):
    """Convolution, activation, mean and a linear layer; `order` only says how the channels are stored."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), activation, Mean(), nn.Linear(CHANNELS, CLASSES))
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[3].bias.add_(2)  # so that scores are positive
        net[0].weight.copy_(net[0].weight[order])
        net[0].bias.copy_(net[0].bias[order])
        net[3].weight.copy_(net[3].weight[:, order])
    return net.eval()


def by_definition(net, image, batch=None):
    """Each channel is set to zero; what the score of the class loses, as a share of it, is the channel's weight.

    With `batch` as the package does it: 10 million below the lowest value so far in the batch, instead of to zero.
    """
    with torch.no_grad():
        kept = net[1](net[0](image[None]))[0].numpy().astype(np.float64)
    weight, bias = (parameter.detach().numpy().astype(np.float64) for parameter in net[3].parameters())
    logits = weight @ kept.mean((1, 2)) + bias
    best = logits.argmax()
    shares = []
    for k in range(CHANNELS):
        without = kept.copy()
        without[k] = kept.min() - 1e7 * (k % batch + 1) if batch else 0
        shares.append(1 - (weight[best] @ without.mean((1, 2)) + bias[best]) / logits[best])
    found = np.maximum(np.tensordot(shares, kept, 1), 0)
    found -= found.min()
    return found / found.max()


def agreement(maps, others):
    """The lowest correlation of two maps of the same image."""
    return min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps, others))


def cam(net, batch):
    return AblationCAM(net, [net[1]], batch_size=batch)(images, targets=None)


noise = torch.rand(3, 3, 36, 36, generator=torch.Generator().manual_seed(0))
images = nn.functional.avg_pool2d(noise, 5, 1) * 8 - 4
stored, shuffled = torch.arange(CHANNELS), torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(0))
stands = True
for activation in (nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.LeakyReLU(0.1)):
    net, other = build(activation, stored), build(activation, shuffled)
    with torch.no_grad():
        stands &= torch.allclose(net(images), other(images), atol=1e-5)
    reference, same = ([by_definition(one, image) for image in images] for one in (net, other))
    stands &= bool(np.allclose(reference, same, atol=1e-5))
    found = {batch: cam(net, batch) for batch in BATCHES}
    right = {batch: agreement(found[batch], reference) for batch in BATCHES}
    moved = {batch: agreement(found[batch], cam(other, batch)) for batch in BATCHES}
    alone = {batch: agreement(found[batch], found[1]) for batch in BATCHES}
    name = type(activation).__name__
    for what, values in (
        ("with the definition", right),
        ("with the map of batches of 1", alone),
        ("after the channels are reordered", moved),
    ):
        print(f"{name:9} {what:32} " + ", ".join(f"{value:5.3f}" for value in values.values()))
        name = ""
    if isinstance(activation, nn.ReLU):
        stands &= min([*right.values(), *moved.values()]) > 0.999
        continue
    for batch in BATCHES:
        stands &= agreement(found[batch], [by_definition(net, image, batch) for image in images]) > 0.999
        stands &= right[batch] < 0.95
        stands &= moved[batch] > 0.999 if batch == 1 else max(moved[batch], alone[batch]) < 0.95
sys.exit(0 if stands else 1)
PY
