#!/usr/bin/env bash
# `BSAM` of pytorch-optimizer is, by its README, the optimiser of "SAM as an Optimal Relaxation of Bayes" (Moellenhoff
# and Khan, 2023). The paper's algorithm 1 takes the gradient at weights with noise, goes up along it, takes the
# gradient there, and makes a step with it from the weights as they were. Here, without a message:
#   - the noise and the way up by rho are added to the weights and never taken back. Each step begins with a climb;
#   - the gradient, to which weight_decay times the weights should be added, is multiplied by weight_decay instead. With
#     the default of 1e-4 the way down is 10,000 times too short, and with 0 there is none;
#   - the noise for N images and a curvature s has the standard deviation 1/(N s), not 1/sqrt(N s);
#   - what is averaged into s, sqrt(s) |gradient| + weight_decay + damping, is squared.
# With the defaults it so maximises the loss: a classifier's accuracy falls to next to 0, far below guessing. SAM of the
# same package reaches the minimum, with the same closure, and so does the paper's algorithm in NumPy, with the defaults
# of BSAM. Nothing of this is in the documentation of the class.
#
# Seen with pytorch-optimizer 4.1.0, torch 2.13.0 and numpy 2.4.6, Python 3.11, 1,000 images of noise, a little brighter
# for each of four classes, a linear classifier, 200 steps:
#   start                  loss  1.3931, accuracy 0.187, largest weight   0.04
#   SAM of the package     loss  0.4271, accuracy 0.825, largest weight   2.03
#   bSAM by the paper      loss  0.5758, accuracy 0.764, largest weight   0.76
#   BSAM of the package    loss  5.6911, accuracy 0.002, largest weight   0.73
#   noise for 50 images, standard deviation                       0.019969, by the paper  0.141421
#   rate 0, rho 0.05: the weight moves by                         0.100000, by the paper  0.000000
#   rate 0.5, rho 0, decay 0.01: it moves by                     -0.000997, by the paper -0.100500
#   decay of the curvature 0.5: it becomes                        2.500200, by the paper  1.500050
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "pytorch-optimizer==4.1.0"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import torch
from pytorch_optimizer import BSAM, SAM

torch.set_num_threads(1)
STEPS, RATE, DECAY, RHO, DAMPING, BETAS = 200, 0.5, 1e-4, 0.05, 0.1, (0.9, 0.999)


def loss_and_gradient(weights, images, labels):
    """Mean cross-entropy of a linear classifier, and its gradient."""
    logits = images @ weights
    logits -= logits.max(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = (np.log(np.exp(logits).sum(1)) - logits[rows, labels]).mean()
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(1, keepdims=True)
    probabilities[rows, labels] -= 1
    return loss, images.T @ probabilities / len(labels)


def by_paper(weights, images, labels, generator):
    """Algorithm 1 of the paper: the mean stays where it is until the last line."""
    curvature, momentum = np.ones_like(weights), np.zeros_like(weights)
    for _ in range(STEPS):
        noise = generator.standard_normal(weights.shape) / np.sqrt(len(labels) * curvature)
        _, at_sample = loss_and_gradient(weights + noise, images, labels)
        _, at_edge = loss_and_gradient(weights + RHO * at_sample / curvature, images, labels)
        momentum = BETAS[0] * momentum + (1 - BETAS[0]) * (at_edge + DECAY * weights)
        weights = weights - RATE * momentum / curvature
        new = np.sqrt(curvature) * np.abs(at_sample) + DECAY + DAMPING
        curvature = BETAS[1] * curvature + (1 - BETAS[1]) * new
    return weights


def by_package(optimizer, parameter, images, labels, steps=STEPS):
    images, labels = torch.tensor(images), torch.tensor(labels)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(images @ parameter, labels)
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        optimizer.step(closure)
    return parameter.detach().numpy().copy()


generator = np.random.default_rng(0)
labels = generator.integers(4, size=1000)
images = 0.75 * generator.random((1000, 3 * 8 * 8)) + 0.08 * labels[:, None] * (np.arange(192) % 3 == 0)
images -= images.mean(0)
start = 0.01 * generator.standard_normal((192, 4))
stands, losses = True, {}


def report(name, weights):
    losses[name] = loss_and_gradient(weights, images, labels)[0]
    right = ((images @ weights).argmax(1) == labels).mean()
    print(f"{name:22} loss {losses[name]:7.4f}, accuracy {right:.3f}, largest weight {abs(weights).max():6.2f}")


def parameter():
    return torch.nn.Parameter(torch.tensor(start))


torch.manual_seed(0)
report("start", start)
w = parameter()
report("SAM of the package", by_package(SAM([w], torch.optim.SGD, lr=RATE, momentum=0.9), w, images, labels))
report("bSAM by the paper", by_paper(start, images, labels, np.random.default_rng(1)))
w = parameter()
report("BSAM of the package", by_package(BSAM([w], num_data=1000), w, images, labels))
stands &= losses["BSAM of the package"] > 2 * losses["start"]
stands &= max(losses["SAM of the package"], losses["bSAM by the paper"]) < 0.7


def one_step(**settings):
    """What a step of BSAM adds to weights of 1 where each gradient is 2 * weight, and the new estimate of curvature."""
    ones = torch.nn.Parameter(torch.ones(100_000, dtype=torch.float64))
    optimizer = BSAM([ones], **settings)

    def closure():
        optimizer.zero_grad()
        loss = (ones**2).sum()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)
    return ones.detach().numpy() - 1, optimizer.state[ones]["s"].mean().item()


def compare(name, found, right, departure):
    global stands
    print(f"{name:60} {found:9.6f}, by the paper {right:9.6f}")
    stands &= bool(np.isclose(found, departure, rtol=0.02) and not np.isclose(found, right, rtol=0.05))


many = {"num_data": 10**12, "damping": 0.0}
moved, _ = one_step(num_data=50, lr=0.0, rho=0.0)
compare("noise for 50 images, standard deviation", moved.std(), 1 / np.sqrt(50), 1 / 50)
compare("rate 0, rho 0.05: the weight moves by", *(one_step(lr=0.0, **many)[0].mean(), 0.0, 0.05 * 2))
moved, _ = one_step(lr=0.5, rho=0.0, weight_decay=0.01, **many)
compare("rate 0.5, rho 0, decay 0.01: it moves by", *(moved.mean(), -0.5 * 0.1 * (2 + 0.01), -0.5 * 0.1 * 2 * 0.01))
_, curvature = one_step(lr=0.0, rho=0.0, betas=(0.9, 0.5), **many)
compare("decay of the curvature 0.5: it becomes", curvature, (1 + 2 + 1e-4) / 2, (1 + (2 + 1e-4) ** 2) / 2)
sys.exit(0 if stands else 1)
PY
