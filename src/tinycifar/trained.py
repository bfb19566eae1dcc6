"""Trained models: from a run directory, a weights file, or the package, which ships some."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from tinycifar import atomic, catalog, data, machine, models, run, typed
from tinycifar.catalog import CHANNELS, FITS, Form
from tinycifar.data import Dataset
from tinycifar.data.dataset import Digests
from tinycifar.evaluation import outside
from tinycifar.models import Classifier
from tinycifar.words import counted, is_printable

# The largest model, a teacher, has 5 MB of weights; much larger files are not tinycifar's and are not read.
MOST_BYTES = 50_000_000
MOST_HEADER_BYTES = 1_000_000
MOST_CLASSES = 1_000
DIGEST = "[0-9a-f]{64}|"  # of own data, if it is that
MOST_SEEN = 0.01  # of validation images: a picture more in a folder may move another one to the other side


@dataclass(frozen=True, kw_only=True)
class About:
    """The metadata of a file of weights; those of earlier versions lack some of the fields that have a default.

    `data` is the name of the training data: a path would reveal where it lies to everyone who receives the weights.
    `data_digest` is the digest of own data (`Dataset.data_digest`), and `validation_images` how many of these images
    were held out. Divide logits by `temperature` before computing probabilities; it is None if none was fitted. `fit`
    says how pictures are made square, and `channels` are those of an image, as in a recipe. `kept` are the thresholds
    for "none of these" of `evaluation.outside`, empty if there are none.
    """

    model_name: str = field(metadata=typed.key("model"))
    width: float = 1.0
    image_size: int = 32
    fit: str = "crop"
    channels: int = 3
    recipe: str
    classes: tuple[str, ...]
    data: str
    data_digest: str = ""
    validation_images: int
    temperature: float | None = None
    kept: tuple[float, ...] = ()

    @property
    def form(self) -> Form:
        """What its images are."""
        return Form(self.image_size, self.fit, self.channels)

    def check(self) -> None:
        """Raise ValueError for values that no training writes."""
        typed.check_choice("fit", self.fit, FITS)
        if self.channels not in CHANNELS:
            raise ValueError("channels that are none")
        if not (
            0 < len(self.classes) <= MOST_CLASSES and all(map(is_printable, (*self.classes, self.recipe, self.data)))
        ):
            raise ValueError("names that cannot be printed, or too many classes")
        if not (catalog.LEAST_WIDTH <= self.width <= catalog.MOST_WIDTH and re.fullmatch(DIGEST, self.data_digest)):
            raise ValueError("a width or digest that is none")
        if not (len(self.kept) in (0, len(outside.KEEP_PERCENT)) and all(map(math.isfinite, self.kept))):
            raise ValueError("thresholds that are none")
        if self.validation_images < 0 or (self.temperature is not None and not 0 < self.temperature < math.inf):
            raise ValueError("a number that is none of its kind")


@dataclass(frozen=True, kw_only=True)
class Trained(About):
    """A model with its weights and the metadata of their file.

    `name` is that of a shipped model, of a run directory or of a file. `load` takes `source` to find it again from
    anywhere; `sha256` is the digest of its file. `data_path` is where the data was, from the run's `environment.json`.
    """

    model: Classifier
    name: str
    source: str
    sha256: str
    data_path: str = ""

    @property
    def run(self) -> Path | None:
        """The directory of the run that trained it; None for weights without one."""
        directory = Path(self.source).parent
        is_run = Path(self.source).name == "model.safetensors" and (directory / "environment.json").is_file()
        return directory if is_run else None

    def seen(self) -> Digests | None:
        """Digests (N, 32) of the images that its weights come from, sorted; None if that is not known."""
        return None if self.run is None else run.read_seen(self.run)

    def dataset(self, display: Progress | None = None) -> Dataset:
        """The data it was trained on, at its image size, not split; ValueError if that is gone or has changed."""
        source = self.data_path or self.data
        if self.data_digest and not self.data_path:
            raise ValueError(
                f"{self.name} was trained on {self.data}, and weights alone do not say where that is; name it with "
                "`data=`"
            )
        try:
            dataset = data.load(source, **vars(self.form), display=display)
        except ValueError as error:
            if not self.data_digest:
                raise
            raise ValueError(f"{error}. {self.name} was trained on it: say where it is now with `data=`") from None
        if dataset.data_digest != self.data_digest:
            raise ValueError(
                f"{source} is not what {self.name} was trained on: its pictures have changed, or an earlier version of "
                "tinycifar trained it. Name the data with `data=`, or train again"
            )
        return dataset

    def trained_on(self, dataset: Dataset) -> bool:
        """Whether this is the data it was trained on, wherever that lies now."""
        return (self.data_digest or self.data) == (dataset.known or dataset.digest)


def check_unseen(known: Trained, role: str, dataset: Dataset) -> list[str]:
    """Compare the images that a model has seen with those that `dataset`, which was split, opens for evaluation.

    Raises ValueError if it has seen more than `MOST_SEEN` of the validation images, or may have; returns a warning for
    fewer, and for test images. `role` names the model's role in the message.
    """
    split = "test" if dataset.validation_images is None else "validation"
    seen, digests = known.seen(), dataset.digests(split)
    if seen is not None:
        count = count_seen(seen, digests)
        line = f"the {role} {known.name} has seen {count:,} of the {len(digests):,} {split} images of this run"
        if split == "validation" and count > MOST_SEEN * len(digests):
            raise ValueError(f"{line}, so they cannot measure its accuracy; train it with the same images held out")
        return [f"Warning: {line}: scores will be optimistic"] if count else []
    if split == "test":
        return []
    if known.trained_on(dataset):
        if known.validation_images < len(digests):
            raise ValueError(
                f"the {role} {known.name} was trained with {known.validation_images} validation images held out, "
                f"fewer than the {len(digests)} of this run: it has seen images that this run is evaluated on"
            )
    elif not known.data_digest and dataset.known:  # the sample's training images are of CIFAR-10's
        raise ValueError(f"the {role} {known.name} was trained on {known.data} and may have seen the held-out images")
    elif known.data_digest:
        return [f"Warning: the {role} {known.name} was trained on {known.data} and may have seen the held-out images"]
    return []


def rows_seen(seen: Digests, digests: Digests) -> list[int]:
    """Which of the images with these `digests` (N, 32) are among those `seen` (M, 32)."""
    rows: list[int] = np.flatnonzero(np.isin(run.as_rows(digests), run.as_rows(seen))).tolist()
    return rows


def count_seen(seen: Digests, digests: Digests) -> int:
    """How many of the images with these `digests` (N, 32) are among the `seen` ones (M, 32)."""
    return len(rows_seen(seen, digests))


def start_from(model: Classifier, init: Trained, classes: tuple[str, ...]) -> bool:
    """Give `model` the weights of another one of the same architecture and width, for images of any size.

    The head is copied too if the classes are the same, in the same order; returns whether they are. Raises ValueError
    if the architectures differ.
    """
    if init.channels != model.channels:
        raise ValueError(
            f"{init.name} takes images of {counted(init.channels, 'channel')}, and the model of this recipe of "
            f"{model.channels}: take the recipe with `channels={init.channels}`, or another model to start from"
        )
    own, weights = model.state_dict(), init.model.state_dict()
    head = [name for name in weights if name.startswith(f"{len(model) - 1}.")]
    same = init.classes == classes
    taken = {name: tensor for name, tensor in weights.items() if same or name not in head}
    if own.keys() != weights.keys() or any(own[name].shape != tensor.shape for name, tensor in taken.items()):
        raise ValueError(
            f"{init.name} is a {init.model_name} of width {init.width:g}, which the model of this recipe is not; take "
            f"the recipe with `model={init.model_name}` and `width={init.width:g}`, without `max_parameters=`"
        )
    model.load_state_dict(own | taken)
    return same


def load(source: str | Path, device: str = "auto") -> Trained:
    """Load a trained model: the name of a shipped one, a run directory, or a `.safetensors` file that a run wrote.

    A shipped model's name takes precedence over a folder of that name, which can be written as `./NAME`.
    Raises ValueError, naming the file, if it is missing, not a safetensors file of tinycifar, does not fit its model,
    or, for a shipped model, has changed.
    """
    known = catalog.shipped()
    path, name = typed.path("the name of a model", source), str(source)
    if name in known and (isinstance(source, str) or not path.exists()):
        shipped = _read(catalog.weights(name), name, name, device)
        return replace(shipped, kept=tuple(known[name].get("kept", ())))
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        run.check_not_several(path)
        what = "is no run directory: it holds no model.safetensors" if path.is_dir() else "does not exist"
        shipped_names = f", or a shipped model: {', '.join(known)}" if known else ""
        raise ValueError(f"{path} {what}; name a run directory, a .safetensors file{shipped_names}")
    name = file.parent.resolve().name if file.stem == "model" else file.stem
    return _read(file, name, str(file.resolve()), device)


def _read(file: Path, name: str, source: str, device: str) -> Trained:
    try:
        with file.open("rb") as content:
            header_bytes = int.from_bytes(content.read(8), "little")
        size = file.stat().st_size
        if MOST_HEADER_BYTES < header_bytes < size or size > MOST_BYTES:
            raise ValueError(f"{file} is too large for weights of tinycifar, which have at most {MOST_BYTES:,} bytes")
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no dict)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    try:
        about = typed.from_json(About, json.loads(metadata["tinycifar"]), file)
        about.check()
    except (KeyError, ValueError, RecursionError):
        raise ValueError(
            f"{file} does not name its model, classes and data: this version of tinycifar did not write it"
        ) from None
    data_name, data_path = _data(about.data, about.data_digest, file)
    try:
        with torch.inference_mode(False):  # weights of which gradients can be computed, whatever the caller's mode is
            model = models.build(
                about.model_name,
                len(about.classes),
                image_size=about.image_size,
                width=about.width,
                channels=about.channels,
            ).float()  # whatever torch's default type is
    except ValueError as error:
        raise ValueError(f"{file} holds an unknown model: {error}") from None
    try:
        if any(tensors[name].dtype != own.dtype for name, own in model.state_dict().items()):
            raise RuntimeError("another type of numbers")
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError):
        raise ValueError(f"{file} holds weights that do not fit the model {about.model_name}") from None
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{file} holds values that are not finite")
    # Contiguous weights: other people's converters misread channels_last ones. Inference gives channels_last images,
    # which is as fast and gives the same bits.
    model = model.to(machine.select_device(device)).eval()
    model.classes, model.temperature = about.classes, about.temperature or 1.0
    values = {**vars(about), "data": data_name}
    return Trained(**values, model=model, name=name, source=source, sha256=sha256, data_path=data_path)


def _data(data: str, data_digest: str, file: Path) -> tuple[str, str]:
    """The name of the training data, and its path if known; earlier versions stored the path in the weights."""
    path = data if Path(data).is_absolute() else ""
    if file.name == "model.safetensors" and (file.parent / "environment.json").is_file():
        path = run.read_environment(file.parent).data
    name = Path(data).name or data
    return (name if data_digest or name == "sample" else "cifar10"), path


def save_weights(path: Path, model: nn.Module, **about: Any) -> None:
    """Write a model's weights as safetensors, with metadata, the fields of `About`, to build and evaluate it again.

    The metadata is one JSON object named "tinycifar": safetensors writes several entries in an order that changes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = typed.to_json(About(**about))
    if not metadata["kept"]:
        del metadata["kept"]
    atomic.write_bytes(path, save(tensors, metadata={"tinycifar": json.dumps(metadata)}))
