"""Where images come from: CIFAR-10, its packaged sample, folders of pictures and IDX files, all as a `Dataset`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinycifar.data.dataset import NAMES as NAMES
    from tinycifar.data.dataset import Dataset as Dataset
    from tinycifar.data.loading import examine as examine
    from tinycifar.data.loading import is_own as is_own
    from tinycifar.data.loading import load as load
    from tinycifar.data.loading import load_pictures as load_pictures
    from tinycifar.data.loading import load_to_score as load_to_score
    from tinycifar.data.loading import sample as sample

__all__ = ["NAMES", "Dataset", "examine", "is_own", "load", "load_pictures", "load_to_score", "sample"]


def __getattr__(name: str) -> Any:
    """Load a name when it is used: PyTorch is loaded for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinycifar.data import loading

    return getattr(loading, name)
