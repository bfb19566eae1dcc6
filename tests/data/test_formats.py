"""Tables, NumPy arrays, CIFAR-100, STL-10 and parquet files: what is read, and how each near miss is refused."""

import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import encoded
from tinycifar import data
from tinycifar.data import pictures
from tinycifar.data.dataset import Dataset

from .test_folders import draw, layout, load, refused

RNG = np.random.default_rng(0)


def labelled(loaded: Dataset) -> dict[str, str]:
    """The class of each training and test image, by the name of its file."""
    return {
        name: loaded.classes[label]
        for split, labels in (("train", loaded.train_labels), ("test", loaded.test_labels))
        for name, label in zip(loaded.names[split], labels.tolist(), strict=True)
    }


def table(folder: Path, text: str, name: str = "labels.csv", *, count: int = 10) -> Path:
    for index in range(count):
        draw(folder / f"pictures/{index}.png", index)
    (folder / name).write_text(text)
    return folder


LINES = [f"{index}.png,{'cat' if index % 2 else 'dog'}" for index in range(10)]


@pytest.mark.parametrize("shape", ["pictures/{}.png", "{}.png", "{}", "./pictures/{}.png", "pictures\\{}.png"])
@pytest.mark.parametrize(("mark", "name"), [(",", "labels.csv"), (";", "labels.csv"), ("\t", "labels.tsv")])
def test_a_table_gives_the_labels_of_pictures(tmp_path, shape, mark, name):
    lines = [f"File Name{mark}Class", *(f"{shape.format(k)}{mark}{'cat' if k % 2 else 'dog'}" for k in range(10))]
    own = table(tmp_path / "own", "\ufeff" + "\r\n".join(lines), name)
    loaded = load(own)
    assert loaded.classes == ("cat", "dog")
    assert labelled(loaded) == {f"pictures/{k}.png": "cat" if k % 2 else "dog" for k in range(10)}
    assert (len(loaded.train_images), len(loaded.test_images)) == (8, 2)
    assert layout(own) == f"pictures with labels from {name}"


def test_a_table_may_give_splits_and_groups(tmp_path):
    text = "image,label,split,patient\n" + "".join(
        f"{k},{k % 2},{'train' if k < 6 else 'Validation' if k < 8 else 'testing'},p{k}\n" for k in range(10)
    )
    loaded = load(table(tmp_path / "own", text))
    assert [len(loaded.train_images), len(loaded.validation_images), len(loaded.test_images)] == [6, 2, 2]
    assert loaded.notes == ("10 groups, none of which lies on both sides of a split",)
    (tmp_path / "own/labels.csv").write_text(text.replace("p9", "p0"))
    refused(tmp_path / "own", "1 group lie in train and test: p0; move each to one side")
    assert len(load(f"{tmp_path / 'own'}?columns=group=").train_images) == 6


def test_gtsrbs_tables_are_read(tmp_path):
    lines = [f"{k}.png;32;32;1;1;30;30;{k % 2 * 10}" for k in range(10)]
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    own = table(tmp_path / "own", "\n".join([header, *lines]), "GT-final_test.csv")
    assert load(own).classes == load(own / "GT-final_test.csv").classes == ("0", "10")


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    own = table(tmp_path / "own", "path,label\n" + "".join(f"{k},{(k % 3) * 5 - 1}\n" for k in range(10)))
    (own / "pictures/3.png").rename(own / "pictures/3")  # a picture all the same
    assert load(own).classes == ("-1", "4", "9")


def test_labels_in_two_normal_forms_of_unicode_are_one_class(tmp_path):
    labels = ("J\u00e4ger", "Ja\u0308ger", "cat")
    own = table(tmp_path / "own", "file,label\n" + "".join(f"{k}.png,{labels[k % 3]}\n" for k in range(10)))
    write_parquet(tmp_path / "own.parquet", list(labels) * 4)
    for source in (own, tmp_path / "own.parquet"):
        assert load(source).classes == (labels[0], "cat")


