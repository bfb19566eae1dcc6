"""From picture files to what a model sees."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
# What is larger is refused before it is decoded: within these limits, decoding takes less than 300 MB.
MOST_BYTES = 50_000_000
MOST_PIXELS = {"PNG": 4096 * 4096, "WEBP": 8_000_000, "JPEG": 50_000_000}
# Of a JPEG in several scans, progressive or not, whose decoder holds all values, two bytes each, and takes its time
# for each scan; encoders write about ten.
MOST_COEFFICIENTS = 75_000_000
MOST_SCANS = 64
MANY_PIXELS = 2_000_000
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TURNS = {  # by EXIF's orientation; written out, as Pillow's own turning rewrites all EXIF and fails where it is odd
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `paths` name, and those with a suffix of `SUFFIXES` in folders that they name, however deep.

    In the order of `paths`, those of a folder sorted; hidden ones are left out, links to folders not followed. Raises
    ValueError for a path that does not exist and for a folder without such a file, OSError for one that cannot be read.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir() and str(name):
            inside = sorted(_inside(path))
            if not inside:
                raise ValueError(f"the folder {path} holds no file that ends in {', '.join(SUFFIXES)}")
            found += inside
        elif path.exists() and str(name):
            found.append(path)
        else:
            raise ValueError(f"{name or 'an empty name'} does not exist; name pictures or folders of pictures")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(root, name)


def read_square(path: str | Path) -> Image.Image:
    """The central square of a PNG, JPEG or WebP file, turned upright, as RGB of 8 bits.

    Of an animation it is the first frame. Transparent parts become white; grey, 16-bit, palette and CMYK pictures RGB.
    Large JPEGs are decoded at a half, quarter or eighth of their size. Raises ValueError, naming the file, if it cannot
    be read as one of these formats or has more bytes or pixels than `MOST_BYTES` and `MOST_PIXELS`.
    """
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise _Refused("no file")  # a pipe would be waited for
        if about.st_size > MOST_BYTES:
            raise _Refused(f"{about.st_size:,} bytes, allowed are {MOST_BYTES:,}")
        return _square(Path(path).read_bytes())
    except Exception as error:  # decoders of strangers' bytes raise many kinds, and each means the same here
        raise ValueError(f"cannot read {path}: {_reason(error)}") from None


def decode(content: bytes, alone: Callable[[], contextlib.AbstractContextManager[object]], size: int = 32) -> Pixels:
    """What a model sees of a file's content, uint8 (3, size, size); else as `read_square`.

    What `alone` gives is held while more than `MANY_PIXELS` are decoded. Raises ValueError.
    """
    try:
        if len(content) > MOST_BYTES:
            raise _Refused(f"{len(content):,} bytes, allowed are {MOST_BYTES:,}")
        with contextlib.ExitStack() as held:
            return to_array(_square(content, lambda: held.enter_context(alone())), size)
    except Exception as error:  # as above
        raise ValueError(f"cannot read the picture: {_reason(error)}") from None


def _square(content: bytes, large: Callable[[], object] = lambda: None) -> Image.Image:
    """As `read_square`; `large` is called before more than `MANY_PIXELS` are decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd but readable metadata, and of pixels, which are counted here
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            kind = "JPEG" if image.format == "MPO" else str(image.format)  # JPEGs one behind another, as phones write
            pixels, most = image.width * image.height, MOST_PIXELS[kind]
            scans = _scans(content) if kind == "JPEG" else 1
            if scans > MOST_SCANS:
                raise _Refused(f"more than {MOST_SCANS} scans")
            if scans > 1 or image.info.get("progressive"):
                most = min(most, MOST_COEFFICIENTS // len(image.getbands()))
            if pixels > most:
                raise _Refused(
                    f"{pixels:,} pixels, allowed are {most:,} in a {kind}{' of several scans' if scans > 1 else ''}"
                )
            if pixels > MANY_PIXELS:
                large()
            image.draft(None, (1024, 1024))
            image.load()
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side))  # first, as the rest costs memory by size
            turn = TURNS.get(_orientation(image))
            image.close()  # its memory, before the next copy is made
            return _to_rgb(square if turn is None else square.transpose(turn))


def _scans(content: bytes) -> int:
    """How many scans the first picture of a JPEG file has; no more than one over `MOST_SCANS` are counted."""
    count, place = 0, 2
    while count <= MOST_SCANS and (found := _MARKER.search(content, place)):
        marker = found[0][-1]
        if marker == 0xD9:  # the end
            break
        count += marker == 0xDA
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return count


_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # before a segment with a length; others have none


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own check, while the file is opened
        return f"far more pixels than the {max(MOST_PIXELS.values()):,} allowed"
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    return getattr(error, "strerror", None) or "it is damaged"


class _Refused(Exception):  # noqa: N818  (becomes a ValueError with the file's name)
    """A file over a limit."""


def _orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF has it; 1, upright, where that is missing or damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # decoders, as above; a picture can be seen without its notes
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255 instead of scaling
        transparent = image.info.get("transparency")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if isinstance(transparent, int):
            image.info["transparency"] = transparent >> 8
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, "white")
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def to_array(square: Image.Image, size: int = 32) -> Pixels:
    """A square RGB picture as uint8 (3, size, size), resized with antialiasing."""
    # Cropped before: with `box`, or `ImageOps.fit`, the filter would mix in pixels from outside the crop.
    resized = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def to_tensor(square: Image.Image, size: int = 32) -> Tensor:
    """As `to_array`, a tensor."""
    return torch.from_numpy(to_array(square, size))


def resized(images: Tensor, size: int) -> Tensor:
    """Images as uint8 (N, 3, size, size) from uint8 (N, 3, S, S), each resized as `to_array` does."""
    if images.shape[-1] == size:
        return images
    found = images.new_empty(len(images), 3, size, size)
    for index, image in enumerate(images):
        found[index] = to_tensor(to_image(image), size)
    return found


def to_image(tensor: Tensor) -> Image.Image:
    """A picture from uint8 (3, H, W) in RGB."""
    return Image.fromarray(tensor.permute(1, 2, 0).contiguous().numpy())
