"""What a model looks at: class activation maps, and its effective receptive field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinycifar import atomic, inference, metrics
from tinycifar.data import pictures
from tinycifar.models import Classifier
from tinycifar.report import plots
from tinycifar.trained import Trained
from tinycifar.words import printable

MOST_SHOWN = 1024  # pixels a side of a picture that is padded or squashed


def split_head(model: Classifier) -> tuple[nn.Sequential, nn.Sequential]:
    """The layers up to the last feature map with more than one position, from normalised images, and those after it.

    Raises ValueError for a model without such a map.
    """
    features = torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device)
    last = None
    layers = list(model.children())
    with torch.no_grad():
        for index, layer in enumerate(layers):
            features = layer(features)
            if features.dim() == 4 and features.shape[-1] > 1:
                last = index + 1
    if last is None:
        raise ValueError("this model has no feature map to explain by")
    return nn.Sequential(*layers[:last]), nn.Sequential(*layers[last:])


def class_activation(model: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """How much each position of the last feature map speaks for a class, or against it: float32 (N, h, w) on the CPU.

    `images` (N, 3, H, W) are uint8 or float in [0, 1], `classes` (N,) an index for each. Grad-CAM before its ReLU
    (Selvaraju et al. 2017, arXiv:1610.02391): channels weighted by the mean gradient of the class's logit. Where the
    head is global pooling and a linear layer, as in all models here, it is the class activation map (Zhou et al. 2016,
    arXiv:1512.04150) divided by the number of positions.
    """
    device = model.mean.device
    with inference.evaluating(model):
        trunk, head = split_head(model)
        with torch.no_grad():
            normalized = model.normalize(inference.to_float(images.to(device)))
            features = trunk(normalized.contiguous(memory_format=torch.channels_last))
        with torch.enable_grad():
            features.requires_grad_()
            chosen = head(features).gather(1, classes.to(device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, features)
    weights = gradient.mean((2, 3), keepdim=True)
    activation: Tensor = (weights * features.detach()).sum(1)
    return activation.float().cpu()


def heat_maps(model: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """What speaks for a class, as float32 (N, H, W) of the images' size, in [0, 1], the largest value of each 1.

    All 0 where nothing speaks for it. Arguments as of `class_activation`.
    """
    activation = class_activation(model, images, classes).relu()
    maps = functional.interpolate(activation[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def effective_receptive_field(model: Classifier, images: Tensor) -> Tensor:
    """How much each pixel matters to the middle position of the last feature map: float32 (H, W) on the CPU.

    The gradient of the sum over channels at that position, its absolute value summed over colours, mean over `images`,
    uint8 or float in [0, 1], (N, 3, H, W) (Luo et al. 2016, arXiv:1701.04128).
    """
    with inference.evaluating(model), torch.enable_grad():
        trunk, _ = split_head(model)
        inputs = inference.to_float(images.to(model.mean.device)).detach().clone().requires_grad_()
        features = trunk(model.normalize(inputs))
        middle = (features.shape[-1] - 1) // 2
        (gradient,) = torch.autograd.grad(features[:, :, middle, middle].sum(), inputs)
    return gradient.abs().sum(1).mean(0).cpu()


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
        image = pictures.to_tensor(square, trained.image_size, trained.fit)
        logits = inference.logits(trained.model, image[None]) / (trained.temperature or 1)
        index = int(logits.argmax()) if class_name is None else trained.classes.index(class_name)
        (heat,) = heat_maps(trained.model, image[None], torch.tensor([index]))
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
