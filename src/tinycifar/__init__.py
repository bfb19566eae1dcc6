"""Image classifiers under 200,000 parameters.

import tinycifar

result = tinycifar.train("minute", data="photos")       # a folder with train/CLASS/*.png; default: CIFAR-10
print(tinycifar.evaluate(result)["accuracy"])
print(tinycifar.predict(result, ["cat.png"]))
model = tinycifar.load("accurate")                      # an nn.Module: images in [0, 1] -> logits
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinycifar.library import evaluate as evaluate
    from tinycifar.library import load as load
    from tinycifar.library import predict as predict
    from tinycifar.library import train as train

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinycifar import library  # not before: it loads torch, which takes seconds

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
