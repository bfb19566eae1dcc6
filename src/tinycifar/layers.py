"""Layers of the mirrored networks: whitening, and convolutions whose second half are mirror images of the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class WhiteningStem(nn.Conv2d):
    """A convolution whose fixed filters make patches of an image uncorrelated and of equal variance.

    Half of the filters are the first principal components of the patches and of their mirror images, each divided by
    its standard deviation, the other half their negatives, so that a ReLU behind loses nothing; components without
    variance get filters of zeros. Patches of 4x4 pixels lie two apart, those of 3x3 one apart. From cifar10-fast (Page
    2019) and airbench (Jordan 2024, arXiv:2404.00498), whose patches have 3x3 and 2x2 pixels.
    """

    EPSILON = 5e-4  # added to the variances: components that are nearly constant are not blown up
    NO_VARIANCE = 1e-5  # below it a component is no more than rounding, as two thirds of them are on grey images

    def __init__(self, out_channels: int, in_channels: int = 3, patch: int = 4) -> None:
        super().__init__(in_channels, out_channels, patch, stride=patch - 2, padding=1, bias=False)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> Tensor:
        """Set the filters from normalised images (N, C, H, W); gives the channel each one becomes in a mirror image."""
        patches = functional.unfold(images, self.kernel_size, stride=2).transpose(1, 2).flatten(0, 1)
        moments = (patches.T @ patches / len(patches)).cpu().double()
        positions = torch.arange(moments.shape[0]).view(self.weight.shape[1:])
        mirrored = positions.flip(2).flatten()
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
        mirrored = self.weight.flip(3).index_select(1, self.mirror)  # its gradient takes half the time of an index's
        weight = torch.cat([self.weight, mirrored]).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(inputs, weight, padding=self.padding)


class MirroredDepthwise(nn.Conv2d):
    """A convolution of each channel by itself; the filters of its second half are mirror images of the first."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        half = channels // 2
        super().__init__(half, half, kernel_size, padding=kernel_size // 2, groups=half, bias=False)
        with torch.no_grad():  # near the identity
            self.weight.mul_(0.3)
            self.weight[:, :, kernel_size // 2, kernel_size // 2] += 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, channels, H, W) -> the same shape."""
        weight = self.filters()
        return functional.conv2d(inputs, weight, padding=self.padding, groups=len(weight))

    def filters(self) -> Tensor:
        """The filters of all channels (channels, 1, K, K)."""
        return torch.cat([self.weight, self.weight.flip(3)])


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
    is added before the ReLU. With `separable` there are two convolutions, a depthwise one and, behind the pooling, one
    of 1x1, as in MobileNets (Howard et al. 2017, arXiv:1704.04861) but with nothing else between them. Filters start as
    the identity as far as there are input channels, depthwise ones near it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        pool: bool = False,
        residual: bool = False,
        separable: bool = False,
    ) -> None:
        super().__init__()
        pooling = [nn.MaxPool2d(2)] if pool else []
        if separable:
            depthwise = MirroredDepthwise(in_channels, kernel_size)
            convolutions = [depthwise, *pooling, MirroredConv(in_channels, out_channels, 1)]
        else:
            convolutions = [MirroredConv(in_channels, out_channels, kernel_size), *pooling]
        self.layers = nn.Sequential(*convolutions, MirroredNorm(out_channels))
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
        first, second = features.chunk(2, dim=1)
        return super().forward((first + second) * features.shape[1] ** -0.5)


def written_out(model: nn.Module) -> int:
    """The number of parameters if those that a mirrored layer uses twice were there twice."""
    mirrored = (MirroredConv, MirroredDepthwise, MirroredNorm, MirroredLinear)
    return sum(
        parameter.numel() * (2 if isinstance(module, mirrored) else 1)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
