#!/usr/bin/env bash
# `WarmupScheduler` of pytorch-scheduler is, by its documentation, a warm-up for "any LR scheduler": the rate rises from
# 0 to that of the optimiser, and the wrapped schedule follows. With KDecayScheduler, one of its own, and with LambdaLR,
# which computes a rate from the epoch, it does so. For other schedules of PyTorch it sets `last_epoch` and calls
# `get_lr`, which multiplies the rate of the epoch before, and that is the last one of the warm-up, not the full one.
# Nothing makes up for it later:
#   - StepLR and PolynomialLR train with (n - 1) / n of the rate after a warm-up of n steps: 4/5 of it after 5 epochs if
#     the scheduler is called once an epoch, 0 after 1. With 500 steps, as in the README, only 1/500 is missing;
#   - CosineAnnealingWarmRestarts, which counts in its `step`, stays at the full rate, however long the warm-up is;
#   - CosineAnnealingLR has the last rate of the warm-up for one more epoch, and is right from then on.
# The rates in brackets are computed with NumPy from the definitions of the schedules.
#
# Seen with pytorch-scheduler 0.2.2 and torch 2.13.0, Python 3.11, rate 0.1, 100 epochs:
#   warm-up 5, KDecayScheduler             highest rate 0.100 (0.100), mean 0.0500 (0.0500), wrong in 0 epochs
#   warm-up 5, LambdaLR                    highest rate 0.100 (0.100), mean 0.0500 (0.0500), wrong in 0 epochs
#   warm-up 5, CosineAnnealingLR           highest rate 0.100 (0.100), mean 0.0498 (0.0500), wrong in 1 epochs
#   warm-up 5, PolynomialLR                highest rate 0.080 (0.100), mean 0.0400 (0.0500), wrong in 95 epochs
#   warm-up 5, StepLR                      highest rate 0.080 (0.100), mean 0.0373 (0.0462), wrong in 95 epochs
#   warm-up 5, CosineAnnealingWarmRestarts highest rate 0.100 (0.100), mean 0.0970 (0.0520), wrong in 90 epochs
#   warm-up 1, KDecayScheduler             highest rate 0.100 (0.100), mean 0.0500 (0.0500), wrong in 0 epochs
#   warm-up 1, LambdaLR                    highest rate 0.100 (0.100), mean 0.0500 (0.0500), wrong in 0 epochs
#   warm-up 1, CosineAnnealingLR           highest rate 0.100 (0.100), mean 0.0490 (0.0500), wrong in 1 epochs
#   warm-up 1, PolynomialLR                highest rate 0.000 (0.100), mean 0.0000 (0.0500), wrong in 99 epochs
#   warm-up 1, StepLR                      highest rate 0.000 (0.100), mean 0.0000 (0.0442), wrong in 99 epochs
#   warm-up 1, CosineAnnealingWarmRestarts highest rate 0.100 (0.100), mean 0.0990 (0.0539), wrong in 93 epochs
# Exit code 0 while these schedules go wrong and the first two are right, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "pytorch-scheduler==0.2.2"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import torch
from pytorch_scheduler import WarmupScheduler
from pytorch_scheduler.scheduler import KDecayScheduler
from torch.optim import lr_scheduler

RATE, EPOCHS = 0.1, 100


def rates(build, warmup):
    """The rate of each epoch, with `warmup` epochs before the schedule that `build` makes for the rest."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], RATE)
    scheduler = WarmupScheduler(optimizer, build(optimizer, EPOCHS - warmup), warmup_steps=warmup)
    found = []
    for _ in range(EPOCHS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


def cosine(epoch, epochs):
    return RATE * (1 + np.cos(np.pi * epoch / epochs)) / 2


SCHEDULES = (
    ("KDecayScheduler", lambda o, n: KDecayScheduler(o, total_steps=n), cosine),
    ("LambdaLR", lambda o, n: lr_scheduler.LambdaLR(o, lambda t: cosine(t, n) / RATE), cosine),
    ("CosineAnnealingLR", lambda o, n: lr_scheduler.CosineAnnealingLR(o, n), cosine),
    ("PolynomialLR", lambda o, n: lr_scheduler.PolynomialLR(o, n, power=1), lambda t, n: RATE * (1 - t / n)),
    ("StepLR", lambda o, n: lr_scheduler.StepLR(o, 40), lambda t, n: RATE * 0.1 ** (t // 40)),
    (
        "CosineAnnealingWarmRestarts",
        lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, 19),
        lambda t, n: cosine(t % 19, 19),
    ),
)
stands = True
for warmup in (5, 1):
    for name, build, definition in SCHEDULES:
        found = rates(build, warmup)
        epochs = np.arange(EPOCHS)
        right = np.where(
            epochs < warmup, RATE * epochs / warmup, definition(np.maximum(epochs - warmup, 0), EPOCHS - warmup)
        )
        print(
            f"warm-up {warmup}, {name:27} highest rate {found.max():.3f} ({right.max():.3f}), "
            f"mean {found.mean():.4f} ({right.mean():.4f}), wrong in {(~np.isclose(found, right)).sum()} epochs"
        )
        if name in ("KDecayScheduler", "LambdaLR"):
            stands &= bool(np.allclose(found, right))
        elif name == "CosineAnnealingLR":
            stands &= bool(np.allclose(np.delete(found, warmup), np.delete(right, warmup)))
            stands &= bool(np.isclose(found[warmup], found[warmup - 1], rtol=0.01))
        elif name == "CosineAnnealingWarmRestarts":
            stands &= bool(np.allclose(found[warmup:], RATE))
        else:
            stands &= bool(np.allclose(found[warmup:], right[warmup:] * (warmup - 1) / warmup, rtol=0.02))
sys.exit(0 if stands else 1)
PY
