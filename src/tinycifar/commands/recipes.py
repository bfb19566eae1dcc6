"""`tinycifar recipes`."""

from __future__ import annotations

import click

from tinycifar import recipes
from tinycifar.commands import terminal


@click.group("recipes", invoke_without_command=True)
@terminal.json_option
@click.pass_context
def recipes_group(context: click.Context, as_json: bool) -> None:
    """List the recipes with their measured accuracy and time; show one as a TOML file."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise ValueError(f"put --json after {context.invoked_subcommand}")
        return
    if as_json:
        terminal.print_json({"recipes": list(recipes.RECIPES.values())})
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
    """Print RECIPE, a name or a TOML file, as TOML with all its fields.

    Change the output and train it with `tinycifar train FILE.toml`.
    """
    recipe = recipes.get(recipe_name)
    if as_json:
        terminal.print_json(recipe)
    else:
        click.echo(recipes.to_toml(recipe), nl=False)
