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
from torch.nn import functional

from tinycifar import catalog
from tinycifar.catalog import MOST_PIXELS
from tinycifar.data.dataset import MEAN, STD

WHITENING_IMAGES = 2_000  # 450,000 patches for the second moments of 48 values


class Classifier(nn.Sequential):
    """A sequence of layers from normalised images to logits, with the normalisation in front.

    `mean` and `std` are buffers of shape (channels, 1, 1), in units of the [0, 1] pixel scale. They are no layer of
    their own, so a layer table shows the architecture alone. `channels` is 3 for images in RGB, 1 for grey ones.
    `image_size` is the side, in pixels, of the images that it is for; `IMAGE_SIZES` are those that an architecture
    takes. `classes` and `temperature` are what `tinycifar.load` knows of a trained one: the names of its outputs, and
    what logits are to be divided by before probabilities are computed.
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
        return (images - self.mean).div_(self.std)

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
        one, two, three = (scaled(count, width) for count in (32, 64, 128))
        super().__init__(
            Block1(channels, one),
            Block2(one, two),
            Block3(two, three),
            Block4(three, two),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(two, num_classes),
            channels=channels,
        )


class WhiteningStem(nn.Conv2d):
    """A 4x4 convolution of stride 2 whose fixed filters make patches of an image uncorrelated and of equal variance.

    Half of the filters are the first principal components of 4x4 patches and of their mirror images, each divided by
    its standard deviation, the other half their negatives, so that a ReLU behind loses nothing; components without
    variance get filters of zeros. From cifar10-fast (Page
    2019) and airbench (Jordan 2024, arXiv:2404.00498), which whiten smaller patches without a stride.
    """

    EPSILON = 5e-4  # added to the variances: components that are nearly constant are not blown up
    NO_VARIANCE = 1e-5  # below it a component is no more than rounding, as two thirds of them are on grey images

    def __init__(self, out_channels: int, in_channels: int = 3) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> Tensor:
        """Set the filters from normalised images (N, C, H, W); gives the channel each one becomes in a mirror image."""
        patches = functional.unfold(images, 4, stride=2).transpose(1, 2).flatten(0, 1)
        moments = (patches.T @ patches / len(patches)).cpu().double()
        places = torch.arange(moments.shape[0]).view(self.weight.shape[1:])
        mirrored = places.flip(2).flatten()
        # The mirror image of a component is itself or its negative; the last term tells those of equal variance apart.
        mirror = torch.eye(len(mirrored), dtype=torch.float64)[mirrored]
        variances, components = torch.linalg.eigh((moments + moments[mirrored][:, mirrored]) / 2 + 1e-6 * mirror)
        components = torch.where(variances > self.NO_VARIANCE, components, 0)
        filters = (components / (variances.clamp(min=0) + self.EPSILON).sqrt()).T.flip(0)[: self.out_channels // 2]
        even = (filters * filters[:, mirrored]).sum(1) > 0
        filters = filters.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))
        channel, negative = torch.arange(self.out_channels).view(2, -1)
        return torch.cat([torch.where(even, channel, negative), torch.where(even, negative, channel)])


def whitening_stem(count: int, width: float, channels: int) -> WhiteningStem:
    """A stem of `scaled` filters, but no more than there are components of 4x4 patches and their negatives."""
    return WhiteningStem(min(scaled(count, width), 2 * channels * 4 * 4), channels)


class MirroredConv(nn.Conv2d):
    """A convolution to which a mirrored image is the same image, seen by other channels.

    It holds half of its filters; the others are their mirror images. `mirror` (in_channels) says which channel each of
    its inputs becomes where the image is mirrored. Of its outputs the two halves then change places, which is also
    what it expects of its inputs unless told otherwise. A group convolution (Cohen & Welling 2016, arXiv:1602.07576).
    """

    mirror: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels // 2, kernel_size, padding=kernel_size // 2, bias=False)
        self.register_buffer("mirror", torch.arange(in_channels).roll(in_channels // 2))
        nn.init.dirac_(self.weight[: in_channels // 2].detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, in_channels, H, W) -> (N, out_channels, H, W)."""
        weight = torch.cat([self.weight, self.weight.flip(3)[:, self.mirror]])
        weight = weight.contiguous(memory_format=torch.channels_last)
        return functional.conv2d(inputs, weight, padding=self.padding)


