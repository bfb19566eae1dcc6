"""`tinycifar train`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from tinycifar.commands import terminal

if TYPE_CHECKING:  # none of it is needed to print the help
    from rich.console import Console

    from tinycifar.recording import Result
    from tinycifar.resume import Request
    from tinycifar.seeds import Several


@click.command()
@click.argument("recipe", metavar="[RECIPE]", required=False)
@terminal.option("--epochs", type=int, metavar="N", help="Epochs of the whole schedule.")
@terminal.number_option("--seed", least=0, most=2**63 - 1, help="Seed of all draws (default: 0).")
@terminal.number_option("--seeds", help="Train N seeds, from --seed on.")
@terminal.number_option("--jobs", "parallel", metavar="M", help="Train M seeds in parallel; they share the threads.")
@terminal.device_option
@terminal.threads_option
@terminal.out_option("New or empty directory (default: runs/RECIPE/DATE).", metavar="RUN")
@terminal.option("--resume", metavar="RUN", type=terminal.NamedPath(), help="Resume an interrupted run.")
@terminal.data_option("CIFAR-10")
@terminal.option("--init", metavar="MODEL", help="Start from the weights of MODEL.")
@terminal.option(
    "--teacher", "teachers", multiple=True, metavar="MODEL", help="Teacher: a model or a folder of seeds; repeatable."
)
@terminal.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a recipe field; repeatable.")
@terminal.number_option("--max-parameters", help="Use the largest width with at most N parameters.")
@terminal.number_option("--limit", help="Use only the first N training images.")
@terminal.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files.")
@terminal.option("--stop-after-epoch", type=click.IntRange(1), hidden=True)
@terminal.option("--checkpoint-seconds", type=click.FloatRange(0), default=60, hidden=True)
@terminal.option("--record", is_flag=True, hidden=True)
@terminal.json_option
def train(**options: Any) -> int:
    """Train RECIPE, a name or a TOML file (default: minute), into a run directory with weights, scores and a report.
    More options for --data: tinycifar data info --help.
    """
    from tinycifar.scale import distributed

    return distributed.as_one(_train)(**options)


def _train(
    seeds: int | None,
    parallel: int | None,
    source: str | None,
    teachers: tuple[str, ...],
    settings: tuple[str, ...],
    epochs: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Train as the options say, of which the others are fields of `Request`."""
    from tinycifar import seeds as train_seeds
    from tinycifar.resume import Request
    from tinycifar.scale import distributed

    request = Request(
        changes=terminal.recipe_changes(settings, epochs),
        data=source,
        teachers=teachers or None,
        **options,
    )
    if distributed.here().world > 1 and (seeds or request.record):
        raise ValueError("--seeds and --record are for one process: leave them out under torchrun")
    if request.resume is not None and (request.out, seeds) != (None, None):
        raise ValueError("--resume continues in RUN's own directory: leave out --out and --seeds")
    if parallel is not None and seeds is None:
        raise ValueError("--jobs is the number of seeds to train in parallel: give --seeds too")
    with terminal.display(as_json) as display:
        if seeds is not None:
            several = train_seeds.train_several(request, seeds, parallel or 1, display)
            return _print_several(several, request, display.console, as_json)
        result = train_seeds.train(request, display)
        if distributed.here().first:
            return _print_result(result, request, display.console, as_json)
    return 128 + result.stopped_by if result.stopped_by and not result.complete else 0


def _print_result(result: Result, request: Request, console: Console, as_json: bool) -> int:
    """Write the report of a run, print its results, and return the exit code."""
    from tinycifar import run, seeds
    from tinycifar.report import text

    scores = run.read_evaluation(result.directory) if result.complete else None
    if not as_json:
        recipe = run.read_recipe(result.directory)
        for line in text.closing_summary(recipe, result.record, scores, not result.complete):
            console.print(line)
    if not result.complete:
        console.print(f"Resume with: {shlex.join(_resume_words(result, request))}")
    code = 0
    try:
        seeds.write_report(result.directory)
    except (OSError, ValueError) as error:
        code = terminal.fail(f"no report: {terminal.problem(error) if isinstance(error, OSError) else error}", 1)
    if as_json:
        terminal.print_json({"run": str(result.directory), **result.record})
    else:
        click.echo(f"The run is in {result.directory}; open report.html there")
    return 128 + result.stopped_by if result.stopped_by and not result.complete else code


def _resume_words(result: Result, request: Request) -> list[str]:
    from tinycifar.scale import distributed

    world = distributed.here().world
    launcher = ["torchrun", "--nproc-per-node", str(world), "-m"] if world > 1 else []
    options = [f"--{name}" for name in ("record", "tensorboard") if getattr(request, name)]
    return [*launcher, "tinycifar", "train", "--resume", str(result.directory), *options]


def _print_several(several: Several, request: Request, console: Console, as_json: bool) -> int:
    """Print the results of several seeds, and return the exit code."""
    from tinycifar.report import text

    code = 0
    for problem in several.problems:
        code = max(code, terminal.fail(f"seed {problem.seed}: {problem.message}", problem.code))
    if several.stopped_by:
        console.print(_resume_hint(several, request))
    if as_json:
        runs = [result.record for result in several.results]
        terminal.print_json({"run": str(several.directory), **several.summary, "runs": runs})
    else:
        for line in ["", *text.over_seeds(several.summary), f"The runs are in {several.directory}"]:
            click.echo(line)
    return 128 + several.stopped_by if several.stopped_by else code


def _resume_hint(several: Several, request: Request) -> str:
    """A line that says how to resume seeds that were stopped."""
    folder = shlex.quote(str(several.directory))
    if request.record:  # a record needs a run of its own
        return f"Resume each seed with: tinycifar train --record --resume {folder}/seed-N"
    return f"Resume with the same command and --out {folder}"