def test_columns_of_other_names_are_named_by_an_option(tmp_path):
    own = table(tmp_path / "own", "was,what\n" + "\n".join(LINES))
    refused(own, "labels.csv has the columns was, what, none of which is known as file or label; name them: `columns=`")
    assert load(f"{own}?columns=file=was,label=what").classes == ("cat", "dog")
    refused(f"{own}?columns=file=who,label=what", "there is no column 'who'; the columns are was, what")
    (own / "labels.csv").rename(own / "own.csv")
    (own / "more.csv").write_text("x,y\n1,2\n")
    assert load(f"{own}?columns=file=was,label=what").classes == ("cat", "dog")
    refused(f"{own}?columns=files=was", r"`columns=` takes KIND=NAME,KIND=NAME of the kinds file, label, split, group")
    refused(f"{own}?columns=file=was,file=what", "`columns=` names the column of the file twice; name it once")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["file,label", "10.png,cat"], "lists 1 file that .*own does not have, or has more than once: 10.png"),
        (["file,label", "../../secret.png,cat"], "does not have.*secret.png"),
        (["file,label", "/etc/passwd,cat"], "does not have.*passwd"),
        (["file,label"], "lists no picture with a label"),
        ([""], "labels.csv has no heading; its first line must name the columns, for example file,label"),
        ([" , ", "1.png,cat"], "labels.csv has no heading"),
        (["file,label", "1.png,cat", "1.png,dog"], "1.png is listed twice, with different labels or splits"),
        (["file,label,split", "1.png,cat,fold1"], "line 2, has the split 'fold1'; allowed are train, training, val"),
        (
            ["file,label,split", "1.png,cat,test", "2.png,dog,test"],
            "own has test images, but no training images; `tinycifar evaluate",
        ),
        (["file,label", "1.png,cat", "2.png,cat"], "own has 1 class; allowed are 2"),
        (["file,label,label", "1.png,cat,0", "2.png,dog,1"], "labels.csv has 2 columns 'label'; rename all but"),
        (["file,label", '"1.png,cat', "2.png,dog"], "labels.csv cannot be read as a table: unexpected end of data"),
        (["file,label", "1.png,\x1b[31mred", "2.png,dog"], r"own has a class '\\x1b\[31mred', whose name cannot be"),
        (["file,label", "1.png,cat, black"], "line 2, has 3 cells, but the heading 2; put quotes around"),
        (["file,label", f"1.png,{'x' * 200_000}"], "labels.csv cannot be read as a table: field larger than"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, lines, words):
    draw(tmp_path / "secret.png", 1)
    refused(table(tmp_path / "own", "\n".join(lines)), words)


def test_numbers_of_which_some_are_missing_are_whole_numbers(tmp_path):
    lines = [f"{index}.png,{('NaN', '2.0', '10.0')[index % 3]}" for index in range(10)]
    loaded = load(table(tmp_path / "own", "\n".join(["", "file,label", *lines])))
    assert loaded.classes == ("2", "10")
    assert loaded.notes[0].endswith("own: 4 x line without a label, 4 x picture that is not listed")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_a_table_may_have_other_ends_of_lines_and_a_heading_of_two_lines(tmp_path, end):
    own = table(tmp_path / "own", "")
    lines = ['"remark', 'of ours",file,label', *(f",{line}" for line in LINES)]
    (own / "labels.csv").write_bytes(end.join(lines).encode())
    assert labelled(load(own)) == {f"pictures/{index}.png": ("dog", "cat")[index % 2] for index in range(10)}


def test_what_a_table_leaves_out_is_counted(tmp_path):
    text = "\n".join(["file,label", *LINES[:8], LINES[0], "8.png,", ",cat"])
    (note, _) = load(table(tmp_path / "own", text)).notes
    assert note.endswith(
        "own: 1 x line without a file, 1 x line without a label, 2 x picture that is not listed, 1 x repeated line"
    )


@pytest.mark.parametrize("content", ["Größe,Farbe\n".encode("latin-1"), b'"no end', b""])
def test_a_table_of_something_else_beside_folders_of_classes_is_left_out(tmp_path, content):
    for index in range(8):
        draw(tmp_path / "own" / ("cat", "dog")[index % 2] / f"{index}.png", index)
    (tmp_path / "own/notes.csv").write_bytes(content)
    assert load(tmp_path / "own").classes == ("cat", "dog")
    shutil.rmtree(tmp_path / "own/dog")
    refused(tmp_path / "own", "notes.csv" if content else "pictures of one class alone")


def test_tables_named_for_splits_are_read_together(tmp_path):
    own = table(tmp_path / "own", "\n".join(["Path,ClassId", *LINES[:6]]), "Train.csv")
    (own / "Test.csv").write_text("\n".join(["Path,ClassId", *LINES[6:]]))
    (own / "Meta.csv").write_text("ClassId,Shape\n1,2\n")
    loaded = load(own)
    assert (len(loaded.train_images), len(loaded.test_images)) == (6, 4)
    (own / "more.csv").write_text("\n".join(["Path,ClassId", *LINES[6:]]))
    refused(own, "own has 3 tables of labels, .*; keep one, called labels.csv, or name each for its split")


