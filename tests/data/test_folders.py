import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinycifar import data
from tinycifar.data import pictures, trees
from tinycifar.data.dataset import Dataset


def draw(file: Path, level: int, size: tuple[int, int] = (8, 8)) -> None:
    """A picture whose pixels are all of `level`, but for one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (level % 256, level // 256, 7))
    image.putpixel((0, 0), (level % 256 ^ 128, level // 256, 7))  # else it would have no contrast
    image.save(file)


def fill(folder: Path, counts: dict[str, int], first: int = 0) -> None:
    for kind, count in counts.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            draw(folder / kind / f"{index:03}.png", first + index)
        first += count


def load(source: Path | str, image_size: int = 8) -> Dataset:
    return data.load(source, image_size=image_size)


def layout(source: Path | str) -> str:
    contents = data.examine(source)
    return contents.layout


def refused(source: Path | str, words: str) -> None:
    """Assert that loading raises one line with `words`, and keeps nothing."""
    before = set(Path("cache").glob("decoded/*.npy"))
    with pytest.raises(ValueError, match=words) as told:
        load(source)
    assert len(str(told.value).splitlines()) == 1
    assert set(Path("cache").glob("decoded/*.npy")) == before


def assert_is_read(folder: Path, loaded: Dataset) -> None:
    """Assert that each image is what `pictures.read` gives of the file that it is called after."""
    for split, names in loaded.names.items():
        for name, image in zip(names, loaded.images(split), strict=True):
            assert torch.equal(image, pictures.to_tensor(pictures.read(folder / name), loaded.image_size))


def test_a_folder_of_pictures_is_loaded_with_classes_by_name(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"cat": 6, "ant": 4})
    fill(own / "val", {"ant": 1, "cat": 2}, 100)
    fill(own / "test", {"ant": 2, "cat": 1}, 200)
    loaded = load(own)
    assert (loaded.name, loaded.path, loaded.classes) == ("own", str(own), ("ant", "cat"))
    assert (loaded.notes, len(loaded.digest)) == ((), 64)
    for name, folder, images, labels in (
        ("train", "train", loaded.train_images, loaded.train_labels),
        ("validation", "val", loaded.validation_images, loaded.validation_labels),
        ("test", "test", loaded.test_images, loaded.test_labels),
    ):
        names = loaded.names[name]
        assert sorted(names) == sorted(file.relative_to(own).as_posix() for file in own.glob(f"{folder}/*/*"))
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert [loaded.classes[label] for label in labels] == [Path(file).parent.name for file in names]
    assert_is_read(own, loaded)


def test_pictures_are_read_as_predict_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    for index, (size, end) in enumerate([((40, 60), "png"), ((200, 90), "JPG"), ((64, 64), "webp"), ((9, 33), "jpeg")]):
        file = tmp_path / "own/train" / "ab"[index % 2] / f"{index}.{end}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file)
    loaded = load(tmp_path / "own", 24)
    assert len(loaded.train_images) == len(loaded.test_images) == 2
    assert_is_read(tmp_path / "own", loaded)


def test_without_a_test_folder_a_fifth_of_each_class_is_held_out_and_told(tmp_path):
    fill(tmp_path / "own/train", {"a": 2, "b": 9, "c": 10, "d": 27})
    first, second = load(tmp_path / "own"), load(tmp_path / "own")
    assert first.test_labels.bincount().tolist() == [1, 1, 2, 5]
    assert first.train_labels.bincount().tolist() == [1, 8, 8, 22]
    assert not set(first.names["train"]) & set(first.names["test"])
    assert first.names == second.names
    assert all(name.startswith("train/") for name in first.names["test"])
    (note,) = first.notes
    assert "No test images in" in note
    assert "9 of 48" in note
    held = {int(name[-7:-4]) for name in first.names["test"] if "/d/" in name}
    assert held not in ({0, 1, 2, 3, 4}, {22, 23, 24, 25, 26})  # names often stand for a moment or a camera


def test_any_first_or_last_images_have_each_class_in_proportion(tmp_path):
    fill(tmp_path / "own/train", {"a": 50, "b": 50, "c": 25})
    loaded = load(tmp_path / "own")
    assert loaded.limit(10).train_labels.bincount().tolist() == [4, 4, 2]
    parts = loaded.split(25)
    assert parts.validation_labels.bincount().tolist() == [10, 10, 5]
    assert parts.names["validation"] == loaded.names["train"][-25:]


def test_a_moved_folder_is_the_same_data_and_a_changed_one_is_not(tmp_path):
    fill(tmp_path / "own/train", {"a": 4, "b": 4})
    digests = [load(tmp_path / "own").digest]
    shutil.copytree(tmp_path / "own", tmp_path / "elsewhere")
    own = tmp_path / "elsewhere"
    assert load(own).digest == load(own, 16).digest == digests[0]

    draw(own / "train/a/000.png", 99)
    digests.append(load(own).digest)
    draw(own / "train/a/004.png", 98)
    digests.append(load(own).digest)
    (own / "train/a/004.png").rename(own / "train/a/005.png")
    assert load(own).digest == digests[-1]
    (own / "train/a/005.png").rename(own / "train/b/005.png")
    digests.append(load(own).digest)
    (own / "train/b").rename(own / "train/c")
    digests.append(load(own).digest)
    fill(own / "test", {"a": 1})
    digests.append(load(own).digest)
    assert len(set(digests)) == 6


@pytest.mark.parametrize("change", ["replace", "swap"])
def test_changed_pictures_are_never_taken_from_the_cache(tmp_path, change):
    own = tmp_path / "own"
    fill(own / "train", {"a": 3, "b": 3})
    load(own)
    one, other = own / "train/a/000.png", own / "train/b/000.png"
    times = one.stat()
    content = one.read_bytes() if change == "swap" else b""
    if change == "swap":
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        draw(one, 77)
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    loaded = load(own)
    assert_is_read(own, loaded)


def test_what_is_hidden_or_no_picture_is_left_out_and_told(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"a": 2, "b": 2, ".hidden": 2})
    fill(own / "test", {"a": 1, "b": 1}, 100)
    fill(own / "extra", {"a": 1})
    fill(own / ".git", {"a": 1})
    digest = load(own).digest
    draw(own / "train/a/.hidden.png", 1)
    (own / "train/a/notes.txt").write_text("of a")
    (own / "train/a/more").mkdir()
    draw(own / "train/a/more/1.png", 1)
    (own / "train/README.md").write_text("of all")
    loaded = load(own)
    assert loaded.classes == ("a", "b")
    assert (len(loaded.train_images), len(loaded.test_images), loaded.validation_images) == (4, 2, None)
    assert loaded.digest == digest
    assert loaded.notes == (
        f"Left out in {own}: extra (only train, val and test are read)",
        f"Left out in {own}/train: 1 x .txt file, 1 x file outside a class, 1 x folder in a class",
    )


def test_links_to_pictures_are_followed_and_broken_ones_named(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"a": 2, "b": 2})
    draw(tmp_path / "far.png", 55)
    (own / "train/a/far.png").symlink_to(tmp_path / "far.png")
    assert len(load(own).train_images) + len(load(own).test_images) == 5
    (tmp_path / "far.png").unlink()
    refused(own, r"1 of 5 pictures in .* train/a/far\.png: No such file")
    shutil.move(own / "train", tmp_path / "train")
    (own / "train").symlink_to(tmp_path / "train")
    refused(own, r"1 of 5 pictures in .* train/a/far\.png: No such file")


def test_a_split_may_lack_classes_but_not_have_others(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"a": 2, "b": 2, "c": 1})
    fill(own / "val", {"a": 1, "b": 0}, 100)
    fill(own / "test", {"c": 1}, 200)
    loaded = load(own)
    assert loaded.notes == (
        f"{own}/train has a single picture of class c",
        f"{own}/val has no picture of 2 classes: b, c",
        f"{own}/test has no picture of 2 classes: a, b",
    )
    assert loaded.test_labels.tolist() == [2]
    fill(own / "test", {"d": 1})
    refused(own, "own/test has class d, which .*own/train has not")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, r"own/train holds no pictures in folders of classes, as in train/CLASS/\*\.png \(or \.jpg, \.jpeg, "),
        ({"a": 0, "b": 0}, "own/train holds no pictures"),
        ({"a": 3}, "own has 1 class; allowed are 2 to 1,000"),
        ({f"{kind:04}": 1 for kind in range(1001)}, "has 1,001 classes; allowed are 2 to 1,000"),
        ({"a": 2, "b": 0}, "own/train has no picture of class b"),
        (dict.fromkeys("abcdefg", 0) | {"h": 1}, "has no picture of 7 classes: a, b, c, d, e and 2 more"),
        ({"a": 2, "b": 1}, "own has a single picture of class b, of which none can be held out"),
        ({"a": 2, "b\n": 2}, r"has a class 'b\\n', whose name cannot be printed"),
    ],
)
def test_other_layouts_are_refused_in_clear_words(tmp_path, counts, words):
    (tmp_path / "own/train").mkdir(parents=True)
    fill(tmp_path / "own/train", counts)
    refused(tmp_path / "own", words)


def test_pictures_a_folder_too_deep_are_found_and_refused(tmp_path):
    fill(tmp_path / "own/train/animals", {"cat": 2, "dog": 2})
    refused(tmp_path / "own", "in folders of classes, as in .*, but two folders deep, as in train/animals/cat$")


def test_an_empty_test_folder_is_refused(tmp_path):
    fill(tmp_path / "own/train", {"a": 2, "b": 2})
    (tmp_path / "own/test").mkdir()
    refused(tmp_path / "own", "own/test holds no pictures in folders of classes")


def test_a_folder_whose_path_weights_could_not_name_is_refused(tmp_path):
    fill(tmp_path / "ow\tn/train", {"a": 2, "b": 2})
    refused(tmp_path / "ow\tn", r"ow\\tn has a name that cannot be printed")


def test_damaged_pictures_are_named_and_counted_and_nothing_is_used(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"a": 9, "b": 2})
    for index in range(6):
        file = own / f"train/a/00{index}.png"
        file.write_bytes(b"no picture" if index else file.read_bytes()[:-30])
    (own / "train/b/000.png").unlink()
    os.mkfifo(own / "train/b/000.png")
    refused(
        own,
        r"7 of 11 pictures in .*own cannot be used: train/a/000\.png: it is damaged; train/a/001\.png: no PNG, JPEG, "
        r".*AVIF image; .*; train/a/004\.png: .* image; and 2 more "
        r"\(all of them: .*unreadable-[0-9a-f]{16}\.txt\)\. Repair or remove them, or leave them out with "
        "`skip_unreadable=`; nothing was used",
    )
    for index in range(6):
        draw(own / f"train/a/00{index}.png", index)
    refused(own, r"1 of 11 pictures in .*: train/b/000\.png: no file")


def test_a_picture_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    fill(tmp_path / "own/train", {"a": 2, "b": 2})
    read, seen = trees.FolderTree.read, set()

    def changing(tree: trees.FolderTree, name: str, most_bytes: int) -> bytes:
        content = read(tree, name, most_bytes)
        if name in seen and name == "train/b/001.png":
            return content + b" "
        seen.add(name)
        return content

    monkeypatch.setattr(trees.FolderTree, "read", changing)
    refused(tmp_path / "own", r"1 of 4 pictures .*train/b/001\.png: it was changed while it was read")


def test_files_whose_names_cannot_be_printed_are_read_and_named_with_escapes(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"a": 2, "b": 2})
    fill(own / "test", {"a": 1, "b": 1})
    os.rename(own / "test/a/000.png", os.fsencode(own) + b"/test/a/\xff\n.png")  # noqa: PTH104 (bytes)
    assert sorted(load(own).names["test"])[0] == "test/a/\\udcff\\n.png"
    assert load(f"{own}?group=^([^0])").notes[0].startswith("6 groups")
    (own / "test/b/000.png").write_bytes(b"no picture")
    os.rename(own / "test/b/000.png", os.fsencode(own) + b"/test/b/\xfe.png")  # noqa: PTH104
    draw(own / "test/b/1.png", 300)
    refused(own, r"test/b/\\udcfe\.png: no PNG, .*\(all of them: ")
    assert "; listed in" in data.load(own, image_size=8, skip_unreadable=True).notes[0]


def test_a_list_of_unreadable_pictures_is_named_only_if_it_could_be_written(tmp_path, monkeypatch):
    fill(tmp_path / "own/train", {"a": 3, "b": 3})
    (tmp_path / "own/train/a/000.png").write_bytes(b"no picture")
    monkeypatch.setenv("TINYCIFAR_CACHE", str(tmp_path / "own/train/a/000.png"))
    notes = data.load(tmp_path / "own", image_size=8, skip_unreadable=True).notes
    assert any(note.startswith("Skipped 1 of 6 pictures") and "listed" not in note for note in notes)


@pytest.mark.parametrize("meta", ["own/meta", "own/train/meta"])
def test_a_folder_called_meta_is_no_sign_of_the_pickled_cifar_100(tmp_path, meta):
    fill(tmp_path / "own/train", {"a": 2, "b": 2})
    draw(tmp_path / meta / "1.png", 50)
    draw(tmp_path / meta / "2.png", 51)
    assert load(tmp_path / "own").classes == (("a", "b") if meta == "own/meta" else ("a", "b", "meta"))
    assert load(tmp_path / "own/train").classes[:2] == ("a", "b")


def test_a_folder_is_known_by_its_path_and_not_by_its_name(tmp_path, monkeypatch):
    for name in ("sample", "cifar10"):
        fill(tmp_path / name / "train", {"a": 2, "b": 3})
        for source in (f"./{name}", tmp_path / name, Path(name)):
            loaded = data.load(source, image_size=8)
            assert (loaded.name, loaded.classes, loaded.path) == (name, ("a", "b"), str(tmp_path / name))
            assert loaded.digest
            assert loaded.statistics()[0][2] == pytest.approx(7 / 255)
    assert len(data.load("sample").classes) == 10


def test_the_digest_is_that_of_classes_contents_and_labels(tmp_path):
    """Written out, as runs and weights of today name it for good."""
    own = tmp_path / "own"
    for name in ("train/b/x.png", "train/a/é.png", "train/a/w.png", "train/b/y.png"):
        draw(own / name, sum(name.encode()))
    loaded = load(own)
    expected = hashlib.sha256(b'["a", "b"]')
    for split in ("train", "test"):
        names = loaded.names[split]
        expected.update(f"{len(names)} images".encode())
        for name in names:
            expected.update(hashlib.sha256((own / name).read_bytes()).digest())
        for name in names:
            expected.update(int(name.split("/")[1] == "b").to_bytes(8, "little"))
    assert loaded.digest == expected.hexdigest()


def test_adding_or_renaming_pictures_moves_hardly_any_other_to_the_other_side(tmp_path):
    """Else a model would be scored on images that it, or what it started from, was trained on."""
    own = tmp_path / "own" / "train"
    fill(own, {"a": 100, "b": 100})

    def held_out() -> set[bytes]:
        loaded = load(own.parent)
        return {(own.parent / name).read_bytes() for name in loaded.names["test"]}

    before = held_out()
    draw(own / "a" / "!new.png", 999)
    (own / "b" / "000.png").rename(own / "b" / "renamed.png")
    assert len(before - held_out()) <= 1
    (own / "a" / "050.png").unlink()
    assert len(before - held_out()) <= 2


def test_pictures_that_are_on_both_sides_are_counted(tmp_path):
    fill(tmp_path / "own/train", {"a": 5, "b": 5})
    fill(tmp_path / "own/test", {"a": 2, "b": 2})  # with levels from 0 on, as a of train has
    wrong, copies = load(tmp_path / "own").notes
    assert wrong.startswith("Warning: 2 test images are training images under another label, and count as mistakes")
    assert copies.startswith("Warning: 2 test images are copies of training images: scores will be optimistic: test/a")


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_that_is_no_folder_is_refused(tmp_path, name):
    fill(tmp_path / "own/train", {"a": 5, "b": 5})
    (tmp_path / "own" / name).symlink_to(tmp_path / "gone")
    refused(tmp_path / "own", f"{name} is no folder of pictures; remove or mend it")


def test_a_class_of_files_of_another_kind_is_told_as_such(tmp_path):
    fill(tmp_path / "own/train", {"a": 5})
    (tmp_path / "own/train/b").mkdir()
    (tmp_path / "own/train/b/1.doc").write_bytes(b"BM")
    refused(tmp_path / "own", r"no picture of class b; add some \(.png.*1 files in .* are of another kind")
