#!/usr/bin/env bash
# Run tinycifar on emulated 64-bit ARM: bash tests/arm64.sh FOLDER (default: build/arm64; 2 GB, about an hour).
#
# Debian's arm64 packages and the aarch64 wheels are unpacked into FOLDER; nothing is installed in the system. It needs
# debootstrap and qemu-user-static (apt-get install both), root for debootstrap, and pip. torch is the last version whose
# aarch64 wheel on PyPI is a CPU build; onnxruntime 1.32 ends with a segmentation fault when it is imported under QEMU
# 7.2, so an older one is used. Each step prints one line with its outcome; the exit code is 1 if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(realpath -m "${1:-build/arm64}")
source=$PWD
mkdir -p "$root"
cd "$root"
if [ ! -e debian/usr/bin/python3.11 ]; then
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3.11,libgomp1,libstdc++6 bookworm debian \
        > debootstrap.log
    for package in debian/var/cache/apt/archives/*.deb; do dpkg --extract "$package" debian; done
fi
if [ ! -e site/torch ]; then
    platforms=()
    for glibc in 2_17 2_24 2_26 2_27 2_28 2_31; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
        "${platforms[@]}" --platform manylinux2014_aarch64 --target site torch==2.9.1 numpy==2.3.5 scipy==1.16.3 \
        safetensors pillow matplotlib==3.10.7 jinja2 rich click platformdirs filelock typing_extensions sympy mpmath \
        networkx fsspec markupsafe contourpy cycler fonttools kiwisolver packaging pyparsing python-dateutil six \
        markdown-it-py mdurl pygments pytest==9.0.3 iniconfig pluggy cloudpickle narwhals onnx onnxruntime==1.23.2 onnxscript onnx_ir protobuf \
        flatbuffers ml_dtypes scikit-learn joblib threadpoolctl torchinfo
fi
python() {
    OMP_NUM_THREADS=1 PYTHONPATH=$source/src:$root/site TINYCIFAR_CACHE=$root/cache \
        qemu-aarch64-static -L "$root/debian" "$root/debian/usr/bin/python3.11" "$@"
}
status=0
step() {
    local name=$1 start=$SECONDS
    shift
    if "$@" > "$root/$name.log" 2>&1; then outcome=passed; else outcome=FAILED status=1; fi
    echo "$name: $outcome in $((SECONDS - start)) s; $(grep -v MIDR_EL1 "$root/$name.log" | tail -n 1)"
}
parity() {
    python - <<'PYTHON'
from pathlib import Path
from tempfile import TemporaryDirectory

from tinycifar import trained
from tinycifar.formats import onnx_file

with TemporaryDirectory() as folder:
    for name in ("minute", "nano"):
        print(name, onnx_file.to_onnx(trained.load(name, "cpu"), Path(folder) / f"{name}.onnx").parity)
PYTHON
}
picture() {
    python -c "
from tinycifar import data
from tinycifar.data import pictures
pictures.to_image(data.sample().test_images[0]).save('$root/picture.png')"
    python -m tinycifar predict "$root/picture.png" --model nano
}
rm -rf "$root/run"
step machine python -c "import platform, torch; print(platform.machine(), 'torch', torch.__version__)"
step predict picture
step train python -m tinycifar train minute --data sample --epochs 1 --out "$root/run"
step onnx parity
cd "$source"
step tests python -m pytest -q -p no:cacheprovider tests/test_models.py tests/test_metrics.py
exit $status
