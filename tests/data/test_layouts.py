"""Layouts of folders and archives of pictures, and how each near miss is refused."""

import re
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tinycifar import data
from tinycifar.data import sources
from tinycifar.data.dataset import Dataset
from tinycifar.data.sources import Source

from .test_folders import fill, layout, load, refused


def sizes(loaded: Dataset) -> list[int]:
    validation = 0 if loaded.validation_images is None else len(loaded.validation_images)
    return [len(loaded.train_images), validation, len(loaded.test_images)]


def test_folders_of_classes_need_no_folder_train(tmp_path):
    fill(tmp_path / "own", {"cat": 10, "dog": 5})
    loaded = load(tmp_path / "own")
    assert (loaded.classes, sizes(loaded)) == (("cat", "dog"), [12, 0, 3])
    assert {name.split("/")[0] for name in loaded.names["train"]} == {"cat", "dog"}
    assert layout(tmp_path / "own") == "folders of classes"


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("Train", "Val", "Test"), ("training", "valid", "testing"), ("TRAINING", "Validation", "Testing")],
)
def test_folders_of_splits_have_the_names_that_are_common(tmp_path, train, validation, test):
    own = tmp_path / "own"
    for first, (name, count) in enumerate([(train, 4), (validation, 2), (test, 3)]):
        fill(own / name, {"cat": count, "dog": count}, 100 * first)
    loaded = load(own)
    assert (sizes(loaded), loaded.notes) == ([8, 4, 6], ())
    assert layout(own) == f"folders of classes in {train}/, {validation}/, {test}/"


def test_two_folders_of_one_split_are_refused(tmp_path):
    for name in ("train", "val", "validation"):
        fill(tmp_path / "own" / name, {"cat": 4, "dog": 4})
    refused(tmp_path / "own", "own has two folders of validation images, val and validation; join them or rename one")


def test_pictures_without_classes_in_a_test_folder_are_reported_and_left_out(tmp_path):
    own = tmp_path / "own"
    fill(own / "train", {"cat": 5, "dog": 5})
    fill(own, {"test": 4}, 100)
    loaded = load(own)
    assert sizes(loaded) == [8, 0, 2]
    assert loaded.notes[0] == (
        f"{own}/test holds 4 pictures without classes: it is left out; `tinycifar predict` takes them"
    )


def test_folders_of_classes_may_be_links(tmp_path):
    fill(tmp_path / "all", {"cat": 5, "dog": 5, "owl": 5})
    (tmp_path / "own/train").mkdir(parents=True)
    for kind in ("cat", "dog"):
        (tmp_path / "own/train" / kind).symlink_to(tmp_path / "all" / kind)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/train").symlink_to(tmp_path / "all")
    assert load(tmp_path / "own").classes == ("cat", "dog")
    assert load(tmp_path / "whole").classes == ("cat", "dog", "owl")


def test_a_link_to_the_folder_around_it_does_not_loop(tmp_path):
    fill(tmp_path / "own/train", {"cat": 5, "dog": 5})
    (tmp_path / "own/train/all").symlink_to(tmp_path / "own/train")
    refused(tmp_path / "own", "own/train has no picture of class all")


def test_a_link_to_itself_is_a_broken_link(tmp_path):
    own = tmp_path / "own"
    fill(own, {"cat": 5, "dog": 5})
    (own / "self").symlink_to("self")
    (own / "gone.png").symlink_to("nowhere.png")
    assert load(own).notes[0] == f"Left out in {own}: 2 x broken link"
    (own / "cat/self.png").symlink_to("self.png")
    refused(own, r"1 of 11 pictures in .* cat/self\.png: Too many levels of symbolic links")


def test_a_single_folder_around_the_layout_is_looked_into(tmp_path):
    fill(tmp_path / "download/pets/train", {"cat": 5, "dog": 5})
    loaded = load(tmp_path / "download")
    assert loaded.digest == load(tmp_path / "download/pets").digest
    assert layout(tmp_path / "download") == "folders of classes in train/, inside pets/"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_is_the_same_data_as_its_folder(tmp_path, kind, wrapped):
    fill(tmp_path / "own/train", {"cat": 60, "dog": 60})  # more than one thread reads at a time
    fill(tmp_path / "own/test", {"cat": 2, "dog": 2}, 200)
    path = shutil.make_archive(str(tmp_path / "own"), kind, *((tmp_path, "own") if wrapped else (tmp_path / "own",)))
    folder, archive = load(tmp_path / "own"), load(path)
    assert folder.digest == archive.digest
    assert torch.equal(folder.train_images, archive.train_images)
    assert folder.names == archive.names