class MirroredNorm(nn.Module):
    """Batch normalisation behind a `MirroredConv`, with one learned shift for a channel and its mirror image.

    It learns no scale, which the next filters can have as well. In evaluation a pair shares its statistics too.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.2) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels // 2))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum = momentum

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, channels, H, W) -> the same shape."""
        mean, variance = self.running_mean, self.running_var
        if not self.training:
            mean, variance = ((values + values.roll(len(values) // 2)) / 2 for values in (mean, variance))
        shift = torch.cat([self.shift, self.shift])
        return functional.batch_norm(inputs, mean, variance, None, shift, self.training, self.momentum)


class MirroredBlock(nn.Module):
    """A mirrored convolution, max-pooling by 2 where asked for, normalisation and ReLU, in this order.

    Pooling first leaves a quarter of the work to the rest. With `residual` the input, of the same shape as the output,
    is added before the ReLU. Filters start as the identity as far as there are input channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        pool: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        conv = MirroredConv(in_channels, out_channels, kernel_size)
        self.layers = nn.Sequential(conv, *([nn.MaxPool2d(2)] if pool else []), MirroredNorm(out_channels))
        self.activation = nn.ReLU(inplace=True)
        self.residual = residual

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, in_channels, H, W) -> (N, out_channels, H, W), or half of H and W with pooling."""
        outputs: Tensor = self.layers(inputs)
        activated: Tensor = self.activation(outputs + inputs if self.residual else outputs)
        return activated


class MirroredBottleneck(nn.Module):
    """A residual block whose 3x3 convolution works on fewer channels, between two of 1x1 (He et al. 2016)."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            MirroredConv(channels, inner_channels, 1),
            MirroredNorm(inner_channels),
            nn.ReLU(inplace=True),
            MirroredConv(inner_channels, inner_channels),
            MirroredNorm(inner_channels),
            nn.ReLU(inplace=True),
            MirroredConv(inner_channels, channels, 1),
            MirroredNorm(channels),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, channels, H, W) -> the same shape."""
        activated: Tensor = self.activation(self.layers(inputs) + inputs)
        return activated


class MirroredLinear(nn.Linear):
    """A linear layer without bias on the sums of a channel and its mirror image, scaled by 1 / sqrt(in_features).

    Its weights are then of order 1 and learn well at the rate of the normalisations' shifts, not at one of their own.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features // 2, out_features, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, in_features) -> (N, out_features)."""
        one, other = features.chunk(2, dim=1)
        return super().forward((one + other) * features.shape[1] ** -0.5)


def written_out(model: nn.Module) -> int:
    """The number of parameters if those that a mirrored layer uses twice were there twice."""
    mirrored = (MirroredConv, MirroredNorm, MirroredLinear)
    return sum(
        parameter.numel() * (2 if isinstance(module, mirrored) else 1)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )


class MirroredNet(Classifier):
    """A fixed whitening stem, blocks of mirrored convolutions, a pooled linear head.

    Its logits are the same for an image and its mirror image. The first block is a `MirroredBlock`, the last gives
    `features` channels. Feature maps start with 16x16 pixels.
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


class WhiteNet(MirroredNet):
    """The model of `minute`: five 3x3 convolutions, on 16x16, 8x8 and 4x4 pixels."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(48, width, channels)
        one, two, three = (scaled(count, width) for count in (48, 64, 128))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, one),
            MirroredBlock(one, one, pool=True),
            MirroredBlock(one, two),
            MirroredBlock(two, three, pool=True),
            MirroredBlock(three, three, residual=True),
            features=three,
            num_classes=num_classes,
        )


class NanoNet(MirroredNet):
    """The model of `nano`: below 78,000 parameters and 12.5 million multiply-accumulates."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(64, width, channels)
        one, two, three = (scaled(count, width) for count in (32, 48, 96))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, one, 1),
            MirroredBlock(one, one),
            MirroredBlock(one, two, pool=True),
            MirroredBlock(two, two, residual=True),
            MirroredBlock(two, three, pool=True),
            MirroredBottleneck(three, two),
            MirroredBottleneck(three, two),
            features=three,
            num_classes=num_classes,
        )


class AccurateNet(MirroredNet):
    """The model of `accurate`: below 200,000 parameters, and 26 million multiply-accumulates."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(96, width, channels)
        one, two, three = (scaled(count, width) for count in (48, 64, 96))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, one, 1),
            MirroredBlock(one, one),
            MirroredBlock(one, two, pool=True),
            MirroredBlock(two, two, residual=True),
            MirroredBlock(two, two, residual=True),
            MirroredBlock(two, three, pool=True),
            MirroredBlock(three, three, residual=True),
            MirroredBlock(three, three, residual=True),
            features=three,
            num_classes=num_classes,
        )


class TeacherNet(MirroredNet):
    """What `nano` and `accurate` learn from; it has more than 200,000 parameters and is not shipped."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        stem = whitening_stem(64, width, channels)
        one, two, three = (scaled(count, width) for count in (96, 192, 384))
        super().__init__(
            stem,
            MirroredBlock(stem.out_channels, one),
            MirroredBlock(one, one, pool=True),
            MirroredBlock(one, two),
            MirroredBlock(two, two, residual=True),
            MirroredBlock(two, three, pool=True),
            MirroredBlock(three, three, residual=True),
            features=three,
            num_classes=num_classes,
        )


MODELS: dict[str, type[Classifier]] = {
    "c1c2c3c4o": C1C2C3C4O,
    "whitenet": WhiteNet,
    "nanonet": NanoNet,
    "accuratenet": AccurateNet,
    "teachernet": TeacherNet,
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