def write_npz(path: Path, **changes: np.ndarray | None) -> Path:
    own = {
        "train_images": RNG.integers(0, 256, (20, 28, 28, 3), np.uint8),
        "train_labels": (np.arange(20) % 4).astype(np.uint8)[:, None],
        "val_images": RNG.integers(0, 256, (8, 28, 28, 3), np.uint8),
        "val_labels": (np.arange(8) % 4).astype(np.uint8)[:, None],
        "test_images": RNG.integers(0, 256, (6, 28, 28, 3), np.uint8),
        "test_labels": (np.arange(6) % 4).astype(np.uint8)[:, None],
    }
    np.savez_compressed(path, **{name: array for name, array in (own | changes).items() if array is not None})
    return path


def test_medmnists_arrays_are_read_in_their_order(tmp_path):
    path = write_npz(tmp_path / "bloodmnist.npz")
    loaded = load(path, 28)
    with np.load(path, allow_pickle=False) as own:
        assert torch.equal(loaded.train_images, torch.from_numpy(own["train_images"]).permute(0, 3, 1, 2))
        assert torch.equal(loaded.test_images, torch.from_numpy(own["test_images"]).permute(0, 3, 1, 2))
        assert loaded.test_labels.tolist() == own["test_labels"][:, 0].tolist()
    assert loaded.classes == ("0", "1", "2", "3")
    assert layout(path) == "NumPy arrays, RGB 28x28"


