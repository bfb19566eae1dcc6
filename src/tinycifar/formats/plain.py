"""A model as exports want it: PyTorch's own layers alone, filters written out, normalisations folded into them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinycifar.models import (
    Classifier,
    MirroredBlock,
    MirroredBottleneck,
    MirroredConv,
    MirroredDepthwise,
    MirroredLinear,
    MirroredNorm,
)


class Residual(nn.Sequential):
    """Layers whose input, of the same shape as their output, is added to it before a ReLU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, C, H, W) -> the same shape."""
        outputs: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return (outputs + inputs).relu()


class Plain(nn.Module):
    """The same function of images as the model that `write_out` made it from, in evaluation mode.

    Images (N, C, H, W) in [0, 1] -> logits (N, num_classes) and class activation maps (N, num_classes, h, w) (Zhou et
    al. 2016, arXiv:1512.04150), whose mean over all positions is what the logits are without the head's bias.
    `image_size` is the side of the images in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, trunk: nn.Sequential, head: nn.Linear, image_size: int = 32) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> logits (N, num_classes), class activation maps (N, num_classes, h, w)."""
        features = self.trunk((images - self.mean) / self.std)
        logits = self.head(features.mean((2, 3)))
        return logits, functional.conv2d(features, self.head.weight[:, :, None, None])


@torch.no_grad()
def write_out(model: Classifier) -> Plain:
    """Write a model out; ValueError unless it ends in global average pooling and one linear layer.

    Layers of other kinds are copied as they are: whether a format can express them is for the format to say. Raises
    ValueError also for a normalisation that cannot be folded into the convolution before it.
    """
    layers = _plain(model)
    pooling, flatten, head = (None, None, None, *layers)[-3:]
    if not (
        type(pooling) is nn.AdaptiveAvgPool2d
        and pooling.output_size in (1, (1, 1))
        and type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) in ((1, -1), (1, 3))
        and type(head) is nn.Linear
    ):
        raise ValueError("only models that end in global average pooling and a linear layer can be exported")
    return Plain(model.mean, model.std, nn.Sequential(*layers[:-3]), head, model.image_size).eval()


def _plain(layers: Iterable[nn.Module]) -> list[nn.Module]:
    plain: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, MirroredBlock) and layer.residual:
            plain.append(Residual(*_plain(layer.layers)))
        elif isinstance(layer, MirroredBlock):
            plain += _plain([*layer.layers, layer.activation])
        elif isinstance(layer, MirroredBottleneck):
            plain.append(Residual(*_plain(layer.layers)))
        elif isinstance(layer, MirroredLinear):
            plain.append(_linear(layer))
        elif isinstance(layer, Residual):
            plain.append(Residual(*_plain(layer)))
        elif _is_a(layer, nn.Sequential):
            plain += _plain(layer)  # type: ignore[arg-type]
        elif isinstance(layer, (MirroredConv, MirroredDepthwise)) or _is_a(layer, nn.Conv2d):
            plain.append(_convolution(layer))  # type: ignore[arg-type]
        elif isinstance(layer, (nn.BatchNorm2d, MirroredNorm)):
            if layer.running_mean is None:
                raise ValueError(f"{type(layer).__name__} without running statistics cannot be exported")
            pooled = bool(plain) and isinstance(plain[-1], nn.MaxPool2d)
            convolution = (None, None, *plain)[-2 if pooled else -1]
            if type(convolution) is not nn.Conv2d:
                raise ValueError(f"{type(layer).__name__} that does not follow a convolution cannot be exported")
            _fold(convolution, layer, pooled)
        elif isinstance(layer, nn.ReLU) and plain and isinstance(plain[-1], nn.MaxPool2d):
            plain.insert(-1, nn.ReLU())  # the same, and a runtime can join it with the convolution
        elif isinstance(layer, nn.ReLU):
            plain.append(nn.ReLU())  # not in place
        elif not isinstance(layer, (nn.Dropout, nn.Dropout2d, nn.Identity)):
            plain.append(copy.deepcopy(layer))
    return plain


def _is_a(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of a kind and computes what that kind does: a subclass may have a `forward` of its own."""
    return isinstance(layer, kind) and type(layer).forward is kind.forward


def _convolution(layer: nn.Conv2d) -> nn.Conv2d:
    weight, in_channels, groups = layer.weight, layer.in_channels, layer.groups
    if isinstance(layer, MirroredConv):
        weight = torch.cat([weight, weight.flip(3)[:, layer.mirror]])
    elif isinstance(layer, MirroredDepthwise):
        weight = layer.filters()
        in_channels = groups = len(weight)
    written = nn.Conv2d(
        in_channels,
        len(weight),
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups,
        padding_mode=layer.padding_mode,
    )
    written.weight = nn.Parameter(weight.contiguous().clone())
    written.bias = nn.Parameter(torch.zeros(len(weight)) if layer.bias is None else layer.bias.clone())
    return written


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | MirroredNorm, pooled: bool) -> None:
    zeros = torch.zeros(1, len(convolution.weight), 1, 1)
    was_training = norm.training
    norm.eval()
    shift = norm(zeros).flatten()
    scale = norm(zeros + 1).flatten() - shift
    norm.train(was_training)
    if pooled and (scale < 0).any():  # then the largest value would not stay the largest
        raise ValueError("a normalisation with a negative scale behind max-pooling cannot be exported")
    assert convolution.bias is not None
    convolution.weight.mul_(scale.view(-1, 1, 1, 1))
    convolution.bias.mul_(scale).add_(shift)


def _linear(layer: MirroredLinear) -> nn.Linear:
    written = nn.Linear(2 * layer.in_features, layer.out_features)
    written.weight.copy_(torch.cat([layer.weight, layer.weight], 1) * written.in_features**-0.5)
    nn.init.zeros_(written.bias)
    return written
