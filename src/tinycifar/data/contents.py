"""What own data holds, in whatever layout: labelled images by split, before any is decoded; and its `Dataset`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from tinycifar.catalog import Form
from tinycifar.data import checks, decoded, pictures, workers
from tinycifar.data.checks import UntrainableError as UntrainableError
from tinycifar.data.dataset import MOST_CLASSES, Dataset, Digests, Draws, Origin, ranks, stratified
from tinycifar.data.pictures import Pixels
from tinycifar.words import is_printable, printable

SPLITS = {  # by split, the names of its folders and files, in any case
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
FEWEST_CLASSES = 2
SEED = 0  # of the order of images, and of which are held out
TEST_SHARE = 5  # one image of so many of a class is held out if there are no test images
LARGE_AT_ONCE = 2  # pictures of more than pictures.MANY_PIXELS, of which decoding one may take 300 MB
NAMED = 5  # classes or files in a message
MUCH_CROPPED = 0.3  # of a picture's area; of a photo with sides of 3:2 a third is lost
MANY_CROPPED = 0.1  # of the pictures, so that it is worth a note
CROPPED = "lose more than 30% of their area to the crop"
ADVICE = "; with the recipe field fit=pad or fit=squash nothing is lost"
LACKS_END = "are JPEGs that lack their end marker; they are used"
Labels = np.ndarray[tuple[int], np.dtype[np.int64]]
Decoder = Callable[[bytes, int, str], tuple[Pixels, str]]


@dataclass(frozen=True)
class Contents:
    """N labelled images: what they are called, their classes, splits and groups, and how to read each.

    `labels` (N,) are indices into `classes`; `splits` has the indices of each split's images. `read` gives the bytes of
    an image by its index, and `decode` makes pixels (3, S, S) of these bytes, of S and of a recipe's `fit`, and a
    remark for what was odd, else "". With `ordered` the order of the
    images is kept, else it is drawn. `groups` has for each image its group, if known. `notes` are lines that say what
    was decided, `source` is what `tinycifar.data.load` takes to find the same again. With `by_path` images are read
    from files of their own, so that processes may do it in parallel.
    """

    path: Path
    layout: str
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: Labels
    splits: dict[str, Labels]
    read: Callable[[int], bytes]
    decode: Decoder
    ordered: bool = False
    groups: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    skip_unreadable: bool = False
    by_path: bool = False

    def counts(self, split: str) -> list[int]:
        """The images of each class in a split."""
        rows = self.splits.get(split, np.empty(0, np.int64))
        return [int(count) for count in np.bincount(self.labels[rows], minlength=len(self.classes))]


def split_of(name: str) -> str | None:
    """The split that a folder or file is named for, in any case; None for other names."""
    return next((split for split, names in SPLITS.items() if name.casefold() in names), None)


def picture_decoder() -> Decoder:
    """A `Contents.decode` for the bytes of picture files."""
    large = workers.Slots(LARGE_AT_ONCE)

    def decode(content: bytes, image_size: int, fit: str) -> tuple[Pixels, str]:
        try:
            picture = pictures.decode_reported(content, lambda: large, image_size, fit)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("cannot read the picture: ")) from None
        remark = CROPPED if picture.cropped > MUCH_CROPPED else ""
        return picture.pixels, LACKS_END if picture.lacks_end else remark

    return decode


def pixel_decoder(shape: tuple[int, ...]) -> Decoder:
    """A `Contents.decode` for uint8 pixels of `shape`, (H, W) in grey or (H, W, 3) in RGB."""
    least, most = sorted(shape[:2])

    def decode(content: bytes, image_size: int, fit: str) -> tuple[Pixels, str]:
        cropped = fit == "crop" and least < (1 - MUCH_CROPPED) * most
        picture = Image.fromarray(np.frombuffer(content, np.uint8).reshape(shape)).convert("RGB")
        return pictures.to_array(pictures.fitted(picture, fit), image_size, fit), CROPPED if cropped else ""

    return decode


def to_dataset(
    contents: Contents,
    cache: Path,
    form: Form,
    display: Progress | None,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Decode the images in the `form` of a model's, or read them from `cache`.

    Without test images a fifth of each class's groups is held out; an image without a group is one of its own. Images
    that cannot be read are left out and counted if `contents.skip_unreadable`. With `classes`, those of a model, the
    data is only to be scored: it may lack training images and classes, and without test images has all of its images
    in their place. Raises ValueError for fewer than 2 or more than 1,000 classes, for one without a
    training image, or with a single group if some are to be held out, for groups that lie on both sides, and for images
    that cannot be read, naming them.
    """
    for_training = classes is None
    if classes is None:
        _check(contents)
    else:
        contents = _with_classes(contents, classes)
    hashes = _hashes(contents, display)
    digest = decoded.digest(sorted(zip(contents.names, hashes, strict=True)))
    unreadable = decoded.read_unreadable(cache, digest) if contents.skip_unreadable else {}
    listed: Path | None = decoded.unreadable_path(cache, digest)
    while True:
        rest = _without(contents, unreadable)
        if for_training and unreadable:
            _check(rest)
        splits, units, split_notes = _plan(rest, hashes, for_training)
        rows = np.concatenate(list(splits.values()))

        def decode(index: int, rows: Labels = rows) -> tuple[Pixels, str]:
            content = contents.read(rows[index])
            if hashlib.sha256(content).hexdigest() != hashes[rows[index]]:
                raise ValueError("it was changed while it was read")
            return contents.decode(content, form.image_size, form.fit)

        loaded = decoded.load(
            contents.path,
            [contents.names[row] for row in rows.tolist()],
            decode,
            content=digest,
            image_size=form.image_size,
            fit=form.fit,
            cache=cache,
            display=display,
            by_path=contents.by_path,
        )
        if not loaded.unreadable:
            break
        unreadable |= loaded.unreadable
        listed = decoded.write_unreadable(cache, digest, unreadable)
        if not contents.skip_unreadable:
            raise ValueError(decoded.describe_unreadable(contents.path, loaded.unreadable, len(rows), listed))
    skipped = Counter(unreadable.values())
    notes = [*contents.notes, *split_notes, *loaded.notes]
    if unreadable:
        kinds = ", ".join(f"{count:,} x {problem}" for problem, count in sorted(skipped.items()))
        where = f"; listed in {listed}" if listed else ""
        notes.append(f"Skipped {len(unreadable):,} of {len(contents.names):,} pictures: {kinds}{where}")
    notes += [
        f"{count:,} of the pictures {remark}{ADVICE if remark == CROPPED and for_training else ''}"
        for remark, count in loaded.remarks.items()
        if remark != CROPPED or count >= MANY_CROPPED * len(rows)
    ]
    images_of = dict(zip(splits, torch.split(loaded.images, [len(part) for part in splits.values()]), strict=True))
    labels_of = {split: torch.from_numpy(contents.labels[part]) for split, part in splits.items()}
    if "train" not in splits:  # to be scored on alone
        images_of["train"], labels_of["train"] = images_of["test"][:0], labels_of["test"][:0]
    dataset = Dataset(
        contents.path.name,
        contents.classes,
        images_of["train"],
        labels_of["train"],
        images_of["test"],
        labels_of["test"],
        images_of.get("validation"),
        labels_of.get("validation"),
        path=str(contents.source or contents.path),
        groups=None if contents.groups is None or "train" not in splits else torch.from_numpy(units[splits["train"]]),
        names={split: tuple(printable(contents.names[row]) for row in part.tolist()) for split, part in splits.items()},
        origins={
            split: Origin(images_of[split], _digests([hashes[row] for row in part.tolist()]))
            for split, part in splits.items()
        },
        skipped=dict(skipped),
    )
    dataset = replace(dataset, notes=(*notes, *(checks.check(dataset) if for_training else [])))
    return dataset.with_channels(form.channels)


