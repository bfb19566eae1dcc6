"""Models, augmentations, export formats and shipped weights by name, known without loading PyTorch.

The command line lists and checks names before it needs a model. `tests/test_catalog.py` compares what stands here with
`models` and `augment`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinycifar import atomic, typed

WEIGHTS = Path(__file__).parent / "weights"
LEAST_WIDTH, MOST_WIDTH = 0.1, 8.0
MOST_PIXELS = 64  # a side: larger images take more than a laptop's minutes
FITS = ("crop", "pad", "squash")
CHANNELS = (1, 3)  # grey, or red, green and blue


@dataclass(frozen=True)
class Form:
    """What a model's images are: their side in pixels, how other pictures become square, and 1 or 3 channels.

    Raises ValueError for values that no recipe has.
    """

    image_size: int = 32
    fit: str = "crop"
    channels: int = 3

    def __post_init__(self) -> None:
        if not hasattr(self.image_size, "__index__") or self.image_size < 1:  # NumPy's integers are no `int`
            raise ValueError(f"image_size must be a number of pixels, 1 or more, not {self.image_size!r}")
        typed.check_choice("fit", self.fit, FITS)
        check_channels(self.channels)


@dataclass(frozen=True)
class Architecture:
    """Size of a model at width 1, for ten classes and images of 32x32 pixels.

    `written_out` counts the parameters of mirrored filters twice, `macs` the multiply-accumulates of one image.
    `image_sizes` are the sides in pixels that it takes. `residual` are the numbers of its layers, from 0, whose input
    is added to their output.
    """

    parameters: int
    written_out: int
    macs: int
    image_sizes: range = range(16, MOST_PIXELS + 1, 8)
    residual: tuple[int, ...] = ()


ARCHITECTURES = {
    "c1c2c3c4o": Architecture(195_946, 195_946, 34_734_080, range(17, MOST_PIXELS + 1)),
    "minutenet": Architecture(166_240, 330_176, 12_485_088, residual=(4, 6, 7, 8)),
    "whitenet": Architecture(148_304, 294_304, 20_054_656, residual=(6,)),
    "micronet": Architecture(16_954, 31_604, 3_462_444, residual=(3, 5, 6, 7, 8)),
    "nanonet": Architecture(77_472, 151_872, 12_149_216, residual=(5, 7, 8)),
    "nanonet32": Architecture(41_432, 82_000, 11_270_784, residual=(3, 5, 6, 8, 9, 10)),
    "accuratenet": Architecture(179_328, 354_048, 25_657_824, residual=(5, 6, 8, 9)),
    "teachernet": Architecture(1_318_944, 2_634_816, 131_729_280, residual=(5, 7)),
    "largeteachernet": Architecture(988_832, 1_976_800, 151_880_960, residual=(7,)),
}
AUGMENTATIONS = (
    "none",
    "translate",
    "translate-hole",
    "reference",
    "reference-as-run",
    "albumentations",
    "albumentations-as-run",
)

FORMATS = {
    "onnx": ".onnx",
    "onnx-int8": "-int8.onnx",
    "tflite": "-int8.tflite",
    "tflite-float": ".tflite",
    "c": "-c",
    "web": "-web",
}
"""Export formats, with the ending of their default output."""
FOLDERS = ("c", "web")
"""Export formats that are a folder."""
INT8_VARIANTS = ("u8s7", "u8u8", "s8s8")
"""Types of activations and weights in int8 ONNX files."""


def check_channels(channels: int) -> None:
    """Raise ValueError for a number of channels that is none of `CHANNELS`."""
    if channels not in CHANNELS:
        raise ValueError(f"channels must be 1 (grey) or 3 (red, green and blue), not {channels}")


def check_image_size(model: str, sizes: range, image_size: int) -> None:
    """Raise ValueError, naming the allowed ones, unless `image_size` is one of `sizes`, those that `model` takes."""
    if image_size not in sizes:
        steps = f" in steps of {sizes.step}" if sizes.step > 1 else ""
        raise ValueError(
            f"image_size must lie between {sizes[0]} and {sizes[-1]}{steps} for {model}, not be {image_size}"
        )


def shipped() -> dict[str, dict[str, Any]]:
    """The shipped models, the most accurate first: by name, the JSON beside each model's weights."""
    content = {path.stem: atomic.read_json(path) for path in sorted(WEIGHTS.glob("*.json"))}
    return dict(sorted(content.items(), key=lambda entry: -entry[1]["test_accuracy"]))


def weights(name: str) -> Path:
    """The file with the weights of the shipped model of that name; ValueError if it is not what was shipped."""
    file = WEIGHTS / f"{name}.safetensors"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != shipped()[name]["sha256"]:
        raise ValueError(f"{file} is damaged or missing; install tinycifar again")
    return file


def list_models(*, max_parameters: int | None = None, max_macs: int | None = None) -> list[str]:
    """The names of the shipped models, the most accurate first; `load` takes them.

    Only those with at most `max_parameters` parameters and `max_macs` multiply-accumulates per image, if given.
    ValueError if these are no numbers.
    """
    typed.number("max_parameters", max_parameters)
    typed.number("max_macs", max_macs)
    return [
        name
        for name, about in shipped().items()
        if (max_parameters is None or about["parameters"] <= max_parameters)
        and (max_macs is None or about["macs"] <= max_macs)
    ]


def best() -> str:
    """The name of the most accurate shipped model."""
    return next(iter(shipped()))