@pytest.mark.parametrize("name", ["./{}", "own/./{}", "own//{}"])
def test_dots_and_repeated_slashes_in_names_of_archives_mean_nothing(tmp_path, name):
    fill(tmp_path / "own", {"cat": 5, "dog": 5})
    files = sorted((tmp_path / "own").rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as packed, tarfile.open(tmp_path / "own.tar", "w") as tar:
        for file in files:
            member = name.format(file.relative_to(tmp_path / "own"))
            packed.writestr(member, file.read_bytes())  # `write` would tidy the name
            tar.add(file, member)
    for archive in ("own.zip", "own.tar"):
        assert load(tmp_path / archive).digest == load(tmp_path / "own").digest
    with zipfile.ZipFile(tmp_path / "own.zip", "a") as packed:
        packed.writestr(name.format("./cat/000.png"), b"x")
    refused(tmp_path / "own.zip", "own.zip is refused: it has two members ")


def test_a_zip_archive_of_macos_has_the_names_of_its_files(tmp_path):
    fill(tmp_path / "own", {"J\u00e4ger": 5, "dog": 5})
    path = Path(shutil.make_archive(str(tmp_path / "own"), "zip", tmp_path / "own"))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 7), (b"PK\1\2", 9)):  # take back the mark of names in UTF-8
        for part in re.finditer(re.escape(signature), bytes(content)):
            content[part.start() + flags] &= ~8
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert any(name.startswith("J\u251c") for name in archive.namelist())
    assert load(path).classes == ("J\u00e4ger", "dog")


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


@pytest.mark.parametrize("name", ["../train/a/1.png", "/train/a/1.png", "train/../../1.png", "C:/a/1.png"])
def test_a_zip_archive_whose_members_point_elsewhere_is_refused(tmp_path, name):
    refused(write_zip(tmp_path / "own.zip", ["train/a/1.png", name]), "own.zip is refused: its member .* elsewhere")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_archive_with_tricks_is_refused(tmp_path):
    refused(write_zip(tmp_path / "twice.zip", ["a/1.png", "a/1.png"]), "has two members 'a/1.png'")
    refused(write_zip(tmp_path / "both.zip", ["a/1.png", "a/1.png/2.png"]), "both a file and a folder")
    (tmp_path / "none.zip").write_bytes(b"PK\3\4 and no archive")
    refused(tmp_path / "none.zip", "none.zip is no zip archive that can be read")


