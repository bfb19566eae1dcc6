#!/usr/bin/env bash
# hls4ml writes C++ for FPGAs from PyTorch nets. By its documentation it puts images and maps with their channels last
# itself (channels_last_conversion='full', the default). Where several layers read a tensor, it inserts the transpose in
# front of the first of them only:
#   - all further layers that read the image take its numbers, which are in PyTorch's order, as if the channels were
#     last: a second branch, or the shortcut around the first convolution;
#   - of two heads that flatten the same map, the first has the order of its weights changed twice, the second never. A
#     single head is right.
# And its frontend for PyTorch leaves out arguments of layers that it supports: `ceil_mode` and `dilation` of a max
# pooling, `divisor_override` of an average pooling, and the value of Threshold(threshold, value), which becomes 0.
# The layers behind get maps of other sizes. Grouped convolutions are refused.
#
# Seen with hls4ml 1.3.0, torch 2.13.0 and g++ 12, Python 3.11, x86-64, backend Vivado, io_parallel, fixed-point numbers
# with 20 fractional bits; largest difference of the compiled C++ from the net's definition in NumPy, with which
# PyTorch agrees, and behind it the difference from what is said above:
#   max pooling of the conv's map  0.00
#   one head                       0.00
#   conv + image                   4.34, 0.00
#   max pooling of the image       1.60, 0.00
#   first of two heads             0.19, 0.00
#   second of two heads            0.35, 0.00
#   max pooling, ceil_mode         3x1x1 instead of 3x2x2, 0.00
#   max pooling, dilation=2        3x3x3 instead of 3x2x2, 0.00
#   average, divisor_override=1    1.66, 0.00
#   Threshold(0.5, 20)             20.00, 0.00
# Exit code 0 while hls4ml differs as above and warns of no argument that it ignores, 1 otherwise. Needs g++.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "hls4ml==1.3.0" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PY'
import contextlib
import io
import sys
import warnings

import hls4ml
import numpy as np
import torch
from torch import nn

SHAPE = (3, 4, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.MaxPool2d(2)
        self.pool, self.small = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.alone, self.head = nn.Flatten(), nn.Linear(12, 5)
        self.left, self.first_head = nn.Flatten(), nn.Linear(48, 5)
        self.right, self.second_head = nn.Flatten(), nn.Linear(48, 5)
        self.ceil = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dilated = nn.MaxPool2d(2, 1, dilation=2)
        self.divided = nn.AvgPool2d(2, divisor_override=1)
        self.threshold = nn.Threshold(0.5, 20.0)

    def forward(self, x):
        y = self.conv(x)
        positive = self.relu(y)
        return (
            self.pool(y),
            self.head(self.alone(self.small(y))),
            y + x,
            self.second(x),
            self.first_head(self.left(positive)),
            self.second_head(self.right(positive)),
            self.ceil(y),
            self.dilated(y),
            self.divided(y),
            self.threshold(y),
        )


def windows(values, size, stride=1, dilation=1):
    reach = (size - 1) * dilation + 1
    found = np.lib.stride_tricks.sliding_window_view(values, (reach, reach), (1, 2))
    return found[:, ::stride, ::stride, ::dilation, ::dilation]


def with_numpy(net, x):
    """The outputs by definition, and those of hls4ml where it computes something else."""
    weights = {name: value.numpy().astype(np.float64) for name, value in net.state_dict().items()}
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    y = np.einsum("chwij,ocij->ohw", windows(padded, 3), weights["conv.weight"]) + weights["conv.bias"][:, None, None]
    misread = x.reshape(4, 4, 3).transpose(2, 0, 1)

    def linear(name, values, order=slice(None)):
        return weights[f"{name}.weight"][:, order] @ values.ravel() + weights[f"{name}.bias"]

    def largest(values, *how):
        return windows(values, *how).max((3, 4))

    small, positive = largest(y, 2, 2), np.maximum(y, 0)
    last = positive.transpose(1, 2, 0)
    order = np.arange(last.size).reshape(3, 4, 4).transpose(1, 2, 0).ravel()
    infinite = np.pad(y, ((0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    return {
        "max pooling of the conv's map": (small, None),
        "one head": (linear("head", small), None),
        "conv + image": (y + x, y + misread),
        "max pooling of the image": (largest(x, 2, 2), largest(misread, 2, 2)),
        "first of two heads": (linear("first_head", positive), linear("first_head", last, order[order])),
        "second of two heads": (linear("second_head", positive), linear("second_head", last)),
        "max pooling, ceil_mode": (largest(infinite, 3, 2), largest(y, 3, 2)),
        "max pooling, dilation=2": (largest(y, 2, 1, 2), largest(y, 2)),
        "average, divisor_override=1": (windows(y, 2, 2).sum((3, 4)), windows(y, 2, 2).mean((3, 4))),
        "Threshold(0.5, 20)": (np.where(y > 0.5, y, 20), np.where(y > 0.5, y, 0)),
    }


def convert(net):
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        shape = (None, *SHAPE)
        config = hls4ml.utils.config_from_pytorch_model(
            net, shape, granularity="name", default_precision="ap_fixed<32,12>"
        )
        model = hls4ml.converters.convert_from_pytorch_model(
            net, output_dir=sys.argv[1] + "/hls", hls_config=config, io_type="io_parallel", backend="Vivado"
        )
    names = ("overrid", "unsupported", "not supported", "ignor")
    return model, not any(word in str(warning.message).lower() for warning in said for word in names)


def difference(values, exact):
    if values.shape != exact.shape:
        return "x".join(map(str, values.shape)) + " instead of " + "x".join(map(str, exact.shape))
    return f"{np.abs(values - exact).max():.2f}"


torch.manual_seed(0)
torch.set_num_threads(1)
net = Net().eval()
image = torch.randn(1, *SHAPE)
with torch.no_grad():
    originals = [values[0].numpy() for values in net(image)]
model, silent = convert(net)
model.compile()
results = model.predict(image.numpy())
cases = with_numpy(net, image.numpy()[0].astype(np.float64))
stands = silent
for (name, (exact, otherwise)), original, result, variable in zip(
    cases.items(), originals, results, model.get_output_variables(), strict=True
):
    values = np.asarray(result).reshape(variable.shape)
    if values.ndim == 3:
        values = values.transpose(2, 0, 1)
    checked, seen = difference(original, exact), difference(values, exact)
    text = f"{name:30} {seen}"
    if otherwise is not None:
        text += f", {difference(values, otherwise)}"
        stands &= difference(values, otherwise) == "0.00"
    print(text)
    stands &= checked == "0.00" and (seen == "0.00") == (otherwise is None)
sys.exit(0 if stands else 1)
PY
