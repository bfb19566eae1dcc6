"""A picture as a C header with 32 * 32 * 3 bytes of RGB, on standard output: python image.py [PICTURE].

Without a picture it is a test image of the packaged sample.
"""

import sys
from pathlib import Path

from tinycifar import data
from tinycifar.data import pictures

if len(sys.argv) > 1:
    image = pictures.to_array(pictures.read(Path(sys.argv[1])), 32)
else:
    image = data.sample().test_images[0].numpy()
pixels = image.transpose(1, 2, 0).flatten()  # both are (channel, row, column)
values = ", ".join(map(str, pixels.tolist()))
print(f"#include <stdint.h>\nstatic const uint8_t image[{pixels.size}] = {{{values}}};")
