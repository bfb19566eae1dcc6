"""Optimizers, and learning-rate and momentum schedules as pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

# Quintic polynomial and number of steps that take singular values towards 1, from Muon (Jordan et al. 2024,
# https://kellerjordan.github.io/posts/muon); three steps instead of its five, as in its authors' CIFAR-10 record.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3


class Muon(Optimizer):
    """SGD with Nesterov momentum whose update of each filter bank is made orthogonal (Jordan et al. 2024).

    A bank of shape (out, ...) is a matrix of `out` rows. Before each update it is scaled to the norm sqrt(out), as
    batch normalisation behind it makes its scale meaningless and the rate then says by which angle it turns.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(buffer, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(orthogonalize(update.flatten(1)).view_as(weight), alpha=-group["lr"])


def orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix with nearly the same singular vectors as `matrix` (M, N), its singular values between about 0.5 and 1.5.

    Values that are small beside the largest one stay smaller: three steps of the iteration do not lift them all.
    A step multiplies by a polynomial of the Gram matrix, on whose short side nearly all of the work is done.
    """
    linear, cubic, quintic = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = torch.eye(len(gram), device=gram.device)
    for _ in range(NEWTON_SCHULZ_STEPS):
        polynomial = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
        polynomial.diagonal().add_(linear)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    x = product @ x
    return x.T if tall else x


def build(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    muon_learning_rate: float,
    muon_momentum: float,
) -> list[Optimizer]:
    """The optimizers called `name`; every parameter that is trained is in one of them, each group has its `max_lr`.

    "sgd" trains all parameters alike; "muon" trains the convolutions' filters with `Muon`, which has no weight decay as
    it keeps their norms, and the rest with SGD.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = [parameter for parameter in trained if name == "muon" and parameter.dim() == 4]
    rest = [parameter for parameter in trained if name != "muon" or parameter.dim() != 4]
    optimizers: list[Optimizer] = [SGD(rest, learning_rate, momentum, weight_decay=weight_decay, nesterov=nesterov)]
    if filters:
        optimizers.append(Muon(filters, muon_learning_rate, muon_momentum))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["max_lr"] = group["lr"]
    return optimizers


def set_rates(optimizers: list[Optimizer], rate: float, momentum: float) -> None:
    """Set learning rates to the fraction `rate` of their maxima, and the momentum of SGD; that of Muon is constant."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["max_lr"] * rate
            if not isinstance(optimizer, Muon):
                group["momentum"] = momentum
