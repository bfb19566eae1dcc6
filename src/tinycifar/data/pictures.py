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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from tinycifar.catalog import FITS
from tinycifar.data import colours
from tinycifar.typed import check_choice

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
WEB = ("PNG", "JPEG", "WEBP")  # what a service decodes for strangers
PADDING = (128, 128, 128)
# What is larger is refused before it is decoded: within these limits, decoding takes less than 300 MB.
MOST_BYTES = 50_000_000
MOST_PIXELS = {
    "PNG": 4096 * 4096,
    "WEBP": 8_000_000,
    "JPEG": 50_000_000,
    "BMP": 4096 * 4096,
    "GIF": 4096 * 4096,
    "TIFF": 8_000_000,
    "PPM": 8_000_000,
    "AVIF": 8_000_000,
}
# Of a JPEG in several scans, progressive or not, whose decoder holds all values, two bytes each, and takes its time
# for each scan; encoders write about ten.
MOST_COEFFICIENTS = 75_000_000
MOST_SCANS = 64
MANY_PIXELS = 2_000_000
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".jfif", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif",
)  # fmt: skip
_SIGNATURES = re.compile(  # what a file begins with that is a picture whatever its name; strict, as text may begin so
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|P[1-6]\n[#0-9]|....ftypavi[fs]|"
    rb"BM....\0\0\0\0...\0[\x0c\x28\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
PNG_NOTES = ("exif", "Raw profile type exif", "Raw profile type APP1", "XML:com.adobe.xmp", "xmp")  # may have a turn
TURNS = {  # by EXIF's orientation; written out, as Pillow's own turning rewrites all EXIF and fails where it is odd
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_picture(path: str | Path) -> bool:
    """Whether a file's name ends as a picture's, or its content begins as one's; False for what cannot be read."""
    if str(path).lower().endswith(SUFFIXES):
        return True
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return False
        with Path(path).open("rb") as file:
            return begins_as_picture(file.read(32))
    except OSError:
        return False


def begins_as_picture(head: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of a picture."""
    return _SIGNATURES.match(head) is not None


def find(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `paths` name, and the pictures (`is_picture`) in folders that they name, however deep.

    In the order of `paths`, those of a folder sorted; hidden ones are left out, links to folders not followed. Raises
    ValueError for a path that does not exist and for a folder without such a file, OSError for one that cannot be read.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir() and str(name):
            inside = sorted(_inside(path))
            if not inside:
                raise ValueError(f"the folder {path} holds no picture ({', '.join(SUFFIXES)})")
            files += inside
        elif path.exists() and str(name):
            files.append(path)
        else:
            raise ValueError(f"{name or 'an empty name'} does not exist; name pictures or folders of pictures")
    return files


def _inside(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and is_picture(Path(root, name)):
                yield Path(root, name)


def read(path: str | Path, fit: str = "crop") -> Image.Image:
    """A picture file, turned upright, as RGB of 8 bits: its central square if `fit` is "crop", else all of it.

    Of an animation it is the first frame. Transparent parts are white (`tinycifar.data.colours`); grey, deep, palette
    and CMYK pictures become RGB. Large JPEGs are decoded at a half, quarter or eighth of their size; one that lacks
    only its end marker is read. Raises ValueError, naming the file, if it cannot be read as one of `FORMATS` or has
    more bytes or pixels than `MOST_BYTES` and `MOST_PIXELS`.
    """
    check_choice("fit", fit, FITS)
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise _Refused("no file")  # a pipe would be waited for
        if about.st_size > MOST_BYTES:
            raise _Refused(f"{about.st_size:,} bytes, allowed are {MOST_BYTES:,}")
        return _read(Path(path).read_bytes(), fit)[0][0]
    except MemoryError:
        raise
    except Exception as error:  # decoders of strangers' bytes raise many kinds, and each means the same here
        raise ValueError(f"cannot read {path}: {_reason(error)}") from None


def decode(
    content: bytes,
    alone: Callable[[], contextlib.AbstractContextManager[object]],
    size: int = 32,
    fit: str = "crop",
    formats: Sequence[str] = FORMATS,
    channels: int = 3,
) -> Pixels:
    """What a model sees of a file's content, uint8 (channels, size, size); else as `read`.

    What `alone` gives is held while more than `MANY_PIXELS` are decoded. Raises ValueError.
    """
    return decode_reported(content, alone, size, fit, formats, channels).pixels


class Decoded(NamedTuple):
    """Pixels, whether the file is a JPEG that lacks its end marker, and the share of its area that was cropped away."""

    pixels: Pixels
    lacks_end: bool
    cropped: float


def decode_reported(
    content: bytes,
    alone: Callable[[], contextlib.AbstractContextManager[object]],
    size: int,
    fit: str,
    formats: Sequence[str] = FORMATS,
    channels: int = 3,
) -> Decoded:
    """As `decode`, and what was odd."""
    check_choice("fit", fit, FITS)
    try:
        if len(content) > MOST_BYTES:
            raise _Refused(f"{len(content):,} bytes, allowed are {MOST_BYTES:,}")
        with contextlib.ExitStack() as held:
            (image, cropped), lacks_end = _read(content, fit, lambda: held.enter_context(alone()), formats)
            return Decoded(to_array(image, size, fit, channels), lacks_end, cropped)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"cannot read the picture: {_reason(error)}") from None


def _read(
    content: bytes, fit: str, large: Callable[[], object] = lambda: None, formats: Sequence[str] = FORMATS
) -> tuple[tuple[Image.Image, float], bool]:
    """As `read`, with the share of its area that was cropped away, and whether an end marker is missing.

    `large` is called before more than `MANY_PIXELS` are decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd but readable metadata, and of pixels, which are counted here
        try:
            return _upright(content, fit, large, formats), _lacks_end(content)
        except OSError:
            if not content.startswith(b"\xff\xd8\xff"):
                raise
            # The rest of a picture that lacks its end marker only does not depend on what follows.
            body = content.removesuffix(b"\xff")
            first, second = (
                _upright(body + end, fit, large, formats) for end in (b"\xff\xd9", b"\x55" * 64 + b"\xff\xd9")
            )
            if first[0].tobytes() != second[0].tobytes():
                raise
            return first, True


def _lacks_end(content: bytes) -> bool:
    """Whether a file is a JPEG without an end marker behind its last scan."""
    return content.startswith(b"\xff\xd8\xff") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")


def _upright(
    content: bytes, fit: str, large: Callable[[], object], formats: Sequence[str]
) -> tuple[Image.Image, float]:
    """A picture turned upright, and the share of its area that was cropped away."""
    try:
        opened = Image.open(io.BytesIO(content), formats=tuple(formats))
    except UnidentifiedImageError:
        raise _Refused(f"no {', '.join(formats[:-1])} or {formats[-1]} image") from None
    with opened as image:
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
        raw_mode = _raw_mode(image)
        if kind == "PNG" and raw_mode == "LA;16B":
            _set_raw_mode(image, "RGBA")  # both bytes of grey, both of alpha
        image.load()
        turn = TURNS.get(_orientation(image))
        native = colours.native(image)
        largest = _largest(native, kind, raw_mode)
        box = _box(image, fit)
        part = fitted(native, fit)  # first, as the rest costs memory by size
    low, cropped = None, 1 - part.width * part.height / (image.width * image.height)
    if kind == "PNG":
        part, low = _deep(part, content, raw_mode, largest, box)
    rgb = colours.to_rgb(part, largest, low)
    return rgb if turn is None else rgb.transpose(turn), cropped


def _raw_mode(image: Image.Image) -> str:
    """How the decoder lays out samples: "RGB;16B" of 16 bits a channel, most significant byte first."""
    tiles = getattr(image, "tile", [])
    args = tiles[0].args if tiles else ""
    return str(args if isinstance(args, str) else args[0]) if args else ""


def _set_raw_mode(image: Image.Image, raw_mode: str) -> None:
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]  # type: ignore[attr-defined]


def _largest(image: Image.Image, kind: str, raw_mode: str) -> float | None:
    """The largest sample of a picture that may have more than 8 bits, from all of it; None of others."""
    if image.mode.startswith("I"):
        if kind == "PPM":
            return 65_535.0  # the file says what white is, and Pillow scales by it
        return float(image.getextrema()[1])  # type: ignore[arg-type]
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        return 256.0 * max(band.getextrema()[1] for band in image.split()[:3]) + 255  # type: ignore[operator]
    if raw_mode == "LA;16B":
        high, low = image.split()[:2]
        most = high.getextrema()[1]
        return 256.0 * most + (255 if most else low.getextrema()[1])  # type: ignore[operator]
    return None


def _deep(
    part: Image.Image, content: bytes, raw_mode: str, largest: float | None, box: tuple[int, int, int, int]
) -> tuple[Image.Image, Image.Image | None]:
    """A part of a PNG as `colours.to_rgb` takes it, and its low bytes if they matter: Pillow keeps the high ones."""
    key = part.info.get("transparency")
    if raw_mode in ("L;2", "L;4") and isinstance(key, int):  # as stored, while Pillow has scaled the samples
        part.info["transparency"] = key * 255 // (2 ** int(raw_mode[2:]) - 1)
    if raw_mode == "LA;16B":
        high, low, alpha, _ = part.split()
        return Image.merge("RGBA", (high, high, high, alpha)), Image.merge("RGB", (low, low, low))
    if raw_mode in ("RGB;16B", "RGBA;16B") and (isinstance(key, tuple) or colours.shift(largest or 0) < 8):
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            _set_raw_mode(image, raw_mode.replace("16B", "16L"))  # read as if the other byte came first
            return part, image.crop(box)
    return part, None


def upright(image: Image.Image, fit: str = "crop") -> Image.Image:
    """A picture in memory as `read` gives that of its file: RGB of 8 bits, turned upright, cropped if `fit` says so."""
    check_choice("fit", fit, FITS)
    if min(image.size) < 1:
        raise ValueError(f"the picture has no pixels: its size is {image.width} x {image.height}")
    turn = TURNS.get(_orientation(image))
    image = colours.native(image)
    rgb = colours.to_rgb(fitted(image, fit), float(image.getextrema()[1]) if image.mode.startswith("I") else None)  # type: ignore[arg-type]
    return rgb if turn is None else rgb.transpose(turn)


def _scans(content: bytes) -> int:
    """How many scans the first picture of a JPEG file has; no more than one over `MOST_SCANS` are counted."""
    count, position = 0, 2
    while count <= MOST_SCANS and (match := _MARKER.search(content, position)):
        marker = match[0][-1]
        if marker == 0xD9:  # the end
            break
        count += marker == 0xDA
        position = match.end() + int.from_bytes(content[match.end() : match.end() + 2], "big")
    return count


_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # before a segment with a length; others have none


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own check, while the file is opened
        return f"far more pixels than the {max(MOST_PIXELS.values()):,} allowed"
    if isinstance(error, _Refused):
        return str(error)
    return getattr(error, "strerror", None) or "it is damaged"


class _Refused(Exception):  # noqa: N818  (becomes a ValueError with the file's name)
    """A file over a limit."""


def _orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF has it; 1, upright, where that is missing or damaged."""
    if image.format == "PNG" and image.info.keys().isdisjoint(PNG_NOTES):
        return 1  # to ask for EXIF takes a tenth of the time of a small picture
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # decoders, as above; a picture can be seen without its notes
        return 1


def _box(image: Image.Image, fit: str) -> tuple[int, int, int, int]:
    """What is seen of a picture, as left, top, right and bottom: its central square if `fit` is "crop", else all."""
    if fit != "crop":
        return 0, 0, image.width, image.height
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def fitted(image: Image.Image, fit: str) -> Image.Image:
    """The central square of a picture if `fit` is "crop", else all of it; `to_array` does the rest."""
    return image if fit != "crop" or image.width == image.height else image.crop(_box(image, fit))


def to_array(image: Image.Image, size: int = 32, fit: str = "crop", channels: int = 3) -> Pixels:
    """An RGB picture as uint8 (channels, size, size), resized with antialiasing.

    With "crop" it is square already, with "squash" both sides are resized to `size`; with "pad" it keeps its
    proportions and lies in the middle of a square of grey, `PADDING`. For one channel it becomes grey at the end, by
    Pillow's "L".
    """
    # Cropped before: with `box`, or `ImageOps.fit`, the filter would mix in pixels from outside the crop.
    longer = max(image.size)
    width, height = (
        (max(1, (2 * side * size + longer) // (2 * longer)) if fit == "pad" else size) for side in image.size
    )
    if image.width != image.height:  # Pillow would choose by the proportions whether rows or columns come first
        image = image.resize((width, image.height), Image.Resampling.LANCZOS)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    if (width, height) != (size, size):
        padded = Image.new("RGB", (size, size), PADDING)
        padded.paste(resized, ((size - width) // 2, (size - height) // 2))
        resized = padded
    if channels == 1:
        resized = resized.convert("L")
    return np.array(np.atleast_3d(np.asarray(resized)).transpose(2, 0, 1), order="C")


def to_tensor(image: Image.Image, size: int = 32, fit: str = "crop", channels: int = 3) -> Tensor:
    """As `to_array`, a tensor."""
    import torch  # not before: `tinycifar predict` does without it

    return torch.from_numpy(to_array(image, size, fit, channels))


def to_image(tensor: Tensor) -> Image.Image:
    """An RGB picture from uint8 (3, H, W), or (1, H, W) in grey."""
    return Image.fromarray(tensor.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
