"""Blocks and architectures.

Every model takes float images in [0, 1], shape (N, 3, 32, 32), and gives logits, shape (N, num_classes). Normalisation
is a buffer applied in `forward`, so training, inference and every export see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tinycifar.data import MEAN, STD


class Classifier(nn.Sequential):
    """A sequence of layers from normalised images to logits, with the normalisation in front.

    `mean` and `std` are buffers of shape (3, 1, 1), in units of the [0, 1] pixel scale. They are no layer of their own,
    so a layer table shows the architecture alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes)."""
        logits: Tensor = super().forward((images - self.mean) / self.std)  # type: ignore[no-untyped-call]
        return logits


def norm_act(channels: int) -> list[nn.Module]:
    """Batch normalisation and ReLU over `channels` channels."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class Block1(nn.Sequential):
    """Two 3x3 convolutions without padding: 32x32 -> 28x28."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, bias=False),
            *norm_act(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, bias=False),
            *norm_act(out_channels),
        )


class Block2(nn.Sequential):
    """A 3x3 convolution, then a depthwise-separable one whose 1x1 part has stride 2; nothing is padded."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, bias=False),
            *norm_act(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, groups=out_channels, bias=False),
            nn.Conv2d(out_channels, out_channels, 1, stride=2, bias=False),
            *norm_act(out_channels),
        )


class Block3(Block2):
    """Block 2 once more, on other widths; a class of its own because the reference's layer table names it."""


class Block4(nn.Sequential):
    """A 2x2 convolution, then a 3x3 one with dilation 3, both padded by 3: 4x4 -> 9x9 -> 9x9."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 2, padding=3, bias=False),
            *norm_act(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=3, dilation=3),
            *norm_act(out_channels),
        )


class C1C2C3C4O(Classifier):
    """The reference: four blocks and an output; 195,946 parameters, receptive field 45 at the last convolution.

    Shapes, counts and the one bias among the convolutions (the dilated one's) follow the reference's layer table.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__(
            Block1(3, 32),
            Block2(32, 64),
            Block3(64, 128),
            Block4(128, 64),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(64, num_classes),
        )


MODELS: dict[str, Callable[..., Classifier]] = {
    "c1c2c3c4o": C1C2C3C4O,
}


def build(name: str, num_classes: int = 10) -> Classifier:
    """Construct a model by its name in `MODELS`, case ignored.

    Raises ValueError with the list of names if there is none of that name.
    """
    try:
        constructor = MODELS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown model {name!r}; the models are: {', '.join(MODELS)}") from None
    return constructor(num_classes=num_classes)
