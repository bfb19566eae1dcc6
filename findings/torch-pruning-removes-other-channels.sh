#!/usr/bin/env bash
# Torch-Pruning follows a channel through a net by its number. Where the net moves channels, it removes the wrong inputs
# of the next layer, without an error or a warning, and `check_pruning_group` has no objection: in shortcuts padded with
# channels of zeros (the ResNets of the CIFAR-10 paper), after a channel shuffle (ShuffleNet) or a flip of the channels,
# where maps of two sizes are flattened and joined (pyramid pooling), and where a map is flattened with its channels
# last. The shapes fit, so that nothing fails; what it costs in accuracy looks like the price of pruning.
# Here every output that is to be removed is first set to 0, weights and bias, so that the net must compute the same
# without it. It does so where channels keep their places: residual sums, depthwise convolutions, joined maps, maps of
# one size flattened. The README shows a pruner for a module of one's own, but says nothing of operations that move
# channels; the author names channel shuffles as a limit in an issue (45).
#
# Seen with torch-pruning 1.6.1 and torch 2.13.0, Python 3.11, for 16 channels of which 4 are removed, 1,000 random
# images of 32x32; largest difference of ten outputs, as a multiple of their standard deviation:
#   residual sum           12 channels left, difference 0.0000
#   depthwise              12 channels left, difference 0.0000
#   joined with another    12 channels left, difference 0.0000
#   flattened 4x4          12 channels left, difference 0.0000
#   padded shortcut        12 channels left, difference 7.7203
#   channel shuffle        12 channels left, difference 7.9150
#   nn.ChannelShuffle      12 channels left, difference 8.7530
#   channels flipped       12 channels left, difference 9.4752
#   flattened 4x4 and 2x2  12 channels left, difference 6.6236
#   4x4, channels last     12 channels left, difference 7.5930
# Exit code 0 while the first four are right and all others are not, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "torch-pruning==1.6.1" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import torch_pruning as tp
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, pad

CHANNELS = 16
REMOVED = [1, 2, 6, 11]


class Net(nn.Module):
    def __init__(self, body, features, **layers):
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, stride=4, padding=1)
        self.body = body
        self.last = nn.Linear(features, 10)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images):
        return self.last(self.body(self, self.first(images).relu()))


def mean(maps):
    return maps.mean((2, 3))


def size(maps, side):
    return adaptive_avg_pool2d(maps, side)


def shuffled(maps):
    count, channels, height, width = maps.shape
    return maps.reshape(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, -1, height, width)


def conv(inputs, outputs=16, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


torch.manual_seed(0)
nets = {
    "residual sum": Net(lambda net, x: mean((x + net.second(x)).relu()), 16, second=conv(16)),
    "depthwise": Net(lambda net, x: mean(net.second(x).relu()), 16, second=conv(16, groups=16)),
    "joined with another": Net(lambda net, x: mean(torch.cat([net.second(x), x], 1)), 32, second=conv(16)),
    "flattened 4x4": Net(lambda net, x: size(x, 4).flatten(1), 16 * 16),
    "padded shortcut": Net(
        lambda net, x: mean((net.second(x) + pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))).relu()),
        32,
        second=conv(16, 32, stride=2),
    ),
    "channel shuffle": Net(lambda net, x: mean(net.second(shuffled(x)).relu()), 16, second=conv(16)),
    "nn.ChannelShuffle": Net(
        lambda net, x: mean(net.second(net.move(x)).relu()), 16, move=nn.ChannelShuffle(2), second=conv(16)
    ),
    "channels flipped": Net(lambda net, x: mean(net.second(x.flip(1)).relu()), 16, second=conv(16)),
    "flattened 4x4 and 2x2": Net(
        lambda net, x: torch.cat([size(x, 4).flatten(1), size(x, 2).flatten(1)], 1), 16 * 16 + 16 * 4
    ),
    "4x4, channels last": Net(lambda net, x: size(x, 4).permute(0, 2, 3, 1).flatten(1), 16 * 16),
}
RIGHT = ["residual sum", "depthwise", "joined with another", "flattened 4x4"]

images = torch.randn(1000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
stands = True
for name, net in nets.items():
    net.eval()
    graph = tp.DependencyGraph().build_dependency(net, images[:1])
    group = graph.get_pruning_group(net.first, tp.prune_conv_out_channels, idxs=REMOVED)
    with torch.no_grad():
        for dependency, numbers in group:
            layer = dependency.target.module
            if isinstance(layer, nn.Conv2d) and graph.is_out_channel_pruning_fn(dependency.handler):
                layer.weight[list(numbers)] = 0
                layer.bias[list(numbers)] = 0
        before = net(images)
        objection = "" if graph.check_pruning_group(group) else ", group refused"
        group.prune()
        difference = float((net(images) - before).abs().max() / before.std(0).mean())
    print(f"{name:22} {net.first.out_channels} channels left, difference {difference:.4f}{objection}")
    stands &= (difference < 1e-3) == (name in RIGHT) and not objection
sys.exit(0 if stands else 1)
PY
