"""Image classifiers under 200,000 parameters.

import tinycifar

result = tinycifar.train("minute", data="photos")       # a folder with train/CLASS/*.png; default: CIFAR-10
print(tinycifar.evaluate(result)["accuracy"])
print(tinycifar.predict(result, "cat.png"))             # files, PIL images, arrays, tensors
tinycifar.explain(result, "cat.png")                    # heat maps in explanations/
tinycifar.export(result, "model.onnx")
model = tinycifar.load("accurate")                      # an nn.Module: images in [0, 1] -> logits
print(tinycifar.list_models(), tinycifar.list_recipes())
print(tinycifar.compare(["run", "other"]).lines())

What `__all__` names is public and described in docs/API.md. Everything else may change without notice.
"""

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinycifar.catalog import list_models as list_models
    from tinycifar.data.dataset import Dataset as Dataset
    from tinycifar.library import compare as compare
    from tinycifar.library import evaluate as evaluate
    from tinycifar.library import explain as explain
    from tinycifar.library import export as export
    from tinycifar.library import load as load
    from tinycifar.library import predict as predict
    from tinycifar.library import train as train
    from tinycifar.recipe import Recipe as Recipe
    from tinycifar.recipes import list_recipes as list_recipes
    from tinycifar.recording import Result as Result

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Recipe",
    "Result",
    "compare",
    "evaluate",
    "explain",
    "export",
    "list_models",
    "list_recipes",
    "load",
    "predict",
    "train",
]
_MODULES = {  # of names that are not in `library`
    "Dataset": "data.dataset",
    "Recipe": "recipe",
    "Result": "recording",
    "list_models": "catalog",
    "list_recipes": "recipes",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for, and no earlier: most modules load PyTorch, which takes seconds."""
    if name in __all__:
        return getattr(importlib.import_module(f"tinycifar.{_MODULES.get(name, 'library')}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"tinycifar.{name}") is not None:
        return importlib.import_module(f"tinycifar.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *(module.name for module in pkgutil.iter_modules(__path__))})
