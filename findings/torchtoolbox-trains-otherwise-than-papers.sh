#!/usr/bin/env bash
# torchtoolbox ("torch-toolbox") has losses, layers and tricks for classifiers, with the papers they are from. These are
# other than in the papers, without a message:
#   - `MixingDataController.get_loss` takes images, labels and the net's answers, which exist before it is called. It
#     mixes images after that, throws them away and returns the loss of the answers to the plain images, with mixed
#     labels: `mixup=True` mixes labels alone. `mixup_data` with `mixup_criterion`, as in the README, is right;
#   - `DropBlock2d` divides by (w - block + 1) * (h * block + 1), where the paper has (h - block + 1) for the second. Of
#     a tenth that is asked for, 1.6 to 3.7 hundredths are dropped. With blocks of 1 there is little difference;
#   - `CenterLoss` is the norm of all differences from the centres, where the paper has the sum of their squares. Images
#     are drawn to their centres with the same force if all are four times as far, and with less in a larger batch;
#   - `CircleLoss` fills pairs that do not count with zeros, whose exponentials of 1 are then added to those of the
#     pairs. So the loss is high where classes are well apart;
#   - the derivative of `Swish` below -88 is NaN in float32, where it is 0.
# The definitions are computed in NumPy in float64; losses are divided by the number of images, as in the package, and
# blocks may overlap, so that the paper's share is a little below a tenth.
#
# Seen with torchtoolbox 0.1.8.2, torch 2.13.0 and numpy 2.4.6, Python 3.11:
#   MixingDataController        largest difference of gradients from mixup 0.1089, from mixed labels alone 0.0000
#   mixup_data, mixup_criterion largest difference of gradients from mixup 0.0000, from mixed labels alone 0.1089
#   DropBlock2d(0.1, 1) on 8x8: drops 0.0886, by the paper 0.1014
#   DropBlock2d(0.1, 3) on 8x8: drops 0.0368, by the paper 0.0934
#   DropBlock2d(0.1, 5) on 8x8: drops 0.0224, by the paper 0.0953
#   DropBlock2d(0.1, 5) on 16x16: drops 0.0222, by the paper 0.0924
#   DropBlock2d(0.1, 7) on 16x16: drops 0.0174, by the paper 0.0962
#   DropBlock2d(0.1, 7) on 32x32: drops 0.0158, by the paper 0.0920
#   CenterLoss, 16 images at 1: 0.125, half the mean square 0.500; pull on an image 0.125, by the paper 1.000
#   CenterLoss, 16 images at 2: 0.250, half the mean square 2.000; pull on an image 0.125, by the paper 2.000
#   CenterLoss, 16 images at 4: 0.500, half the mean square 8.000; pull on an image 0.125, by the paper 4.000
#   CenterLoss, 64 images at 1: 0.062, half the mean square 0.500; pull on an image 0.062, by the paper 1.000
#   CircleLoss, 8 images, classes at right angles: 2.761, by the paper 0.002
#   CircleLoss, 32 images, classes at right angles: 5.362, by the paper 0.055
#   CircleLoss, 128 images, classes at right angles: 8.100, by the paper 0.692
#   Swish, derivative at -5: -0.0265, SiLU -0.0265
#   Swish, derivative at -80: -0.0000, SiLU -0.0000
#   Swish, derivative at -90: nan, SiLU -0.0000
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" "pyyaml==6.0.3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torchtoolbox==0.1.8.2"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import torch
from torch import nn
from torchtoolbox.nn import CenterLoss, CircleLoss, DropBlock2d, Swish
from torchtoolbox.tools import MixingDataController, mixup_criterion, mixup_data

torch.set_num_threads(1)
torch.manual_seed(0)
generator = np.random.default_rng(0)
stands = True

# Mixup: the gradient of a net's weights, by the package's controller and by definition.
net, loss = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), nn.CrossEntropyLoss()
images, labels = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
weights, bias = (parameter.detach().numpy().astype(np.float64) for parameter in net.parameters())


def gradient(pixels, share):
    """By hand: cross-entropy of images whose labels are mixed with those in reverse order."""
    flat = pixels.reshape(16, -1)
    powers = np.exp(flat @ weights.T + bias)
    goal = np.eye(10)[labels]
    goal = share * goal + (1 - share) * goal[::-1]
    return (powers / powers.sum(1, keepdims=True) - goal).T @ flat / 16


