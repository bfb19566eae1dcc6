"""Where images come from: CIFAR-10, its packaged sample, folders of pictures and IDX files, all as a `Dataset`."""

from tinycifar.data.dataset import NAMES, Dataset
from tinycifar.data.loading import examine, is_own, load, load_to_score, sample

__all__ = ["NAMES", "Dataset", "examine", "is_own", "load", "load_to_score", "sample"]
