"""What a service serves: an exported model in memory, from an ONNX file of ours or made of a trained model."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from tinycifar import data, trained, typed
from tinycifar.catalog import MOST_PIXELS, Form
from tinycifar.data.dataset import CLASSES
from tinycifar.evaluation import outside
from tinycifar.formats import onnx_file, parity, web
from tinycifar.words import is_printable


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of its model; files from before there were models of own data leave out the rest."""

    model: str
    recipe: str
    weights_sha256: str
    classes: tuple[str, ...]
    temperature: float | None
    data: str = "cifar10"
    image_size: int = 32
    fit: str = "crop"
    channels: int = 3
    kept: tuple[float, ...] = ()

    @property
    def form(self) -> Form:
        """What its images are; ValueError for values that no export writes."""
        return Form(self.image_size, self.fit, self.channels)

    def is_sound(self) -> bool:
        """Whether every value is one that an export writes."""
        return (
            all(map(is_printable, self.classes))
            and (self.temperature is None or 0 < self.temperature < math.inf)
            and self.form.image_size <= MOST_PIXELS
            and len(self.kept) in (0, len(outside.KEEP_PERCENT))
            and all(map(math.isfinite, self.kept))
        )


@dataclass(frozen=True)
class Served:
    """An exported model in memory: what its metadata says, its ONNX file's content, and samples for its page."""

    name: str
    about: Metadata
    content: bytes
    samples: tuple[web.Sample, ...] = ()


def open_model(source: str) -> Served:
    """Read an ONNX file of ours, or export what `trained.load` takes; ValueError for anything else.

    Samples are of the model's own data, if that is where it was, or of CIFAR-10.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; name an ONNX file of tinycifar, a run directory or a shipped model"
            )
        served = _read(path.stem, path)
        if served.about.classes != CLASSES:
            return served
        return replace(served, samples=web.samples(data.sample(served.about.image_size, served.about.channels)))
    model = trained.load(source, "cpu")
    shown: tuple[web.Sample, ...] = ()
    try:
        dataset = parity.known_data(model)
        shown = web.samples(dataset)
    except (OSError, ValueError):  # what is to be served is the model; without its data it is tried on other pictures
        dataset = data.sample(model.image_size, model.channels)
    with tempfile.TemporaryDirectory() as folder:
        exported = onnx_file.to_onnx(model, Path(folder) / "model.onnx", dataset)
        return replace(_read(model.name, exported.path), samples=shown)


def _read(name: str, path: Path) -> Served:
    """An ONNX file of ours, without samples; ValueError for any other file."""
    content = path.read_bytes()
    onnx_file.runtime()
    try:
        session = onnx_file.session(content, threads=1)
        entries = session.get_modelmeta().custom_metadata_map
        parsed = {
            field.name: entries[field.name] if field.type == "str" else json.loads(entries[field.name])
            for field in fields(Metadata)
            if field.name in entries
        }
        about = typed.from_json(Metadata, parsed, path)
        if not about.is_sound():
            raise ValueError("metadata that no export writes")
        zeros = np.zeros((1, about.channels, about.image_size, about.image_size), np.float32)
        logits, _ = session.run([onnx_file.LOGITS, onnx_file.ACTIVATION], {onnx_file.INPUT: zeros})
        if logits.shape != (1, len(about.classes)):
            raise ValueError("another number of classes")
    except Exception:  # onnxruntime has many kinds for a file that is none
        raise ValueError(f"{path} is no ONNX file that tinycifar exported") from None
    return Served(name, about, content)
