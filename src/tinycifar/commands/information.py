"""`tinycifar data info`: what data is."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image

from tinycifar import atomic, data, words
from tinycifar.commands import terminal
from tinycifar.data import cifar10, pictures

if TYPE_CHECKING:
    from rich.progress import Progress

    from tinycifar.data import Dataset
    from tinycifar.data.contents import Contents


@click.command("info")
@terminal.data_option("CIFAR-10 in the cache", hide_details=False)
@terminal.option("--plot", metavar="PNG", type=terminal.OutputFile(".png"), help="Draw training images by class.")
@terminal.overwrite_option
@terminal.json_option
def info_command(source: str | None, plot: Path | None, overwrite: bool, as_json: bool) -> None:
    """Describe data: layout, classes, splits, sizes; without --data, CIFAR-10 and where the cache is.

    Data that can be read but is too small to be trained on is described too, with its problem.
    """
    from tinycifar.data.dataset import CLASSES

    if plot is not None:
        atomic.check_new(plot, overwrite)
    if source in (None, "cifar10"):
        states = cifar10.verify()
        content: dict[str, Any] = {
            "folder": str(cifar10.cache_directory() / cifar10.FOLDER),
            "verified": all(state.ok for state in states),
            "bytes": sum(state.bytes or 0 for state in states),
            "train_images": 50_000,
            "test_images": 10_000,
            "image_shape": [3, 32, 32],
            "classes": list(CLASSES),
        }
        dataset = None if plot is None else data.load(source)
    else:
        content, dataset = _about(str(source))
    if plot is not None:
        if dataset is None:
            raise ValueError(f"nothing to draw: {content['problem']}")
        from tinycifar.report import plots, samples

        plots.save(plot, samples.draw, dataset)
    if as_json:
        terminal.print_json(content)
        return
    for name, value in content.items():
        if value not in (None, []):
            values = (
                value if isinstance(value, list) else ["yes" if value is True else "no" if value is False else value]
            )
            click.echo(f"{name.replace('_', ' ')}: {', '.join(words.printable(str(shown)) for shown in values)}")


def _about(source: str) -> tuple[dict[str, Any], Dataset | None]:
    """What is known of own data or the sample, and the data itself; None if it cannot be trained on."""
    from tinycifar.data import contents, decoded, duplicates

    display = terminal.display(to_stderr=True)
    with display:
        own = None if source == "sample" else data.examine(source)
        problem, dataset = None, None
        try:
            dataset = data.load(source, skip_unreadable=True, display=display)  # it is there to say what is wrong
            if dataset.skipped and own is not None and not own.skip_unreadable:
                skipped = sum(dataset.skipped.values())
                problem = f"{words.counted(skipped, 'picture')} cannot be read: train needs --skip-unreadable"
        except contents.UntrainableError as error:
            problem = str(error)
        sizes, modes, formats = (
            ([], Counter[str](), Counter[str]()) if own is None or own.ordered else _heads(own, display)
        )
    classes = dataset.classes if dataset is not None else own.classes if own is not None else ()
    about: dict[str, Any] = {
        "name": dataset.name if dataset is not None else Path(source).name,
        "layout": None if own is None else own.layout,
        "folder": source if own is None else str(own.path),
        "sha256": None if dataset is None else dataset.digest or None,
    }
    counts = {split: _counts(dataset, own, split) for split in contents.SPLITS}
    about |= {f"{split}_images": sum(counts[split]) for split in counts}
    about |= {
        "shorter_sides": [min(map(min, sizes)), max(map(min, sizes))] if sizes else None,
        "longer_sides": [min(map(max, sizes)), max(map(max, sizes))] if sizes else None,
        "modes": [f"{mode} {count:,}" for mode, count in modes.most_common()],
        "formats": [f"{kind} {count:,}" for kind, count in formats.most_common()],
        "image_shape": None if dataset is None else list(dataset.train_images.shape[1:]),
        "cache": None if own is None else str(cifar10.cache_directory() / decoded.FOLDER),
        "notes": list(dataset.notes if dataset is not None else own.notes if own is not None else ()),
    }
    if dataset is not None:
        about["near_duplicates"] = [
            f"{duplicates.near_duplicates(images, dataset.train_images):,} of the {len(images):,} {split} images"
            for split in ("validation", "test")
            if (images := dataset.images(split)) is not None
        ]
    about |= {"classes": list(classes), "train_images_by_class": counts.pop("train")}
    about |= {f"{split}_images_by_class": by_class for split, by_class in counts.items() if any(by_class)}
    return about | {"problem": problem}, dataset


def _counts(dataset: Dataset | None, own: Contents | None, split: str) -> list[int]:
    if dataset is None:
        return [] if own is None else own.counts(split)
    labels = dataset.labels(split)
    return [] if labels is None else labels.bincount(minlength=len(dataset.classes)).tolist()


def _heads(own: Contents, display: Progress) -> tuple[list[tuple[int, int]], Counter[str], Counter[str]]:
    """Width and height of each picture, and counts of Pillow's modes and of file formats, from the heads of files."""
    sizes, modes, formats = [], Counter[str](), Counter[str]()
    for index in display.track(range(len(own.names)), description="Sizes of pictures"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, of which none is decoded here
            try:
                with Image.open(io.BytesIO(own.read(index)), formats=pictures.FORMATS) as picture:
                    sizes.append(picture.size)
                    modes[picture.mode] += 1
                    formats[str(picture.format)] += 1
            except (OSError, ValueError, Image.DecompressionBombError):
                continue  # loading has said so
    return sizes, modes, formats
