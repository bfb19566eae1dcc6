"""One training or several seeds of it, for the command and for Python: train, report, summarise."""

from __future__ import annotations

import contextlib
import math
import shlex
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from tinycifar import atomic, data, distill, machine, metrics, recipes, resume, run, signals, training
from tinycifar.data import Dataset
from tinycifar.recipes import Recipe
from tinycifar.recording import Result
from tinycifar.report import plots, run_page, text
from tinycifar.resume import Request, Start
from tinycifar.scale import distributed, jobs
from tinycifar.words import counted

TRIED_STEPS = 40  # by which speeds are compared: some seconds
WORK = "tinycifar.seeds:work"


@dataclass(frozen=True)
class Problem:
    """Why a seed, or its report, failed, and the exit code that says so."""

    seed: int
    message: str
    code: int


@dataclass(frozen=True)
class Several:
    """Several seeds of one recipe, each a run in `directory`.

    `results` are those of the seeds that this call trained, `summary` is about all seeds that the directory holds.
    `stopped_by` is the number of the signal that came, if one did.
    """

    directory: Path
    results: tuple[Result, ...]
    problems: tuple[Problem, ...]
    summary: dict[str, Any]
    stopped_by: int | None


def train(request: Request, display: Progress) -> Result:
    """Train one run as it is asked for, new or resumed, and write its record if asked to. Writes no report."""
    start = resume.merged(request)
    record_path = _record_path(request, start, start.seed) if request.record else None
    return _train(request, start, display, record_path)


def train_several(request: Request, count: int, parallel: int, display: Progress) -> Several:
    """Train `count` seeds from `request.seed` on, `parallel` of them in parallel, each with its share of the threads.

    They are stored as `seed-N` in `request.out`. Seeds that it holds already are resumed, with the arguments that they
    were started with if none are given. Raises ValueError for what no seed can be trained with; a seed that diverges or
    whose process is killed is a problem of that seed.
    """
    if request.resume is not None:
        raise ValueError("--resume takes one run: leave out --seeds, or name the folder of seeds with --out")
    if isinstance(request.data, Dataset) and parallel > 1:
        raise ValueError("seeds in parallel are processes of their own, which need data from a file or folder")
    started = [path for path in run.seeds(request.out) if (path / "recipe.json").exists()] if request.out else []
    start = resume.merged(replace(request, out=None, resume=started[0]) if started else request)
    start = replace(start, seed=request.seed or 0)
    directory = _directory(request, start, started)
    numbers = range(start.seed, start.seed + count)
    records = {number: _record_path(request, start, number) for number in numbers} if request.record else {}
    with _threads(start.threads):
        if parallel > 1:
            several = _in_parallel(request, start, directory, numbers, parallel, display)
        else:
            several = _in_turn(request, start, directory, numbers, records, display)
    return several


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
    accuracies = [evaluation["accuracy"] for evaluation in evaluations]
    seconds = [math.fsum(entry["train_seconds"] for entry in run.read_metrics(path)) for path in finished]
    return {
        "recipe": run.read_recipe(finished[0]).name,
        "split": evaluations[0]["split"],
        "finished": [run.read_environment(path)["seed"] for path in finished],
        "accuracies": accuracies,
        **spread(accuracies),
        "mean_train_seconds": statistics.mean(seconds),
    }


