import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tinycifar.data import idx, trees

from .test_folders import load

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def packed(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write(folder: Path, *, pack: bool = True, side: int = 28) -> dict[str, np.ndarray]:
    """A folder of 30 training and 20 test images; gives the arrays by file."""
    rng, arrays = np.random.default_rng(0), {}
    folder.mkdir()
    for count, (images, labels) in zip((30, 20), idx.FILES.values(), strict=True):
        arrays[images] = rng.integers(0, 256, (count, side, side), np.uint8)
        arrays[labels] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        content = packed(array)
        (folder / (name + ".gz" * pack)).write_bytes(gzip.compress(content) if pack else content)
    return arrays


@pytest.mark.parametrize("pack", [True, False])
def test_idx_files_are_loaded_in_their_order(tmp_path, pack):
    arrays = write(tmp_path / "digits", pack=pack)
    for _ in range(2):  # the second time from the cache
        loaded = load(tmp_path / "digits", 28)
        assert (loaded.name, loaded.path) == ("digits", str(tmp_path / "digits"))
        assert loaded.classes == tuple("0123456789")
        assert loaded.notes == (
            "The images are taken as stored; if they lie on their side, as EMNIST's do, use transposed=yes",
        )
        assert loaded.train_labels.tolist() == arrays[LABELS].tolist()
        assert loaded.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
        for channel in range(3):
            assert np.array_equal(loaded.train_images[:, channel].numpy(), arrays[IMAGES])
            assert np.array_equal(loaded.test_images[:, channel].numpy(), arrays["t10k-images-idx3-ubyte"])
        assert loaded.names["train"][17] == "train-images 17"
        assert loaded.names["test"][-1] == "t10k-images 19"


def test_packed_or_not_it_is_the_same_data_and_changed_it_is_not(tmp_path):
    write(tmp_path / "packed")
    arrays = write(tmp_path / "plain", pack=False)
    digest = load(tmp_path / "packed", 32).digest
    assert load(tmp_path / "plain", 32).digest == digest
    arrays[LABELS][0] = 9
    (tmp_path / "plain" / LABELS).write_bytes(packed(arrays[LABELS]))
    assert load(tmp_path / "plain", 32).digest != digest


NINE = np.full(30, 9, np.uint8)
GREY = np.zeros((30, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (LABELS, None, rf"has no {LABELS} or {LABELS}\.gz; all of these are needed: train-images"),
        (LABELS, packed(NINE + 1), "digits has no training image of 10 classes: 0, 1, 2, 3, 4 and 5 more"),
        (LABELS, packed(NINE[:29]), rf"has 30 images in {IMAGES}.*, but 29 labels"),
        (LABELS, packed(GREY), r"begins with 0x00000803, not 0x00000801"),
        (IMAGES, packed(NINE), r"begins with 0x00000801, not 0x00000803"),
        (IMAGES, packed(GREY, 0x0D03), r"begins with 0x00000d03"),
        (IMAGES, b"", r"begins with 0x00000000"),
        (IMAGES, packed(GREY)[:9], r"claims 30 x 0 x 0 bytes"),
        (IMAGES, packed(GREY[:0]), r"claims 0 x 28 x 28 bytes"),
        (IMAGES, packed(GREY[:, :20]), r"claims 30 x 20 x 28 bytes; allowed are images of 1 to 512 pixels a side"),
        (IMAGES, struct.pack(">4I", 0x803, 2, 513, 513), r"claims 2 x 513 x 513 bytes"),
        (
            IMAGES,
            struct.pack(">4I", 0x803, 2**22, 512, 512),
            r"claims 1,099,511,627,776 bytes, allowed are 1,073,741,824",
        ),
        (IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 1, 1), r"claims 4,294,967,295 bytes"),
        (IMAGES, packed(GREY)[:-1], r"damaged: 23,520 bytes behind its header were announced, only 23,519 are there"),
        (IMAGES, packed(GREY) + b"0", r"damaged: 23,520 bytes behind its header were announced, more are there"),
    ],
)
@pytest.mark.parametrize("pack", [True, False])
def test_files_that_are_not_as_announced_are_refused(tmp_path, name, content, words, pack):
    write(tmp_path / "digits", pack=pack)
    file = tmp_path / "digits" / (name + ".gz" * pack)
    file.unlink()
    if content is not None:
        file.write_bytes(gzip.compress(content) if pack else content)
    with pytest.raises(ValueError, match=words) as told:
        load(tmp_path / "digits", 32)
    assert len(str(told.value).splitlines()) == 1


