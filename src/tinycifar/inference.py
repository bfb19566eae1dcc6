"""From images to logits: the only inference loop, trained weights from disk, and predictions on pictures."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tinycifar import data, metrics, models, run
from tinycifar.data import Dataset
from tinycifar.models import Classifier

IMAGE_FORMATS = ("PNG", "JPEG")


def to_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32 from uint8 ones in 0..255; float images are passed through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@torch.inference_mode()
def logits(model: Classifier, images: Tensor, *, flip: bool = False, batch_size: int = 500) -> Tensor:
    """Logits of `images`, float32 on the CPU, shape (N, num_classes).

    `images` is (N, 3, H, W), uint8 in 0..255 or float in [0, 1], on any device. With `flip` the logits of each image
    and of its mirror image are averaged (test-time augmentation). The model is put in evaluation mode for the call and
    left as it was.
    """
    was_training = model.training
    model.eval()
    try:
        parts = []
        for batch in torch.split(images, batch_size):
            batch = to_float(batch.to(model.mean.device)).contiguous(memory_format=torch.channels_last)
            output = model(batch)
            if flip:
                output = (output + model(batch.flip(3))) / 2
            parts.append(output.float().cpu())
        return torch.cat(parts)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Trained:
    """A model with its weights and what their file says of them."""

    model: Classifier
    model_name: str
    recipe: str
    classes: tuple[str, ...]


def load(path: str | Path, device: str = "auto") -> Trained:
    """Load trained weights from a run directory or a `.safetensors` file that `tinycifar train` wrote.

    Raises ValueError, naming the file, if it is missing, no safetensors file, not ours, or does not fit its model.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = "is no run directory: it holds no model.safetensors" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}; name a run directory or a .safetensors file")
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no readable safetensors file: {error}") from None
    try:
        model_name, classes = metadata["model"], tuple(str(name) for name in json.loads(metadata["classes"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} does not name its model and classes; it was not written by tinycifar") from None
    model = models.build(model_name, num_classes=len(classes))
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise ValueError(f"{file} holds weights that do not fit the model {model_name}") from None
    model = model.to(run.select_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(model.eval(), model_name, metadata.get("recipe", ""), classes)


def evaluation_split(dataset: Dataset) -> tuple[str, Tensor, Tensor]:
    """Which images are open for evaluation: "validation" or "test", and their images and labels.

    Where a data set has validation images, only they are open, and the test set stays shut.
    """
    if dataset.validation_images is not None and dataset.validation_labels is not None:
        return "validation", dataset.validation_images, dataset.validation_labels
    return "test", dataset.test_images, dataset.test_labels


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model on the images open for evaluation.

    `content` is that of an `evaluation.json`; `logits` (N, C) and `logits_tta`, averaged over an image and its mirror
    image, are float32, `labels` (N,) int64.
    """

    content: dict[str, Any]
    logits: Tensor
    logits_tta: Tensor
    labels: Tensor

    def save(self, directory: Path) -> None:
        """Write `evaluation.json`, and the tensors it was computed from as `evaluation.safetensors`."""
        tensors = {"logits": self.logits, "logits_tta": self.logits_tta, "labels": self.labels}
        run.write_bytes(directory / "evaluation.safetensors", save(tensors))
        run.write_json(directory / "evaluation.json", self.content)


def evaluate(model: Classifier, dataset: Dataset) -> Evaluation:
    """Score a model on the images that `dataset` opens: accuracy, with TTA too, errors by class, calibration, speed.

    On validation images a temperature is fitted; what it does for calibration is told of each half of the images with
    the temperature of the other half. On test images there is none, as nothing may be fitted to them.
    """
    split, images, labels = evaluation_split(dataset)
    start = time.perf_counter()
    plain = logits(model, images)
    seconds = time.perf_counter() - start
    flipped = logits(model, images, flip=True)
    tta = metrics.summarize(flipped, labels)
    confusion = metrics.confusion_matrix(plain, labels)
    named = zip(dataset.classes, metrics.per_class(confusion), strict=True)
    temperature = calibrated = None
    if split == "validation" and len(labels) > 1:
        temperature = metrics.fit_temperature(plain, labels)
        calibrated = metrics.calibration(metrics.crossfit_temperature(plain, labels), labels)
    content = {
        "data": dataset.name,
        "split": split,
        **metrics.summarize(plain, labels),
        "accuracy_tta": tta["accuracy"],
        "loss_tta": tta["loss"],
        "top2_accuracy": metrics.top_k_accuracy(plain, labels, 2),
        "top3_accuracy": metrics.top_k_accuracy(plain, labels, 3),
        **metrics.calibration(plain, labels),
        "temperature": temperature,
        "calibrated": calibrated,
        "images_per_second": len(labels) / seconds,
        "classes": [{"class": name, **row} for name, row in named],
        "confusion": confusion.tolist(),
        "reliability": metrics.reliability(plain, labels),
    }
    return Evaluation(content, plain, flipped, labels)


def robustness(model: Classifier, dataset: Dataset, count: int = 2_000, seed: int = 0) -> dict[str, Any]:
    """Accuracy on the first `count` images open for evaluation, corrupted as in `tinycifar.corruptions`.

    `images` is how many there were, `clean_accuracy` that on them as they are, `accuracy` has by corruption those at
    severities 1 to 5, and `mean_corruption_accuracy` is the mean of all of these.
    """
    from tinycifar import corruptions  # SciPy's filters take a quarter of a second to load

    _, images, labels = evaluation_split(dataset)
    images, labels = images[:count], labels[:count]

    def accuracy(changed: Tensor) -> float:
        return metrics.correct_count(logits(model, changed), labels) / len(labels)

    found = {
        name: [accuracy(corruptions.corrupt(images, name, severity, seed)) for severity in corruptions.SEVERITIES]
        for name in corruptions.CORRUPTIONS
    }
    return {
        "images": len(labels),
        "clean_accuracy": accuracy(images),
        "mean_corruption_accuracy": sum(map(sum, found.values())) / sum(map(len, found.values())),
        "accuracy": found,
    }


def evaluate_run(
    directory: str | Path, *, source: str | Path | None = None, device: str = "auto", corrupted: int = 0
) -> Evaluation:
    """Evaluate a run's saved weights on the images that its recipe opens, and `robustness` on `corrupted` of them.

    `source` is as in `tinycifar.data.load`; by default the one the run was trained on. Raises ValueError if
    `directory` is no run directory.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(f"{directory} is a file; name a run directory")
    trained = load(directory, device)
    recipe, environment = run.read_recipe(directory), run.read_environment(directory)
    dataset = data.load(environment["data"] if source is None else source).split(recipe.validation_images)
    found = evaluate(trained.model, dataset)
    if corrupted:
        found.content["robustness"] = robustness(trained.model, dataset, corrupted)
    return found


def read_picture(path: str | Path, size: int = 32) -> Tensor:
    """A PNG or JPEG as uint8 (3, size, size): turned upright, cropped to its central square, resized with antialiasing.

    Transparent parts become white, grey and 16-bit pictures RGB of 8 bits. Raises ValueError, naming the file, if it
    cannot be read as one of these formats or has more pixels than Pillow holds safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                picture = _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"cannot read {path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"no {' or '.join(IMAGE_FORMATS)} image"
        raise ValueError(f"cannot read {path}: {reason}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    # Cropped first: with `box`, or `ImageOps.fit`, the filter would mix in pixels from outside the crop.
    square = picture.crop((left, top, left + side, top + side))
    resized = square.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def predict(trained: Trained, paths: Sequence[str | Path], top: int = 3) -> list[dict[str, Any]]:
    """The `top` most probable classes of each picture: `file`, and `classes`, each a `class` and its `probability`.

    Raises ValueError, naming the file, for one that is no picture.
    """
    images = torch.stack([read_picture(path) for path in paths])
    probabilities, indices = logits(trained.model, images).softmax(1).topk(min(top, len(trained.classes)))
    return [
        {
            "file": str(path),
            "classes": [{"class": trained.classes[i], "probability": p} for p, i in zip(ps, indexes, strict=True)],
        }
        for path, ps, indexes in zip(paths, probabilities.tolist(), indices.tolist(), strict=True)
    ]
