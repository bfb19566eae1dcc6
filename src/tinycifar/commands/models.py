"""`tinycifar models`."""

from __future__ import annotations

import math
from typing import Any

import click

from tinycifar import catalog, recipes
from tinycifar.commands import terminal
from tinycifar.words import table


@click.command("models")
@terminal.number_option("--max-parameters", help="Only models with at most N parameters.")
@terminal.number_option("--max-macs", help="Only models with at most N multiply-accumulates per image.")
@terminal.json_option
def models_command(max_parameters: int | None, max_macs: int | None, as_json: bool) -> None:
    """List the shipped models and the architectures that can be trained, the most accurate first."""
    limits = {"parameters": max_parameters or math.inf, "macs": max_macs or math.inf}
    shipped, architectures = (
        {name: row for name, row in rows.items() if all(row[size] <= limit for size, limit in limits.items())}
        for rows in (catalog.shipped(), recipes.architectures())
    )
    content = {"shipped": shipped, "architectures": architectures}
    terminal.show(as_json, content, *_shipped(shipped), "", *_architectures(architectures))


def _shipped(rows: dict[str, dict[str, Any]]) -> list[str]:
    if not rows:
        return ["no shipped model is within these limits"]
    cells = [
        [
            name,
            row["model"],
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['test_accuracy']:.2%}",
            f"{row['bytes'] / 1000:,.0f} kB",
        ]
        for name, row in rows.items()
    ]
    return table([["shipped", "model", "parameters", "MACs", "test accuracy", "weights"], *cells])


def _architectures(rows: dict[str, dict[str, Any]]) -> list[str]:
    if not rows:
        return ["no architecture is within these limits"]
    cells = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['written_out']:,}",
            f"{row['macs']:,}",
            f"{row['test_accuracy']:.2%}" if row["test_accuracy"] else "not measured",
            ", ".join(row["recipes"]),
        ]
        for name, row in rows.items()
    ]
    heading = ["architecture", "parameters", "written out", "MACs", "best recipe's mean", "recipes"]
    return [*table([heading, *cells]), "written out: mirrored filters counted twice"]
