#!/usr/bin/env bash
# TorchCAM shows where a classifier looks. Two of its methods are not what papers and their own docstrings define:
#   - `GradCAMpp` (Grad-CAM++, Chattopadhay et al. 2018) weights a gradient by its square divided by a denominator. The
#     division works on a copy, which is what a mask gives in PyTorch (`alpha[idx][mask].div_(...)`), so that nothing is
#     divided: the weights are sums of gradients to the power of three, and large gradients rule. The map is, to 1e-5,
#     the one that is computed here without any denominator. `RefineCAM` uses this method unless told otherwise;
#   - `SmoothGradCAMpp` (Omeiza et al. 2019) averages over noisy images to get rid of noise. The second and third power
#     of the gradients are averaged. But the activations that are added up, and the gradient itself, are those of the
#     last noisy image: the hooks have replaced those of the image. However many samples are asked for, the map is as
#     noisy as with one. Such a map, computed here, is that of the package to 1e-4.
# GradCAM, XGradCAM and LayerCAM of the package are as defined. There is no message. matplotlib and Pillow, which are
# imported for other parts, are replaced by empty modules here.
#
# Seen with torchcam 0.5.0, torch 2.13.0 and numpy 2.4.6, Python 3.11; a net with random weights, maps from 0 to 1, the
# first four over ten classes, the last three over eight seeds with the default noise; errors are from 1,000 samples:
#   GradCAM   largest difference from the definition 0.000, lowest correlation 1.000
#   XGradCAM  largest difference from the definition 0.000, lowest correlation 1.000
#   LayerCAM  largest difference from the definition 0.000, lowest correlation 1.000
#   GradCAMpp largest difference from the definition 0.397, lowest correlation 0.813
#   SmoothGradCAMpp,   1 samples: spread over seeds 0.0715, mean error 0.0641; by definition 0.0015, 0.0012
#   SmoothGradCAMpp,  16 samples: spread over seeds 0.0738, mean error 0.0622; by definition 0.0006, 0.0004
#   SmoothGradCAMpp, 256 samples: spread over seeds 0.0628, mean error 0.0513; by definition 0.0001, 0.0001
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torchcam==0.5.0"
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.abc
import importlib.machinery
import sys
from unittest.mock import MagicMock

import torch
from torch import nn


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "PIL"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return MagicMock()

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Unused())
from torchcam.methods import GradCAM, GradCAMpp, LayerCAM, SmoothGradCAMpp, XGradCAM

torch.set_num_threads(1)
CLASSES, NOISE, SEEDS = 10, 0.3, 8


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


torch.manual_seed(0)
image = torch.rand(1, 3, 36, 36, generator=torch.Generator().manual_seed(1))
image = nn.functional.avg_pool2d(image, 5, 1).double()
image = (image - image.mean()) / image.std()
net = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU()),
    nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    Mean(),
    nn.Linear(64, CLASSES),
)
with torch.no_grad():  # weights of the size of He et al. (2015), so that values do not fade
    for part in net.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.weight.mul_(6**0.5)
net = net.double().eval()


def layer(given, label):
    """What the second convolution gives for one image, and the gradient of the class's score to it."""
    kept = net[1](net[0](given)).detach().requires_grad_()
    net[2:](kept)[0, label].backward()
    return kept.detach()[0], kept.grad[0]


def scaled(weighted):
    found = weighted.sum(0).clamp(min=0)
    found = found - found.min()
    return found / (found.max() + 1e-8)


def total(values):
    return values.sum((1, 2), keepdim=True)


def alpha(maps, second, third):
    """The coefficient of papers and docstrings, from the second and third power of the gradients."""
    return second / (2 * second + total(third * maps) + 1e-8)


def smooth(count, label, seed):
    """By definition with the maps of the image and mean gradients; as done, with those of the last noisy image."""
    torch.manual_seed(seed)
    noises = [torch.distributions.Normal(0, NOISE).sample(image.shape) for _ in range(count)]
    samples = [layer(image + noise, label) for noise in noises]
    gradients, maps = torch.stack([gradient for _, gradient in samples]), layer(image, label)[0]
    shares = alpha(maps, (gradients**2).mean(0), (gradients**3).mean(0))
    pairs = (maps, gradients.mean(0)), samples[-1]
    return [scaled(total(shares * gradient.clamp(min=0)) * kept) for kept, gradient in pairs]


def by_package(kind, label, seed=0, **options):
    with kind(net, net[1], input_shape=(3, 32, 32), **options) as extractor:
        scores = net(image)
        torch.manual_seed(seed)
        return extractor(class_idx=label, scores=scores)[0][0].detach()


stands = True
differences = {}
for label in range(CLASSES):
    maps, slope = layer(image, label)
    up = slope.clamp(min=0)
    undivided = scaled(total(slope**2 * up) * maps)
    for kind, exact in (
        (GradCAM, scaled(total(slope) * maps)),
        (XGradCAM, scaled(total(slope * maps) / (total(maps) + 1e-8) * maps)),
        (LayerCAM, scaled(up * maps)),
        (GradCAMpp, scaled(total(alpha(maps, slope**2, slope**3) * up) * maps)),
    ):
        found = by_package(kind, label)
        correlation = torch.corrcoef(torch.stack([found.ravel(), exact.ravel()]))[0, 1].item()
        differences.setdefault(kind.__name__, []).append(((found - exact).abs().max().item(), correlation))
    stands &= bool(torch.allclose(found, undivided, atol=1e-5))
for name, values in differences.items():
    largest, lowest = max(value for value, _ in values), min(value for _, value in values)
    print(f"{name:9} largest difference from the definition {largest:.3f}, lowest correlation {lowest:.3f}")
    stands &= largest > 0.3 if name == "GradCAMpp" else largest < 1e-4
# With weights above zero in its head, no gradient is below it: no denominator of `alpha` gets near zero by chance.
with torch.no_grad():
    net[2].weight.abs_()
    net[5].weight.abs_()
    net[2].bias.sub_(net[:3](image).mean((0, 2, 3)))
label = 3
best, _ = smooth(1000, label, 1000)
for count in (1, 16, 256):
    pairs = [smooth(count, label, seed) for seed in range(SEEDS)]
    right, expected = (torch.stack(values) for values in zip(*pairs))
    options = {"num_samples": count, "std": NOISE}
    found = torch.stack([by_package(SmoothGradCAMpp, label, seed, **options) for seed in range(SEEDS)])
    spreads = [values.std(0).mean().item() for values in (found, right)]
    errors = [(values - best).abs().mean().item() for values in (found, right)]
    print(
        f"SmoothGradCAMpp, {count:3} samples: spread over seeds {spreads[0]:.4f}, mean error {errors[0]:.4f}; "
        f"by definition {spreads[1]:.4f}, {errors[1]:.4f}"
    )
    stands &= bool(torch.allclose(found, expected, atol=1e-4)) and (count < 256 or spreads[0] > 5 * spreads[1])
sys.exit(0 if stands else 1)
PY