def spread(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, min, max and 95% t-interval of accuracies; None for what one accuracy does not tell."""
    several = len(accuracies) > 1
    low, high = metrics.mean_interval(accuracies) if several else (0.0, 1.0)
    return {
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if several else None,
        "min": min(accuracies),
        "max": max(accuracies),
        "interval": [max(0.0, low), min(1.0, high)] if several else None,
    }


def resume_hint(several: Several, request: Request) -> str:
    """A line that says how to resume seeds that were stopped."""
    folder = shlex.quote(str(several.directory))
    if request.record:  # a record needs a run of its own
        return f"Resume each seed with: tinycifar train --record --resume {folder}/seed-N"
    return f"Resume with the same command and --out {folder}"


# --- one ----------------------------------------------------------------------------------------------------------


def _train(request: Request, start: Start, display: Progress, record_path: Path | None) -> Result:
    with _threads(start.threads):
        result = training.train(
            start.recipe,
            start.data,
            out=request.out,
            resume=request.resume,
            teachers=start.teachers,
            init=start.init,
            seed=start.seed,
            device=distributed.here().device(request.device),
            max_parameters=request.max_parameters,
            limit=start.limit,
            stop_after_epoch=request.stop_after_epoch,
            checkpoint_seconds=request.checkpoint_seconds,
            evaluate=request.evaluate,
            tensorboard=request.tensorboard,
            display=display,
        )
    if record_path is not None and result.complete:
        record_path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(record_path, result.record)
        display.console.print(f"Record: {record_path}")
    return result


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Have torch compute with so many threads while it is entered; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _record_path(request: Request, start: Start, seed: int) -> Path:
    """Where a seed's record goes; ValueError unless the run is one that records are kept of."""
    recipe = start.recipe
    named = recipes.RECIPES.get(recipe.name)
    unchanged = named is not None and recipes.same(recipe, named) and start.init is None
    if (
        not unchanged
        or request.max_parameters
        or start.limit
        or request.stop_after_epoch
        or start.data not in (None, "cifar10")
    ):
        raise ValueError(
            "--record is for whole, unchanged recipes on the cached data: leave out --epochs, --set, "
            "--max-parameters, --init, --limit, --stop-after-epoch and --data"
        )
    distill.check(recipe, start.teachers)
    distill.check_record(recipe, start.teachers)
    if request.resume is not None:
        revision = str(run.read_environment(request.resume).get("git_revision"))
        if revision.endswith(("None", "-dirty")):
            raise ValueError(
                f"--record needs a run that was started from committed source, which {request.resume} was not"
            )
    return run.record_path(recipe.name, f"seed-{seed}", machine.select_device(request.device))


# --- several ------------------------------------------------------------------------------------------------------


def _directory(request: Request, start: Start, started: Sequence[Path]) -> Path:
    """The directory of several seeds: a new one, or one that holds seeds of this recipe."""
    if not started:
        return run.place(request.out, start.recipe.name)
    assert request.out is not None
    if request.record:
        raise ValueError(
            f"{request.out} holds seeds already; resume each with --resume {started[0]} --record, or name a new --out"
        )
    for path in started:
        known = run.read_recipe(path)
        if request.max_parameters is not None:
            known = replace(known, width=start.recipe.width)
        if not recipes.same(known, start.recipe):
            raise ValueError(f"{path} was trained by another recipe; name a new folder with `out=`")
    return request.out


def _one_of(request: Request, directory: Path, seed: int) -> Request:
    """The request for one seed: a new run in its folder, or the resumption of the run that is there."""
    path = directory / f"seed-{seed}"
    started = (path / "recipe.json").exists()
    return replace(request, out=None if started else path, resume=path if started else None, seed=seed)


def _in_turn(
    request: Request,
    start: Start,
    directory: Path,
    numbers: Sequence[int],
    records: dict[int, Path],
    display: Progress,
) -> Several:
    results: list[Result] = []
    problems: list[Problem] = []
    stopped_by = None
    task = display.add_task("Seeds", total=len(numbers))
    for number in numbers:
        wanted = _one_of(request, directory, number)
        try:
            result = _train(wanted, replace(start, seed=number), display, records.get(number))
        except FloatingPointError as error:
            problems.append(Problem(number, str(error), 1))  # the other seeds may fare better
            continue
        results.append(result)
        _show(number, result, display)
        problems += _report(number, result, request.data)
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
            f"--jobs {parallel} is too many for {counted(threads, 'thread')} and {counted(len(numbers), 'seed')}"
        )
    assert not isinstance(start.data, Dataset)
    share = replace(_explicit(request, start), threads=threads // parallel)
    recipe = start.recipe
    dataset = data.load(start.data, image_size=recipe.image_size, fit=recipe.fit, display=display)
    images = len(dataset.train_labels)
    images = min(images - start.recipe.validation_images, TRIED_STEPS * start.recipe.batch_size, start.limit or images)
    results: list[Result] = []
    problems: list[Problem] = []
    with signals.StopSignal() as stop:
        task = display.add_task("Seeds", total=len(numbers))
        speed = compare_speed(share, images=images, threads=threads, parallel=parallel, stop=stop)
        if speed is not None:
            display.console.print(speed.describe())
        elif not stop.received:
            display.console.print("The speed in parallel is not known: a training on few images failed")
        requests = [{"request": _to_json(_one_of(share, directory, number))} for number in numbers]
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
    """Write a run's report; a problem if that fails, as the run itself is safe by now."""
    try:
        write_report(result.directory, source if isinstance(source, Dataset) else None)
    except (OSError, ValueError) as error:
        return [Problem(seed, f"no report: {error}", 1)]
    return []


# --- as processes -------------------------------------------------------------------------------------------------


def work(request: dict[str, Any]) -> dict[str, Any]:
    """What a child process does: one training, from the JSON form of its request."""
    wanted = _from_json(request)
    display = Progress(console=Console(quiet=True), disable=True)
    result = train(wanted, display)
    problems = _report(0, result, wanted.data) if wanted.evaluate else []
    return {
        "result": {**asdict(result), "directory": str(result.directory)},
        "report_problems": [problem.message for problem in problems],
    }


def _explicit(request: Request, start: Start) -> Request:
    """The request with everything that was taken from earlier runs or defaults written out."""
    data_source = start.data
    return replace(
        request,
        recipe=start.recipe,
        changes={},
        data=data_source,
        limit=start.limit,
        teachers=tuple(teacher.source for teacher in start.teachers) or None,
        init=start.init.source if start.init else None,
    )


def _to_json(request: Request) -> dict[str, Any]:
    paths = {name: str(path) for name, path in (("out", request.out), ("resume", request.resume)) if path is not None}
    return {**asdict(request), **paths}


def _from_json(content: dict[str, Any]) -> Request:
    paths = {name: Path(content[name]) for name in ("out", "resume") if content[name] is not None}
    teachers = content["teachers"] and tuple(content["teachers"])
    return Request(**{**content, **paths, "recipe": Recipe(**content["recipe"]), "teachers": teachers})


@dataclass(frozen=True)
class Speed:
    """Images a second: of one process with all `threads`, and of all `jobs` with their shares together."""

    alone: float
    together: float
    jobs: int
    threads: int

    def describe(self) -> str:
        """A line that says how much time the seeds take in parallel."""
        ratio = self.alone / self.together
        change = f"{abs(1 - ratio):.0%} {'more' if ratio > 1 else 'less'} time"
        advice = ": leave out --jobs to be faster" if ratio > 1 else ""
        return (
            f"{self.jobs} in parallel, {counted(self.threads // self.jobs, 'thread')} each, train "
            f"{self.together:,.0f} images/s; one alone with {counted(self.threads, 'thread')} {self.alone:,.0f}. "
            f"In parallel takes {change} than in turn{advice}"
        )


def compare_speed(
    request: Request, *, images: int, threads: int, parallel: int, stop: signals.StopSignal
) -> Speed | None:
    """Train on a few images alone with all threads, then by several processes with their shares.

    Nothing is evaluated on test images. None if a signal came or a training failed, as one that diverges does. Raises
    ValueError, with its message, if one is refused.
    """
    assert isinstance(request.recipe, Recipe)
    recipe = replace(request.recipe, watch_test=False)

    def images_per_second(count: int) -> float | None:
        total = 0.0
        with tempfile.TemporaryDirectory() as folder:
            requests = [
                replace(
                    request,
                    recipe=recipe,
                    out=Path(folder, str(number)),
                    threads=threads // count,
                    limit=images,
                    stop_after_epoch=1,
                    evaluate=False,
                    tensorboard=False,
                    record=False,
                )
                for number in range(count)
            ]
            ended = list(jobs.run_all(WORK, [{"request": _to_json(one)} for one in requests], count, stop))
        for child in ended:
            if child.code == 2:
                raise ValueError(child.problem)
            if stop.received or child.result is None:
                return None
            total += float(child.result["result"]["record"]["images_per_second"])
        return total

    alone = images_per_second(1)
    together = None if alone is None else images_per_second(parallel)
    return None if alone is None or together is None else Speed(alone, together, parallel, threads)
