"""Which data a source names: CIFAR-10, its sample, or own data in one of the layouts that are known."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from tinycifar.catalog import Form
from tinycifar.data import binaries, cifar10, contents, folders, idx, npz, parquet, pictures, sources, tables, trees
from tinycifar.data.contents import Contents
from tinycifar.data.dataset import CLASSES, MOST_CLASSES, Origin, pixel_digests
from tinycifar.data.dataset import NAMES as NAMES
from tinycifar.data.dataset import Dataset as Dataset
from tinycifar.data.sources import Source
from tinycifar.data.trees import Tree
from tinycifar.words import is_printable, printable

ALLOWED = (
    f"cifar10, sample, a folder or zip archive with pictures as {folders.LAYOUT} or CLASS/*, with a table of labels "
    f"(labels.csv), with IDX files ({idx.FILES['train'][0]}, ...) or parquet files, MedMNIST's .npz files, and the "
    f"binary folders or archives of CIFAR-10 ({cifar10.FOLDER}), CIFAR-100 and STL-10"
)
SAMPLE = {"train.bin": (400, "fc0944f3738fba067151134e9410c27b"), "test.bin": (200, "5e4f2b92f766dc3ab440b9d40000c15c")}


def load(
    source: str | Path | None = None,
    cache: Path | None = None,
    *,
    image_size: int = 32,
    fit: str = "crop",
    channels: int = 3,
    skip_unreadable: bool = False,
    display: Progress | None = None,
) -> Dataset:
    """Load images into memory, resized to `image_size` pixels a side, in RGB or, with one of `channels`, in grey.

    `fit` says what becomes of images that are not square (`catalog.FITS`). With `skip_unreadable` pictures that cannot
    be read are left out and counted.

    `source` is "cifar10" or None for CIFAR-10 from the cache, which is filled first if files are missing, "sample" for
    the packaged sample of it, or a path, with options as in `tinycifar.data.sources`: own data in a layout that
    docs/DATA.md lists, or CIFAR-10's binary folder or archive. Every byte of CIFAR-10 is checked against the published
    digests. `display` shows the progress of slow steps. Raises ValueError for data that cannot be used, of which
    `cifar10.DataError` is the kind for damaged data; OSError if the disk fails.
    """
    if source == "sample":
        return sample(image_size, channels)
    form = Form(image_size, fit, channels)
    if source not in (None, "cifar10") and (own := examine(source)) is not None:
        if skip_unreadable:
            own = replace(own, skip_unreadable=True, source=str(replace(sources.parse(own.source), unreadable="skip")))
        folder = cifar10.cache_directory() if cache is None else cache
        return contents.to_dataset(own, folder, form, display)
    path = None if source in (None, "cifar10") else sources.parse(source).path
    known = _dataset("cifar10", cifar10.read(path, cache), image_size)
    return known.with_channels(channels)


def load_to_score(
    source: str | Path,
    classes: tuple[str, ...],
    *,
    image_size: int = 32,
    fit: str = "crop",
    channels: int = 3,
    display: Progress | None = None,
) -> Dataset:
    """Load own data for a model of these `classes` to be scored on, as `tinycifar.data.contents.to_dataset` says."""
    form = Form(image_size, fit, channels)
    own = examine(source)
    if own is None:
        raise ValueError(f"{source} is CIFAR-10, which has test images of its own")
    return contents.to_dataset(own, cifar10.cache_directory(), form, display, classes)


def load_pictures(
    source: str | Path, *, image_size: int = 32, fit: str = "crop", channels: int = 3, display: Progress | None = None
) -> Tensor:
    """Images (N, channels, image_size, image_size), uint8, of any source, without labels.

    `source` is as in `load`, of which the test images are taken, or all if it has none; or a folder with pictures
    anywhere in it, or one picture. Raises ValueError for pictures that cannot be read and for a source without any.
    """
    form = Form(image_size, fit, channels)
    try:
        own = None if str(source) in NAMES else examine(source)
    except ValueError:
        if not Path(source).exists() or not (Path(source).is_dir() or pictures.is_picture(source)):
            raise
        files = pictures.find([source])
        images = [pictures.to_tensor(pictures.read(file, fit), image_size, fit, channels) for file in files]
        return torch.stack(images)
    if own is None:
        return load(source, **vars(form), display=display).test_images
    if not 2 <= len(own.classes) <= MOST_CLASSES:  # no limit here; in between, the split is that of `load`
        own = replace(own, classes=("any", "other"), labels=np.zeros_like(own.labels))
    return contents.to_dataset(own, cifar10.cache_directory(), form, display, own.classes).test_images


def examine(source: str | Path) -> Contents | None:
    """What own data holds, none of its images decoded; None for CIFAR-10 itself.

    Raises ValueError for what is in no layout that is known, saying what was expected, and for damaged files.
    """
    options = sources.parse(source).absolute()
    path = Path(options.path)
    if not is_printable(str(path)):
        raise ValueError(f"{printable(str(path))} has a name that cannot be printed; rename it")
    if path.is_file() and path.name.lower().endswith(trees.TAR_SUFFIXES) and _is_cifar10_archive(path):
        options.check_used()
        return None
    tree = trees.open_tree(path)
    if tree is not None and _is_cifar10(tree):
        options.check_used()
        return None
    wrapper = None if tree is None else _wrapped(tree)
    if tree is not None and wrapper is not None:
        tree = trees.InnerTree(tree, wrapper)
    examined = _examine(path, tree, options)
    if examined is not None and wrapper is not None:
        examined = replace(examined, layout=f"{examined.layout}, inside {wrapper}/")
    if examined is None:
        _check_cifar10(path, tree)
        return None
    return replace(examined, source=str(options), skip_unreadable=options.unreadable == "skip")


def _examine(path: Path, tree: Tree | None, options: Source) -> Contents | None:
    """The contents of the first layout that fits; None if none does."""
    suffix, around = path.suffix.lower() if path.is_file() else "", trees.FolderTree(path.parent)
    if path.is_file() and idx.FILE.fullmatch(path.name):
        options.check_used("transposed")
        return idx.read(around, options.transposed, path.name)
    if suffix == ".npz":
        options.check_used()
        return npz.read(path)
    if suffix == ".parquet":
        options.check_used("group", "labels")
        return parquet.read(around, [path.name], options.labels, options.group)
    if suffix in (".csv", ".tsv"):
        options.check_used("group", "columns")
        return tables.read(around, [path.name], options.columns, options.group)
    if tree is None:
        return None
    if idx.sets(tree):
        options.check_used("transposed")
        return idx.read(tree, options.transposed)
    if (base := binaries.top(tree, binaries.CIFAR100, "train.bin")) is not None:
        options.check_used("labels")
        return binaries.read_cifar100(tree, base, options.labels)
    if (base := binaries.top(tree, binaries.STL10, "train_X.bin")) is not None:
        options.check_used()
        return binaries.read_stl10(tree, base)
    if files := parquet.find(tree):
        options.check_used("group", "labels")
        return parquet.read(tree, files, options.labels, options.group)
    if listed := tables.find(tree, options.columns):
        options.check_used("group", "columns")
        return tables.read(tree, listed, options.columns, options.group)
    if not folders.recognises(tree):
        return None
    options.check_used("group")
    return folders.read(tree, options.group)


def _wrapped(tree: Tree) -> str | None:
    """The only entry of a tree if that is a folder with more than pictures in it, as archives wrap their content."""
    entries = tree.entries()
    if len(entries) != 1 or entries[0].kind != "folder" or contents.split_of(entries[0].name):
        return None
    within = tree.entries(entries[0].name)
    return entries[0].name if any(not folders.is_picture(entry.name) for entry in within) else None


def _is_cifar10(tree: Tree) -> bool:
    """Whether a folder or tar archive is to be judged by the reader of CIFAR-10."""
    names = {cifar10.FOLDER, *cifar10.FILES, *cifar10.PICKLED}
    return bool(names & {tree.path.name, *(entry.name for entry in tree.entries())})


def is_own(source: str | Path) -> bool:
    """Whether a source names own data in a layout that is known, usable or not."""
    try:
        return str(source) not in NAMES and examine(source) is not None
    except cifar10.DataError:
        return False
    except ValueError:
        return True


def _check_cifar10(path: Path, tree: Tree | None) -> None:
    """Raise DataError, with what is expected, for a path that has nothing of CIFAR-10, whose reader judges the rest."""
    if tree is None and path.exists():
        raise cifar10.DataError(f"{path} is a file of no kind that is known here; allowed are {ALLOWED}")
    if tree is None:
        raise cifar10.DataError(f"{path} does not exist; allowed are {ALLOWED}")
    if problem := folders.misplaced(tree):
        raise cifar10.DataError(f"{path} {problem}; expected are {folders.LAYOUT}, or CLASS/* for at least two classes")
    raise cifar10.DataError(f"{path} holds no images that are known here; allowed are {ALLOWED}")


def sample(image_size: int = 32, channels: int = 3) -> Dataset:
    """Load the packaged sample: the first 400 training and 200 test images of CIFAR-10, for trials and tests."""
    Form(image_size, channels=channels)  # ValueError for what no recipe has
    folder = Path(__file__).parent / "sample"
    files = [cifar10.examine(folder / name, records, md5) for name, (records, md5) in SAMPLE.items()]
    for state, _ in files:
        if not state.ok:
            raise cifar10.DataError(f"{folder / state.name}: {state.problem}. Install tinycifar again")
    return _dataset("sample", [data for _, data in files], image_size).with_channels(channels)


def _dataset(name: str, parts: Sequence[bytes], image_size: int) -> Dataset:
    """Turn the contents of binary files, the last one the test set, into tensors."""
    records = [np.frombuffer(part, np.uint8).reshape(-1, cifar10.RECORD_BYTES) for part in parts]
    halves: list[tuple[Tensor, Tensor]] = []
    origins: dict[str, Origin] = {}
    for split, half in (("train", records[:-1]), ("test", records[-1:])):
        images = torch.from_numpy(np.concatenate([r[:, 1:] for r in half])).view(-1, 3, 32, 32)
        labels = torch.from_numpy(np.concatenate([r[:, 0] for r in half])).long()
        resized = _resized(images, image_size)
        halves.append((resized, labels))
        if resized is not images:  # it is the same data at every size
            origins[split] = Origin(resized, pixel_digests(images.numpy()))
    return Dataset(name, CLASSES, *halves[0], *halves[1], origins=origins)


def _resized(images: Tensor, size: int) -> Tensor:
    """Images uint8 (N, 3, size, size) from uint8 (N, 3, S, S), each resized as a picture file is."""
    if images.shape[-1] == size:
        return images
    return torch.stack([pictures.to_tensor(pictures.to_image(image), size) for image in images])


def _is_cifar10_archive(path: Path) -> bool:
    """Whether a tar archive holds CIFAR-10, or is damaged, which its reader says; found by the first names in it."""
    names = {cifar10.FOLDER, *cifar10.FILES, *cifar10.PICKLED, *cifar10.LABELS, "data_batch_1.png", "test_batch.png"}
    try:
        with tarfile.open(path) as archive:
            return any(names & set(Path(member.name).parts) for member, _ in zip(archive, range(100), strict=False))
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return True
