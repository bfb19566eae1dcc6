import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from tinycifar import recipes
from tinycifar.epochs import one_cycle
from tinycifar.optim import Muon, build, orthogonalize, set_rates

ORIGINAL = Path(__file__).parents[1] / "results" / "original"
STEPS_PER_EPOCH = 391  # 50,000 images in batches of 128, the last one smaller


def settings(recipe: recipes.Recipe) -> dict[str, float]:
    names = ("warmup_fraction", "div_factor", "final_div_factor", "base_momentum", "max_momentum")
    return {name: getattr(recipe, name) for name in names}


@pytest.mark.parametrize("name", ["reference-30", "reference-40", "reference-30-as-run", "reference-40-as-run"])
def test_the_learning_rate_after_every_epoch_is_the_one_the_original_logged(name):
    recipe = recipes.get(name)
    rows = list(csv.DictReader((ORIGINAL / f"log-{recipe.epochs}-epochs.csv").read_text().splitlines()))
    assert len(rows) == recipe.epochs
    for row in rows:
        rate, _ = one_cycle(int(row["epoch"]) * STEPS_PER_EPOCH, recipe.epochs * STEPS_PER_EPOCH, **settings(recipe))
        assert rate * recipe.max_learning_rate == pytest.approx(float(row["learning_rate"]), abs=1e-6)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("total_steps", [10, 77, 11_730])
def test_rate_and_momentum_equal_those_of_torch_at_every_step(total_steps, anneal):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total_steps,
        pct_start=0.3,
        div_factor=25,
        final_div_factor=1000,
        anneal_strategy={"cosine": "cos"}.get(anneal, anneal),
    )
    for step in range(total_steps):
        group = optimizer.param_groups[0]
        ours = one_cycle(step, total_steps, **settings(recipes.get("reference-30")), anneal=anneal)
        assert ours == pytest.approx((group["lr"], group["momentum"]), rel=1e-9)
        optimizer.step()
        if step + 1 < total_steps:
            scheduler.step()


def test_a_schedule_of_one_or_two_steps_has_finite_rates():
    for step, total_steps, warmup in [(s, total, w) for total in (1, 2) for s in range(total + 1) for w in (0.3, 0.5)]:
        fractions = settings(recipes.get("reference-30")) | {"warmup_fraction": warmup}
        rate, momentum = one_cycle(step, total_steps, **fractions)
        assert 0 < rate <= 1
        assert 0.85 <= momentum <= 0.95


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_schedule_is_refused(step):
    with pytest.raises(ValueError, match="between 0 and 10"):
        one_cycle(step, 10, **settings(recipes.get("reference-30")))


def test_a_held_rate_stays_at_its_maximum_and_falls_in_a_straight_line_to_its_end():
    fractions = {"warmup_fraction": 0.1, "hold_fraction": 0.5, "div_factor": 10, "final_div_factor": 10}
    momenta = {"base_momentum": 0.8, "max_momentum": 0.9}
    rates = [one_cycle(step, 100, **fractions, **momenta, anneal="linear") for step in range(101)]
    assert rates[0] == pytest.approx((0.1, 0.9))
    assert rates[9:60] == [pytest.approx((1, 0.8))] * 51
    assert rates[79][0] == pytest.approx((1 + 0.01) / 2)  # half way down
    assert rates[99] == rates[100] == pytest.approx((0.01, 0.9))


@pytest.mark.parametrize("shape", [(8, 27), (40, 9), (16, 16)])
def test_orthogonalizing_keeps_singular_vectors_and_brings_their_values_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator))
    rank = min(shape)
    values = torch.linspace(1, 3, rank)
    result = orthogonalize(left[:, :rank] @ torch.diag(values) @ right[:, :rank].T)
    found = left[:, :rank].T @ result @ right[:, :rank]
    assert result.shape == shape
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=1e-5, rtol=0)
    assert found.diagonal().min() > 0.5
    assert found.diagonal().max() < 1.5


def test_muon_scales_the_filters_and_takes_a_nesterov_step_of_the_orthogonal_update():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 2, 3, 3))
    optimizer = Muon([weight], lr=0.1, momentum=0.5)
    before, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        gradient = torch.randn_like(weight)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.5 * momentum + gradient
        update = orthogonalize((gradient + 0.5 * momentum).view(6, 18)).view_as(before)
        before = before * 6**0.5 / before.norm() - 0.1 * update
        torch.testing.assert_close(weight.detach(), before)


def test_muon_leaves_what_has_no_gradient_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=1.0, momentum=0.5).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def built(model: nn.Module, name: str) -> list[torch.optim.Optimizer]:
    settings = {"learning_rate": 0.5, "momentum": 0.9, "muon_learning_rate": 0.1, "muon_momentum": 0.6}
    return build(model, name, **settings, nesterov=True, weight_decay=0.0)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_every_trained_parameter_is_in_one_optimizer_and_muon_has_the_filters_only(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    next(model.parameters()).requires_grad_(False)
    optimizers = built(model, name)
    shapes = [[tuple(p.shape) for g in o.param_groups for p in g["params"]] for o in optimizers]
    rest = [(4,), (4,), (4,), (4,), (2, 4), (2,)]
    if name == "muon":
        assert shapes == [rest, [(4, 4, 3, 3)]]
    else:
        assert shapes == [[(4,), (4, 4, 3, 3), *rest[1:]]]


def test_rates_are_fractions_of_each_groups_maximum_and_muon_keeps_its_momentum():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    optimizers = built(model, "muon")
    for _ in range(2):
        set_rates(optimizers, 0.5, 0.8)
    found = [(g["lr"], g["momentum"]) for o in optimizers for g in o.param_groups]
    assert found == [(0.25, 0.8), (0.05, 0.6)]
