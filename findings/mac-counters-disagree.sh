#!/usr/bin/env bash
# Six counters of multiply-accumulate operations (MACs) for PyTorch on single layers whose exact number is known. Three
# of them go by the class of a module: a convolution has no MACs for thop and ptflops, without a word, when it is called
# as a function, when its class is derived from nn.Conv2d, and when weight normalisation has changed its class;
# torchinfo gives it one MAC per weight or none, and one per weight too to a linear layer that runs at every place of a
# map. Three count a transposed convolution of stride 2 four times too high, torchprofile a grouped one twelve times.
# Biases, batch normalisation and pooling are counted by some, each in its own way. PyTorch's own counter (half of its
# FLOPs) is exact in every line. A published number of MACs says little without its counter's name.
# The README of ptflops says that its "pytorch" backend misses some functions, and that "aten" is the default; in the
# code the default is "pytorch", which is what is shown here.
#
# Seen with torch 2.13.0, thop 0.1.1.post2209072238, ptflops 0.7.5, torchinfo 1.8.0, fvcore 0.1.5.post20221221 and
# torchprofile 0.1.0, Python 3.11, for one image of 3x32x32 ("=": exact):
#                           exact         thop      ptflops    torchinfo       fvcore torchprofile        torch
#   convolution            442368            =            =            =            =            =            =
#   the same with a bias   442368            =       458752       458752            =            =            =
#   as a function          442368            0            0          432            =            =            =
#   of a derived class     442368            0            0          432            =            =            =
#   weight-normalised      442368            0            0            0            =            =            =
#   grouped, dilated       442368            =            =            =            =            =            =
#   transposed, stride 2   196608       786432            =       786432            =       786432            =
#   the same, 3 groups     196608       786432            =       786432            =      2359296            =
#   linear, every place     49152            =            =           48            =            =            =
#   batch normalisation         0        12288         6144            6         6144         3072            =
#   average of all places       0         3075         6144            =         3072            3            =
# Exit code 0 while every number is as above, 1 if one has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "torch==2.13.0" "thop==0.1.1.post2209072238" "ptflops==0.7.5" "torchinfo==1.8.0" "fvcore==0.1.5.post20221221" \
    "torchprofile==0.1.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import contextlib
import io
import sys
import warnings

import torch
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from thop import profile
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary
from torchprofile import profile_macs

warnings.filterwarnings("ignore")
image = torch.randn(1, 3, 32, 32)
PLACES = 32 * 32
CONVOLUTION = PLACES * 16 * 3 * 9


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 3, 3, 3))

    def forward(self, images):
        return functional.conv2d(images, self.weight, padding=1)


class Derived(nn.Conv2d):
    """A convolution like any other."""


class Everywhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 16, bias=False)

    def forward(self, images):
        return self.linear(images.permute(0, 2, 3, 1))


def convolution(kind=nn.Conv2d, bias=False):
    return kind(3, 16, 3, padding=1, bias=bias)


def count_ptflops(model):
    return get_model_complexity_info(model, tuple(image.shape[1:]), as_strings=False, print_per_layer_stat=False)[0]


def count_fvcore(model):
    analysis = FlopCountAnalysis(model, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.total()


def count_torch(model):
    counter = FlopCounterMode(display=False)
    with counter:
        model(image)
    return counter.get_total_flops() // 2


COUNTERS = {
    "thop": lambda model: profile(model, (image,), verbose=False)[0],
    "ptflops": count_ptflops,
    "torchinfo": lambda model: summary(model, input_data=image, verbose=0).total_mult_adds,
    "fvcore": count_fvcore,
    "torchprofile": lambda model: profile_macs(model, image),
    "torch": count_torch,
}
CASES = {
    "convolution": (convolution, CONVOLUTION, "= = = = = ="),
    "the same with a bias": (lambda: convolution(bias=True), CONVOLUTION, "= 458752 458752 = = ="),
    "as a function": (Functional, CONVOLUTION, "0 0 432 = = ="),
    "of a derived class": (lambda: convolution(Derived), CONVOLUTION, "0 0 432 = = ="),
    "weight-normalised": (lambda: weight_norm(convolution()), CONVOLUTION, "0 0 0 = = ="),
    "grouped, dilated": (
        lambda: nn.Conv2d(3, 48, 3, padding=2, dilation=2, groups=3, bias=False), PLACES * 48 * 9, "= = = = = ="
    ),
    "transposed, stride 2": (
        lambda: nn.ConvTranspose2d(3, 16, 2, stride=2, bias=False), PLACES * 3 * 16 * 4, "786432 = 786432 = 786432 ="
    ),
    "the same, 3 groups": (
        lambda: nn.ConvTranspose2d(3, 48, 2, stride=2, groups=3, bias=False), PLACES * 3 * 16 * 4,
        "786432 = 786432 = 2359296 =",
    ),
    "linear, every place": (Everywhere, PLACES * 3 * 16, "= = 48 = = ="),
    "batch normalisation": (lambda: nn.BatchNorm2d(3), 0, "12288 6144 6 6144 3072 ="),
    "average of all places": (lambda: nn.AdaptiveAvgPool2d(1), 0, "3075 6144 = 3072 3 ="),
}
print(f"{'':21}{'exact':>8}" + "".join(f"{name:>13}" for name in COUNTERS))
same = True
for case, (make, exact, seen) in CASES.items():
    row = []
    for count in COUNTERS.values():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            number = int(count(make().eval()))
        row.append("=" if number == exact else str(number))
    print(f"{case:21}{exact:8}" + "".join(f"{text:>13}" for text in row))
    same &= row == seen.split()
sys.exit(0 if same else 1)
PY
