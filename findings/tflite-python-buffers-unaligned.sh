#!/usr/bin/env bash
# The TFLite schema demands `data: [ubyte] (force_align: 16)` of buffers. The Python classes generated from it, which
# ai-edge-litert ships (schema_py_generated), ignore force_align: they write data with Builder.CreateNumpyVector, which
# aligns the length in front of the data to 4 bytes and nothing else. Code that relies on the schema's alignment, such as
# vector loads from weights in flash, cannot rely on a file that was written or rewritten through these classes.
#
# Seen with flatbuffers 25.12.19 and ai-edge-litert 2.3.0, Python 3.11:
#   offsets of four buffers modulo 16: [8, 8, 4, 8]
#   written with Builder.StartVector(1, n, 16) instead: [0, 0, 0, 0]
# Exit code 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "flatbuffers==25.12.19" "ai-edge-litert==2.3.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import sys

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def model() -> schema.ModelT:
    built = schema.ModelT()
    built.version, built.description = 3, "x"
    built.buffers = [schema.BufferT() for _ in range(4)]
    for number, buffer in enumerate(built.buffers):
        buffer.data = np.full(4 * (5 + 2 * number) + number, 65 + number, np.uint8)
    return built


def offsets(content: bytes) -> list[int]:
    return [content.index(bytes([65 + number]) * (20 + 9 * number)) % 16 for number in range(4)]


def aligned(self: flatbuffers.Builder, values: np.ndarray) -> int:
    self.StartVector(values.itemsize, values.size, 16)
    content = values.tobytes()
    self.head -= len(content)
    self.Bytes[self.head : self.head + len(content)] = content
    return self.EndVector()


results = []
for patched in (False, True):
    if patched:
        flatbuffers.Builder.CreateNumpyVector = aligned
    builder = flatbuffers.Builder(1024)
    builder.Finish(model().Pack(builder), b"TFL3")
    results.append(offsets(bytes(builder.Output())))
print("offsets of four buffers modulo 16:", results[0])
print("written with Builder.StartVector(1, n, 16) instead:", results[1])
sys.exit(0 if any(results[0]) and not any(results[1]) else 1)
PY
