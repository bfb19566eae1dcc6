"""The former name of `tinycifar.data.dataset`, kept for scripts."""

import sys

from tinycifar.data import dataset

sys.modules[__name__] = dataset
