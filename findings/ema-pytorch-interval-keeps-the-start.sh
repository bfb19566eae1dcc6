#!/usr/bin/env bash
# ema-pytorch averages weights by factors that depend on the step. `PostHocEMA` and `KarrasEMA` take the factor
# (1-1/t)^(gamma+1) of Karras et al. (2024), which gives the weights of step t a share that grows as t^gamma, with
# `sigma_rel` as its standard deviation in units of the whole training; `EMA` with inv_gamma=1 and power=1 is, by its
# documentation, a simple average. All count every step, but with update_every=k, "to save on compute", they apply the
# factor of one step at each k-th step alone. In effect gamma + 1 becomes (gamma + 1) / k: the average stays where
# training began, and checkpoints are combined for profiles that they do not have. The README's example has
# update_every=10, `KarrasEMA` 100 by default and `EMA` 10. With update_every=1 everything is right.
# The fork nitrous-ema has an option against this, step_size_correction; ema-pytorch says nothing of it.
# Here the weights are the time and its square, so that the averaged ones are the mean time of what was averaged and, by
# the difference, its width, both in units of the whole training.
#
# Seen with ema-pytorch 0.8.3 and torch 2.13.0, Python 3.11, 4,000 steps; what it should be is computed with NumPy:
#   update_every=1
#     sigma_rel=0.05          mean 0.95, width 0.05; should be 0.95, 0.05
#     sigma_rel=0.25          mean 0.63, width 0.25; should be 0.63, 0.25
#     synthesized, 0.15       mean 0.82, width 0.15; should be 0.82, 0.15
#     EMA, gamma=1, power=1   mean 0.50, width 0.29; should be 0.50, 0.29
#   update_every=10
#     sigma_rel=0.05          mean 0.64, width 0.25; should be 0.95, 0.05
#     sigma_rel=0.25          mean 0.15, width 0.24; should be 0.63, 0.25
#     synthesized, 0.15       mean 0.26, width 0.31; should be 0.82, 0.15
#     EMA, gamma=1, power=1   mean 0.09, width 0.20; should be 0.50, 0.29
#   update_every=100
#     sigma_rel=0.05          mean 0.15, width 0.24; should be 0.95, 0.05
#     sigma_rel=0.25          mean 0.02, width 0.09; should be 0.63, 0.25
#     synthesized, 0.15       mean 0.04, width 0.14; should be 0.82, 0.15
#     EMA, gamma=1, power=1   mean 0.01, width 0.07; should be 0.50, 0.29
# Exit code 0 while only update_every=1 is right, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "ema-pytorch==0.8.3" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys
import tempfile

import numpy as np
import torch
from ema_pytorch import EMA, PostHocEMA

STEPS = 4000
TIMES = np.arange(1, STEPS + 1) / STEPS


class Clock(torch.nn.Module):
    """The weights are the time and its square, so that an average of them is the average's mean and width."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))


def moments(shares):
    return (shares * TIMES).sum() / shares.sum(), (shares * TIMES**2).sum() / shares.sum()


def by_definition(sigma):
    """A power of the time, with the exponent for which its standard deviation is sigma."""
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        wide = np.sqrt(gamma + 1) / (gamma + 2) / np.sqrt(gamma + 3) > sigma
        low, high = (gamma, high) if wide else (low, gamma)
    return moments(TIMES**gamma)


def run(average, net):
    for time in TIMES:
        with torch.no_grad():
            net.weights.copy_(torch.tensor([time, time**2]))
        average.update()


def show(name, mean, square, expected):
    width, expected_width = np.sqrt(square - mean**2), np.sqrt(expected[1] - expected[0] ** 2)
    print(f"  {name:23} mean {mean:.2f}, width {width:.2f}; should be {expected[0]:.2f}, {expected_width:.2f}")
    return abs(mean - expected[0]) + abs(width - expected_width)


worst = {}
for interval in (1, 10, 100):
    print(f"update_every={interval}")
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        net = Clock()
        averages = PostHocEMA(
            net,
            sigma_rels=(0.05, 0.25),
            update_every=interval,
            checkpoint_every_num_steps=STEPS // 10,
            checkpoint_folder=folder,
            checkpoint_dtype=torch.float64,
        )
        run(averages, net)
        for sigma, model in zip((0.05, 0.25), averages.ema_models):
            errors.append(show(f"sigma_rel={sigma}", *model.ema_model.weights.tolist(), by_definition(sigma)))
        synthesized = averages.synthesize_ema_model(sigma_rel=0.15).ema_model.weights.tolist()
        errors.append(show("synthesized, 0.15", *synthesized, by_definition(0.15)))
    net = Clock()
    average = EMA(net, update_after_step=0, update_every=interval, inv_gamma=1, power=1)
    run(average, net)
    errors.append(show("EMA, gamma=1, power=1", *average.ema_model.weights.tolist(), moments(np.ones(STEPS))))
    worst[interval] = min(errors), max(errors)
sys.exit(0 if worst[1][1] < 0.02 and worst[10][0] > 0.2 and worst[100][0] > 0.2 else 1)
PY
