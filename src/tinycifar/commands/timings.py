"""`tinycifar bench`: timings, side by side in one run."""

from __future__ import annotations

import click

from tinycifar import atomic, catalog, data, recipes, typed
from tinycifar.bench import INFER_ROUNDS, startup
from tinycifar.commands import terminal


@click.group("bench")
def bench_group() -> None:
    """Time training, inference and start-up, each beside a reference in the same run."""


@bench_group.command()
@click.argument("model_name", metavar="MODEL")
@terminal.threads_option
@terminal.json_option
def step(model_name: str, threads: int | None, as_json: bool) -> None:
    """Time MODEL's training steps: images/s, milliseconds per part, GFLOP/s against this machine's peak."""
    from tinycifar.bench import timing

    terminal.set_threads(threads)
    result = timing.bench_step(model_name)
    terminal.show(as_json, result, timing.render(result))


@bench_group.command("train")
@click.argument("recipe_name", metavar="[RECIPE]", default=recipes.DEFAULT_RECIPE)
@terminal.number_option("--runs", default=3, help="Full trainings.")
@terminal.number_option("--steps", least=2, default=20, help="Reference steps each time.")
@terminal.option("--record", is_flag=True, help="Write results/RECIPE/bench-train/PROCESSOR.json.")
@terminal.threads_option
@terminal.json_option
def train_bench(recipe_name: str, runs: int, steps: int, record: bool, threads: int | None, as_json: bool) -> None:
    """Time full trainings of RECIPE and steps of the reference in turn; print the speed-up."""
    import torch

    from tinycifar import machine, run
    from tinycifar.bench import timing

    timing.timed_recipe(recipe_name)
    terminal.set_threads(threads)
    name = f"bench-train/{machine.processor_slug()}"
    path = run.record_path(recipe_name, name, torch.device("cpu")) if record else None
    console = terminal.console(as_json)
    result = timing.bench_train(data.load(), recipe_name=recipe_name, runs=runs, steps=steps, console=console)
    terminal.show(as_json, result, timing.render_train(result))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, typed.to_json(result))
        console.print(f"Record: {path}")
    if not as_json:
        click.echo(_how_to_contribute(recipe_name, name, recorded=path is not None))


def _how_to_contribute(recipe_name: str, name: str, *, recorded: bool) -> str:
    """The line that says which file adds this processor to the table of processors."""
    first = "" if recorded else f"run `tinycifar bench train {recipe_name} --record` in a git checkout, "
    return (
        f"To add this processor to the table: {first}run `make results`, "
        f"and open a pull request with results/{recipe_name}/{name}.json"
    )


@bench_group.command("infer")
@click.argument("model_names", metavar="[MODEL...]", nargs=-1)
@terminal.number_option("--rounds", default=INFER_ROUNDS, help="Runs of each.")
@terminal.option(
    "--record", is_flag=True, help="Write results/bench-infer/PROCESSOR.json; for all shipped models only."
)
@terminal.threads_option
@terminal.json_option
def infer_bench(model_names: tuple[str, ...], rounds: int, record: bool, threads: int | None, as_json: bool) -> None:
    """Time inference of MODELs (default: all shipped), ResNet-8 and ResNet-20 in PyTorch, ONNX and int8, in turn."""
    import torch

    from tinycifar import machine, run
    from tinycifar.bench import infer

    if record and (model_names or rounds != INFER_ROUNDS):
        raise ValueError("--record is for all shipped models: leave out MODEL and --rounds")
    terminal.set_threads(threads)
    path = run.record_path("bench-infer", machine.processor_slug(), torch.device("cpu")) if record else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    result = infer.bench_infer(model_names or tuple(catalog.shipped()), rounds=rounds)
    terminal.show(as_json, result, infer.render(result))
    if path is not None:
        atomic.write_json(path, typed.to_json(result))
        terminal.console(as_json).print(f"Record: {path}")


@bench_group.command("startup")
@terminal.number_option("--rounds", default=startup.ROUNDS, help="Runs of each.")
@terminal.option(
    "--against",
    metavar="PYTHON",
    help="Compare with another installation: its Python interpreter, or the folder of a checkout.",
)
@terminal.json_option
def startup_bench(rounds: int, against: str | None, as_json: bool) -> None:
    """Time the start of commands, relative to Python itself and to loading PyTorch."""
    result = startup.bench_startup(rounds=rounds, against=against)
    terminal.show(as_json, result, startup.render(result))
