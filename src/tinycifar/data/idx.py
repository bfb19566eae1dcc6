"""Own data: a folder of IDX files, as MNIST's and Fashion-MNIST's, of grey images in ten classes."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from tinycifar.data import decoded, pictures
from tinycifar.data.dataset import Dataset
from tinycifar.data.pictures import Pixels
from tinycifar.words import printable

FILES = {  # of each split those of images and labels; each may end in .gz
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGES, LABELS = 0x0803, 0x0801  # the magic numbers of bytes in three dimensions and in one
MOST_BYTES = 1 << 30  # of a file, unpacked
MOST_PIXELS = 512  # a side
CLASSES = tuple("0123456789")
FASHION_MNIST = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MNIST_SHA256 = {  # of the files, unpacked
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def recognises(path: Path) -> bool:
    """Whether this is a folder with one of the four files, packed or not."""
    return any((path / f"{name}{end}").is_file() for names in FILES.values() for name in names for end in ("", ".gz"))


def load(path: Path, cache: Path, image_size: int, display: Progress | None) -> Dataset:
    """Read the four files of a folder: grey images as RGB, resized as pictures are, in the order of the files.

    Classes are named by their digits, those of Fashion-MNIST, known by its bytes, by its own names. Raises ValueError,
    naming the file, for what is missing, damaged, or not as the format or the other files have it.
    """
    path = path.absolute()
    if not str(path).isprintable():
        raise ValueError(f"{printable(str(path))} has a name that cannot be printed; rename it")
    hashes: dict[str, str] = {}
    pixels: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    labels: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    for split, (images_name, labels_name) in FILES.items():
        images, hashes[images_name] = _read(path, images_name, IMAGES)
        found, hashes[labels_name] = _read(path, labels_name, LABELS)
        if len(images) != len(found):
            raise ValueError(f"{path} has {len(images):,} images in {images_name}, but {len(found):,} labels")
        if found.max() >= len(CLASSES):
            raise ValueError(f"{path / labels_name} has a label {found.max()}; allowed are 0 to {len(CLASSES) - 1}")
        pixels.append(images)
        labels[split] = torch.from_numpy(found.astype(np.int64))
        stem = images_name.removesuffix("-idx3-ubyte")
        names[split] = tuple(f"{stem} {index}" for index in range(len(images)))

    def decode(index: int) -> Pixels:
        first = len(pixels[0])
        grey = pixels[0][index] if index < first else pixels[1][index - first]
        return pictures.to_array(Image.fromarray(grey).convert("RGB"), image_size)

    digest = decoded.digest(hashes.items())
    decoded_images, notes = decoded.load(
        path,
        [*names["train"], *names["test"]],
        decode,
        content=digest,
        image_size=image_size,
        cache=cache,
        display=display,
    )
    train_images, test_images = torch.split(decoded_images, [len(part) for part in pixels])
    return Dataset(
        path.name,
        FASHION_MNIST if hashes == FASHION_MNIST_SHA256 else CLASSES,
        train_images,
        labels["train"],
        test_images,
        labels["test"],
        digest=digest,
        path=str(path),
        notes=tuple(notes),
        names=names,
    )


def _read(folder: Path, name: str, magic: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], str]:
    """The array of a file, which is packed if its name has .gz, and the SHA-256 of its bytes, unpacked."""
    file = folder / name
    file = file if file.is_file() else folder / f"{name}.gz"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {name} or {name}.gz; all of these are needed: {', '.join(FASHION_MNIST_SHA256)}"
        )
    header_bytes = 4 * (magic % 256 + 1)  # the magic number, whose last byte is that of the dimensions, and each length
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            header = content.read(header_bytes)
            found, *shape = (int(number) for number in np.frombuffer(header.ljust(header_bytes, b"\0"), ">u4"))
            if found != magic:
                raise ValueError(f"it begins with {found:#010x}, not {magic:#010x}")
            if min(shape) < 1 or shape[1:] != shape[1:2] * (len(shape) - 1) or max(shape[1:], default=1) > MOST_PIXELS:
                raise ValueError(
                    f"it claims {' x '.join(map(str, shape))} bytes; allowed are images of 1 to {MOST_PIXELS} pixels a "
                    "side, square, and one at least"
                )
            size = int(np.prod(shape, dtype=np.uint64)) if shape[0] <= MOST_BYTES else shape[0]
            if size > MOST_BYTES:
                raise ValueError(f"it claims {size:,} bytes, allowed are {MOST_BYTES:,}")
            body = content.read(
                size + 1
            )  # a byte more, which must not be there, so that a packed file is read to its end
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ValueError(f"{file} is damaged: it cannot be unpacked") from None
    except ValueError as error:
        raise ValueError(f"{file} is no file of the IDX format that can be used: {error}") from None
    if len(body) != size:
        more = "more" if len(body) > size else f"only {len(body):,}"
        raise ValueError(f"{file} is damaged: {size:,} bytes behind its header were announced, {more} are there")
    sha256 = hashlib.sha256(header)
    sha256.update(body)
    return np.frombuffer(body, np.uint8).reshape(shape), sha256.hexdigest()
