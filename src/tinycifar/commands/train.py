"""`tinycifar train`."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

import click

from tinycifar import compare, distill, distributed, plots, recipes, report, run, text, trained, training
from tinycifar.commands import terminal


@click.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.option("--epochs", type=int, help="Epochs of the whole schedule.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Default: 0.")
@click.option("--seeds", type=click.IntRange(1), help="Train N seeds one after another, from --seed on.", metavar="N")
@terminal.device_option
@terminal.threads_option
@click.option("--out", type=click.Path(path_type=Path), help="Run directory, new or empty (default: runs/RECIPE/DATE).")
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on where RUN was interrupted.")
@terminal.data_option
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
@terminal.json_option
@distributed.as_one
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
    ranks = distributed.here()
    if ranks.world > 1 and (seeds or record):
        raise ValueError("--seeds and --record are for one process: leave them out under torchrun")
    device = ranks.device(device)
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
    terminal.set_threads(threads)
    display = terminal.display(as_json)
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
                code = terminal.fail(f"seed {number}: {error}", 1)  # the other seeds may fare better
                continue
            stopped = not result.complete
            if not ranks.first:
                return 128 + result.stopped_by if result.stopped_by and stopped else 0
            results.append(result)
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
                launcher = ["torchrun", "--nproc-per-node", str(ranks.world), "-m"] if ranks.world > 1 else []
                words = [
                    *launcher,
                    "tinycifar",
                    "train",
                    "--resume",
                    str(result.directory),
                    *(["--record"] if record else []),
                ]
                display.console.print(f"Go on with: {shlex.join(words)}")
            code = max(code, _report(result.directory))
            if result.stopped_by and (stopped or number != all_seeds[-1]):
                code = 128 + result.stopped_by
                break
            if task is not None:
                display.advance(task)
    if whole is None:
        if as_json:
            terminal.print_json({"run": str(results[0].directory), **results[0].record})
        else:
            click.echo(f"Everything lies in {results[0].directory}; open report.html there")
        return code
    found = compare.over_seeds([result.record for result in results if result.complete])
    run.write_json(whole / "summary.json", found)
    if as_json:
        terminal.print_json({"run": str(whole), **found, "runs": [result.record for result in results]})
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
        click.echo(f"tinycifar: no report: {terminal.problem(error)}", err=True)
        return 1
    except ValueError as error:
        click.echo(f"tinycifar: no report: {error}", err=True)
        return 1
    return 0
