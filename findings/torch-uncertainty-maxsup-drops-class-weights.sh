#!/usr/bin/env bash
# `CrossEntropyMaxSupLoss` of Torch-Uncertainty is PyTorch's cross-entropy and, with max_sup > 0, a term against
# overconfidence, max_sup * (largest logit - mean of the logits) (Zhou et al., 2025). Whoever switches the term on loses
# two arguments:
#   - `weight`, the weights of the classes, no longer weights classes. The cross-entropy is computed without them, and
#     their mean multiplies the result. Weights against imbalance, or 0 for a class to be left out, do nothing but
#     change the size of the loss. Only their mean counts;
#   - with reduction="none" each image gets the mean cross-entropy of the batch instead of its own, and the shape is
#     (images, 1). Whoever then selects or weights images by their loss does so by the term alone.
# With max_sup=0 both are right, as then PyTorch's class does all of it. With reduction="mean" and without weights the
# loss is right with the term, too. The documentation says nothing of either.
# The term is so small here, 1e-9, that the loss should be that of PyTorch. The training has three classes with 90%, 9%
# and 1% of the images, which overlap, and weights of one over the frequency. The definition is computed in NumPy. The
# file of the losses is loaded by itself, as the package as a whole imports Lightning.
#
# Seen with torch-uncertainty 0.13.0 and torch 2.13.0, Python 3.11:
#   no weights, the term 0.1: definition 2.2382, max_sup=0 2.0696, max_sup=0.1 2.2382
#   weights 1, 1, 1: definition 2.0696, max_sup=0 2.0696, max_sup=1e-09 2.0696, mean of the weights times the loss
#     without 2.0696
#   weights 0, 1, 2: definition 1.9843, max_sup=0 1.9843, max_sup=1e-09 2.0696, mean of the weights times the loss
#     without 2.0696
#   weights 2, 1, 0: definition 2.1398, max_sup=0 2.1398, max_sup=1e-09 2.0696, mean of the weights times the loss
#     without 2.0696
#   weights 1, 2, 6: definition 2.0178, max_sup=0 2.0178, max_sup=1e-09 6.2088, mean of the weights times the loss
#     without 6.2088
#   reduction='none', max_sup=0.0: shape (600,), from 0.002 to 8.069; by definition from 0.002 to 8.069
#   reduction='none', max_sup=1e-09: shape (600, 1), from 2.070 to 2.070; by definition from 0.002 to 8.069
#   trained with no weights, max_sup=0: found of each class 99%, 19%, 2%
#   trained with weights, max_sup=0: found of each class 60%, 73%, 73%
#   trained with weights, max_sup=1e-9: found of each class 99%, 19%, 2%
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torch-uncertainty==0.13.0"
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.util
import pathlib
import sys

import numpy as np
import torch

torch.set_num_threads(1)
root = pathlib.Path(importlib.util.find_spec("torch_uncertainty").origin).parent
spec = importlib.util.spec_from_file_location("losses", root / "losses" / "classification.py")
losses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(losses)
Loss = losses.CrossEntropyMaxSupLoss
stands = True


def definition(logits, labels, weight=None, max_sup=0.0):
    """The loss of each image, and their mean as PyTorch takes it, with the weights of the classes."""
    shifted = logits - logits.max(1, keepdims=True)
    own = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    weights = np.ones(len(labels)) if weight is None else np.asarray(weight)[labels]
    term = max_sup * (logits.max(1) - logits.mean(1))
    return own * weights + term, (own * weights).sum() / weights.sum() + term.mean()


random = np.random.default_rng(0)
logits, labels = 2 * random.normal(size=(600, 3)), random.integers(3, size=600)
tensors = torch.tensor(logits), torch.tensor(labels)
for name, weight, max_sup in (
    ("no weights, the term 0.1", None, 0.1),
    ("weights 1, 1, 1", [1.0, 1.0, 1.0], 1e-9),
    ("weights 0, 1, 2", [0.0, 1.0, 2.0], 1e-9),
    ("weights 2, 1, 0", [2.0, 1.0, 0.0], 1e-9),
    ("weights 1, 2, 6", [1.0, 2.0, 6.0], 1e-9),
):
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    with_term = Loss(max_sup=max_sup, weight=tensor)(*tensors).item()
    without = Loss(weight=tensor)(*tensors).item()
    expected = definition(logits, labels, weight, max_sup)[1]
    plain = definition(logits, labels)[1] * (1 if weight is None else np.mean(weight))
    print(f"{name}: definition {expected:.4f}, max_sup=0 {without:.4f}, max_sup={max_sup} {with_term:.4f}", end="")
    print("" if weight is None else f", mean of the weights times the loss without {plain:.4f}")
    if weight is None:
        stands &= abs(with_term - expected) < 1e-6
    else:
        stands &= abs(without - expected) < 1e-6 and abs(with_term - plain) < 1e-6

own = definition(logits, labels)[0]
for max_sup in (0.0, 1e-9):
    found = Loss(max_sup=max_sup, reduction="none")(*tensors).numpy()
    print(
        f"reduction='none', max_sup={max_sup}: shape {found.shape}, from {found.min():.3f} to {found.max():.3f}; "
        f"by definition from {own.min():.3f} to {own.max():.3f}"
    )
    right = found.shape == own.shape and np.allclose(found, own, atol=1e-6)
    stands &= right if max_sup == 0 else not right and np.allclose(found, own.mean(), atol=1e-6)

shares = np.array([0.9, 0.09, 0.01])
centers = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])


def draw(count, frequencies):
    classes = random.choice(3, size=count, p=frequencies)
    points = centers[classes] + random.normal(size=(count, 2))
    return torch.tensor(points), torch.tensor(classes)


train, test = draw(20000, shares), draw(6000, np.ones(3) / 3)
for name, weight, max_sup in (
    ("no weights, max_sup=0", None, 0.0),
    ("weights, max_sup=0", 1 / shares, 0.0),
    ("weights, max_sup=1e-9", 1 / shares, 1e-9),
):
    net = torch.nn.Linear(2, 3).double()
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)
    criterion = Loss(max_sup=max_sup, weight=None if weight is None else torch.tensor(weight / weight.mean()))
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = criterion(net(train[0]), train[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    found = net(test[0]).argmax(1)
    recalls = [(found[test[1] == label] == label).double().mean().item() for label in range(3)]
    print(f"trained with {name}: found of each class " + ", ".join(f"{recall:.0%}" for recall in recalls))
    stands &= recalls[2] > 0.5 if weight is not None and max_sup == 0 else recalls[2] < 0.2
sys.exit(0 if stands else 1)
PY
