#!/usr/bin/env bash
# Bilinear interpolation of CMSIS-DSP (arm_bilinear_interp_f32, _q31, _q15, _q7), which by its documentation is often
# used to rescale images, returns 0 in the last row and the last column. They belong to the table: the same
# documentation places element (x, y) at pTable[x + y * numCols], and promises 0 for places outside. An image that is
# scaled from corner to corner, or copied, ends with a black column and a black row, 6% of 32x32 pixels. Within a pixel
# above or left of the table, where 0 is promised, arm_bilinear_interp_f32 extends the line of the first two values
# instead. The functions for one dimension (arm_linear_interp_*) give the first and last value at and beyond the ends.
# In q15 and q7 a grey of 100 becomes 99 everywhere, also where no two values have to be mixed.
# The limit is the one proposed in CMSIS_5's issue 805, against reads behind the table. The C functions are called
# through the Python package of the same project, compiled for the PC.
#
# Seen with cmsisdsp 1.10.3 and numpy 2.4.6, Python 3.11, x86-64; an image of 8x8, grey of 100, scaled to 12x12 from
# corner to corner, and a ramp of the four columns 10, 20, 30, 40:
#   grey of 100, f32: last row and column 0 to 0, all others 100 to 100
#   grey of 100, q31: last row and column 0 to 0, all others 100 to 100
#   grey of 100, q15: last row and column 0 to 0, all others 99 to 99
#   grey of 100, q7: last row and column 0 to 0, all others 99 to 99
#   column         -1.25  -0.75   0.00   1.50   2.00   2.75   3.00   3.25
#   linear, f32    10.00  10.00  10.00  25.00  30.00  37.50  40.00  40.00
#   bilinear, f32   0.00   2.50  10.00  25.00  30.00  37.50   0.00   0.00
#   bilinear, q15   0.00   0.00   9.00  24.00  29.00  37.00   0.00   0.00
# Exit code 0 while all of this stands, 1 if some of it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "cmsisdsp==1.10.3" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PY'
import sys

import cmsisdsp as dsp
import numpy as np

# Places in the fixed-point functions have 20 bits behind the point.
KINDS = {"f32": np.float32, "q31": np.int32, "q15": np.int16, "q7": np.int8}


def table(kind, values):
    rows, columns = values.shape
    make = getattr(dsp, f"arm_bilinear_interp_instance_{kind}")
    instance = make(rows, columns, values.astype(KINDS[kind]).flatten())
    function = getattr(dsp, f"arm_bilinear_interp_{kind}")
    return lambda x, y: function(instance, *((x, y) if kind == "f32" else (round(x * 2**20), round(y * 2**20))))


stands = True
for kind in KINDS:
    grey = 100 if kind != "q31" else 100 << 20  # q31 keeps the upper bits only
    look = table(kind, np.full((8, 8), grey))
    places = np.linspace(0, 7, 12)
    scaled = np.array([[look(float(x), float(y)) for x in places] for y in places]) / (grey // 100)
    edge = np.append(scaled[-1], scaled[:, -1])
    rest = scaled[:-1, :-1]
    print(
        f"grey of 100, {kind}: last row and column {edge.min():g} to {edge.max():g}, "
        f"all others {rest.min():g} to {rest.max():g}"
    )
    stands &= not edge.any() and np.allclose(rest, 99 if kind in ("q15", "q7") else 100)
ramp = np.array([10, 20, 30, 40], np.float32)
places = (-1.25, -0.75, 0.0, 1.5, 2.0, 2.75, 3.0, 3.25)
line = dsp.arm_linear_interp_instance_f32(4, 0.0, 1.0, ramp)
rows = {
    "column": places,
    "linear, f32": [dsp.arm_linear_interp_f32(line, x) for x in places],
    "bilinear, f32": [table("f32", np.tile(ramp, (4, 1)))(x, 1.0) for x in places],
    "bilinear, q15": [table("q15", np.tile(ramp, (4, 1)))(x, 1.0) for x in places],
}
for name, values in rows.items():
    print(f"{name:13}", " ".join(f"{value:6.2f}" for value in values))
stands &= np.allclose(rows["linear, f32"], [10, 10, 10, 25, 30, 37.5, 40, 40])
stands &= np.allclose(rows["bilinear, f32"], [0, 2.5, 10, 25, 30, 37.5, 0, 0])
sys.exit(0 if stands else 1)
PY
