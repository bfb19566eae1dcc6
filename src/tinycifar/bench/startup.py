"""How long commands take from the shell, relative to Python itself, to loading PyTorch and to another installation."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinycifar import catalog
from tinycifar.words import table

ROUNDS = 5
PYTHON, TORCH = "python -c pass", "python -c 'import torch'"


@dataclass(frozen=True)
class StartupRow:
    """Median seconds of a command, and its ratios to the three yardsticks; None if there is no other installation."""

    command: str
    seconds: float
    to_python: float
    to_torch: float
    other_seconds: float | None = None
    to_other: float | None = None


@dataclass(frozen=True)
class StartupBench:
    """The rows, the first two of them Python and PyTorch alone, and what the other installation is, if any."""

    rows: tuple[StartupRow, ...]
    rounds: int
    other: str | None
    python_version: str
    cpu_count: int


def bench_startup(*, rounds: int = ROUNDS, against: str | None = None) -> StartupBench:
    """Time commands in turn, `rounds` times each, after one round that fills the disk's cache.

    `against` is another installation to time side by side: a Python interpreter, or the folder of a checkout, whose
    `src` this interpreter then runs. Raises ValueError if it cannot run tinycifar.
    """
    other = None if against is None else _installation(against)
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        picture = Path(name, "picture.png")
        Image.effect_noise((64, 48), 90).convert("RGB").save(picture)
        commands = {
            "tinycifar --version": ["--version"],
            "tinycifar --help": ["--help"],
            "tinycifar recipes": ["recipes"],
            "tinycifar models": ["models"],
            "tinycifar predict": ["predict", str(picture), "--model", catalog.best()],
        }
        work: dict[tuple[str, str], tuple[Sequence[str], Mapping[str, str]]] = {
            (PYTHON, ""): ([sys.executable, "-c", "pass"], os.environ),
            (TORCH, ""): ([sys.executable, "-c", "import torch"], os.environ),
        }
        for label, words in commands.items():
            work[label, ""] = ([sys.executable, "-m", "tinycifar", *words], os.environ)
            if other is not None:
                work[label, "other"] = ([other[0], "-m", "tinycifar", *words], other[1])
        times: dict[tuple[str, str], list[float]] = {key: [] for key in work}
        for number in range(rounds + 1):
            for key, (command, environment) in work.items():
                seconds = _seconds(command, environment)
                if number:
                    times[key].append(seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for label in (PYTHON, TORCH, *commands):
        seconds, other_seconds = medians[label, ""], medians.get((label, "other"))
        to_other = None if other_seconds is None else seconds / other_seconds
        to_python, to_torch = seconds / medians[PYTHON, ""], seconds / medians[TORCH, ""]
        rows.append(StartupRow(label, seconds, to_python, to_torch, other_seconds, to_other))
    return StartupBench(tuple(rows), rounds, against, platform.python_version(), os.cpu_count() or 1)


def render(bench: StartupBench) -> str:
    """A benchmark as text."""
    heading = ["command", "seconds", "to Python", "to torch"]
    if bench.other is not None:
        heading += ["other", "to other"]
    cells = []
    for row in bench.rows:
        line = [row.command, f"{row.seconds:.3f}", f"{row.to_python:.1f}", f"{row.to_torch:.3f}"]
        if bench.other is not None:
            line += ["-", "-"] if row.to_other is None else [f"{row.other_seconds:.3f}", f"{row.to_other:.3f}"]
        cells.append(line)
    notes = [f"Medians of {bench.rounds} rounds, all commands in turn; to X: seconds divided by those of X"]
    if bench.other is not None:
        notes.append(f"other: {bench.other}")
    return "\n".join([*table([heading, *cells]), *notes])


def _seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{' '.join(map(str, command[:4]))} ended with exit code {done.returncode}: {last}")
    return seconds


def _installation(against: str) -> tuple[str, dict[str, str]]:
    """The interpreter and the environment variables that run another installation; ValueError if there is none."""
    path = Path(against).absolute()  # `./python` as it is would be looked for in PATH
    environment = dict(os.environ)
    if (path / "src" / "tinycifar").is_dir():
        environment["PYTHONPATH"] = str(path / "src")
        return sys.executable, environment
    if not path.is_file():
        raise ValueError(f"{against} is neither a Python interpreter nor a checkout with src/tinycifar")
    environment.pop("PYTHONPATH", None)
    command = [str(path), "-c", "import tinycifar; print(tinycifar.__name__)"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except OSError:
        done = None
    if done is None or done.stdout.strip() != "tinycifar":
        raise ValueError(f"{against} is not a Python interpreter that has tinycifar")
    return command[0], environment
