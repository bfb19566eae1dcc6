"""What a model looks at: class activation maps, and its effective receptive field."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinycifar import inference
from tinycifar.models import Classifier


def split_head(model: Classifier) -> tuple[nn.Sequential, nn.Sequential]:
    """The layers up to the last feature map with more than one position, from normalised images, and those after it.

    Raises ValueError for a model without such a map.
    """
    features = torch.zeros(1, model.channels, model.image_size, model.image_size, device=model.mean.device)
    last = None
    layers = list(model.children())
    with torch.no_grad():
        for index, layer in enumerate(layers):
            features = layer(features)
            if features.dim() == 4 and features.shape[-1] > 1:
                last = index + 1
    if last is None:
        raise ValueError("this model has no feature map to explain by")
    return nn.Sequential(*layers[:last]), nn.Sequential(*layers[last:])


def class_activation(model: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """How much each position of the last feature map speaks for a class, or against it: float32 (N, h, w) on the CPU.

    `images` (N, 3, H, W) are uint8 or float in [0, 1], `classes` (N,) an index for each. Grad-CAM before its ReLU
    (Selvaraju et al. 2017, arXiv:1610.02391): channels weighted by the mean gradient of the class's logit. Where the
    head is global pooling and a linear layer, as in all models here, it is the class activation map (Zhou et al. 2016,
    arXiv:1512.04150) divided by the number of positions.
    """
    device = model.mean.device
    with inference.evaluating(model):
        trunk, head = split_head(model)
        with torch.no_grad():
            normalized = model.normalize(inference.to_float(images.to(device)))
            features = trunk(normalized.contiguous(memory_format=torch.channels_last))
        with torch.enable_grad():
            features.requires_grad_()
            chosen = head(features).gather(1, classes.to(device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, features)
    weights = gradient.mean((2, 3), keepdim=True)
    activation: Tensor = (weights * features.detach()).sum(1)
    return activation.float().cpu()


def heat_maps(model: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """What speaks for a class, as float32 (N, H, W) of the images' size, in [0, 1], the largest value of each 1.

    All 0 where nothing speaks for it. Arguments as of `class_activation`.
    """
    activation = class_activation(model, images, classes).relu()
    maps = functional.interpolate(activation[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def effective_receptive_field(model: Classifier, images: Tensor) -> Tensor:
    """How much each pixel matters to the middle position of the last feature map: float32 (H, W) on the CPU.

    The gradient of the sum over channels at that position, its absolute value summed over colours, mean over `images`,
    uint8 or float in [0, 1], (N, 3, H, W) (Luo et al. 2016, arXiv:1701.04128).
    """
    with inference.evaluating(model), torch.enable_grad():
        trunk, _ = split_head(model)
        inputs = inference.to_float(images.to(model.mean.device)).detach().clone().requires_grad_()
        features = trunk(model.normalize(inputs))
        middle = (features.shape[-1] - 1) // 2
        (gradient,) = torch.autograd.grad(features[:, :, middle, middle].sum(), inputs)
    return gradient.abs().sum(1).mean(0).cpu()
