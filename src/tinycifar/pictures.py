"""From picture files to what a model sees."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `paths` name, and those with a suffix of `SUFFIXES` in folders that they name, however deep.

    In the order of `paths`, those of a folder sorted; hidden ones are left out. Raises ValueError for a path that does
    not exist and for a folder without such a file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if _is_picture(file, path)]
            if not inside:
                raise ValueError(f"the folder {path} holds no file that ends in {', '.join(SUFFIXES)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist; name pictures or folders of pictures")
    return found


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()


def read_square(path: str | Path) -> Image.Image:
    """The central square of a PNG, JPEG or WebP file, turned upright, as RGB of 8 bits.

    Of an animation it is the first frame. Transparent parts become white; grey, 16-bit, palette and CMYK pictures RGB.
    Raises ValueError, naming the file, if it cannot be read as one of these formats or has more pixels than Pillow
    holds safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                picture = _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"cannot read {path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        raise ValueError(f"cannot read {path}: {reason}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def to_tensor(square: Image.Image, size: int = 32) -> Tensor:
    """A square RGB picture as uint8 (3, size, size), resized with antialiasing."""
    # Cropped before: with `box`, or `ImageOps.fit`, the filter would mix in pixels from outside the crop.
    resized = square.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def to_image(tensor: Tensor) -> Image.Image:
    """A picture from uint8 (3, H, W) in RGB."""
    return Image.fromarray(tensor.permute(1, 2, 0).contiguous().numpy())