def _with_classes(contents: Contents, classes: tuple[str, ...]) -> Contents:
    """The contents with the classes of a model; ValueError for images of a class that it does not know."""
    used = np.unique(np.concatenate([contents.labels[rows] for rows in contents.splits.values()]))
    present = [contents.classes[label] for label in used.tolist()]
    if unknown := [name for name in present if name not in classes]:
        raise ValueError(
            f"{contents.path} has {named(unknown)}, which the model does not know; it knows {named(list(classes))}"
        )
    labels = np.array([classes.index(name) if name in classes else -1 for name in contents.classes])
    return replace(contents, classes=classes, labels=labels[contents.labels])


def _without(contents: Contents, unreadable: dict[str, str]) -> Contents:
    """The contents without the images of these names."""
    if not unreadable:
        return contents
    readable = np.array([name not in unreadable for name in contents.names])
    splits = {split: rows[readable[rows]] for split, rows in contents.splits.items()}
    return replace(contents, splits={split: rows for split, rows in splits.items() if len(rows) or split == "train"})


def _plan(contents: Contents, hashes: list[str], for_training: bool) -> tuple[dict[str, Labels], Labels, list[str]]:
    """Each split's images in their order, some held out if there are no test images; numbers of groups; notes."""
    splits, notes = dict(contents.splits), []
    units = _units(contents)
    draws = _draws(hashes if contents.groups is None else contents.groups)
    if "test" not in splits and for_training:
        splits["train"], splits["test"] = _hold_out(contents, splits["train"], units, draws)
        what = "" if contents.groups is None else "the groups of "
        notes.append(
            f"No test images in {contents.path}: a fifth of {what}each class is held out as test images, "
            f"{len(splits['test']):,} of {len(contents.splits['train']):,}, the same ones each time"
        )
    elif "test" not in splits:
        name = next(split for split in ("validation", "train") if split in splits)
        splits = {"test": splits[name]}
    _check_groups(contents, splits)
    if not contents.ordered:
        splits = {
            split: part[_order(contents.labels[part], units[part], draws[part])] for split, part in splits.items()
        }
    return splits, units, notes


