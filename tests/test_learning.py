"""The losses of the first steps are those that were recorded: a mistake in what is learned shows within seconds.

`learning.json` holds the losses of 20 steps on the first 64 images of the sample, computed by one processor and by the
same one restricted to less capable instruction sets (tests/processors.py). They differ by rounding alone, which grows:
in `minute` to at most 5e-4 in the first 3 steps, 1.5e-3 on another processor and already 6e-3 in the fourth step there,
and 4e-2 in all; in bfloat16 to 3e-3 and 9e-3; in the reference to 2e-6 in the first 5 steps and 1e-3 in all.
`python tests/test_learning.py NAME` records this processor's losses as NAME.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import nn

from tinycifar import machine, recipes, training
from tinycifar.recipes import Recipe

RECORDED = Path(__file__).parent / "learning.json"
STEPS, IMAGES = 20, 64
CASES = ["minute float32", "minute bfloat16", "reference-30 float32"]
every_case = pytest.mark.parametrize("case", CASES)


class Limit(NamedTuple):
    """How far a loss may lie from the recorded one in the early steps, whose number is the first value, and in all."""

    early_steps: int
    early: float
    all: float


# `minute` as it was when its losses were recorded. What its present net adds, reduced images, has tests in
# test_training.py and test_augment.py.
RECORDED_AS = {
    "minute": [
        "model=whitenet", "muon_learning_rate=0.1", "muon_momentum=0.7", "max_learning_rate=0.5", "small_fraction=0"
    ]
}  # fmt: skip


# Muon lets rounding grow the most: it makes small parts of a gradient as large as the others.
LIMITS = {
    "minute float32": Limit(3, 6e-3, 8e-2),
    "minute bfloat16": Limit(3, 1.2e-2, 8e-2),
    "reference-30 float32": Limit(5, 1e-4, 5e-3),
}


def recipe_of(case: str) -> Recipe:
    """The recipe of a case with a batch an epoch, so that the loss of an epoch is that of a step."""
    name, precision = case.split()
    settings = [f"epochs={STEPS}", f"batch_size={IMAGES}", f"precision={precision}", "skip_easiest=0"]
    return recipes.with_settings(recipes.get(name), [*settings, "watch_test=false", *RECORDED_AS.get(name, [])])


def signed_components(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch.linalg.eigh`, which leaves the signs of the components to the LAPACK at hand, with signs of our own."""
    values, components = EIGH(matrix)
    direction = torch.arange(len(matrix), dtype=matrix.dtype).cos()
    return values, components * (direction @ components).sign()


EIGH = torch.linalg.eigh


def losses(recipe: Recipe, steps: int = STEPS) -> list[float]:
    """The losses of the first steps; without dropout, whose draws are torch's own affair on each processor."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(nn.Dropout, "forward", lambda self, inputs: inputs),
        mock.patch.object(torch.linalg, "eigh", signed_components),
    ):
        options: dict[str, Any] = {"limit": IMAGES, "stop_after_epoch": steps, "evaluate": False}
        result = training.train(recipe, "sample", out=Path(folder) / "run", **options)
    return [round(entry["train_loss"], 7) for entry in result.record["history"]]


def recorded(case: str) -> dict[str, list[float]]:
    """The recorded losses by processor; the first ones are those that others are compared with."""
    content: dict[str, dict[str, list[float]]] = json.loads(RECORDED.read_text())
    return content[case]


def differences(found: list[float], expected: list[float], case: str) -> tuple[float, float]:
    """The largest difference in the early steps and in all, as parts of their limits."""
    limit = LIMITS[case]
    of_steps = [abs(loss - other) for loss, other in zip(found, expected, strict=False)]
    return max(of_steps[: limit.early_steps]) / limit.early, max(of_steps) / limit.all


@every_case
def test_the_first_losses_are_those_that_were_recorded(case):
    expected, *others = recorded(case).values()
    # Without instructions for it a step in bfloat16 takes a second: the early ones, with narrow limits, are enough.
    native = machine.select_precision("auto", torch.device("cpu")) == "bfloat16"
    steps = STEPS if native or "bfloat16" not in case else LIMITS[case].early_steps
    found = losses(recipe_of(case), steps)
    assert len(found) == steps
    assert max(differences(found, expected, case)) < 1, (found, expected)
    assert len(others) == 3
    for other in others:  # what instruction sets differ by is well within the limits
        assert max(differences(other, expected, case)) < 0.6


@every_case
@pytest.mark.parametrize("mistake", ["rates a tenth too high", "momentum lower by 0.2"])
@pytest.mark.slow
def test_a_mistake_in_rate_or_momentum_shows_in_the_early_losses(case, mistake):
    recipe = recipe_of(case)
    rates, momenta = ["max_learning_rate"], ["base_momentum", "max_momentum"]
    if recipe.optimizer == "muon":
        rates, momenta = [*rates, "muon_learning_rate"], [*momenta, "muon_momentum"]
    if "rates" in mistake:
        settings = [f"{field}={1.1 * getattr(recipe, field)}" for field in rates]
    else:
        settings = [f"{field}={getattr(recipe, field) - 0.2}" for field in momenta]
    expected, *_ = recorded(case).values()
    found = losses(recipes.with_settings(recipe, settings), LIMITS[case].early_steps)
    early, _ = differences(found, expected, case)
    assert early > 1.5


if __name__ == "__main__":
    content = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for case in CASES:
        content.setdefault(case, {})[sys.argv[1]] = losses(recipe_of(case))
    lines = [
        f'  "{case}": {{\n'
        + ",\n".join(f'    "{processor}": {json.dumps(values)}' for processor, values in by_processor.items())
        + "\n  }"
        for case, by_processor in content.items()
    ]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
