"""Learning-rate and momentum schedules as pure functions of the step."""

from __future__ import annotations

import math


def one_cycle(
    step: int,
    total_steps: int,
    *,
    max_learning_rate: float,
    warmup_fraction: float,
    div_factor: float,
    final_div_factor: float,
    base_momentum: float,
    max_momentum: float,
) -> tuple[float, float]:
    """Learning rate and momentum of update `step` (0-based) under the one-cycle policy with cosine annealing.

    The rate rises from `max_learning_rate / div_factor` to `max_learning_rate` over the first `warmup_fraction` of the
    steps and falls to its initial value divided by `final_div_factor`; the momentum moves the opposite way between
    `max_momentum` and `base_momentum`. Equal to `torch.optim.lr_scheduler.OneCycleLR` (after Smith & Topin 2017,
    arXiv:1708.07120) at every step, also at `step == total_steps`, which is what a log line after the last epoch shows.

    Raises ValueError if `step` lies outside [0, total_steps].
    """
    if not 0 <= step <= total_steps:
        raise ValueError(f"step must lie between 0 and {total_steps}, not {step}")
    initial = max_learning_rate / div_factor
    final = initial / final_div_factor
    peak = warmup_fraction * total_steps - 1
    if step <= peak:
        fraction = step / peak if peak > 0 else 1.0
        return _cosine(initial, max_learning_rate, fraction), _cosine(max_momentum, base_momentum, fraction)
    fraction = min(1.0, (step - peak) / (total_steps - 1 - peak))
    return _cosine(max_learning_rate, final, fraction), _cosine(base_momentum, max_momentum, fraction)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