def by_controller():
    return MixingDataController(mixup=True, mixup_alpha=1).get_loss(loss, images, labels, net(images))


def by_functions():
    mixed, first, second, share = mixup_data(images, labels, 1)
    return mixup_criterion(loss, net(mixed), first, second, share)


pixels = images.numpy().astype(np.float64)
for name, compute in (("MixingDataController", by_controller), ("mixup_data, mixup_criterion", by_functions)):
    differences = []
    for seed in range(10):
        np.random.seed(seed)
        share = np.random.beta(1, 1)
        np.random.seed(seed)
        net.zero_grad()
        compute().backward()
        found = net[1].weight.grad.numpy()
        mixed = share * pixels + (1 - share) * pixels[::-1]
        differences.append([np.abs(found - gradient(given, share)).max() for given in (mixed, pixels)])
    mixup, alone = np.max(differences, 0)
    print(f"{name:27} largest difference of gradients from mixup {mixup:.4f}, from mixed labels alone {alone:.4f}")
    stands &= alone < 1e-5 < 0.01 < mixup if name == "MixingDataController" else mixup < 1e-5 < alone


def dropped(size, block):
    """Share of a map that blocks cover: around points inside it, which are drawn as often as the paper says."""
    inner = size - block + 1
    often = 0.1 / block**2 * size**2 / inner**2
    points = generator.random((2000, inner, inner)) < often
    covered = np.zeros((2000, size, size), bool)
    for y in range(block):
        for x in range(block):
            covered[:, y : y + inner, x : x + inner] |= points
    return covered.mean()


for size, block in ((8, 1), (8, 3), (8, 5), (16, 5), (16, 7), (32, 7)):
    layer = DropBlock2d(0.1, block).train()
    found = (layer(torch.ones(100, 20, size, size)) == 0).float().mean().item()
    right = dropped(size, block)
    print(f"DropBlock2d(0.1, {block}) on {size}x{size}: drops {found:.4f}, by the paper {right:.4f}")
    stands &= found > 0.08 if block == 1 else found < right / 2

criterion = CenterLoss(classes=4, embedding_dim=8, lamda=1)
direction = torch.nn.functional.normalize(torch.randn(64, 8), dim=1)
for count, distance in ((16, 1), (16, 2), (16, 4), (64, 1)):
    target = torch.arange(count) % 4
    features = (criterion.centers[target] + distance * direction[:count]).detach().requires_grad_()
    value = criterion(features, target)
    value.backward()
    pull = features.grad.norm(dim=1).mean().item() * count
    squares = (features - criterion.centers[target]).detach().numpy().astype(np.float64) ** 2
    right = squares.sum() / 2 / count
    print(
        f"CenterLoss, {count} images at {distance}: {value.item():.3f}, half the mean square {right:.3f}; "
        f"pull on an image {pull:.3f}, by the paper {distance:.3f}"
    )
    stands &= bool(np.allclose([value.item(), pull], [distance / 2 / count**0.5, 1 / 2 / count**0.5], atol=1e-4))
    stands &= bool(np.isclose(right, distance**2 / 2, atol=1e-4))
for count in (8, 32, 128):
    target = torch.arange(count) % 4
    features = torch.eye(4)[target]
    found = CircleLoss(m=0.25, gamma=64)(features, target).item()
    same = (target[:, None] == target).numpy()
    similar = (features @ features.T).numpy().astype(np.float64)
    positive = np.exp(-64 * np.maximum(1.25 - similar, 0) * (similar - 0.75)) * (same & ~np.eye(count, dtype=bool))
    negative = np.exp(64 * np.maximum(similar + 0.25, 0) * (similar - 0.25)) * ~same
    right = np.log1p(positive.sum(1) * negative.sum(1)).mean()
    print(f"CircleLoss, {count} images, classes at right angles: {found:.3f}, by the paper {right:.3f}")
    stands &= found > 2 * np.log(count / 2) - 1 and right < 1
for value in (-5.0, -80.0, -90.0):
    given = torch.tensor([value, value], requires_grad=True)
    parts = given.unbind()
    (Swish()(parts[0]) + nn.SiLU()(parts[1])).backward()
    print(f"Swish, derivative at {value:.0f}: {given.grad[0]:.4f}, SiLU {given.grad[1]:.4f}")
    stands &= bool(torch.isnan(given.grad[0]) == (value == -90))
sys.exit(0 if stands else 1)
PY