def test_grey_arrays_without_test_images_have_some_held_out(tmp_path):
    grey = RNG.integers(0, 256, (20, 28, 28), np.uint8)
    without = dict.fromkeys(["val_images", "val_labels", "test_images", "test_labels"])
    loaded = load(write_npz(tmp_path / "grey.npz", train_images=grey, train_labels=np.arange(20) % 4, **without))
    assert (len(loaded.train_images), len(loaded.test_images)) == (16, 4)
    assert torch.equal(loaded.train_images[:, 0], loaded.train_images[:, 2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": np.zeros((20, 28, 28, 3))}, "train_images is of float64; allowed is uint8"),
        ({"train_labels": np.zeros((20, 14), np.uint8)}, "train_labels has 14 labels an image; allowed is one"),
        ({"train_labels": np.zeros(20)}, r"train_labels is float64 \(20,\); allowed are whole numbers"),
        ({"train_labels": np.array([None] * 20)}, r"train_labels cannot be used: object \(20,\)"),
        (
            {"train_labels": np.full(20, 1 << 63, np.uint64)},
            r"train_labels has a label 9223372036854775808; allowed are labels below 2\*\*63",
        ),
        ({"train_labels": np.zeros(19, np.uint8)}, "has 20 train images, but 19 labels"),
        (
            {"x_train": np.zeros((2, 28, 28, 3), np.uint8), "y_train": np.arange(2)},
            "has train_images and x_train; keep one of them",
        ),
        ({"train_labels": None}, "has train_images, but not both train_images and train_labels"),
        (
            dict.fromkeys(f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")),
            "holds nothing; expected are train_images",
        ),
        ({"train_images": None, "train_labels": None}, "has validation and test images, but no training images; "),
        (
            {"train_images": np.zeros((20, 28, 28, 28, 1), np.uint8)},
            r"has the shape \(20, 28, 28, 28, 1\); allowed are",
        ),
        ({"train_images": np.uint8(5)}, r"train_images has the shape \(\); allowed are"),
        ({"test_images": np.zeros((6, 14, 14, 3), np.uint8)}, r"images of \(28, 28, 3\) and of \(14, 14, 3\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pickle")
def test_other_arrays_are_refused(tmp_path, changes, words):
    refused(write_npz(tmp_path / "own.npz", **changes), words)


def test_arrays_that_are_too_large_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tinycifar.data.npz.MOST_BYTES", 1_000)
    refused(write_npz(tmp_path / "own.npz"), r"train_images cannot be used: uint8 .*; allowed are 1,000 bytes")


def write_cifar100(folder: Path) -> np.ndarray:
    records = RNG.integers(0, 256, (200, 3074), np.uint8)
    records[:, 1] = np.arange(200) % 100
    records[:, 0] = records[:, 1] // 5
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"kind{k}" for k in range(100)) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(f"sort{k}" for k in range(20)) + "\n")
    return records


def test_cifar_100_has_fine_labels_or_coarse_ones(tmp_path):
    records = write_cifar100(tmp_path / "cifar-100-binary")
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-100-binary", "cifar-100-binary")
    for source in (tmp_path / "cifar-100-binary", tmp_path / "cifar-100-binary.tar.gz"):
        fine, coarse = load(source, 32), load(f"{source}?labels=coarse", 32)
        assert (fine.classes[42], coarse.classes[7]) == ("kind42", "sort7")
        assert fine.train_labels.tolist() == records[:, 1].tolist()
        assert coarse.train_labels.tolist() == records[:, 0].tolist()
        assert torch.equal(fine.train_images, torch.from_numpy(records[:, 2:].reshape(-1, 3, 32, 32)))
        assert fine.digest != coarse.digest


def test_cifar_100_that_is_damaged_is_refused(tmp_path):
    own = tmp_path / "cifar-100-binary"
    records = write_cifar100(own)
    (own / "train.bin").write_bytes(records.tobytes()[:-1])
    refused(own, r"train.bin has 614,799 bytes, which are not records of 3,074 bytes")
    records[3, 1] = 100
    (own / "train.bin").write_bytes(records.tobytes())
    refused(own, "train.bin has a label 100; allowed are 0 to 99")


def test_stl_10_is_stored_column_by_column(tmp_path):
    own = tmp_path / "stl10_binary"
    own.mkdir()
    upright = RNG.integers(0, 256, (20, 3, 96, 96), np.uint8)
    for name in ("train", "test"):
        (own / f"{name}_X.bin").write_bytes(upright.transpose(0, 1, 3, 2).tobytes())
        (own / f"{name}_y.bin").write_bytes(bytes(k % 10 + 1 for k in range(20)))
    (own / "unlabeled_X.bin").write_bytes(b"")
    loaded = load(own, 96)
    assert torch.equal(loaded.train_images, torch.from_numpy(upright))
    assert loaded.train_labels.tolist() == [k % 10 for k in range(20)]
    assert loaded.classes[7] == "monkey"
    assert "unlabeled_X.bin is left out" in loaded.notes
    (own / "test_y.bin").write_bytes(bytes(20))
    refused(own, "test_y.bin has a label 0; allowed are 1 to 10")
    (own / "test_y.bin").unlink()
    refused(own, "has no test_y.bin; test_X.bin and test_y.bin belong together")


def png(level: int) -> bytes:
    return encoded(Image.new("RGB", (8, 8), (level, 0, 7)))


def write_parquet(
    path: Path, labels: Sequence[object], *, names: list[str] | None = None, first: int = 0, shape: str = "{}.png"
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    images = [{"bytes": png(first + k), "path": shape.format(k)} for k in range(len(labels))]
    own = (
        pyarrow.table({"image": images, "label": labels})
        if labels
        else pyarrow.table({"image": [b""], "label": [0]})[:0]
    )
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        own = own.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(own, path)


def test_parquet_files_as_the_hub_has_them_are_read(tmp_path):
    own = tmp_path / "own"
    write_parquet(own / "data/train-00000-of-00002.parquet", [0, 1, 2] * 4, names=["ant", "bee", "cat"])
    write_parquet(own / "data/train-00001-of-00002.parquet", [0, 1, 2] * 2, names=["ant", "bee", "cat"], first=50)
    write_parquet(own / "data/test-00000-of-00001.parquet", [0, 1, 2], names=["ant", "bee", "cat"], first=90)
    loaded = load(own)
    assert (loaded.classes, len(loaded.train_images), len(loaded.test_images)) == (("ant", "bee", "cat"), 18, 3)
    for name, image, label in zip(loaded.names["train"], loaded.train_images, loaded.train_labels, strict=True):
        place = int(name.split()[-1].removesuffix(".png"))
        assert image[0, 0, 0] == place + (50 if "00001-of" in name else 0)
        assert label == place % 3


def test_a_parquet_file_alone_may_have_texts_as_labels(tmp_path):
    write_parquet(tmp_path / "own.parquet", ["dog", "cat"] * 5)
    loaded = load(tmp_path / "own.parquet")
    assert (loaded.classes, len(loaded.train_images), len(loaded.test_images)) == (("cat", "dog"), 8, 2)


@pytest.mark.parametrize("name", ["test.parquet", "test.npz"])
def test_test_images_alone_are_enough_to_score_a_model(tmp_path, name):
    if name.endswith(".npz"):
        write_npz(tmp_path / name, **dict.fromkeys(["train_images", "train_labels", "val_images", "val_labels"]))
    else:
        write_parquet(tmp_path / name, [0, 1, 2, 3, 0, 1])
    loaded = data.load_to_score(tmp_path / name, ("0", "1", "2", "3"))
    assert (len(loaded.train_labels), sorted(loaded.test_labels.tolist())) == (0, [0, 0, 1, 1, 2, 3])


def test_pictures_of_parquet_files_are_grouped_by_the_names_of_their_files(tmp_path):
    write_parquet(tmp_path / "own.parquet", [0, 1] * 20, shape="all/p{:02}_1.png")
    loaded = load(f"{tmp_path / 'own.parquet'}?group=(.*)[0-9]_")
    assert loaded.notes[0] == "4 groups, none of which lies on both sides of a split"
    assert len(loaded.test_images) == 10


def test_other_parquet_files_are_refused(tmp_path):
    write_parquet(tmp_path / "own/a.parquet", [0, 1])
    write_parquet(tmp_path / "own/b.parquet", [0, 1])
    refused(tmp_path / "own", "a.parquet is not named for a split, as train-")
    write_parquet(tmp_path / "half.parquet", [0.5, 1.5])
    refused(tmp_path / "half.parquet", r"half\.parquet: all labels must be whole numbers or all texts, not float")
    (tmp_path / "none.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path / "none.parquet", "none.parquet is no parquet file that can be read")
    from pyarrow import array, parquet, table, uint64

    labels = array([1, 1 << 63], uint64())
    parquet.write_table(table({"image": [png(1), png(2)], "label": labels}), tmp_path / "large.parquet")
    refused(tmp_path / "large.parquet", r"large\.parquet has a label 9223372036854775808; allowed are labels below")
    write_parquet(tmp_path / "empty.parquet", [], names=["a", "b"])
    refused(tmp_path / "empty.parquet", "has no rows in its parquet files")
    write_parquet(tmp_path / "unlabelled.parquet", [0, 1, -1], names=["a", "b"])
    refused(tmp_path / "unlabelled.parquet", "-1 is no label of the 2 classes that its schema names")
    write_parquet(tmp_path / "two/train.parquet", [0, 1], names=["a", "b"])
    write_parquet(tmp_path / "two/val.parquet", [0, 1], names=["b", "a"])
    refused(tmp_path / "two", "val.parquet has other names of classes in its schema than .*train.parquet")
    for around in (tmp_path / "two", tmp_path):
        shutil.make_archive(str(tmp_path / "packed"), "zip", around, None if around.name == "two" else "two")
        refused(tmp_path / "packed.zip", "holds parquet files, which are packed already: unpack it")
    parquet.write_table(table({"picture": [1, 2], "label": [0, 1]}), tmp_path / "no.parquet")
    refused(tmp_path / "no.parquet", "has the columns picture, label; expected are image, a struct with bytes")


def test_arrays_are_cropped_and_resized_as_pictures_are(tmp_path):
    pixels = RNG.integers(0, 256, (20, 40, 28, 3), np.uint8)
    path = tmp_path / "own.npz"
    np.savez(path, train_images=pixels, train_labels=np.arange(20) % 2)
    loaded = load(path, 16)
    for name, image in zip(loaded.names["train"], loaded.train_images, strict=True):
        Image.fromarray(pixels[int(name.split()[-1])]).save(tmp_path / "one.png")
        assert torch.equal(image, pictures.to_tensor(pictures.read(tmp_path / "one.png"), 16))


def test_zip_archives_of_other_layouts_are_read(tmp_path):
    table(tmp_path / "own", "\n".join(["file,label", *LINES]))
    shutil.make_archive(str(tmp_path / "listed"), "zip", tmp_path, "own")
    assert load(tmp_path / "listed.zip").digest == load(tmp_path / "own").digest
    write_cifar100(tmp_path / "cifar-100-binary")
    shutil.make_archive(str(tmp_path / "hundred"), "zip", tmp_path, "cifar-100-binary")
    assert load(tmp_path / "hundred.zip").digest == load(tmp_path / "cifar-100-binary").digest
