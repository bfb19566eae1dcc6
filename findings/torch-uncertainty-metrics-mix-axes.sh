#!/usr/bin/env bash
# Two metrics of Torch-Uncertainty give numbers of something else:
#   - `VariationRatio`, by its documentation for probabilities of shape (images, estimators, classes) as the other
#     metrics for ensembles, takes estimators for images and images for estimators. It thus measures how often each net
#     gives one and the same class to all images: ten nets that agree on every image, with ten classes in equal shares,
#     get 0.9, the highest possible value, instead of next to 0. With reduction="none" there is a value for each net
#     instead of each image. With the nets first, (estimators, images, classes), it counts the right way. Even then, with
#     probabilistic=False, the class that it counts is not the most frequent one, as its documentation says, but the
#     one of the largest mean probability, so that with two classes more than half of the nets can differ from it;
#   - `AUGRC.plot()`, which the package's routine for classification logs, writes "AUGRC=" and a number next to the
#     curve. In this number the risk at coverage k has the weight 1 - k instead of k: of two nets the worse can look
#     better. `AUGRC.compute()` and the number that `AURC.plot()` writes are right.
# `Disagreement` and `MutualInformation` are right for the same tensors. The definitions are computed here in NumPy.
# The files of the metrics are loaded by themselves, as the package as a whole imports Lightning.
#
# Seen with torch-uncertainty 0.13.0, torch 2.13.0, torchmetrics 1.9.0 and matplotlib 3.11.2, Python 3.11:
#   all nets agree: VariationRatio 0.900, by definition 0.009, with the nets first 0.009; Disagreement 0.000
#     (0.000), MutualInformation 0.000 (0.000)
#   half of the votes are random: VariationRatio 0.886, by definition 0.452, with the nets first 0.452;
#     Disagreement 0.675 (0.675), MutualInformation 1.180 (1.180)
#   all are random: VariationRatio 0.885, by definition 0.727, with the nets first 0.727; Disagreement 0.901
#     (0.901), MutualInformation 1.724 (1.724)
#   values for 1000 images and 10 nets with reduction='none': 10
#   votes 2 to 1, nets first: 0.667, by definition 0.333
#   60% right, the surest ones: AURC 0.0935, compute 0.0935, plot 0.0935; AUGRC 0.0800, compute 0.0800, plot 0.0135
#     (with 1 - k 0.0135)
#   95% right, in any order: AURC 0.0482, compute 0.0482, plot 0.0482; AUGRC 0.0246, compute 0.0246, plot 0.0236
#     (with 1 - k 0.0236)
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "torch==2.13.0" "torchmetrics==1.9.0" "matplotlib==3.11.2" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torch-uncertainty==0.13.0"
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.util
import pathlib
import sys

import matplotlib
import numpy as np
import torch

matplotlib.use("agg")
torch.set_num_threads(1)


