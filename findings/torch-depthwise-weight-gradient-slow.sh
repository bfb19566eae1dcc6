#!/usr/bin/env bash
# HEADER
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
