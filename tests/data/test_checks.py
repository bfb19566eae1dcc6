import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinycifar import data
from tinycifar.data import checks, workers
from tinycifar.data.dataset import Dataset


def made() -> Dataset:
    """Random images in two classes: six to train on, four to test."""
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10) % 2
    names = {"train": tuple("abcdef"), "test": tuple("wxyz")}
    return Dataset("mine", ("a", "b"), images[:6], labels[:6], images[6:], labels[6:], names=names)


def changed(dataset: Dataset, split: str, rows: dict[int, torch.Tensor | int]) -> Dataset:
    images = dataset.train_images.clone() if split == "train" else dataset.test_images.clone()
    for row, value in rows.items():
        images[row] = value
    return replace(dataset, train_images=images) if split == "train" else replace(dataset, test_images=images)


def test_good_images_are_not_remarked_on():
    assert checks.check(made()) == []
    assert checks.check(data.sample()) == []


def test_images_without_contrast_are_counted_and_the_first_named():
    dark = changed(made(), "train", {1: 0, 2: 3, 4: 200, 5: 201})
    dark.train_images[2, 0, 0, 0] += 3
    assert checks.check(dark) == [
        "Warning: 4 of 6 train images have a single colour (less than 4 levels of contrast): b, c, e, ..."
    ]
    dark.train_images[2, 0, 0, 0] += 1
    assert checks.check(dark)[0].startswith("Warning: 3 of 6")


def test_training_images_that_are_all_the_same_are_refused():
    same = made()
    with pytest.raises(
        ValueError, match=r"all 6 training images are the same once decoded, among them a, b, c, \.\.\."
    ):
        checks.check(changed(same, "train", dict.fromkeys(range(6), same.test_images[0])))


def test_one_picture_in_two_classes_is_counted_in_each_split():
    whole = made()
    assert checks.check(changed(whole, "train", {3: whole.train_images[0], 2: whole.train_images[4]})) == [
        "Warning: 2 train images are the same picture in several classes, of which all but one are wrong: a, d"
    ]
    assert checks.check(changed(whole, "test", {1: whole.train_images[0], 2: whole.train_images[0]})) == [
        "Warning: 2 test images are the same picture in several classes, of which all but one are wrong: x, y",
        "Warning: 1 test images are training images under another label, and count as mistakes of a model that learned "
        "them: x",
        "Warning: 1 test images are copies of training images: scores will be optimistic: y",
    ]


def draw(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)).save(file)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """40 pictures, of which four cannot be read and one lacks its end marker."""
    for number in range(40):
        draw(tmp_path / "pets/train" / ("cat", "dog")[number % 2] / f"{number:02}.jpg", number)
    for number, content in ((3, b""), (14, b"<html>"), (25, None), (36, b"GIF89a")):
        file = tmp_path / "pets/train" / ("cat", "dog")[number % 2] / f"{number:02}.jpg"
        file.write_bytes(file.read_bytes()[:300] if content is None else content)
    odd = tmp_path / "pets/train/cat/00.jpg"
    odd.write_bytes(odd.read_bytes()[:-2])
    return tmp_path / "pets"


def test_pictures_that_cannot_be_read_are_listed_in_a_file_or_left_out_and_counted(pets):
    with pytest.raises(
        ValueError, match=r"4 of 40 pictures in .*: train/cat/14\.jpg: no PNG.*`skip_unreadable=`"
    ) as told:
        data.load(pets)
    listed = Path(str(told.value).partition("all of them: ")[2].partition(")")[0])
    assert [line.partition(":")[0] for line in listed.read_text().splitlines()] == [
        "train/cat/14.jpg", "train/cat/36.jpg", "train/dog/03.jpg", "train/dog/25.jpg",
    ]  # fmt: skip
    rest = data.load(pets, skip_unreadable=True)
    assert len(rest.train_labels) + len(rest.test_labels) == 36
    assert sum(rest.skipped.values()) == 4
    assert rest.skipped["it is damaged"] >= 1
    assert any(note.startswith("Skipped 4 of 40 pictures: ") and str(listed) in note for note in rest.notes)
    assert "1 of the pictures are JPEGs that lack their end marker; they are used" in rest.notes
    again = data.load(rest.path)  # as a run that is resumed finds its data
    assert (again.digest, again.skipped, again.notes) == (rest.digest, rest.skipped, rest.notes)
    for number in (3, 25):
        (pets / "train/dog" / f"{number:02}.jpg").unlink()
    for number in (14, 36):
        (pets / "train/cat" / f"{number:02}.jpg").unlink()
    assert data.load(pets).digest == rest.digest


def test_class_names_in_two_normal_forms_are_one_class_and_joiners_are_allowed(tmp_path):
    names = ("J\u00e4ger", "Ja\u0308ger", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "Cat", "cat")
    for kind, name in enumerate(names):
        for number in range(3):
            draw(tmp_path / "own/train" / name / f"{number}.png", 10 * kind + number)
    loaded = data.load(tmp_path / "own")
    assert loaded.classes == tuple(sorted({names[0], *names[2:]}))
    assert len(loaded.train_labels) + len(loaded.test_labels) == 15
    assert any("in two Unicode normal forms; they are one class" in note for note in loaded.notes)


def test_pictures_are_recognised_by_their_content_and_others_counted_by_kind(tmp_path):
    own = tmp_path / "own/train"
    for number in range(6):
        draw(own / ("a", "b")[number % 2] / f"{number}.png", number)
    (own / "a/0.png").rename(own / "a/photo")
    (own / "a/notes.TXT").write_text("of a")
    (own / "b/GT.csv").write_text("Filename;ClassId\n")
    loaded = data.load(tmp_path / "own")
    assert len(loaded.train_labels) + len(loaded.test_labels) == 6
    assert any(note.endswith("train: 1 x .csv file, 1 x .txt file") for note in loaded.notes)


@pytest.mark.skipif(not workers.worthwhile(10_000), reason="pictures are decoded by threads here")
def test_processes_decode_to_the_same_pixels_as_threads(pets, monkeypatch):
    expected = data.load(pets, skip_unreadable=True)
    monkeypatch.setenv("TINYCIFAR_CACHE", str(pets.parent / "other"))
    monkeypatch.setattr(workers, "FEWEST", 1)
    loaded = data.load(pets, skip_unreadable=True)
    assert torch.equal(loaded.train_images, expected.train_images)
    assert torch.equal(loaded.test_images, expected.test_images)
    assert (loaded.skipped, loaded.digest) == (expected.skipped, expected.digest)


def test_a_worker_of_a_pool_which_may_start_no_processes_decodes_in_threads(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    monkeypatch.setattr(workers, "FEWEST", 1)
    results: dict[int, int] = {}
    workers.run(lambda index: (index**2, ""), 9, lambda index, made, _: results.update({index: made}), "x", None, True)
    assert results == {index: index**2 for index in range(9)}


@pytest.mark.skipif(not workers.worthwhile(10_000), reason="pictures are decoded by threads here")
@pytest.mark.parametrize(("error", "raised"), [(MemoryError(), MemoryError), (KeyError("x"), RuntimeError)])
def test_what_goes_wrong_in_a_process_ends_the_work(monkeypatch, error, raised):
    def attempt(index: int) -> tuple[np.ndarray | None, str]:
        if index == 41:
            raise error
        return np.zeros((3, 4, 4), np.uint8), ""

    monkeypatch.setattr(workers, "FEWEST", 1)
    with pytest.raises(raised):
        workers.run(attempt, 100, lambda *_: None, "Decoding", None, by_path=True)