def load(file):
    root = pathlib.Path(importlib.util.find_spec("torch_uncertainty").origin).parent / "metrics" / "classification"
    spec = importlib.util.spec_from_file_location(file, root / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VariationRatio = load("variation_ratio").VariationRatio
Disagreement = load("disagreement").Disagreement
MutualInformation = load("mutual_information").MutualInformation
AURC, AUGRC = load("risk_coverage").AURC, load("risk_coverage").AUGRC
IMAGES, NETS, CLASSES = 1000, 10, 10
random = np.random.default_rng(0)


def value(metric, probabilities):
    metric.update(torch.tensor(probabilities))
    return metric.compute()


def definitions(probabilities):
    """Variation ratio of probabilities and of votes, disagreement and mutual information, means over the images."""
    chosen = probabilities.mean(1).argmax(1)
    soft = 1 - probabilities.mean(1)[np.arange(len(chosen)), chosen]
    votes = (probabilities.argmax(2)[..., None] == np.arange(CLASSES)).sum(1)
    pairs = (votes * (votes - 1)).sum(1) / (NETS * (NETS - 1))

    def entropy(p):
        return -(p * np.log(p)).sum(-1)

    information = entropy(probabilities.mean(1)) - entropy(probabilities).mean(1)
    return soft.mean(), 1 - votes.max(1).mean() / NETS, 1 - pairs.mean(), information.mean()


def ensemble(agreement):
    """Nets that give their class 0.991: the class of the image with this probability, or any other one."""
    labels = np.arange(IMAGES) % CLASSES
    other = random.integers(CLASSES, size=(IMAGES, NETS))
    classes = np.where(random.random((IMAGES, NETS)) < agreement, labels[:, None], other)
    return np.where(classes[..., None] == np.arange(CLASSES), 0.991, 0.001)


stands = True
for agreement, name in ((1.0, "all nets agree"), (0.5, "half of the votes are random"), (0.0, "all are random")):
    probabilities = ensemble(agreement)
    soft, hard, disagreement, information = definitions(probabilities)
    found = value(VariationRatio(probabilistic=True), probabilities).item()
    nets_first = value(VariationRatio(probabilistic=True), probabilities.transpose(1, 0, 2)).item()
    others = (value(Disagreement(), probabilities).item(), value(MutualInformation(), probabilities).item())
    print(
        f"{name}: VariationRatio {found:.3f}, by definition {soft:.3f}, with the nets first {nets_first:.3f}; "
        f"Disagreement {others[0]:.3f} ({disagreement:.3f}), MutualInformation {others[1]:.3f} ({information:.3f})"
    )
    stands &= abs(found - soft) > 0.15 and abs(found - 0.9) < 0.03 and abs(nets_first - soft) < 1e-4
    stands &= np.allclose(others, (disagreement, information), atol=1e-4)
values = value(VariationRatio(reduction="none"), probabilities)
print(f"values for {IMAGES} images and {NETS} nets with reduction='none': {len(values)}")
stands &= len(values) == NETS

# three nets, two classes: two votes for the first class, one for the second with a higher probability
votes = np.array([[[0.6, 0.4]], [[0.6, 0.4]], [[0.1, 0.9]]])
found = value(VariationRatio(probabilistic=False), votes).item()
print(f"votes 2 to 1, nets first: {found:.3f}, by definition {1 - 2 / 3:.3f}")
stands &= abs(found - 2 / 3) < 1e-6


def curve(confidences, wrong):
    """AURC and AUGRC by definition, and the integral with the weights 1 - k, by the trapezoidal rule."""
    risk = np.cumsum(wrong[np.argsort(-confidences)]) / np.arange(1, len(wrong) + 1)
    coverage = np.arange(1, len(wrong) + 1) / len(wrong)
    return [np.trapezoid(risk * weight, coverage) for weight in (1, coverage, 1 - coverage)]


def shown(metric):
    axes = metric.plot()[1]
    return float(axes.texts[0].get_text().split("=")[1].rstrip("%")) / 100


count, shown_numbers = 10000, []
confidences = 0.5 + 0.5 * (np.arange(count) + 0.5) / count
for name, wrong in (
    ("60% right, the surest ones", np.arange(count) < 0.4 * count),
    ("95% right, in any order", random.permutation(np.arange(count) < 0.05 * count)),
):
    probabilities = torch.tensor(np.stack([confidences, 1 - confidences], 1))
    targets = torch.tensor(wrong.astype(np.int64))
    metrics = AURC(), AUGRC()
    for metric in metrics:
        metric.update(probabilities, targets)
    computed = [metric.compute().item() for metric in metrics]
    plotted = [shown(metric) for metric in metrics]
    reference = curve(confidences, wrong)
    print(
        f"{name}: AURC {reference[0]:.4f}, compute {computed[0]:.4f}, plot {plotted[0]:.4f}; "
        f"AUGRC {reference[1]:.4f}, compute {computed[1]:.4f}, plot {plotted[1]:.4f} (with 1 - k {reference[2]:.4f})"
    )
    stands &= np.allclose(computed, reference[:2], atol=2e-4) and abs(plotted[0] - reference[0]) < 2e-4
    stands &= abs(plotted[1] - reference[2]) < 2e-4
    shown_numbers.append((computed[1], plotted[1]))
worse, better = shown_numbers
stands &= worse[0] > 2 * better[0] and worse[1] < better[1]
sys.exit(0 if stands else 1)
PY