def named(classes: Sequence[str]) -> str:
    """Classes in a message: "class a", or how many and the first ones."""
    return f"{'class' if len(classes) == 1 else f'{len(classes):,} classes:'} {few(classes)}"


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(printable, names[:NAMED])) + more


def _check(contents: Contents) -> None:
    classes, counts = contents.classes, contents.counts("train")
    if "train" not in contents.splits:
        raise UntrainableError(
            f"{contents.path} has {' and '.join(contents.splits)} images, but no training images; "
            "`tinycifar evaluate MODEL --data` takes it"
        )
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        raise UntrainableError(
            f"{contents.path} has {len(classes):,} class{'es' * (len(classes) != 1)}; allowed are {FEWEST_CLASSES} to "
            f"{MOST_CLASSES:,}"
        )
    if unprintable := [name for name in classes if not name or not is_printable(name)]:
        raise UntrainableError(
            f"{contents.path} has a class '{printable(unprintable[0])}', whose name cannot be printed; rename it"
        )
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise UntrainableError(f"{contents.path} has no training image of {named(empty)}")


def _hashes(contents: Contents, display: Progress | None) -> list[str]:
    """The SHA-256 of each image, hexadecimal; "" for what cannot be read, which is named when it is to be decoded."""
    hashes = [""] * len(contents.names)

    def attempt(row: int) -> tuple[str, str]:
        try:
            return hashlib.sha256(contents.read(row)).hexdigest(), ""
        except (OSError, ValueError):
            return "", ""

    def store(row: int, digest: str, _: str) -> None:
        hashes[row] = digest

    workers.run(attempt, len(hashes), store, "Reading pictures", display, contents.by_path)
    return hashes


