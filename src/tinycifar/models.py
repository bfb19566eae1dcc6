"""Blocks and architectures.

Every model takes float images in [0, 1], shape (N, C, H, W), in RGB and of 32x32 pixels unless it was built for others,
and gives logits, shape (N, num_classes). Normalisation is a buffer applied in `forward`, so training, inference and
every export see the same numbers.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
from torch import Tensor, nn

from tinycifar import catalog
from tinycifar.catalog import MOST_PIXELS
from tinycifar.data.dataset import MEAN, STD
from tinycifar.layers import MirroredBlock as MirroredBlock
from tinycifar.layers import MirroredBottleneck as MirroredBottleneck
from tinycifar.layers import MirroredConv as MirroredConv
from tinycifar.layers import MirroredDepthwise as MirroredDepthwise
from tinycifar.layers import MirroredLinear as MirroredLinear
from tinycifar.layers import MirroredNorm as MirroredNorm
from tinycifar.layers import WhiteningStem as WhiteningStem
from tinycifar.layers import written_out as written_out

WHITENING_IMAGES = 2_000  # 450,000 patches for the second moments of 48 values


class Classifier(nn.Sequential):
    """A sequence of layers from normalised images to logits, with the normalisation in front.

    `mean` and `std` are buffers of shape (channels, 1, 1), in units of the [0, 1] pixel scale. They are no layer of
    their own, so a layer table shows the architecture alone. `channels` is 3 for images in RGB, 1 for grey ones.
    `image_size` is the side, in pixels, of the images that it is for; `IMAGE_SIZES` are those that an architecture
    takes. `classes` and `temperature` are what `tinycifar.load` knows of a trained one: the names of its outputs, and
    what logits are divided by before the softmax.
    """

    IMAGE_SIZES: ClassVar[range] = range(16, MOST_PIXELS + 1, 8)

    mean: Tensor
    std: Tensor
    image_size: int = 32
    classes: tuple[str, ...] = ()
    temperature: float = 1.0

    def __init__(self, *layers: nn.Module, channels: int = 3) -> None:
        super().__init__(*layers)
        mean, std = (MEAN, STD) if channels == 3 else (MEAN[:1], STD[:1])  # a training sets those of its images
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    @property
    def channels(self) -> int:
        """Channels of the images that it takes: 3 for RGB, 1 for grey."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [0, 1] -> logits (N, num_classes); TypeError for integers."""
        if not images.is_floating_point():
            raise TypeError(f"images must be floating-point numbers in [0, 1], not {images.dtype}; divide uint8 by 255")
        logits: Tensor = super().forward(self.normalize(images))  # type: ignore[no-untyped-call]
        return logits

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [0, 1] -> what the first layer takes, of the same shape."""
        if not images.is_contiguous(memory_format=torch.channels_last):
            return (images - self.mean).div_(self.std)
        # The same sums over whole rows: a broadcast over the few channels of a pixel takes several times as long.
        pixels = images.permute(0, 2, 3, 1)
        mean, std = (values.flatten().repeat(images.shape[3]) for values in (self.mean, self.std))
        return (pixels.flatten(2) - mean).div_(std).view(pixels.shape).permute(0, 3, 1, 2)

    def prepare(self, images: Tensor) -> None:
        """Set what follows from the training images (N, C, H, W), uint8, before the first step; here nothing does."""


def scaled(channels: int, width: float) -> int:
    """`width` times as many channels, an even number of at least 2."""
    return max(2, 2 * round(channels * width / 2))


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

    IMAGE_SIZES = range(17, MOST_PIXELS + 1)  # of what is smaller, unpadded convolutions leave nothing

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3, dropout: float = 0.1) -> None:
        narrow, middle, wide = (scaled(count, width) for count in (32, 64, 128))
        middle = max(8, middle)  # training a narrower one crashed in oneDNN on a processor with AVX2
        super().__init__(
            Block1(channels, narrow),
            Block2(narrow, middle),
            Block3(middle, wide),
            Block4(wide, middle),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(middle, num_classes),
            channels=channels,
        )


def whitening_stem(count: int, width: float, channels: int, patch: int = 4) -> WhiteningStem:
    """A stem of `scaled` filters, but no more than there are components of its patches and their negatives."""
    return WhiteningStem(min(scaled(count, width), 2 * channels * patch**2), channels, patch)


class MirroredNet(Classifier):
    """A fixed whitening stem, blocks of mirrored convolutions, a pooled linear head.

    Its logits are the same for an image and its mirror image. The first block is a `MirroredBlock`, the last gives
    `features` channels. Feature maps start with 16x16 pixels, or with 32x32 behind a stem of 3x3 patches.
    """

    def __init__(self, stem: WhiteningStem, *blocks: nn.Module, features: int, num_classes: int) -> None:
        super().__init__(
            stem,
            nn.ReLU(inplace=True),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            MirroredLinear(features, num_classes),
            channels=stem.in_channels,
        )

    def prepare(self, images: Tensor) -> None:
        """Fit the whitening stem to the first of the training images (N, C, H, W), uint8; of large ones to fewer."""
        stem, first = self[0], self[2]
        assert isinstance(stem, WhiteningStem)
        assert isinstance(first, MirroredBlock)
        count = WHITENING_IMAGES * 32**2 // max(32, images.shape[-1]) ** 2  # as many patches, as much memory
        mirror = stem.fit(self.normalize(images[:count] / 255))
        first.get_submodule("layers.0").get_buffer("mirror").copy_(mirror)


class MinuteNet(MirroredNet):
    """The model of `minute`: few channels at 16x16 pixels, three residual blocks at 4x4, where they cost little."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(48, width, channels)
        narrow, middle, wide = (scaled(count, width) for count in (32, 48, 96))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow, 1),
            MirroredBlock(narrow, middle, pool=True),
            MirroredBlock(middle, middle, residual=True),
            MirroredBlock(middle, wide, pool=True),
            MirroredBlock(wide, wide, residual=True),
            MirroredBlock(wide, wide, residual=True),
            MirroredBlock(wide, wide, residual=True),
            features=wide,
            num_classes=num_classes,
        )