def test_every_kind_of_damage_to_a_packed_file_is_refused(tmp_path):
    write(tmp_path / "digits")
    file = tmp_path / "digits" / f"{IMAGES}.gz"
    whole = file.read_bytes()
    tried = [whole[:place] for place in (1, 5, 30, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    tried += [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(400, 23_000, 600)]
    tried += [whole[:-6] + b"\0" + whole[-5:], b"no gzip file", whole + b"rest"]
    for content in tried:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is "):
            load(tmp_path / "digits", 32)


def test_a_packed_file_that_swells_is_not_read_to_its_end(tmp_path, monkeypatch):
    write(tmp_path / "digits")
    bomb = packed(GREY) + bytes(50_000_000)
    (tmp_path / "digits" / f"{IMAGES}.gz").write_bytes(gzip.compress(bomb))
    read, asked = gzip.GzipFile.read, []

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(ValueError, match="more are there"):
        load(tmp_path / "digits", 32)
    assert asked == [16, GREY.size + 1]


@pytest.mark.full_data
def test_the_real_fashion_mnist_is_known_by_its_bytes(fashion_mnist):
    hashes = {
        name: idx._read(trees.FolderTree(fashion_mnist), f"{name}.gz", idx.LABELS if "labels" in name else idx.IMAGES)[
            1
        ]
        for name in idx.FASHION_MNIST_SHA256
    }
    assert hashes == idx.FASHION_MNIST_SHA256


def test_fashion_mnists_bytes_have_its_names(tmp_path, monkeypatch):
    arrays = write(tmp_path / "digits")
    tree = trees.FolderTree(tmp_path / "digits")
    hashes = {name: idx._read(tree, name + ".gz", 0x800 + array.ndim)[1] for name, array in arrays.items()}
    monkeypatch.setattr(idx, "FASHION_MNIST_SHA256", hashes)
    assert load(tmp_path / "digits", 32).classes[::9] == ("T-shirt/top", "Ankle boot")


def rename(folder: Path, shape: str) -> None:
    """Files under other names, of which `shape` has what is "train" or "test", "images" or "labels", and "idx3"."""
    for split, names in idx.FILES.items():
        for name in names:
            kind, dimensions = ("images", "idx3") if "images" in name else ("labels", "idx1")
            (folder / f"{name}.gz").rename(folder / shape.format(split, kind, dimensions))


@pytest.mark.parametrize("shape", ["{}-{}.{}-ubyte.gz", "{}_{}-{}-ubyte.gz", "own-{}-{}-{}-ubyte.gz"])
def test_names_may_have_dots_and_a_word_before(tmp_path, shape):
    write(tmp_path / "digits")
    expected = load(tmp_path / "digits", 32).digest
    rename(tmp_path / "digits", shape)
    assert load(tmp_path / "digits", 32).digest == expected


def test_emnists_letters_are_turned_upright_and_named(tmp_path):
    arrays = write(tmp_path / "own")
    for labels in (name for name in arrays if "labels" in name):
        (tmp_path / "own" / f"{labels}.gz").write_bytes(gzip.compress(packed(arrays[labels] + 1)))
    plain = load(tmp_path / "own", 28)
    assert plain.classes == tuple(map(str, range(1, 11)))
    assert torch.equal(load(Path(f"{tmp_path / 'own'}?transposed=yes"), 28).train_images, plain.train_images.mT)
    rename(tmp_path / "own", "emnist-letters-{}-{}-{}-ubyte.gz")
    letters = load(tmp_path / "own", 28)
    assert letters.classes == tuple("ABCDEFGHIJ")
    assert torch.equal(letters.train_images, plain.train_images.mT)
    assert torch.equal(letters.train_labels, plain.train_labels)
    assert letters.notes == (
        "The images are transposed (EMNIST stores them so; transposed=no leaves them as they are)",
    )
    stored = load(Path(f"{tmp_path / 'own'}?transposed=no"), 28)
    assert torch.equal(stored.train_images, plain.train_images)


def test_of_several_data_sets_one_is_named_by_a_file(tmp_path):
    write(tmp_path / "own")
    rename(tmp_path / "own", "emnist-digits-{}-{}-{}-ubyte.gz")
    write(tmp_path / "more")
    rename(tmp_path / "more", "kmnist-{}-{}-{}-ubyte.gz")
    for file in (tmp_path / "more").iterdir():
        file.rename(tmp_path / "own" / file.name)
    with pytest.raises(ValueError, match="own has 2 data sets: emnist-digits, kmnist; name one of its files, as "):
        load(tmp_path / "own", 32)
    assert load(tmp_path / "own/kmnist-train-images-idx3-ubyte.gz").classes[1] == "ki"
    assert load(tmp_path / "own/emnist-digits-test-labels-idx1-ubyte.gz").classes == tuple("0123456789")


def test_a_file_that_is_named_may_lie_there_packed_and_unpacked_and_needs_the_name_of_a_split(tmp_path):
    arrays = write(tmp_path / "own")
    (tmp_path / "own" / IMAGES).write_bytes(packed(arrays[IMAGES]))
    for name in (IMAGES, f"{IMAGES}.gz"):
        assert load(tmp_path / "own" / name).classes == tuple("0123456789")
    (tmp_path / "own" / IMAGES).rename(tmp_path / "own/mine-images-idx3-ubyte")
    with pytest.raises(
        ValueError, match="own/mine-images-idx3-ubyte has no split in its name; name it like train-images-idx3-"
    ):
        load(tmp_path / "own/mine-images-idx3-ubyte")
