#!/usr/bin/env bash
# Forward, the gradient of the images and that of the weights of a convolution have as many products. For a depthwise
# convolution of 3x3 PyTorch takes about as long for each on an x86 processor. For larger filters, those of EfficientNet
# (5x5) and ConvNeXt (7x7), the gradient of the weights takes 5 to 13 times as long as forward: oneDNN, which computes
# it, has a depthwise kernel (jit_dw) for filters up to 3x3 only, and takes one for any convolution beyond, which fills
# blocks of 8 or 16 channels with one. Contiguous images, PyTorch's default, make it 4 to 6 times slower still, by
# matrix products; then a 5x5 filter costs 20 to 28 times as much as a 3x3 one.
#
# Seen with torch 2.13.0 (oneDNN 3.12.0), Python 3.11, on a Xeon with AVX-512, one thread, 128 images of 16x16 pixels
# and 64 channels; kernels by ONEDNN_VERBOSE:
#   channels last 3x3: forward   0.70 ms, gradient of images   0.83 ms, of weights   0.68 ms by jit_dw:avx512_core
#   channels last 5x5: forward   0.92 ms, gradient of images   1.42 ms, of weights  10.81 ms by jit:avx512_core
#   channels last 7x7: forward   1.59 ms, gradient of images   2.39 ms, of weights  20.76 ms by jit:avx512_core
#   contiguous    3x3: forward   9.04 ms, gradient of images   9.69 ms, of weights   2.11 ms by jit_dw:avx512_core
#   contiguous    5x5: forward   9.35 ms, gradient of images  10.27 ms, of weights  59.33 ms by x64:gemm:jit
#   contiguous    7x7: forward  10.49 ms, gradient of images  11.86 ms, of weights 114.18 ms by x64:gemm:jit
#   restricted to AVX2:
#   channels last 3x3: forward   1.02 ms, gradient of images   1.07 ms, of weights   1.80 ms by jit_dw:avx2
#   channels last 5x5: forward   2.08 ms, gradient of images   1.89 ms, of weights  12.44 ms by jit:avx2
#   channels last 7x7: forward   3.92 ms, gradient of images   3.73 ms, of weights  21.30 ms by jit:avx2
#   contiguous    3x3: forward  10.58 ms, gradient of images   8.19 ms, of weights   2.66 ms by jit_dw:avx2
#   contiguous    5x5: forward   9.00 ms, gradient of images  11.19 ms, of weights  56.64 ms by x64:gemm:jit
#   contiguous    7x7: forward  11.30 ms, gradient of images   9.86 ms, of weights 109.13 ms by x64:gemm:jit
# Exit code 0 while only 3x3 filters have a depthwise kernel, a 5x5 one takes more than 5 times as long as these, and
# contiguous images twice as long as others; 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/measure.py" <<'PY'
import time

import torch

torch.set_num_threads(1)
IMAGES, CHANNELS, SIZE, ROUNDS = 128, 64, 16, 10
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def fastest(work):
    """Milliseconds of the fastest of some calls."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def measure(kernel, memory_format):
    """Times of forward, of the gradient of the images and of that of the weights: as many products each."""
    images = torch.randn(IMAGES, CHANNELS, SIZE, SIZE).to(memory_format=memory_format)
    weights, gradients = torch.randn(CHANNELS, 1, kernel, kernel), torch.randn_like(images)
    padding = kernel // 2

    def backward(*wanted):
        return torch.ops.aten.convolution_backward(
            gradients, images, weights, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], CHANNELS, wanted
        )

    return (
        fastest(lambda: torch.nn.functional.conv2d(images, weights, padding=padding, groups=CHANNELS)),
        fastest(lambda: backward(True, False, False)),
        fastest(lambda: backward(False, True, False)),
    )


for name, memory_format in FORMATS.items():
    for kernel in (3, 5, 7):
        print(f"time,{name},{kernel}", *(f"{time:.2f}" for time in measure(kernel, memory_format)), sep=",")
PY
cat > "$folder/judge.py" <<'PY'
"""Kernels and times from the output of measure.py under ONEDNN_VERBOSE=1."""

import re
import sys

kernels, weights = {}, {}
used = set()
for line in sys.stdin:
    verbose = re.search(r",convolution,([^,]+),backward_weights,", line)
    if verbose:
        used.add(verbose[1])
    elif line.startswith("time,"):
        _, name, size, forward, images, gradient = line.strip().split(",")
        kernels[name, size], used = used, set()
        weights[name, size] = float(gradient)
        print(
            f"{name:13} {size}x{size}: forward {float(forward):6.2f} ms, gradient of images {float(images):6.2f} ms, "
            f"of weights {float(gradient):6.2f} ms by {', '.join(sorted(kernels[name, size]))}"
        )
stands = all(
    all(kernel.startswith("jit_dw") for kernel in found) == (size == "3") for (_, size), found in kernels.items()
)
stands &= all(weights[name, "5"] > 5 * weights[name, "3"] for name in ("channels last", "contiguous"))
stands &= weights["contiguous", "5"] > 2 * weights["channels last", "5"]
sys.exit(not stands)
PY
export ONEDNN_VERBOSE=1
"$folder/venv/bin/python" "$folder/measure.py" | "$folder/venv/bin/python" "$folder/judge.py"
echo "restricted to AVX2:"
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 "$folder/venv/bin/python" "$folder/measure.py" |
    "$folder/venv/bin/python" "$folder/judge.py"