class WhiteNet(MirroredNet):
    """The former model of `minute`: five 3x3 convolutions, on 16x16, 8x8 and 4x4 pixels."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(48, width, channels)
        narrow, middle, wide = (scaled(count, width) for count in (48, 64, 128))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow),
            MirroredBlock(narrow, narrow, pool=True),
            MirroredBlock(narrow, middle),
            MirroredBlock(middle, wide, pool=True),
            MirroredBlock(wide, wide, residual=True),
            features=wide,
            num_classes=num_classes,
        )


class MicroNet(MirroredNet):
    """The model of `micro`: below 32,000 parameters written out and 5 million multiply-accumulates."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(48, width, channels)
        narrow, wide = (scaled(count, width) for count in (40, 60))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow, 1),
            MirroredBlock(narrow, narrow, 5, separable=True, residual=True),
            MirroredBlock(narrow, wide, 5, separable=True, pool=True),
            MirroredBlock(wide, wide, 5, separable=True, residual=True),
            MirroredBlock(wide, wide, 5, separable=True, residual=True),
            MirroredBlock(wide, wide, 5, separable=True, residual=True),
            MirroredBlock(wide, wide, 5, separable=True, residual=True),
            features=wide,
            num_classes=num_classes,
        )


class NanoNet(MirroredNet):
    """The former model of `nano`: below 78,000 parameters and 12.5 million multiply-accumulates."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(64, width, channels)
        narrow, middle, wide = (scaled(count, width) for count in (32, 48, 96))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow, 1),
            MirroredBlock(narrow, narrow),
            MirroredBlock(narrow, middle, pool=True),
            MirroredBlock(middle, middle, residual=True),
            MirroredBlock(middle, wide, pool=True),
            MirroredBottleneck(wide, middle),
            MirroredBottleneck(wide, middle),
            features=wide,
            num_classes=num_classes,
        )


class NanoNet32(MirroredNet):
    """The model of `nano`: the limits of `NanoNet`, in separable blocks that begin at 32x32 pixels."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(32, width, channels, patch=3)
        narrow, middle, wide = (scaled(count, width) for count in (32, 72, 128))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow, 1),
            MirroredBlock(narrow, narrow, separable=True, residual=True),
            MirroredBlock(narrow, middle, separable=True, pool=True),
            MirroredBlock(middle, middle, separable=True, residual=True),
            MirroredBlock(middle, middle, separable=True, residual=True),
            MirroredBlock(middle, wide, separable=True, pool=True),
            MirroredBlock(wide, wide, separable=True, residual=True),
            MirroredBlock(wide, wide, separable=True, residual=True),
            MirroredBlock(wide, wide, separable=True, residual=True),
            features=wide,
            num_classes=num_classes,
        )


