"""The former name of `tinycifar.data.pictures`, kept for scripts."""

import sys

from tinycifar.data import pictures

sys.modules[__name__] = pictures
