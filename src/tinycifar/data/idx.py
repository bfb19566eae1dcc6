"""Own data: IDX files, as those of MNIST, Fashion-MNIST, KMNIST and EMNIST, of grey images."""

from __future__ import annotations

import gzip
import hashlib
import re
import string
import zlib
from dataclasses import dataclass, field

import numpy as np

from tinycifar.data import arrays
from tinycifar.data.arrays import MOST_PIXELS, Arrays, Bytes
from tinycifar.data.contents import Contents
from tinycifar.data.trees import Tree
from tinycifar.words import printable

FILE = re.compile(r"(?P<stem>.*?)[-._]?(?P<kind>images|labels)[-._]idx[13][-._]ubyte(\.gz)?", re.I)
SPLIT = re.compile(r"(?P<name>.*?)[-._]?(?P<split>train|training|t10k|test|testing|val|valid|validation)", re.I)
FILES = {  # as MNIST has them: of each split those of images and labels; each may end in .gz
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGES, LABELS = 0x0803, 0x0801  # the magic numbers of bytes in three dimensions and in one
MOST_BYTES = 1 << 30  # of a file, unpacked
FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MNIST_SHA256 = {  # of the files, unpacked
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"  # whose other small letters look like the capitals
EMNIST = {  # the names of classes; labels begin at 0, those of letters at 1
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "bymerge": _MERGED,
    "balanced": _MERGED,
    "letters": string.ascii_uppercase,
    "digits": string.digits,
    "mnist": string.digits,
}
EMNIST_SIZES = {  # training and test images: it is known by them under other names too
    (697_932, 116_323): "byclass",  # bymerge has as many, and 47 classes
    (112_800, 18_800): "balanced",
    (124_800, 20_800): "letters",
    (88_800, 14_800): "letters",
    (240_000, 40_000): "digits",
}


@dataclass
class _Set:
    """A data set: its files by split and kind, "images" or "labels"."""

    name: str
    files: dict[tuple[str, str], str] = field(default_factory=dict)


def sets(tree: Tree) -> dict[str, _Set]:
    """The data sets in the top folder of a tree, by name; MNIST's own has the name ""."""
    by_name: dict[str, _Set] = {}
    for name in tree.names("", "file"):
        file = FILE.fullmatch(name)
        about = SPLIT.fullmatch(file["stem"]) if file else None
        if file and about:
            split = {"t": "test", "v": "validation"}[about["split"][0].lower()]
            split = "train" if about["split"].lower().startswith("train") else split
            data_set = by_name.setdefault(about["name"].lower(), _Set(about["name"]))
            key = split, file["kind"].lower()
            if key not in data_set.files or data_set.files[key].endswith(".gz"):  # unpacked goes before packed
                data_set.files[key] = name
    return by_name


def read(tree: Tree, transposed: str = "", file: str = "") -> Contents:
    """Read IDX files in the top folder of a tree: one data set, or that which `file` belongs to.

    `transposed` says whether the images are stored transposed, "yes" or "no"; "" leaves it to what is known: those of
    EMNIST are. Classes are named by their labels, or as those of Fashion-MNIST, KMNIST or EMNIST. Raises ValueError,
    naming the file, for what is missing, damaged, or not as the format or the other files have it.
    """
    data_sets = sets(tree)
    if file:
        data_sets = {
            name: known for name, known in data_sets.items() if _plain(file) in map(_plain, known.files.values())
        }
        if not data_sets:
            raise ValueError(f"{tree.where(file)} has no split in its name; name it like {FILES['train'][0]}")
    if len(data_sets) > 1:
        example = next(iter(data_sets.values())).files
        raise ValueError(
            f"{tree.path} has {len(data_sets)} data sets: {', '.join(sorted(data_sets))}; name one of its files, as "
            f"{tree.where(next(iter(example.values())))}"
        )
    (data_set,) = data_sets.values()
    files = dict(data_set.files)
    if file:  # the one that is named, if it lies there packed and unpacked
        files[next(key for key, name in files.items() if _plain(name) == _plain(file))] = file
    for split, kind in (("train", "images"), ("train", "labels"), ("test", "images"), ("test", "labels")):
        if (split, kind) not in files:
            missing = FILES[split][kind == "labels"]
            raise ValueError(
                f"{tree.path} has no {missing} or {missing}.gz; all of these are needed: "
                f"{', '.join(name for names in FILES.values() for name in names)}"
            )
    hashes, parts, labels = {}, {}, {}
    for split in sorted({split for split, _ in files}, key=("train", "validation", "test").index):
        if (split, "images") not in files or (split, "labels") not in files:
            raise ValueError(f"{tree.path} has images or labels of {split} alone; both are needed")
        images_name, labels_name = files[split, "images"], files[split, "labels"]
        images, hashes[images_name.removesuffix(".gz")] = _read(tree, images_name, IMAGES)
        labels[split], hashes[labels_name.removesuffix(".gz")] = _read(tree, labels_name, LABELS)
        parts[split] = images
        if len(images) != len(labels[split]):
            raise ValueError(
                f"{tree.path} has {len(images):,} images in {images_name}, but {len(labels[split]):,} labels"
            )
    values = np.unique(np.concatenate(list(labels.values())))
    kind, classes = _known(tree, data_set, hashes, parts, [int(value) for value in values])
    turned = transposed == "yes" or (kind.startswith("EMNIST") and transposed != "no")
    notes = []
    if turned:
        parts = {split: images.transpose(0, 2, 1) for split, images in parts.items()}
        why = "transposed=yes" if transposed else "EMNIST stores them so; transposed=no leaves them as they are"
        notes.append(f"The images are transposed ({why})")
    elif not kind and not transposed:
        notes.append("The images are taken as stored; if they lie on their side, as EMNIST's do, use transposed=yes")
    side = "x".join(map(str, parts["train"].shape[1:]))
    return arrays.contents(
        tree.where(file),
        f"IDX files of {kind}, grey {side}" if kind else f"IDX files, grey {side}",
        classes,
        {
            split: Arrays(_stem(files[split, "images"]), images, np.searchsorted(values, labels[split]))
            for split, images in parts.items()
        },
        tuple(notes),
    )


def _plain(name: str) -> str:
    """The name of a file, packed or not."""
    return name.lower().removesuffix(".gz")


def _stem(name: str) -> str:
    return re.split(r"[-._]idx", name, flags=re.I)[0]


def _known(
    tree: Tree, data_set: _Set, hashes: dict[str, str], parts: dict[str, Bytes], values: list[int]
) -> tuple[str, tuple[str, ...]]:
    """Which published data this is, "" for others, and the names of the classes with these labels."""
    named = tuple(map(str, values))
    if hashes == FASHION_MNIST_SHA256:
        return "Fashion-MNIST", FASHION_MNIST
    name = (data_set.name or tree.path.name).lower()
    if "kmnist" in name and len(values) == len(KMNIST):
        return "KMNIST", KMNIST
    size = len(parts["train"]), len(parts["test"])
    if "emnist" not in name and (size not in EMNIST_SIZES or parts["train"].shape[1:] != (28, 28)):
        return "", named
    kind = next((kind for kind in EMNIST if kind in name.replace("emnist", "")), EMNIST_SIZES.get(size, ""))
    if kind == "byclass" and values[-1] < len(_MERGED):
        kind = "bymerge"
    names = EMNIST.get(kind, "")
    first = int(kind == "letters")
    if not (names and first <= values[0] and values[-1] < len(names) + first):
        return "EMNIST", named
    return f"EMNIST ({kind})", tuple(names[value - first] for value in values)


def _read(tree: Tree, name: str, magic: int) -> tuple[Bytes, str]:
    """The array of a file, which is packed if its name has .gz, and the SHA-256 of its bytes, unpacked."""
    where = printable(str(tree.where(name)))
    header_bytes = 4 * (magic % 256 + 1)  # the magic number, whose last byte is that of the dimensions, and each length
    try:
        tree.size(name)
        with tree.open(name) as file, gzip.open(file) if name.lower().endswith(".gz") else file as content:
            header = content.read(header_bytes)
            first, *shape = (int(number) for number in np.frombuffer(header.ljust(header_bytes, b"\0"), ">u4"))
            if first != magic:
                raise ValueError(f"it begins with {first:#010x}, not {magic:#010x}")
            if min(shape) < 1 or shape[1:] != shape[1:2] * (len(shape) - 1) or max(shape[1:], default=1) > MOST_PIXELS:
                raise ValueError(
                    f"it claims {' x '.join(map(str, shape))} bytes; allowed are images of 1 to {MOST_PIXELS} pixels a "
                    "side, square, and one at least"
                )
            size = int(np.prod(shape, dtype=np.uint64)) if shape[0] <= MOST_BYTES else shape[0]
            if size > MOST_BYTES:
                raise ValueError(f"it claims {size:,} bytes, allowed are {MOST_BYTES:,}")
            # A byte more, which must not be there, so that a packed file is read to its end.
            body = content.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ValueError(f"{where} is damaged: it cannot be unpacked") from None
    except ValueError as error:
        raise ValueError(f"{where} is no file of the IDX format that can be used: {error}") from None
    if len(body) != size:
        more = "more" if len(body) > size else f"only {len(body):,}"
        raise ValueError(f"{where} is damaged: {size:,} bytes behind its header were announced, {more} are there")
    sha256 = hashlib.sha256(header)
    sha256.update(body)
    return np.frombuffer(body, np.uint8).reshape(shape), sha256.hexdigest()
