"""How far the labels of training images can be trusted, judged by the model that is being trained on them.

Training on the hardest images alone gains time if these are hard to learn, and does harm if they are hard because
their labels are wrong. The images that a model is surest about tell the two apart: with right labels it is hardly ever
wrong about them (docs/LOG.md, 2026-11-29).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from tinycifar.inference import to_float
from tinycifar.layers import MirroredNorm
from tinycifar.models import Classifier

PROBED = 3_000  # images
SUREST = 0.2  # of them
MOST_CONTRADICTED = 0.03  # of these; after an epoch of `minute`: 1% of CIFAR-10, 6% if 5% of its labels are wrong
BATCH_SIZE = 1_000  # at most so many images share the statistics that they are normalised by


@torch.inference_mode()
def contradicted(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of the images that a model is surest about to which it gives another class than their label.

    `images` is (N, C, S, S) uint8, `labels` (N,); of the images the fifth with the most probable classes counts. They
    are normalised by the statistics of their own batches: running ones lag behind while the rates are high.
    """
    probe = copy.deepcopy(model)
    for module in probe.modules():
        module.training = isinstance(module, (nn.BatchNorm2d, MirroredNorm))
    batches = images.tensor_split(math.ceil(len(images) / BATCH_SIZE))
    logits = [probe(to_float(batch).contiguous(memory_format=torch.channels_last)) for batch in batches]
    probabilities, predicted = torch.cat(logits).softmax(1).max(1)
    surest = probabilities.argsort(descending=True, stable=True)[: max(1, int(SUREST * len(images)))]
    return (predicted[surest] != labels[surest]).double().mean().item()


def is_due(epoch: int, epochs: int) -> bool:
    """Whether labels are judged after `epoch` epochs of `epochs`: after 1, 2, 4, 8, ... but the last."""
    return epoch & (epoch - 1) == 0 and epoch < epochs


def hardest(losses: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` images with the largest losses (N,), the largest first: index and loss."""
    values, indices = torch.sort(losses.cpu(), descending=True, stable=True)
    return list(zip(indices[:count].tolist(), values[:count].tolist(), strict=True))
