import csv
from pathlib import Path

import pytest
import torch

from tinycifar import recipes
from tinycifar.optim import one_cycle

ORIGINAL = Path(__file__).parents[1] / "results" / "original"
STEPS_PER_EPOCH = 391  # 50,000 images in batches of 128, the last one smaller


def settings(recipe: recipes.Recipe) -> dict[str, float]:
    names = ("max_learning_rate", "warmup_fraction", "div_factor", "final_div_factor", "base_momentum", "max_momentum")
    return {name: getattr(recipe, name) for name in names}


@pytest.mark.parametrize("name", ["reference-30", "reference-40", "reference-30-as-run", "reference-40-as-run"])
def test_the_learning_rate_after_every_epoch_is_the_one_the_original_logged(name: str) -> None:
    recipe = recipes.get(name)
    rows = list(csv.DictReader((ORIGINAL / f"log-{recipe.epochs}-epochs.csv").read_text().splitlines()))
    assert len(rows) == recipe.epochs
    for row in rows:
        rate, _ = one_cycle(int(row["epoch"]) * STEPS_PER_EPOCH, recipe.epochs * STEPS_PER_EPOCH, **settings(recipe))
        assert rate == pytest.approx(float(row["learning_rate"]), abs=1e-6)


@pytest.mark.parametrize("total_steps", [10, 77, 11_730])
def test_rate_and_momentum_equal_those_of_torch_at_every_step(total_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.02, total_steps=total_steps, pct_start=0.3, div_factor=25, final_div_factor=1000
    )
    for step in range(total_steps):
        group = optimizer.param_groups[0]
        ours = one_cycle(step, total_steps, **settings(recipes.get("reference-30")))
        assert ours == pytest.approx((group["lr"], group["momentum"]), rel=1e-9)
        optimizer.step()
        if step + 1 < total_steps:
            scheduler.step()


def test_a_schedule_of_one_or_two_steps_has_finite_rates() -> None:
    for total_steps in (1, 2):
        for step in range(total_steps + 1):
            for warmup in (0.3, 0.5):
                rate, momentum = one_cycle(
                    step, total_steps, **settings(recipes.get("reference-30")) | {"warmup_fraction": warmup}
                )
                assert 0 < rate <= 0.02
                assert 0.85 <= momentum <= 0.95


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_schedule_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 10"):
        one_cycle(step, 10, **settings(recipes.get("reference-30")))