class AccurateNet(MirroredNet):
    """The model of `accurate`: below 200,000 parameters, and 26 million multiply-accumulates."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(96, width, channels)
        narrow, middle, wide = (scaled(count, width) for count in (48, 64, 96))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow, 1),
            MirroredBlock(narrow, narrow),
            MirroredBlock(narrow, middle, pool=True),
            MirroredBlock(middle, middle, residual=True),
            MirroredBlock(middle, middle, residual=True),
            MirroredBlock(middle, wide, pool=True),
            MirroredBlock(wide, wide, residual=True),
            MirroredBlock(wide, wide, residual=True),
            features=wide,
            num_classes=num_classes,
        )


class TeacherNet(MirroredNet):
    """What `nano`, `micro` and `accurate` learn from; it has more than 200,000 parameters and is not shipped."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(64, width, channels)
        narrow, middle, wide = (scaled(count, width) for count in (96, 192, 384))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow),
            MirroredBlock(narrow, narrow, pool=True),
            MirroredBlock(narrow, middle),
            MirroredBlock(middle, middle, residual=True),
            MirroredBlock(middle, wide, pool=True),
            MirroredBlock(wide, wide, residual=True),
            features=wide,
            num_classes=num_classes,
        )


class LargeTeacherNet(MirroredNet):
    """A more accurate teacher, which begins at 32x32 pixels, as airbench94 does (Jordan 2024, arXiv:2404.00498)."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(32, width, channels, patch=3)
        narrow, wide = (scaled(count, width) for count in (64, 256))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, narrow, pool=True),
            MirroredBlock(narrow, narrow),
            MirroredBlock(narrow, wide, pool=True),
            MirroredBlock(wide, wide),
            MirroredBlock(wide, wide, pool=True),
            MirroredBlock(wide, wide, residual=True),
            features=wide,
            num_classes=num_classes,
        )


MODELS: dict[str, type[Classifier]] = {
    "c1c2c3c4o": C1C2C3C4O,
    "minutenet": MinuteNet,
    "whitenet": WhiteNet,
    "micronet": MicroNet,
    "nanonet": NanoNet,
    "nanonet32": NanoNet32,
    "accuratenet": AccurateNet,
    "teachernet": TeacherNet,
    "largeteachernet": LargeTeacherNet,
}
"""By name: each is called with `num_classes`, `width`, a factor on its channels, and `channels` for other than RGB."""


def image_sizes(name: str) -> range:
    """The sides in pixels of the images that the model of that name takes; ValueError if there is none of that name."""
    return _constructor(name).IMAGE_SIZES


def build(
    name: str, num_classes: int = 10, *, image_size: int = 32, width: float = 1.0, channels: int = 3
) -> Classifier:
    """Construct a model by its name in `MODELS`, case ignored, for images of `image_size` pixels a side.

    `channels` is 3 for images in RGB, 1 for grey ones. Raises ValueError with the list of names if there is none of
    that name, and for a size or channels that it does not take.
    """
    constructor = _constructor(name)
    catalog.check_image_size(name, constructor.IMAGE_SIZES, image_size)
    if channels == 3:
        model = constructor(num_classes=num_classes, width=width)  # type: ignore[call-arg]
    elif "channels" in inspect.signature(constructor).parameters:
        model = constructor(num_classes=num_classes, width=width, channels=channels)  # type: ignore[call-arg]
    else:
        raise ValueError(f"the model {name} has no argument `channels`: it takes images in RGB only")
    model.image_size = image_size
    return model


def _constructor(name: str) -> type[Classifier]:
    try:
        return MODELS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown model {name!r}; the models are: {', '.join(MODELS)}") from None
