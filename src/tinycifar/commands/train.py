"""`tinycifar train`."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from tinycifar import atomic, data, distill, machine, recipes, run, signals, trained, training
from tinycifar import resume as resuming
from tinycifar.commands import terminal
from tinycifar.recipes import Recipe
from tinycifar.report import compare, plots, run_page, text
from tinycifar.scale import distributed, jobs
from tinycifar.words import counted


@click.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.option("--epochs", type=int, help="Epochs of the whole schedule.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Default: 0.")
@click.option("--seeds", type=click.IntRange(1), help="Train N seeds one after another, from --seed on.", metavar="N")
@click.option(
    "--jobs",
    "at_once",
    type=click.IntRange(1),
    metavar="M",
    help="So many of the seeds at once, which share the threads.",
)
@terminal.device_option
@terminal.threads_option
@click.option("--out", type=click.Path(path_type=Path), help="Run directory, new or empty (default: runs/RECIPE/DATE).")
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on where RUN was interrupted.")
@terminal.data_option("CIFAR-10 from the cache, filled first")
@click.option(
    "--init", "init_name", metavar="MODEL", help="Start from the weights of a run, a file or a shipped model."
)
@click.option(
    "--teacher",
    "teacher_name",
    metavar="MODEL",
    help="What a recipe with a teacher learns from: a model, or a directory of several seeds.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
@click.option(
    "--max-parameters", type=click.IntRange(1), metavar="N", help="Train at the largest width that has no more."
)
@click.option("--limit", type=click.IntRange(1), help="Train on the first N training images only.")
@click.option(
    "--stop-after-epoch", type=click.IntRange(1), help="End there; the schedule stays that of the whole recipe."
)
@click.option(
    "--checkpoint-seconds", type=click.FloatRange(0), default=60, show_default=True, help="Between two checkpoints."
)
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's event files too, in RUN/tensorboard.")
@click.option("--record", is_flag=True, help="Write results/RECIPE/seed-N.json; for whole, unchanged recipes only.")
@terminal.json_option
@distributed.as_one
def train(
    recipe_name: str | None,
    epochs: int | None,
    seed: int | None,
    seeds: int | None,
    at_once: int | None,
    device: str,
    threads: int | None,
    out: Path | None,
    resume: Path | None,
    source: str | None,
    init_name: str | None,
    teacher_name: str | None,
    settings: tuple[str, ...],
    max_parameters: int | None,
    limit: int | None,
    stop_after_epoch: int | None,
    checkpoint_seconds: float,
    tensorboard: bool,
    record: bool,
    as_json: bool,
) -> int:
    """Train RECIPE and fill a run directory with weights, metrics, evaluation, plots and a report.

    RECIPE is a name, by default minute, or a file as `tinycifar recipes show NAME > FILE.toml` writes it.
    """
    ranks = distributed.here()
    if ranks.world > 1 and (seeds or record):
        raise ValueError("--seeds and --record are for one process: leave them out under torchrun")
    device = ranks.device(device)
    if max_parameters is not None and any(setting.partition("=")[0] == "width" for setting in settings):
        raise ValueError("--max-parameters finds the width: leave out --set width=, or --max-parameters")
    if resume is not None and (out, seeds) != (None, None):
        raise ValueError("--resume goes on in RUN's own directory: leave out --out and --seeds")
    if at_once is not None and seeds is None:
        raise ValueError("--jobs says how many seeds are trained at once: give --seeds too")
    begun = None if resume is None else resuming.read(resume)
    if begun is not None and recipe_name is None:
        recipe = begun.recipe
    else:
        recipe = recipes.get(recipe_name or recipes.DEFAULT_RECIPE)
    recipe = recipes.with_settings(recipe, settings)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    first_seed, teachers, init = seed or 0, [], None
    if begun is not None:
        first_seed = begun.seed if seed is None else seed
        source = begun.source() if source is None else source
        limit = begun.limit if limit is None else limit
        if threads is None and begun.threads <= (os.cpu_count() or 1):
            threads = begun.threads  # another number would give other bits
    if teacher_name is not None:
        teachers = distill.load(teacher_name, device)
    elif begun is not None:
        teachers = begun.teachers(device)
    if init_name is not None:
        init = trained.load(init_name, device)
    elif begun is not None:
        init = begun.init(device)
    all_seeds = range(first_seed, first_seed + (seeds or 1))
    if record:
        named = recipes.RECIPES.get(recipe.name)
        unchanged = named is not None and recipes.same(recipe, named) and init is None and max_parameters is None
        if not unchanged or limit or stop_after_epoch or source not in (None, "cifar10"):
            raise ValueError(
                "--record is for whole, unchanged recipes on the cached data: leave out --epochs, --set, "
                "--max-parameters, --init, --limit, --stop-after-epoch and --data"
            )
        distill.check(recipe, teachers)
        distill.check_record(recipe, teachers)
        place = machine.select_device(device)
        if begun is not None and begun.revision().endswith(("None", "-dirty")):
            raise ValueError(f"--record needs a run that was begun from committed source, which {resume} was not")
        record_paths = {number: run.record_path(recipe.name, f"seed-{number}", place) for number in all_seeds}
    terminal.set_threads(threads)
    display = terminal.display(as_json)
    whole = _place_of_seeds(out, recipe, max_parameters, record) if seeds else None
    if whole is not None and at_once is not None and at_once > 1:
        words = [recipe_name or recipes.DEFAULT_RECIPE, "--device", device, *(f"--set={of}" for of in settings)]
        options = {"epochs": epochs, "data": source, "init": init_name, "teacher": teacher_name}
        options |= {"max-parameters": max_parameters, "limit": limit, "stop-after-epoch": stop_after_epoch}
        words += [f"--{name}={value}" for name, value in options.items() if value is not None]
        only = [f"--checkpoint-seconds={checkpoint_seconds}"]
        only += [f"--{name}" for name, wanted in (("record", record), ("tensorboard", tensorboard)) if wanted]
        return _at_once(recipe, source, limit, words, only, list(all_seeds), at_once, whole, as_json)
    task = display.add_task("Seeds", total=seeds) if seeds else None
    results: list[training.Result] = []
    code = 0
    with display:
        for number in all_seeds:
            directory = whole / f"seed-{number}" if whole else out
            there = _begun(whole, number) if whole else False
            try:
                result = training.train(
                    recipe,
                    source,
                    out=None if there else directory,
                    resume=directory if there else resume,
                    teachers=teachers,
                    init=init,
                    seed=number,
                    device=device,
                    max_parameters=max_parameters,
                    limit=limit,
                    stop_after_epoch=stop_after_epoch,
                    checkpoint_seconds=checkpoint_seconds,
                    tensorboard=tensorboard,
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
                atomic.write_json(record_paths[number], result.record)
                display.console.print(f"Record: {record_paths[number]}")
            evaluation = None if stopped else atomic.read_json(result.directory / "evaluation.json")
            if seeds and evaluation is not None:
                display.console.print(f"Seed {number}: {text.accuracy(evaluation)}")
            elif not as_json:
                for line in text.closing_summary(recipe, result.record, evaluation, stopped):
                    display.console.print(line)
            if stopped and not whole:
                launcher = ["torchrun", "--nproc-per-node", str(ranks.world), "-m"] if ranks.world > 1 else []
                words = [
                    *launcher,
                    "tinycifar",
                    "train",
                    "--resume",
                    str(result.directory),
                    *(["--record"] if record else []),
                    *(["--tensorboard"] if tensorboard else []),
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
    if code > 128:
        display.console.print(_go_on(whole, record))
    complete = [result.record for result in results if result.complete]
    _summarize(whole, complete, [result.record for result in results], as_json)
    return code


def _place_of_seeds(out: Path | None, recipe: Recipe, max_parameters: int | None, record: bool) -> Path:
    """The directory of several seeds: a new one, or one that holds seeds of this recipe, with which it goes on."""
    if out is None or not (there := run.seeds(out)):
        return run.place(out, recipe.name)
    if record:
        raise ValueError(
            f"{out} holds seeds already; go on with each by --resume {there[0]} --record, or name a new --out"
        )
    for directory in there:
        if (directory / "recipe.json").exists():
            known = run.read_recipe(directory)
            if not recipes.same(known if max_parameters is None else replace(known, width=recipe.width), recipe):
                raise ValueError(f"{directory} was trained by another recipe; name a new folder with --out")
    return out


def _begun(whole: Path, seed: int) -> bool:
    return (whole / f"seed-{seed}" / "recipe.json").exists()


def _go_on(whole: Path, record: bool) -> str:
    if record:  # a record needs a run of its own
        return f"Go on with each seed: tinycifar train --record --resume {shlex.quote(str(whole))}/seed-N"
    return f"Go on with the same command and --out {shlex.quote(str(whole))}"


def _summarize(whole: Path, complete: list[dict[str, Any]], records: list[dict[str, Any]], as_json: bool) -> None:
    """Write and print what the seeds of a directory come to."""
    found = compare.over_seeds(complete)
    atomic.write_json(whole / "summary.json", found)
    if as_json:
        terminal.print_json({"run": str(whole), **found, "runs": records})
    else:
        for line in ["", *text.over_seeds(found), f"Everything lies in {whole}"]:
            click.echo(line)


def _at_once(
    recipe: Recipe,
    source: str | None,
    limit: int | None,
    words: list[str],
    only: list[str],
    seeds: list[int],
    count: int,
    whole: Path,
    as_json: bool,
) -> int:
    """Train seeds by `count` processes at once, each a `tinycifar train` with `words`; gives the exit code."""
    threads = torch.get_num_threads()
    if count > min(threads, len(seeds)):
        raise ValueError(
            f"--jobs {count} is too many for {counted(threads, 'thread')} and {counted(len(seeds), 'seed')}"
        )
    display = terminal.display(as_json)
    images = len(data.load(source, image_size=recipe.image_size, display=display).train_labels)
    images = min(images - recipe.validation_images, jobs.TRIED_STEPS * recipe.batch_size, limit or images)
    complete: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    code = 0
    with display, signals.StopSignal() as stop:
        task = display.add_task("Seeds", total=len(seeds))
        speed = jobs.compare(
            ["train", *(word for word in words if not word.startswith(("--limit=", "--stop-after-epoch=")))],
            images=images,
            threads=threads,
            jobs=count,
            stop=stop,
        )
        if speed is not None:
            display.console.print(speed.told())
        elif not stop.received:
            display.console.print("Whether that is faster could not be tried: a training on few images failed")
        shared = [*words, *only, "--json", f"--threads={threads // count}"]
        commands = [
            [
                "train",
                *shared,
                f"--seed={seed}",
                f"--{'resume' if _begun(whole, seed) else 'out'}={whole / f'seed-{seed}'}",
            ]
            for seed in seeds
        ]
        for ended in jobs.run_all(commands, count, stop):
            seed, directory = seeds[ended.index], whole / f"seed-{seeds[ended.index]}"
            for line in ended.err.splitlines():
                if line.startswith("Warning: "):
                    display.console.print(f"Seed {seed}: {line}")
            record = jobs.printed_json(ended)
            if record is not None:
                records.append(record)
            if record is not None and (directory / "evaluation.json").exists():
                complete.append(record)
                display.console.print(f"Seed {seed}: {text.accuracy(run.read_evaluation(directory))}")
            elif record is not None or stop.received:
                display.console.print(f"Seed {seed} stopped")
            if ended.code and not stop.received:
                told = f"seed {seed}: {jobs.reason(ended)}"
                code = max(code, terminal.fail(told, ended.code if ended.code > 0 else 1))
            display.advance(task)
    if stop.received:
        display.console.print(_go_on(whole, "--record" in only))
    whole.mkdir(parents=True, exist_ok=True)
    complete, records = (sorted(of, key=lambda record: int(record["seed"])) for of in (complete, records))
    _summarize(whole, complete, records, as_json)
    return 128 + stop.received if stop.received else code


def _report(directory: Path) -> int:
    """Write a run's pictures and its page; 1 and a line if that fails, as the run itself is safe by now."""
    try:
        plots.save_curves(directory)
        run_page.write(directory)
    except OSError as error:
        click.echo(f"tinycifar: no report: {terminal.problem(error)}", err=True)
        return 1
    except ValueError as error:
        click.echo(f"tinycifar: no report: {error}", err=True)
        return 1
    return 0
