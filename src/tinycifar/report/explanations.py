"""Pictures with what speaks for their class drawn over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tinycifar import atomic, heatmaps, inference, metrics
from tinycifar.data import pictures
from tinycifar.report import plots
from tinycifar.trained import Trained
from tinycifar.words import printable

MOST_SHOWN = 1024  # pixels a side of a picture that is padded or squashed


def explain_files(
    trained: Trained, paths: Sequence[Path], folder: Path, class_name: str | None = None, overwrite: bool = False
) -> Iterator[dict[str, Any]]:
    """Draw into `folder` what in each picture speaks for `class_name`, by default its most probable class.

    Gives for each, one after another, its `file`, the `picture` drawn, the `class` and its `probability`; or, where the
    file is no picture, the reason as `problem`. Raises ValueError for a class that the model does not know, and for a
    drawing that exists already, unless `overwrite` is set.
    """
    if class_name is not None and class_name not in trained.classes:
        many = len(trained.classes) > metrics.MANY_CLASSES
        known = inference.several(trained.classes) if many else ", ".join(trained.classes)
        raise ValueError(f"unknown class {class_name!r}; the classes are: {known}")
    drawings = _drawings(paths, folder)
    for drawing in drawings:
        atomic.check_new(drawing, overwrite)
    for path, drawing in zip(paths, drawings, strict=True):
        try:
            square = pictures.read(path, trained.fit)
        except ValueError as error:
            yield {"file": str(path), "problem": str(error)}
            continue
        image = pictures.to_tensor(square, trained.image_size, trained.fit, trained.channels)
        logits = inference.logits(trained.model, image[None]) / (trained.temperature or 1)
        index = int(logits.argmax()) if class_name is None else trained.classes.index(class_name)
        (heat,) = heatmaps.heat_maps(trained.model, image[None], torch.tensor([index]))
        name, probability = trained.classes[index], float(logits.softmax(1)[0, index])
        title = f"{printable(path.name)}: {name}, probability {probability:.1%}"
        if not heat.any():
            title += "; nothing speaks for it"
        if square.width != square.height:
            side = min(max(square.size), MOST_SHOWN)
            square = pictures.to_image(pictures.to_tensor(square, side, trained.fit))
        plots.save(drawing, plots.explanation, square, pictures.to_image(image), heat, title)
        yield {"file": str(path), "picture": str(drawing), "class": name, "probability": probability}


def _drawings(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Where each picture is drawn: `NAME-explained.png`, numbered if another picture has that name."""
    taken = {path.resolve() for path in paths}
    drawings = []
    for path in paths:
        drawing = folder / f"{path.stem}-explained.png"
        number = 1
        while drawing.resolve() in taken:
            number += 1
            drawing = folder / f"{path.stem}-explained-{number}.png"
        taken.add(drawing.resolve())
        drawings.append(drawing)
    return drawings
