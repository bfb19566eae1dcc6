import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tinycifar import data
from tinycifar.data import pictures


def read(path: Path) -> torch.Tensor:
    return pictures.to_tensor(pictures.read_square(path))


def test_a_cifar_image_saved_as_png_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    image = data.sample().test_images[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    assert torch.equal(read(tmp_path / "image.png"), image)


def test_a_large_picture_is_cropped_to_its_centre_and_reduced(tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 32:96] = 200  # the central square; all else is outside
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (read(tmp_path / "wide.png") == 200).all()


def test_a_picture_is_turned_upright_as_its_camera_noted(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    seen = read(tmp_path / "turned.png")
    assert (seen[:, :16] == 0).all()
    assert (seen[:, 16:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_pictures_of_other_modes_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (40, 40), (250, 250, 250)).convert(mode).save(path)
    assert read(path).float().mean() > 240


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 128 * 256 + 7, np.uint16)).save(tmp_path / "deep.png")
    assert (read(tmp_path / "deep.png") == 128).all()


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 16))
    picture.save(tmp_path / "half.png")
    seen = read(tmp_path / "half.png")
    assert (seen[:, :16] == 255).all()
    assert seen[:, 20, 20].tolist() == [255, 0, 0]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setitem(pictures.MOST_PIXELS, "PNG", 1000)
    with pytest.raises(ValueError, match=r"large\.png: 1,600 pixels, allowed are 1,000 in a PNG"):
        read(tmp_path / "large.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = pictures.to_image(data.sample().test_images[0])
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert torch.equal(read(tmp_path / "turned.png"), pictures.to_tensor(expected))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(3)])
def test_a_picture_with_damaged_notes_is_read_all_the_same(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (32, 32), (9, 99, 199)).save(tmp_path / "odd.png", exif=exif)
    assert read(tmp_path / "odd.png")[:, 3, 3].tolist() == [9, 99, 199]


def test_sixteen_bit_grey_may_have_a_transparent_level(tmp_path: Path) -> None:
    picture = np.full((32, 32), 128 * 256, np.uint16)
    picture[:16] = 7 * 256
    Image.fromarray(picture).save(tmp_path / "deep.png", transparency=7 * 256)
    seen = read(tmp_path / "deep.png")
    assert (seen[:, :16] == 255).all()
    assert (seen[:, 16:] == 128).all()


def test_a_picture_that_is_cut_off_is_called_damaged(tmp_path: Path) -> None:
    pictures.to_image(data.sample().test_images[0]).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.png: it is damaged"):
        read(tmp_path / "cut.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders there")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: no file"):
        read(tmp_path / "pipe.png")


def test_a_dangling_link_in_a_folder_is_named_when_it_is_read_and_loops_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (found,) = pictures.find([tmp_path])
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        read(found)


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.gif")
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "notes.png": "notes.png: no PNG, JPEG or WEBP image",
        "cut.png": "cut.png: no PNG, JPEG or WEBP image",
        "other.gif": "other.gif: no PNG, JPEG or WEBP image",
        "folder.png": "folder.png: no file",
        "none.png": "none.png: No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving.{format.lower()}"
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(path, format, save_all=True, append_images=frames[1:], **options)
    assert read(path)[:, 5, 5].tolist() == [255, 0, 0]


def test_a_webp_and_a_palette_picture_keep_their_colours(tmp_path: Path) -> None:
    Image.new("RGB", (70, 50), (10, 200, 30)).save(tmp_path / "a.webp", lossless=True)
    Image.new("RGB", (70, 50), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "b.png")
    for name in ("a.webp", "b.png"):
        assert read(tmp_path / name)[:, 16, 16].tolist() == [10, 200, 30]


def test_cmyk_is_converted_not_taken_for_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = read(tmp_path / "red.jpg")[:, 16, 16].tolist()
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


def test_folders_are_searched_for_pictures_however_deep_and_hidden_files_left_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / ".hidden").mkdir()
    names = ["a/b.PNG", "a/deep/c.jpeg", "a/a.webp", "a/notes.txt", "a/.d.png", "a/.hidden/e.png", "single.gif"]
    for name in names:
        (tmp_path / name).touch()
    found = pictures.find([tmp_path / "single.gif", tmp_path / "a"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["single.gif", *sorted(names[:3])]


def test_a_missing_path_and_a_folder_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty holds no file that ends in \.png, \.jpg"):
        pictures.find([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        pictures.find([tmp_path / "none.png"])


def test_a_tensor_and_its_picture_are_the_same() -> None:
    image = data.sample().test_images[1]
    assert torch.equal(pictures.to_tensor(pictures.to_image(image)), image)
