#!/usr/bin/env bash
# Two ways of averaging the weights of a training in Torch-Uncertainty give another net than they say:
#   - `SWA` is stochastic weight averaging by Izmailov et al. (2018), the mean of the weights at the end of each cycle,
#     all with equal shares. It counts the first one twice: its counter is set to 1 and raised to 2 at the same call. Of
#     n checkpoints the first, which is the worst, has a share of 2 / (n + 1), and the others 1 / (n + 1);
#   - `EMA` averages the weights after each step into a copy of the net, "used at evaluation time". The copy's batch
#     normalisation keeps the mean and variance that it had when the copy was made, 0 and 1 in a new net: they are no
#     weights, the copy is not run in training, and, unlike `SWA`, `EMA` has no `bn_update`. Even with a momentum of 0,
#     where all weights of the copy are those of the net, its accuracy is next to that of guessing.
# The weights of `EMA` are right, and so is the copy of a net with group normalisation. PyTorch's AveragedModel gives
# equal shares, and with use_buffers=True the right copy too. The documentation of the classes says nothing of either.
# The checkpoints for `SWA` are here unit vectors, so that their mean shows the shares. The images for `EMA` are random
# noise of 8x8 pixels, a little brighter for each of four classes; the training calls `update_wrapper` in each step, as
# the package's own routine does. Both files are loaded by themselves, as the package as a whole imports Lightning.
#
# Seen with torch-uncertainty 0.13.0, torch 2.13.0 and numpy 2.4.6, Python 3.11:
#   SWA of 2 checkpoints: share of the first 0.667, of each other one 0.333; by definition 0.500, AveragedModel
#     0.500 and 0.500
#   SWA of 4 checkpoints: share of the first 0.400, of each other one 0.200; by definition 0.250, AveragedModel
#     0.250 and 0.250
#   SWA of 10 checkpoints: share of the first 0.182, of each other one 0.091; by definition 0.100, AveragedModel
#     0.100 and 0.100
#   batch normalisation, momentum 0.0: accuracy of the net 0.900, EMA 0.259, AveragedModel 0.900; EMA's weights
#     from NumPy's 0.0e+00
#     its largest mean: net 4.74 after 300 steps, EMA 0.00 after 0
#   batch normalisation, momentum 0.9: accuracy of the net 0.900, EMA 0.259, AveragedModel 0.941; EMA's weights
#     from NumPy's 0.0e+00
#     its largest mean: net 4.74 after 300 steps, EMA 0.00 after 0
#   group normalisation, momentum 0.0: accuracy of the net 0.973, EMA 0.973, AveragedModel 0.973; EMA's weights
#     from NumPy's 0.0e+00
#   group normalisation, momentum 0.9: accuracy of the net 0.973, EMA 0.980, AveragedModel 0.980; EMA's weights
#     from NumPy's 0.0e+00
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torch-uncertainty==0.13.0"
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.util
import pathlib
import sys

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn


def load(file):
    root = pathlib.Path(importlib.util.find_spec("torch_uncertainty").origin).parent
    spec = importlib.util.spec_from_file_location(file.replace("/", "_"), root / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SWA, EMA = load("methods/swa").SWA, load("methods/ema").EMA
torch.set_num_threads(1)
stands = True


def shares(checkpoints):
    """What each checkpoint contributes to the mean, by SWA and by AveragedModel."""
    model = torch.nn.Linear(checkpoints, 1, bias=False)
    swa, reference = SWA(model, cycle_start=0, cycle_length=1), AveragedModel(model)
    for epoch, vector in enumerate(torch.eye(checkpoints)):
        model.weight.data = vector[None].clone()
        swa.update_wrapper(epoch)
        reference.update_parameters(model)
    return swa.swa_model.weight.detach().numpy()[0], reference.module.weight.detach().numpy()[0]


for checkpoints in (2, 4, 10):
    found, reference = shares(checkpoints)
    mean = np.eye(checkpoints).mean(0)
    print(
        f"SWA of {checkpoints} checkpoints: share of the first {found[0]:.3f}, of each other one {found[1]:.3f}; "
        f"by definition {mean[0]:.3f}, AveragedModel {reference[0]:.3f} and {reference[1]:.3f}"
    )
    twice = np.r_[2, np.ones(checkpoints - 1)] / (checkpoints + 1)
    stands &= np.allclose(found, twice, atol=1e-6) and np.allclose(reference, mean, atol=1e-6)


def draw(images, generator):
    labels = torch.randint(4, (images,), generator=generator)
    noise = torch.rand(images, 3, 8, 8, generator=generator)
    return 0.75 * noise + 0.08 * labels[:, None, None, None], labels


def train(norm, momentum, steps=300):
    """Accuracy of net, EMA and AveragedModel, and how far EMA's weights are from the average in NumPy."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        norm(),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 4),
    )
    ema = EMA(net, momentum).train()
    reference = AveragedModel(net, avg_fn=get_ema_avg_fn(momentum), use_buffers=True)
    reference.n_averaged += 1  # as EMA, start from the weights before the first step
    average = [weights.detach().numpy().copy() for weights in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        images, labels = draw(64, generator)
        loss = torch.nn.functional.cross_entropy(ema(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update_wrapper()
        reference.update_parameters(net)
        new = [weights.detach().numpy() for weights in net.parameters()]
        average = [momentum * old + (1 - momentum) * value for old, value in zip(average, new, strict=True)]
    images, labels = draw(2000, generator)
    for model in (net, ema, reference):
        model.eval()
    accuracies = [(model(images).argmax(1) == labels).float().mean().item() for model in (net, ema, reference)]
    weights = [weights.detach().numpy() for weights in ema.ema_model.parameters()]
    error = max(abs(a - b).max() for a, b in zip(weights, average, strict=True))
    return *accuracies, error, ema.ema_model[1], net[1]


def batch_norm():
    return torch.nn.BatchNorm2d(16)


def group_norm():
    return torch.nn.GroupNorm(1, 16)


for norm, name in ((batch_norm, "batch"), (group_norm, "group")):
    for momentum in (0.0, 0.9):
        net, ema, reference, error, layer, trained = train(norm, momentum)
        print(
            f"{name} normalisation, momentum {momentum}: accuracy of the net {net:.3f}, EMA {ema:.3f}, "
            f"AveragedModel {reference:.3f}; EMA's weights from NumPy's {error:.1e}"
        )
        stands &= error < 1e-4 and net > 0.6 and reference > 0.6
        if name == "group":
            stands &= abs(ema - reference) < 0.01
            continue
        means = [abs(m.running_mean.numpy()).max() for m in (trained, layer)]
        steps = [m.num_batches_tracked.item() for m in (trained, layer)]
        print(f"  its largest mean: net {means[0]:.2f} after {steps[0]} steps, EMA {means[1]:.2f} after {steps[1]}")
        stands &= ema < 0.4 and steps == [300, 0] and means[1] == 0
sys.exit(0 if stands else 1)
PY