def _units(contents: Contents) -> Labels:
    """A number (N,) for each image that those of one group share."""
    if contents.groups is None:
        return np.arange(len(contents.names))
    return np.unique(np.asarray(contents.groups), return_inverse=True)[1].astype(np.int64)


def _digests(hashes: Sequence[str]) -> Digests:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def _draws(keys: Sequence[str]) -> Draws:
    """What orders images: drawn from (SEED, key), so that no other moves when one is added or renamed."""
    drawn = (hashlib.sha256(f"{SEED} {key}".encode("utf-8", "surrogateescape")).digest()[:8] for key in keys)
    return np.frombuffer(b"".join(drawn), ">u8").astype(np.uint64)


def _of_units(labels: Labels, units: Labels, draws: Draws) -> tuple[Labels, Tensor, Draws]:
    """The units there are, and of each the class that most of its images have, and its draw."""
    present, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    pairs, counts = np.unique(inverse * (labels.max() + 1) + labels, return_counts=True)
    common = np.full(len(present), -1)
    for pair in pairs[np.argsort(counts, kind="stable")]:  # the most frequent last
        common[pair // (labels.max() + 1)] = pair % (labels.max() + 1)
    return present, torch.from_numpy(common), draws[first]


def _hold_out(contents: Contents, rows: Labels, units: Labels, draws: Draws) -> tuple[Labels, Labels]:
    """The rows to train on and those that are held out for testing."""
    labels = contents.labels[rows]
    present, common, drawn = _of_units(labels, units[rows], draws[rows])
    counts = common.bincount(minlength=len(contents.classes))
    what = "picture" if contents.groups is None else "group"
    if single := [name for name, count in zip(contents.classes, counts.tolist(), strict=True) if count == 1]:
        raise UntrainableError(
            f"{contents.path} has a single {what} of {named(single)}, of which none can be held out; add {what}s, or "
            "test images"
        )
    held = ranks(common, drawn) < (counts // TEST_SHARE).clamp(min=1)[common]
    of_test = np.isin(units[rows], present[held.numpy()])
    if lost := sorted(set(labels.tolist()) - set(labels[~of_test].tolist())):
        raise ValueError(
            f"{contents.path}: the groups leave no training image of "
            f"{named([contents.classes[label] for label in lost])}; give test images"
        )
    return rows[~of_test], rows[of_test]


def _order(labels: Labels, units: Labels, draws: Draws) -> Labels:
    """Indices (N,) in a stratified order in which each group lies together."""
    present, common, drawn = _of_units(labels, units, draws)
    position = np.empty(len(present), np.int64)
    position[stratified(common, drawn).numpy()] = np.arange(len(present))
    return np.argsort(position[np.searchsorted(present, units)], kind="stable")


def _check_groups(contents: Contents, splits: dict[str, Labels]) -> None:
    """Raise ValueError for groups that lie in more than one split."""
    if contents.groups is None:
        return
    seen: dict[str, str] = {}
    for split, rows in splits.items():
        of_split = {contents.groups[row] for row in rows.tolist()}
        if both := sorted(of_split & seen.keys()):
            raise ValueError(
                f"{contents.path}: {len(both):,} group{'s' * (len(both) > 1)} lie in {seen[both[0]]} and {split}: "
                f"{few(both)}; move each to one side"
            )
        seen |= dict.fromkeys(of_split, split)


def grouped(contents: Contents, groups: Sequence[str], alone: int = 0) -> Contents:
    """The contents with a group for each image, `alone` of which are groups of one because nothing names theirs."""
    note = f"{len(set(groups)):,} groups, none of which lies on both sides of a split"
    more = f"; {alone:,} images have no group and count as one each" if alone else ""
    return replace(contents, groups=groups, notes=(*contents.notes, f"{note}{more}"))
