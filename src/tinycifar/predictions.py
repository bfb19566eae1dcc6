"""From pictures, as files or in memory, to their most probable classes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from tinycifar.catalog import Form
from tinycifar.data import pictures
from tinycifar.evaluation import outside

if TYPE_CHECKING:
    from torch import Tensor

    from tinycifar.numpy_model import NumpyModel
    from tinycifar.trained import Trained

Array = np.ndarray[Any, np.dtype[Any]]
Picture: TypeAlias = "str | Path | bytes | Image.Image | Array | Tensor"
BATCH = 64  # pictures that are read and held at a time
KINDS = "files, folders, bytes of a file, PIL images, arrays, tensors, or a list of these"


def listed(given: Picture | Iterable[Picture]) -> list[Any]:
    """Every single picture of `given`: a path, bytes, a PIL image, or an array (3, H, W) or (1, H, W).

    Folders are searched, batches taken apart, arrays and tensors checked. Raises ValueError or TypeError, naming the
    argument `pictures`, for what is no picture.
    """
    torch = sys.modules.get("torch")  # without it there are no tensors
    if isinstance(given, (str, Path)):
        return list(pictures.find([given]))
    if isinstance(given, (bytes, bytearray)):
        return [bytes(given)]
    if isinstance(given, Image.Image):
        return [given]
    if torch is not None and isinstance(given, torch.Tensor):
        values = given.detach().cpu()
        return _arrays((values.float() if values.is_floating_point() else values).numpy(), channels_first=True)
    if isinstance(given, np.ndarray):
        return _arrays(given, channels_first=False)
    if isinstance(given, Iterable) and not hasattr(given, "read"):  # an open file would give its lines
        return [picture for part in given for picture in listed(part)]
    raise TypeError(f"pictures must be {KINDS}, not {type(given).__name__}")


def _arrays(values: Array, channels_first: bool) -> list[Array]:
    """The pictures of an array or tensor, each (C, H, W); `channels_first` decides where both orders are possible."""
    shape = tuple(values.shape)
    if values.dtype != np.uint8 and not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"pictures must be uint8 in 0..255 or floating point in [0, 1], not {values.dtype}")
    first, last = (len(shape) in (3, 4) and min(shape) > 0 and shape[axis] in (1, 3) for axis in (-3, -1))
    if not (first or last):
        raise ValueError(
            "pictures must have the shape (H, W, 3), (3, H, W), (N, H, W, 3) or (N, 3, H, W), with 1 in the place of 3 "
            f"for grey ones, not {shape}; convert pictures of other modes with PIL.Image"
        )
    if values.dtype != np.uint8:
        if not (values.min() >= 0 and values.max() <= 1):  # false for NaN too
            raise ValueError("pictures of floating-point numbers must lie in [0, 1]; divide 8-bit values by 255")
        values = values.astype(np.float32)
    if not first or (last and not channels_first):
        values = np.moveaxis(values, -1, -3)
    return list(values) if values.ndim == 4 else [values]


def predict(
    model: NumpyModel | Trained,
    given: Sequence[Any],
    logits: Callable[[Array], Array],
    top: int = 3,
    threshold: float | None = None,
) -> Iterator[dict[str, Any]]:
    """The `top` most probable classes of each picture of a list made by `listed`, one after another, as dicts.

    `file` is a picture's path, None in memory. `classes` has dicts with `class` and `probability`; for an unreadable
    picture there is the reason as `problem` instead. With a `threshold` there are also `score`, of
    `evaluation.outside`, and `none_of_these`, whether it lies below. `logits` gives those of images (N, channels, S,
    S), uint8 or float32 in [0, 1], as (N, C).
    """
    top = min(top, len(model.classes))
    for start in range(0, len(given), BATCH):
        entries: list[dict[str, Any]] = []
        images: list[Array] = []
        for picture in given[start : start + BATCH]:
            file = str(picture) if isinstance(picture, (str, Path)) else None
            try:
                images.append(_pixels(picture, model.form))
                entries.append({"file": file, "classes": []})
            except (ValueError, OSError) as error:
                entries.append({"file": file, "problem": str(error)})
        if any(image.dtype != np.uint8 for image in images):
            images = [image if image.dtype != np.uint8 else image.astype(np.float32) / 255 for image in images]
        readable = [entry for entry in entries if "classes" in entry]
        values = logits(np.stack(images)) if images else np.zeros((0, len(model.classes)))
        rows = softmax(values / (model.temperature or 1))
        for entry, row, score in zip(readable, rows, outside.scores(values), strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            entry["classes"] = [{"class": model.classes[index], "probability": float(row[index])} for index in best]
            if threshold is not None:
                entry |= {"score": float(score), "none_of_these": bool(score < threshold)}
        yield from entries


def softmax(logits: Array) -> Array:
    """Probabilities (N, C) from logits (N, C)."""
    powers = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    result: Array = powers / powers.sum(1, keepdims=True)
    return result


def _pixels(picture: Any, form: Form) -> Array:
    """What a model sees of a picture: (channels, size, size), uint8 in 0..255 or float32 in [0, 1]."""
    size, fit, channels = form.image_size, form.fit, form.channels
    if isinstance(picture, (str, Path)):
        return pictures.to_array(pictures.read(picture, fit), size, fit, channels)
    if isinstance(picture, bytes):
        return pictures.decode(picture, contextlib.nullcontext, size, fit, channels=channels)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8:
            if picture.shape == (channels, size, size):
                return picture
            picture = (picture * 255).round().astype(np.uint8)
        rows = np.ascontiguousarray(picture.transpose(1, 2, 0))
        picture = Image.fromarray(rows if rows.shape[2] == 3 else rows[..., 0])
    return pictures.to_array(pictures.upright(picture, fit), size, fit, channels)
