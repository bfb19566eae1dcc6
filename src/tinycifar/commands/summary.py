"""`tinycifar summary`."""

from __future__ import annotations

from pathlib import Path

import click

from tinycifar import atomic, catalog, data, words
from tinycifar.commands import terminal


@click.command("summary")
@click.argument("model_name", metavar="MODEL")
@terminal.option(
    "--plot",
    metavar="PNG",
    type=terminal.OutputFile(".png"),
    help="Also draw the receptive fields over an example into this file.",
)
@terminal.overwrite_option
@terminal.json_option
def summary_command(model_name: str, plot: Path | None, overwrite: bool, as_json: bool) -> None:
    """Print MODEL's layer table: shapes, parameters, MACs, receptive field.

    MODEL is an architecture (untrained), a run, a weights file or a shipped model.
    """
    from tinycifar import heatmaps, models, summary, trained
    from tinycifar.report import plots

    if plot is not None:
        atomic.check_new(plot, overwrite)
    if model_name.lower() in models.MODELS:
        model, label = models.build(model_name), f"{model_name}, untrained"
        model.prepare(data.sample().train_images)
    else:
        if not (model_name in catalog.shipped() or Path(model_name).exists()):
            raise ValueError(
                f"{model_name} does not exist; name an architecture ({', '.join(models.MODELS)}), a run directory, "
                f"a .safetensors file, or a shipped model: {', '.join(catalog.shipped())}"
            )
        loaded = trained.load(model_name, "cpu")
        model, label = loaded.model, f"{loaded.name}, trained"
    table = summary.summarize(model)
    if plot is not None:
        images = data.sample(model.image_size, model.channels).test_images
        field = heatmaps.effective_receptive_field(model, images)
        plots.save(plot, plots.receptive_fields, table, field, images[plots.EXAMPLE], words.printable(label))
    terminal.show(as_json, summary.as_json(table), summary.render(table))