def test_links_in_a_zip_archive_are_left_out(tmp_path):
    fill(tmp_path / "own", {"cat": 5, "dog": 5})
    shutil.make_archive(str(tmp_path / "own"), "zip", tmp_path / "own")
    with zipfile.ZipFile(tmp_path / "own.zip", "a") as archive:
        link = zipfile.ZipInfo("dog/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert load(tmp_path / "own.zip").digest == load(tmp_path / "own").digest


def test_a_damaged_member_of_a_zip_archive_is_named(tmp_path):
    fill(tmp_path / "own", {"cat": 5, "dog": 5})
    shutil.make_archive(str(tmp_path / "own"), "zip", tmp_path / "own")
    content = bytearray((tmp_path / "own.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "own.zip") as archive:
        member = archive.getinfo("dog/003.png")
    content[member.header_offset + 60] ^= 255
    (tmp_path / "own.zip").write_bytes(content)
    refused(tmp_path / "own.zip", r"1 of 10 pictures in .*own\.zip cannot be used: dog/003\.png: it ")


def test_a_source_has_its_options_behind_a_question_mark(tmp_path):
    source = Source("photos", group=r"(.*)_\d+ a&b=c%20+", columns="file=A B,label=C", labels="coarse")
    assert sources.parse(str(source)) == source
    assert sources.parse(r"photos?group=(.*)_\d+") == Source("photos", group=r"(.*)_\d+")
    (tmp_path / "a?b=c").mkdir()
    assert sources.parse(tmp_path / "a?b=c") == Source(str(tmp_path / "a?b=c"))
    assert sources.parse("what?") == Source("what?")
    assert sources.parse(tmp_path / "a?b=c?labels=fine") == Source(str(tmp_path / "a?b=c"), labels="fine")
    assert sources.parse(r"photos?group=(?:x)?(.*?)_\d+") == Source("photos", group=r"(?:x)?(.*?)_\d+")
    with pytest.raises(ValueError, match="unknown option 'groups'; allowed are group, columns, labels, transposed"):
        sources.parse("photos?groups=1")
    with pytest.raises(ValueError, match="labels must be fine or coarse, not 'rough'"):
        sources.parse("cifar-100-binary?labels=rough")
    with pytest.raises(ValueError, match="an option is given twice; give each once"):
        sources.parse("photos?group=(a)&group=(b)")


def test_an_option_that_has_no_effect_on_a_layout_is_refused(tmp_path):
    fill(tmp_path / "own", {"cat": 5, "dog": 5})
    np.savez(tmp_path / "own.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.arange(4))
    for source, option, use in (
        ("own", "transposed=yes", "IDX files"),
        ("own", "labels=coarse", "CIFAR-100 and parquet files"),
        ("own", "columns=file=a", "tables of labels"),
        ("own.npz", "group=(.*)_", "pictures in files"),
    ):
        name = option.partition("=")[0]
        words = f"`{name}=` is for {use}, and has no effect on {tmp_path / source}; leave it out"
        refused(f"{tmp_path / source}?{option}", words)


def test_an_empty_name_is_refused_and_the_folder_above_has_its_own_name(tmp_path, monkeypatch):
    fill(tmp_path / "own", {"cat": 5, "dog": 5})
    monkeypatch.chdir(tmp_path / "own")
    refused("", "the name of the data is empty")
    monkeypatch.chdir(tmp_path / "own/cat")
    assert load("..").name == "own"


def shots(folder: Path, kinds: dict[str, int], people: int) -> None:
    """Pictures named PERSON_SHOT.png, whose bytes all differ."""
    for kind, count in kinds.items():
        fill(folder, {kind: count}, 1_000 * len(list(folder.glob("*"))))
        for index, file in enumerate(sorted((folder / kind).iterdir())):
            file.rename(file.with_name(f"{kind[0]}{index % people}_{index:03}.png"))


def groups(names: tuple[str, ...]) -> set[str]:
    return {Path(name).name.split("_")[0] for name in names}


def test_pictures_of_one_group_lie_on_one_side_of_each_split(tmp_path):
    shots(tmp_path / "own", {"cat": 100, "dog": 60}, 20)
    loaded = load(f"{tmp_path / 'own'}?group=(.*)_")
    assert not groups(loaded.names["train"]) & groups(loaded.names["test"])
    assert len(groups(loaded.names["train"]) | groups(loaded.names["test"])) == 40
    assert sizes(loaded) == [128, 0, 32]
    assert loaded.notes[0] == "40 groups, none of which lies on both sides of a split"
    assert loaded.path == f"{tmp_path / 'own'}?group=(.*)_"
    for count in (1, 17, 40, 120):
        parts = loaded.split(count)
        assert not groups(parts.names["train"]) & groups(parts.names["validation"])
        assert abs(len(parts.names["validation"]) - count) <= 5
    assert load(tmp_path / "own").digest != loaded.digest


def test_groups_that_folders_have_on_both_sides_are_refused(tmp_path):
    shots(tmp_path / "own/train", {"cat": 20, "dog": 20}, 5)
    shots(tmp_path / "own/test", {"cat": 5, "dog": 5}, 2)
    refused(f"{tmp_path / 'own'}?group=(.*)_", "4 groups lie in train and test: c0, c1, d0, d1; move each")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "is no regular expression"),
        ("cat", "needs a part in parentheses"),
        ("(x)_", "matches no file, for example not 'c0_000.png'"),
        ("(.)", "own has a single group of 2 classes: cat, dog, of which none can be held out"),
    ],
)
def test_patterns_that_give_no_groups_are_refused(tmp_path, pattern, words):
    shots(tmp_path / "own", {"cat": 5, "dog": 5}, 5)
    refused(f"{tmp_path / 'own'}?group={pattern}", words)


def test_classes_whose_names_differ_in_case_only_are_two(tmp_path):
    fill(tmp_path / "own", {"Cat": 5, "cat": 5})
    if len(list((tmp_path / "own").iterdir())) < 2:
        pytest.skip("this disk does not distinguish names by case")
    assert load(tmp_path / "own").classes == ("Cat", "cat")


def test_a_thousand_classes_and_two_are_allowed(tmp_path):
    fill(tmp_path / "many", {f"{kind:04}": 2 for kind in range(1_000)})
    assert sizes(load(tmp_path / "many")) == [1_000, 0, 1_000]
    fill(tmp_path / "few", {"a": 6, "b": 6})
    assert sizes(load(tmp_path / "few")) == [10, 0, 2]


def test_data_to_be_scored_needs_no_training_images_and_not_all_classes(tmp_path):
    classes = ("ant", "cat", "dog")
    fill(tmp_path / "new/test", {"cat": 3, "dog": 2})
    fill(tmp_path / "flat", {"cat": 3, "dog": 2})
    refused(tmp_path / "new", "new has test images, but no training images; `tinycifar evaluate MODEL --data` takes it")
    for own in ("new", "flat"):
        loaded = data.load_to_score(tmp_path / own, classes, image_size=8)
        assert (loaded.classes, sorted(loaded.test_labels.tolist())) == (classes, [1, 1, 1, 2, 2])
        for name, label in zip(loaded.names["test"], loaded.test_labels.tolist(), strict=True):
            assert Path(name).parent.name == classes[label]
    with pytest.raises(ValueError, match="flat has class cat, which the model does not know; it knows 2 classes: ant"):
        data.load_to_score(tmp_path / "flat", ("ant", "dog"))
