import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from conftest import encoded
from tinycifar import data
from tinycifar.data import pictures


def png(
    depth: int, kind: int, row: bytes, *chunks: tuple[bytes, bytes], size: tuple[int, int] = (32, 32), rows: int = 32
) -> bytes:
    """A PNG of `size` with `rows` rows that are all the same, written out, as Pillow writes few kinds."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * rows, 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*part) for part in chunks) + body + chunk(b"IEND", b"")


def decode(content: bytes, fit: str = "crop", size: int = 32) -> np.ndarray:
    return pictures.decode(content, contextlib.nullcontext, size, fit)


def read(path: Path) -> torch.Tensor:
    return pictures.to_tensor(pictures.read(path))


def test_a_cifar_image_saved_as_png_is_read_back_to_the_pixel(tmp_path):
    image = data.sample().test_images[0]
    pictures.to_image(image).save(tmp_path / "image.png")
    assert torch.equal(read(tmp_path / "image.png"), image)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setitem(pictures.MOST_PIXELS, "PNG", 1000)
    with pytest.raises(ValueError, match=r"large\.png: 1,600 pixels, allowed are 1,000 in a PNG"):
        read(tmp_path / "large.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = pictures.to_image(data.sample().test_images[0])
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert torch.equal(read(tmp_path / "turned.png"), pictures.to_tensor(expected))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(3)])
def test_a_picture_with_damaged_notes_is_read_all_the_same(tmp_path, exif):
    Image.new("RGB", (32, 32), (9, 99, 199)).save(tmp_path / "odd.png", exif=exif)
    assert read(tmp_path / "odd.png")[:, 3, 3].tolist() == [9, 99, 199]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders there")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: no file"):
        read(tmp_path / "pipe.png")


def test_a_dangling_link_in_a_folder_is_named_when_it_is_read_and_loops_are_not_followed(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (found,) = pictures.find([tmp_path])
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        read(found)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "half.png").write_bytes(encoded(pictures.to_image(data.sample().test_images[0]), "PNG")[:1000])
    Image.new("RGB", (4, 4)).save(tmp_path / "other.ico")
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "notes.png": "notes.png: no PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM or AVIF image",
        "cut.png": "cut.png: no PNG, JPEG",
        "half.png": "half.png: it is damaged",
        "other.ico": "other.ico: no PNG, JPEG",
        "folder.png": "folder.png: no file",
        "none.png": "none.png: No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, format):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving.{format.lower()}"
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(path, format, save_all=True, append_images=frames[1:], **options)
    assert read(path)[:, 5, 5].tolist() == [255, 0, 0]


def test_cmyk_is_converted_not_taken_for_rgb(tmp_path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = read(tmp_path / "red.jpg")[:, 16, 16].tolist()
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


def test_folders_are_searched_for_pictures_however_deep_and_hidden_files_left_out(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / ".hidden").mkdir()
    names = ["a/b.PNG", "a/deep/c.jpeg", "a/a.webp", "a/notes.txt", "a/.d.png", "a/.hidden/e.png", "single.doc"]
    for name in names:
        (tmp_path / name).touch()
    found = pictures.find([tmp_path / "single.doc", tmp_path / "a"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["single.doc", *sorted(names[:3])]


def test_a_missing_path_and_a_folder_without_pictures_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty holds no picture \(\.png, \.jpg"):
        pictures.find([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        pictures.find([tmp_path / "none.png"])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["L", "LA", "RGB", "RGBA", "TIFF"])
def test_deep_pictures_that_use_few_bits_are_as_light_as_those_that_use_all(bits, kind):
    levels = np.linspace(0, 2**bits - 1, 32).astype(np.uint16)
    seen = {
        "L": lambda: decode(png(16, 0, levels.astype(">u2").tobytes())),
        "LA": lambda: decode(png(16, 4, np.stack([levels, np.full(32, 65535)], 1).astype(">u2").tobytes())),
        "RGB": lambda: decode(png(16, 2, np.stack([levels] * 3, 1).astype(">u2").tobytes())),
        "RGBA": lambda: decode(png(16, 6, np.stack([levels] * 3 + [np.full(32, 65535)], 1).astype(">u2").tobytes())),
        "TIFF": lambda: decode(encoded(Image.fromarray(np.tile(levels, (32, 1))), "TIFF")),
    }[kind]()
    assert np.array_equal(seen, np.broadcast_to(levels >> bits - 8, (3, 32, 32)))


def test_a_dark_picture_of_full_range_keeps_its_values():
    levels = np.arange(32, dtype=np.uint16) * 600  # up to 18,600 of 65,535
    assert np.array_equal(decode(png(16, 0, levels.astype(">u2").tobytes()))[0, 0], levels >> 8)
    grey = b"P5 32 32 65535\n" + (np.tile(levels // 100, (32, 1))).astype(">u2").tobytes()
    assert decode(grey).max() == 0  # a PGM says what white is


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.4, 255.0], [0, 100, 255]), ([-1.0, 0.0, 1.0], [0, 128, 255]),
     ([0.0, 32768.0, 65535.0], [0, 128, 255]), ([0.0, float("nan"), 1.0], [0, 0, 255])],
)  # fmt: skip
def test_floating_point_pictures_are_seen_in_their_range(values, expected):
    image = Image.fromarray(np.repeat(np.array([values] * 3, np.float32), 16, 1)[:3].repeat(16, 0))
    assert decode(encoded(image, "TIFF"), size=48)[0, 24, [8, 24, 40]].tolist() == expected


DEEP = b"\x12\x34\x56\x78\x9a\xbc"


@pytest.mark.parametrize(
    ("content", "left", "right"),
    [
        (png(8, 0, bytes([40] * 16 + [200] * 16), (b"tRNS", b"\0\x28")), 255, [200] * 3),
        (png(4, 0, bytes([0x33] * 8 + [0xCC] * 8), (b"tRNS", b"\0\3")), 255, [204] * 3),
        (png(2, 0, bytes([0x55] * 4 + [0xAA] * 4), (b"tRNS", b"\0\1")), 255, [170] * 3),
        (png(1, 0, b"\xff\xff\0\0", (b"tRNS", b"\0\1")), 255, [0] * 3),
        (png(1, 0, b"\0\0\xff\xff", (b"tRNS", b"\0\0")), 0, [255] * 3),  # white on nothing: shown on black
        (png(16, 0, b"\x12\x34" * 16 + b"\xc0\0" * 16, (b"tRNS", b"\x12\x34")), 255, [192] * 3),
        (png(8, 2, b"\1\2\3" * 16 + b"\xff\0\0" * 16, (b"tRNS", b"\0\1\0\2\0\3")), 255, [255, 0, 0]),
        (png(16, 2, DEEP * 16 + b"\x12\x35" + DEEP[2:] + DEEP * 15, (b"tRNS", DEEP)), 255, [255] * 3),
        (png(16, 2, DEEP * 16 + (b"\x12\x35" + DEEP[2:]) * 16, (b"tRNS", DEEP)), 255, [0x12, 0x56, 0x9A]),
        (png(4, 3, b"\0" * 8 + b"\x11" * 8, (b"PLTE", b"\1\1\1\xff\0\0"), (b"tRNS", b"\0")), 255, [255, 0, 0]),
        (png(8, 3, b"\0" * 16 + b"\1" * 16, (b"PLTE", bytes(6)), (b"tRNS", b"\0\x80")), 255, [127] * 3),
        (png(8, 4, bytes([0, 0] * 16 + [100, 255] * 16)), 255, [100] * 3),
        (png(16, 4, b"\xff\xff\0\0" * 16 + b"\x40\0\xff\xff" * 16), 255, [64] * 3),
        (png(16, 6, b"\xff\xff\0\0\0\0\0\0" * 16 + b"\xff\xff\0\0\0\0\xff\xff" * 16), 255, [255, 0, 0]),
        (png(8, 4, bytes([255, 0] * 16 + [255, 255] * 16)), 0, [255] * 3),
        (png(8, 6, bytes([0, 0, 0, 0] * 16 + [240, 240, 250, 255] * 16)), 0, [240, 240, 250]),
        (png(8, 6, bytes([0, 0, 0, 0] * 16 + [200, 240, 250, 255] * 16)), 255, [200, 240, 250]),
    ],
)  # fmt: skip
def test_what_is_transparent_is_white_unless_the_rest_would_vanish(content, left, right):
    seen = decode(content)
    assert seen[:, 16, 4].tolist() == [left] * 3
    assert seen[:, 16, 28].tolist() == right


def test_a_gif_with_a_transparent_colour_is_on_white():
    image = Image.new("P", (32, 32))
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(1, (16, 0, 32, 32))
    assert decode(encoded(image, "GIF", transparency=0))[:, 5, [4, 28]].T.tolist() == [[255] * 3, [0, 0, 255]]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "LA"), ("PNG", "1"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "CMYK"),
     ("WEBP", "RGB"), ("WEBP", "RGBA"),
     ("BMP", "RGB"), ("BMP", "P"), ("BMP", "1"), ("GIF", "P"), ("GIF", "L"), ("TIFF", "RGB"), ("TIFF", "CMYK"),
     ("TIFF", "LAB"), ("TIFF", "YCbCr"), ("TIFF", "1"), ("TIFF", "P"), ("TIFF", "RGBA"), ("TIFF", "I"),
     ("TIFF", "I;16"), ("PPM", "RGB"), ("PPM", "L"), ("PPM", "1"), ("AVIF", "RGB"), ("AVIF", "RGBA")],
)  # fmt: skip
def test_formats_and_modes_are_recognised_by_their_content(tmp_path, kind, mode):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = 255
    image = Image.fromarray(picture)
    if mode == "LAB":
        image = Image.merge("LAB", (image.getchannel(0), *[Image.new("L", (32, 32), 128)] * 2))
    elif mode.startswith("I"):
        image = Image.fromarray(picture[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        image = image.convert(mode)
    options = {"quality": 90} if kind in ("AVIF", "JPEG", "WEBP") else {}
    (tmp_path / "unnamed").write_bytes(encoded(image, kind, **options))
    assert pictures.is_picture(tmp_path / "unnamed")
    seen = read(tmp_path / "unnamed")
    assert seen[:, :, :12].max() <= 12
    assert seen[:, :, 20:].min() >= 243


def test_sixteen_bits_may_be_stored_in_the_other_order_of_bytes(tmp_path):
    levels = np.arange(32 * 40).reshape(32, 40) % 1024
    image = Image.frombytes("I;16B", (40, 32), levels.astype(">u2").tobytes())
    image.save(tmp_path / "other.tif")
    with Image.open(tmp_path / "other.tif") as stored:
        assert stored.mode == "I;16B"
    for found in (pictures.read(tmp_path / "other.tif"), pictures.upright(image)):
        assert np.array_equal(np.asarray(found)[..., 0], levels[:, 4:36] >> 2)


def test_a_picture_in_memory_without_pixels_is_refused():
    with pytest.raises(ValueError, match="the picture has no pixels: its size is 0 x 5"):
        pictures.upright(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "content", [b"", b"BM is the name of a band", b"P2P networks", b"<html>", b"GIF", b"RIFFxxxxWAVE"]
)
def test_other_files_are_no_pictures(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert not pictures.is_picture(tmp_path / "file")
    assert pictures.is_picture(tmp_path / "named.JFIF")
    assert not pictures.is_picture(tmp_path)
    assert not pictures.is_picture(tmp_path / "missing")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_read_and_one_that_is_cut_off_is_not(progressive):
    image = pictures.to_image(data.sample().test_images[3]).resize((80, 60))
    content = encoded(image, "JPEG", quality=90, progressive=progressive)
    expected = decode(content)
    for part in (content[:-2], content[:-1]):
        seen, lacks_end, _ = pictures.decode_reported(part, contextlib.nullcontext, 32, "crop")
        assert np.array_equal(seen, expected)
        assert lacks_end
    assert not pictures.decode_reported(content, contextlib.nullcontext, 32, "crop").lacks_end
    assert not pictures.decode_reported(content + b"more", contextlib.nullcontext, 32, "crop").lacks_end
    for size in (300, len(content) // 2, len(content) - 40):
        with pytest.raises(ValueError, match="it is damaged"):
            decode(content[:size])


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read(tmp_path / "a.png")
    with pytest.raises(MemoryError):
        decode((tmp_path / "a.png").read_bytes())


def test_a_wide_picture_is_cropped_padded_or_squashed():
    picture = np.zeros((16, 64, 3), np.uint8)
    picture[:, :16, 0] = 255
    picture[:, 48:, 2] = 255
    content = encoded(Image.fromarray(picture), "PNG")
    assert (decode(content) == 0).all()
    padded, squashed = decode(content, "pad"), decode(content, "squash")
    assert (padded[:, :12] == 128).all()
    assert (padded[:, 20:] == 128).all()
    assert padded[:, 16, [3, 28]].T.tolist() == [[255, 0, 0], [0, 0, 255]]
    assert squashed[:, 16, [3, 28]].T.tolist() == [[255, 0, 0], [0, 0, 255]]
    assert np.array_equal(squashed[:, 0], squashed[:, 31])
    assert np.array_equal(
        decode(encoded(Image.fromarray(picture[:, :1]), "PNG"), "pad", 9)[:, 4, [0, 4]].T, [[128] * 3, [255, 0, 0]]
    )
    with pytest.raises(ValueError, match="unknown fit 'bend'; allowed are: crop, pad, squash"):
        decode(content, "bend")


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_square_picture_is_the_same_in_every_fit(fit):
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)), "PNG")
    assert np.array_equal(decode(content, fit), decode(content))
