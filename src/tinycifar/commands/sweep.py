"""`tinycifar sweep`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import click

from tinycifar import data, recipes
from tinycifar.commands import terminal
from tinycifar.words import counted


@click.command("sweep")
@click.argument("recipe_name", metavar="[RECIPE]", default=recipes.DEFAULT_RECIPE)
@terminal.option(
    "--vary",
    "varied",
    multiple=True,
    metavar="FIELD=VALUES",
    help="Values of a recipe field: LOW:HIGH, LOW:HIGH:log or A,B,C; repeatable.",
)
@terminal.number_option("--trials", default=20, help="Total number of trials.")
@terminal.number_option("--jobs", most=256, default=1, help="Trials in parallel; they share --threads.")
@terminal.out_option("Folder of the study; an existing study is resumed.", metavar="FOLDER")
@terminal.option("--epochs", type=int, metavar="N", help="Epochs of the whole schedule.")
@terminal.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
@terminal.number_option(
    "--validation-images",
    least=0,
    help="Images held out for scoring (default: 5,000 of CIFAR-10, a tenth of other data).",
)
@terminal.data_option("CIFAR-10")
@terminal.number_option("--seed", least=0, most=2**63 - 1, default=0, help="Seed for all draws.")
@terminal.device_option
@terminal.threads_option
@terminal.json_option
def sweep_command(
    recipe_name: str,
    varied: tuple[str, ...],
    trials: int,
    jobs: int,
    out: Path | None,
    epochs: int | None,
    settings: tuple[str, ...],
    validation_images: int | None,
    source: str | None,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Search RECIPE's fields for the best validation accuracy; the test images stay closed.

    Trial 0 is the unchanged recipe. Rerun the command with the same --out to resume, or run it in parallel.
    """
    import torch

    from tinycifar import machine
    from tinycifar.scale import distributed
    from tinycifar.sweep import outcome as sweep_outcome
    from tinycifar.sweep import ranges
    from tinycifar.sweep import study as sweep_study

    try:
        from tinycifar.sweep import search
    except ImportError:
        raise ValueError('a sweep needs another package; install it with: pip install "tinycifar[sweep]"') from None
    if distributed.here().world > 1:
        raise ValueError("a sweep trains each trial in one process: start it without torchrun, with --jobs")
    recipe = replace(recipes.get(recipe_name), **terminal.recipe_changes(settings, epochs))  # type: ignore[arg-type]
    searched = ranges.parse(varied, recipe)
    machine.select_device(device)
    terminal.set_threads(threads)
    display = terminal.display(as_json)
    dataset = data.load(source, **vars(recipe.form), display=display)
    study = sweep_study.create(recipe, searched, dataset, out=out, validation_images=validation_images, seed=seed)
    ended = sum(trial.state != "running" for trial in search.entries(study, search.open_study(study)))
    jobs = min(jobs, trials)
    each = max(1, torch.get_num_threads() // jobs)
    code = 0
    with display:
        display.console.print(
            f"{recipe.name}: {counted(trials, 'trial')}, {jobs} in parallel with {counted(each, 'thread')} each, "
            f"scored on {study.scored_on:,} validation images; varying {', '.join(map(str, searched))}"
        )
        if jobs > torch.get_num_threads():
            display.console.print(
                f"{jobs} processes on {counted(torch.get_num_threads(), 'thread')} compete for the processor"
            )
        display.console.print(f"Study: {study.folder}")
        task = display.add_task("Trials", total=trials, completed=ended)
        try:
            for entry in search.search(study, dataset, trials=trials, jobs=jobs, source=source, device=device):
                display.console.print(sweep_outcome.line(entry))
                display.advance(task)
        except search.Stopped as stopped:
            code = 128 + stopped.signal
        except search.WorkersDied as died:
            code = terminal.fail(str(died), 1)
    outcome = sweep_outcome.outcome(study, search.entries(study, search.open_study(study)))
    sweep_outcome.save(study, outcome)
    states = [trial.state for trial in outcome.trials]
    elsewhere = 0 if code else states.count("running")  # a command that succeeds leaves none of its own
    unfinished = len(states) - states.count("running") + elsewhere < trials
    terminal.show(as_json, outcome, *sweep_outcome.lines(study, outcome, source))
    if elsewhere:
        terminal.console(as_json).print(
            f"Another process runs {elsewhere} of the trials; rerun this command to see their results"
        )
    if unfinished:
        words = ["tinycifar", "sweep", recipe_name]
        for name, values in (("--vary", varied), ("--set", settings)):
            words += [word for value in values for word in (name, value)]
        for name, value in (
            ("--trials", trials),
            ("--jobs", jobs),
            ("--epochs", epochs),
            ("--validation-images", validation_images),
            ("--data", source),
            ("--seed", seed or None),
            ("--threads", threads),
            ("--device", None if device == "auto" else device),
            ("--out", study.folder),
        ):
            words += [] if value is None else [name, str(value)]
        terminal.console(as_json).print(f"Resume with: {shlex.join(words)}")
    return code or int(unfinished or (outcome.best is None and not elsewhere))
