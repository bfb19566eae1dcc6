"""One training or several seeds of it, for the command and for Python: train, report, summarise."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar import atomic, data, distill, machine, metrics, recipes, resume, run, signals, training
from tinycifar.data import Dataset
from tinycifar.job import Options
from tinycifar.recording import Result
from tinycifar.report import plots, run_page, text
from tinycifar.resume import Request, Start
from tinycifar.scale import jobs
from tinycifar.speed import speed_in_parallel
from tinycifar.words import counted

TRIED_STEPS = 40  # on which speeds are compared: some seconds
WORK = "tinycifar.seeds:work"
T = TypeVar("T", Request, Options)


@dataclass(frozen=True)
class Problem:
    """Why a seed or its report failed, and the exit code for it."""

    seed: int
    message: str
    code: int


@dataclass(frozen=True)
class Several:
    """Several seeds of one recipe, each a run in `directory`.

    `results` are those of the seeds that this call trained, `summary` is about all seeds that the directory holds.
    `stopped_by` is the number of the signal that stopped them, if one did.
    """

    directory: Path
    results: tuple[Result, ...]
    problems: tuple[Problem, ...]
    summary: dict[str, Any]
    stopped_by: int | None


def train(request: Request, display: Progress) -> Result:
    """Train one run, new or resumed, and write its record if requested. Writes no report."""
    start = resume.merged(request)
    record_path = _record_path(request, start, start.options.seed) if request.record else None
    return _train(start, display, record_path)


def train_several(request: Request, count: int, parallel: int, display: Progress) -> Several:
    """Train `count` seeds from `request.seed` on, `parallel` of them in parallel, each with its share of the threads.

    They are stored as `seed-N` in `request.out`. Existing seeds there are resumed, with their own arguments by default.
    Raises ValueError for arguments that no seed can be trained with; a seed that diverges or whose process is killed is
    a problem of that seed.
    """
    if request.resume is not None:
        raise ValueError("`resume=` takes one run: leave out `seeds=`, or name the folder of seeds with `out=`")
    if isinstance(request.data, Dataset) and parallel > 1:
        raise ValueError("seeds in parallel are processes of their own, which need data from a file or folder")
    started = [path for path in run.seeds(request.out) if (path / "recipe.json").exists()] if request.out else []
    start = resume.merged(replace(request, out=None, resume=started[0]) if started else request)
    first = request.seed or 0
    numbers = range(first, first + count)
    records = {number: _record_path(request, start, number) for number in numbers} if request.record else {}
    directory = _directory(request, start, started)
    try:
        with _threads(start.threads):
            if parallel > 1:
                return _in_parallel(request, start, directory, numbers, parallel, display)
            return _in_turn(start, directory, numbers, records, display)
    except ValueError:
        if request.out is None:
            with contextlib.suppress(OSError):
                os.removedirs(directory)  # if nothing lies in it: what was refused leaves nothing behind
        raise


def write_report(directory: Path, dataset: Dataset | None = None) -> None:
    """Write the plots and the page of a run; `dataset` is its data, if that cannot be loaded again."""
    plots.save_curves(directory)
    run_page.write(directory, dataset)


def summarize(directory: Path) -> dict[str, Any]:
    """The accuracies of all finished seeds in a directory: mean, standard deviation, min, max, 95% t-interval."""
    finished = [path for path in run.seeds(directory) if (path / "evaluation.json").exists()]
    if not finished:
        return {"finished": []}
    evaluations = [run.read_evaluation(path) for path in finished]
    accuracies = [evaluation.accuracy for evaluation in evaluations]
    seconds = [math.fsum(entry["train_seconds"] for entry in run.read_metrics(path)) for path in finished]
    return {
        "recipe": run.read_recipe(finished[0]).name,
        "split": evaluations[0].split,
        "finished": [run.read_environment(path).seed for path in finished],
        "accuracies": accuracies,
        **spread(accuracies),
        "mean_train_seconds": statistics.mean(seconds),
    }


def spread(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, min, max and 95% t-interval of accuracies; None for what one accuracy cannot tell."""
    several = len(accuracies) > 1
    low, high = metrics.mean_interval(accuracies) if several else (0.0, 1.0)
    return {
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if several else None,
        "min": min(accuracies),
        "max": max(accuracies),
        "interval": [max(0.0, low), min(1.0, high)] if several else None,
    }


# --- one ----------------------------------------------------------------------------------------------------------


def _train(start: Start, display: Progress, record_path: Path | None) -> Result:
    with _threads(start.threads):
        result = training.train(start.recipe, start.data, display=display, **vars(start.options))
    if record_path is not None and result.complete:
        record_path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(record_path, result.record)
        display.console.print(f"Record: {record_path}")
    return result


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch compute with `count` threads while it is entered; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _record_path(request: Request, start: Start, seed: int) -> Path:
    """Where a seed's record goes; ValueError unless records are kept of such runs."""
    recipe, options = start.recipe, start.options
    named = recipes.RECIPES.get(recipe.name)
    unchanged = named is not None and recipes.same(recipe, named) and options.init is None
    if (
        not unchanged
        or options.max_parameters
        or options.limit
        or options.stop_after_epoch
        or start.data not in (None, "cifar10")
    ):
        raise ValueError(
            "`record=` is for whole, unchanged recipes on the cached data: leave out changes of fields, "
            "`max_parameters=`, `init=`, `limit=`, `stop_after_epoch=` and `data=`"
        )
    distill.check(recipe, options.teachers)
    distill.check_record(recipe, options.teachers)
    if request.resume is not None:
        revision = str(run.read_environment(request.resume).git_revision)
        if revision.endswith(("None", "-dirty")):
            raise ValueError(
                f"`record=` needs a run that was started from committed source, which {request.resume} was not"
            )
    return run.record_path(recipe.name, f"seed-{seed}", machine.select_device(request.device))


