"""From whatever a picture file holds to 8-bit RGB: deep grey, palettes, transparency, colour spaces of printing."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageCms

DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras use of samples that are stored in 16
ROWS = 256  # of a picture that are converted at a time
FAINT = 32  # levels: what is drawn on transparent ground and differs less from white is shown on black
Array = np.ndarray[Any, np.dtype[Any]]


def shift(largest: float) -> int:
    """By how many bits the samples of a picture are shifted right to have 8, from its largest sample.

    Cameras store 10, 12 or 14 bits in the low part of 16. The depth is the smallest of `DEPTHS` that holds the largest
    sample, so that a picture of full range keeps its values; beyond 16 bits it is the number of bits needed.
    """
    return next((depth for depth in DEPTHS if largest < 1 << depth), int(largest).bit_length()) - 8


def native(image: Image.Image) -> Image.Image:
    """A picture of 16 bits in this machine's order of bytes: of others, as in some TIFF files, Pillow does little."""
    return Image.fromarray(np.asarray(image).astype(np.uint16)) if image.mode in ("I;16B", "I;16L") else image


def to_rgb(image: Image.Image, largest: float | None = None, low: Image.Image | None = None) -> Image.Image:
    """An image of any of Pillow's modes as RGB, 8 bits a channel, what is transparent on white.

    What is drawn in white or nearly so on transparent ground would vanish; such a picture is shown on black.
    `largest` is the largest sample of the whole picture, by default that of `image`. `low` holds the low bytes of a
    picture of 16 bits a channel, of which `image` holds the high ones. Floating-point samples are taken as in [0, 1] or
    0 to 255 if they lie there, negative ones as stretched from the least to the largest.
    """
    if image.mode == "RGB" and low is None and not image.has_transparency_data:
        return image
    if largest is None and image.mode.startswith("I"):
        largest = float(image.getextrema()[1])  # type: ignore[arg-type]
    for ground in ("white", "black"):
        rgb, transparent = _on(image, ground, largest, low)
        if not transparent or _spread(rgb) >= FAINT:
            return rgb
        del rgb  # so that only one is in memory at a time
    return _on(image, "white", largest, low)[0]


def _on(image: Image.Image, ground: str, largest: float | None, low: Image.Image | None) -> tuple[Image.Image, bool]:
    """An image as RGB on a `ground`, and whether the ground can be seen; some rows at a time, which saves memory."""
    result, transparent = Image.new("RGB", image.size, ground), False
    rows = image.height if image.mode == "F" else ROWS  # the range of floating-point samples is that of all of them
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb, alpha = _rgb_and_alpha(image.crop(box), largest, low.crop(box) if low else None)
        if alpha is None or alpha.getextrema() == (255, 255):
            result.paste(rgb, box)
        else:
            result.paste(rgb, box, mask=alpha)
            transparent = True
    return result, transparent


def _rgb_and_alpha(
    image: Image.Image, largest: float | None, low: Image.Image | None
) -> tuple[Image.Image, Image.Image | None]:
    """Colours of an image, "RGB", and what can be seen of them, "L"; None if it is all of it."""
    key = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        samples = np.asarray(image)
        grey = Image.fromarray(_from_float(samples) if image.mode == "F" else _from_deep(samples, largest))
        return grey.convert("RGB"), _seen(samples != key) if isinstance(key, int) else None
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
        assert converted is not None
        return converted, None
    if low is not None:
        return _from_two_bytes(image, low, largest, key)
    if image.mode in ("1", "L") and isinstance(key, int):
        grey = image.convert("L")
        return grey.convert("RGB"), grey.point([255 * (level != key) for level in range(256)])
    if image.mode == "RGB" and isinstance(key, tuple):
        return image, _seen((np.asarray(image) != np.array(key)).any(2))
    if image.has_transparency_data or image.mode in ("La", "PA", "RGBa"):
        whole = image if image.mode == "RGBA" else image.convert("LA" if image.mode == "La" else "RGBA")
        return whole.convert("RGB"), whole.getchannel("A")
    return image.convert("RGB"), None


def _seen(mask: Array) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _from_deep(samples: Array, largest: float | None) -> Array:
    """Grey of 8 bits from integers of more; negative ones are black."""
    bits = shift(samples.max() if largest is None else largest)
    grey: Array = np.clip(samples >> bits, 0, 255).astype(np.uint8)
    return grey


def _from_float(samples: Array) -> Array:
    finite = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    least, largest = float(finite.min()), float(finite.max())
    if least < 0:
        finite = (finite - least) * (255 / max(largest - least, 1e-30))
    elif largest <= 1:
        finite = finite * 255
    elif largest > 255:
        finite = finite * 0.5 ** shift(largest)
    grey: Array = np.clip(np.rint(finite), 0, 255).astype(np.uint8)
    return grey


def _from_two_bytes(
    high: Image.Image, low: Image.Image, largest: float | None, key: object
) -> tuple[Image.Image, Image.Image | None]:
    """Colours and alpha from the bytes of 16 bits a channel; of alpha the high ones are enough."""
    samples = np.asarray(high)[..., :3].astype(np.uint16) << 8
    samples |= np.asarray(low)[..., :3]
    rgb = Image.fromarray(_from_deep(samples, largest))
    if isinstance(key, tuple):
        return rgb, _seen((samples != np.array(key)).any(2))
    return rgb, high.getchannel("A") if high.mode == "RGBA" else None


def _spread(image: Image.Image) -> int:
    """Levels between the darkest and the lightest sample."""
    extrema = [limit for band in image.split() for limit in band.getextrema()]
    return int(max(extrema) - min(extrema))  # type: ignore[operator]