# --- several ------------------------------------------------------------------------------------------------------


def _directory(request: Request, start: Start, started: Sequence[Path]) -> Path:
    """The directory of several seeds: a new one, or one that holds seeds of this recipe."""
    if request.out is None:
        return run.create_dated(start.recipe.name)
    if not started:
        run.check_unused(request.out)
    elif request.record:
        raise ValueError(
            f"{request.out} holds seeds already; resume each with `resume=` {started[0]} and `record=`, or name a new "
            "folder with `out=`"
        )
    return request.out


def _one_of(arguments: T, directory: Path, seed: int) -> T:
    """The arguments for one seed: a new run in its folder, or resuming the run in it."""
    path = directory / f"seed-{seed}"
    started = (path / "recipe.json").exists()
    return replace(arguments, out=None if started else path, resume=path if started else None, seed=seed)


def _in_turn(
    start: Start, directory: Path, numbers: Sequence[int], records: dict[int, Path], display: Progress
) -> Several:
    results: list[Result] = []
    problems: list[Problem] = []
    stopped_by = None
    task = display.add_task("Seeds", total=len(numbers))
    for number in numbers:
        options = _one_of(start.options, directory, number)
        try:
            result = _train(replace(start, options=options), display, records.get(number))
        except FloatingPointError as error:
            problems.append(Problem(number, str(error), 1))  # other seeds may succeed
            continue
        results.append(result)
        _show(number, result, display)
        problems += _report(number, result, start.data)
        if result.stopped_by and (not result.complete or number != numbers[-1]):
            stopped_by = result.stopped_by
            break
        display.advance(task)
    return _finished(directory, results, problems, stopped_by)


def _in_parallel(
    request: Request, start: Start, directory: Path, numbers: Sequence[int], parallel: int, display: Progress
) -> Several:
    threads = torch.get_num_threads()
    if parallel > min(threads, len(numbers)):
        raise ValueError(
            f"`jobs=` {parallel} is too many for {counted(threads, 'thread')} and {counted(len(numbers), 'seed')}"
        )
    assert not isinstance(start.data, Dataset)
    share = replace(_explicit(request, start), threads=threads // parallel)
    dataset = data.load(start.data, **vars(start.recipe.form), display=display)
    images = len(dataset.train_labels)
    images = min(
        images - start.recipe.validation_images, TRIED_STEPS * start.recipe.batch_size, start.options.limit or images
    )
    results: list[Result] = []
    problems: list[Problem] = []
    with signals.StopSignal() as stop:
        task = display.add_task("Seeds", total=len(numbers))
        speed = speed_in_parallel(WORK, share, images=images, threads=threads, parallel=parallel, stop=stop)
        if speed is not None:
            display.console.print(speed.describe())
        elif not stop.received:
            display.console.print("The speed in parallel is unknown: a training on few images failed")
        requests = [{"request": _one_of(share, directory, number).to_json()} for number in numbers]
        for ended in jobs.run_all(WORK, requests, parallel, stop):
            number = numbers[ended.index]
            if ended.result is not None:
                result = Result(**{**ended.result["result"], "directory": Path(ended.result["result"]["directory"])})
                results.append(result)
                for warning in result.warnings:
                    display.console.print(f"Seed {number}: Warning: {warning}")
                _show(number, result, display)
                problems += [Problem(number, message, 1) for message in ended.result["report_problems"]]
            elif stop.received:
                display.console.print(f"Seed {number} stopped")
            else:
                problems.append(Problem(number, ended.problem, ended.code if ended.code > 0 else 1))
            display.advance(task)
    results.sort(key=lambda result: int(result.record["seed"]))
    return _finished(directory, results, problems, stop.received)


def _finished(
    directory: Path, results: Sequence[Result], problems: Sequence[Problem], stopped_by: int | None
) -> Several:
    directory.mkdir(parents=True, exist_ok=True)
    summary = summarize(directory)
    atomic.write_json(directory / "summary.json", summary)
    return Several(directory, tuple(results), tuple(problems), summary, stopped_by)


def _show(seed: int, result: Result, display: Progress) -> None:
    if result.complete and (result.directory / "evaluation.json").exists():
        display.console.print(f"Seed {seed}: {text.accuracy(run.read_evaluation(result.directory))}")
    elif not result.complete:
        display.console.print(f"Seed {seed} stopped")


def _report(seed: int, result: Result, source: str | Dataset | None) -> list[Problem]:
    """Write a run's report; a problem if that fails: the run itself is stored already."""
    try:
        write_report(result.directory, source if isinstance(source, Dataset) else None)
    except (OSError, ValueError) as error:
        return [Problem(seed, f"no report: {error}", 1)]
    return []


# --- as processes -------------------------------------------------------------------------------------------------


def work(request: dict[str, Any]) -> dict[str, Any]:
    """The work of a child process: one training, from the JSON form of its request."""
    wanted = Request.from_json(request)
    display = Progress(console=Console(quiet=True), disable=True)
    result = train(wanted, display)
    problems = _report(0, result, wanted.data) if wanted.evaluate else []
    return {
        "result": {**asdict(result), "directory": str(result.directory)},
        "report_problems": [problem.message for problem in problems],
    }


def _explicit(request: Request, start: Start) -> Request:
    """The request with all values from earlier runs and defaults filled in."""
    options = start.options
    return replace(
        request,
        recipe=start.recipe,
        changes={},
        data=start.data,
        limit=options.limit,
        teachers=tuple(teacher.source for teacher in options.teachers) or None,
        init=options.init.source if options.init else None,
    )
