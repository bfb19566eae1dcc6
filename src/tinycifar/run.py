"""The run directory: paths, provenance, metrics, weights."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from tinycifar import atomic, machine, typed
from tinycifar.data.dataset import Dataset, Digests
from tinycifar.environment import Environment
from tinycifar.recipes import Recipe
from tinycifar.scores import Scores
from tinycifar.words import counted, differences

RUN_BYTES = 15_000_000  # logits, a report, and to spare
SEEN = "seen.npy"
SEED = r"seed-\d+"  # the directory of one of several seeds
BYTES_A_PARAMETER = 4 * 2 + 8 * 3  # weights twice, while they are replaced; three checkpoints with momentum


def create(out: Path | None, recipe_name: str, parameters: int) -> Path:
    """Make and return the run directory of a model of that size: `out`, or a new dated one under `runs/RECIPE/`.

    Raises ValueError if `out` is in use, OSError if it cannot be made or the disk is nearly full.
    """
    if out is None:
        out = create_dated(recipe_name)
    else:
        check_unused(out)
        out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    needed = RUN_BYTES + BYTES_A_PARAMETER * parameters
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"a run needs {needed / 1e6:.0f} MB of disk, {free / 1e6:.1f} MB are free", str(out)
        )
    return out


def create_dated(recipe_name: str) -> Path:
    """Make and return a new dated directory under `runs/RECIPE/`, which no other process makes too."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for number in itertools.count(1):
        out = Path("runs", recipe_name, f"{stamp}-{number}" if number > 1 else stamp)
        with contextlib.suppress(FileExistsError):
            out.mkdir(parents=True)
            break
    return out


def check_unused(out: Path) -> None:
    """Raise ValueError if `out` exists and is not an empty folder: a run never writes over another.

    What remains of a run that was killed before it wrote `recipe.json` does not count.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the output folder {out} has bytes in its name that are no text; name another one with `out=`"
        ) from None
    if not out.exists():
        return
    unfinished = {".lock", "environment.json"}
    if not out.is_dir() or any(not (path.name in unfinished or atomic.is_unfinished(path)) for path in out.iterdir()):
        raise ValueError(f"the output folder {out} is in use; name a new or an empty one with `out=`")


@contextlib.contextmanager
def as_written(directory: Path) -> Iterator[None]:
    """Turn errors caused by files of another form into a ValueError that names the directory."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, MemoryError) as error:
        if isinstance(error, ValueError) and str(directory) in str(error):
            raise  # it names the file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{directory} holds a file that is not as tinycifar writes it ({reason[:200]})") from None


def read_recipe(directory: Path) -> Recipe:
    """The recipe of a run; ValueError, naming the file, if it is missing or not a recipe of this version."""
    path = directory / "recipe.json"
    content = atomic.read_json(path)
    try:
        return Recipe(**content)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a recipe of this version: {error}") from None


def read_environment(directory: Path) -> Environment:
    """The `environment.json` of a run; ValueError, naming file and field, if it is missing or does not fit."""
    return typed.read(Environment, directory / "environment.json")


def read_evaluation(directory: Path) -> Scores:
    """The `evaluation.json` of a run; ValueError, naming file and field, if it is missing or does not fit."""
    return typed.read(Scores, directory / "evaluation.json")


def check_apart(out: Path, dataset: Dataset) -> None:
    """Raise ValueError if a run lies beside the folders of its own data's classes: its plots would make it a class."""
    for folder in out.resolve().parents if dataset.path else []:
        if all((folder / name).is_dir() for name in dataset.classes):
            raise ValueError(
                f"the output folder {out} would be read as a class of the data in {folder}; name a folder elsewhere "
                "with `out=`"
            )


def append_metrics(directory: Path, entry: dict[str, Any]) -> None:
    """Add one line, an epoch's metrics, to `metrics.jsonl`."""
    with (directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")


def rewrite_metrics(directory: Path, history: list[dict[str, Any]]) -> None:
    """Make `metrics.jsonl` hold these epochs and no others, whole or not at all."""
    lines = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in history)
    atomic.write_bytes(directory / "metrics.jsonl", lines.encode())


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The epochs of `metrics.jsonl`, oldest first; none without the file, ValueError if it is damaged."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: a line is not JSON") from None
    if not all(isinstance(entry, dict) and isinstance(entry.get("epoch"), int) for entry in history):
        raise ValueError(f"{path} is damaged: a line is not the metrics of an epoch")
    return history


def write_seen(directory: Path, digests: Iterable[Digests]) -> None:
    """Store the digests of the images that a run's weights come from, 32 bytes an image, sorted, each once."""
    rows = np.unique(as_rows(np.concatenate(list(digests))))
    content = io.BytesIO()
    np.save(content, rows.view(np.uint8).reshape(-1, 32), allow_pickle=False)
    atomic.write_bytes(directory / SEEN, content.getvalue())


def read_seen(directory: Path) -> Digests | None:
    """The digests (N, 32) that `write_seen` stored; None if there are none, ValueError if the file is damaged."""
    path = directory / SEEN
    try:
        with path.open("rb") as file:
            digests = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, MemoryError):
        raise ValueError(f"{path} is damaged; remove it, or train again") from None
    if not (isinstance(digests, np.ndarray) and digests.dtype == np.uint8 and digests.shape[1:] == (32,)):
        raise ValueError(f"{path} is damaged; remove it, or train again")
    return digests


def as_rows(digests: Digests) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Digests (N, 32) as one value each, (N,), that can be sorted and searched."""
    return np.ascontiguousarray(digests).view("V32")[:, 0]


def write_hardest(directory: Path, images: Sequence[tuple[int, float]]) -> None:
    """Store the training images with the largest losses, index and loss, as `hardest.json`."""
    atomic.write_json(directory / "hardest.json", [{"image": index, "loss": loss} for index, loss in images])


def read_hardest(directory: Path) -> list[tuple[int, float]]:
    """The images that `write_hardest` stored; none without the file, ValueError if it is damaged."""
    path = directory / "hardest.json"
    if not path.exists():
        return []
    content = atomic.read_json(path)
    try:
        return [(int(entry["image"]), float(entry["loss"])) for entry in content]
    except (TypeError, KeyError, OverflowError, ValueError):
        raise ValueError(f"{path} is not as tinycifar writes it; remove it") from None


def seeds(directory: Path) -> list[Path]:
    """The runs in a directory of several seeds, by seed; none in any other directory."""
    runs = [path for path in directory.glob("seed-*") if re.fullmatch(SEED, path.name) and path.is_dir()]
    return sorted(runs, key=lambda path: int(path.name.removeprefix("seed-")))


def check_not_several(directory: Path) -> None:
    """Raise ValueError, naming one of them, if `directory` holds runs and is none itself."""
    if (directory / "recipe.json").is_file():
        return
    if several := seeds(directory):
        raise ValueError(f"{directory} holds several seeds; name one of them, for example {several[0]}")
    if runs := sorted(path.parent for path in directory.glob("*/recipe.json")):
        raise ValueError(f"{directory} holds {counted(len(runs), 'run')}; name one of them, for example {runs[-1]}")


def check_is_run(directory: Path) -> None:
    """Raise ValueError unless `directory` is that of one run."""
    check_not_several(directory)
    if not (directory / "recipe.json").is_file():
        why = " it holds no recipe.json" if directory.is_dir() else " it is a file" if directory.exists() else ""
        raise ValueError(f"{directory} is no run directory:{why}" if why else f"{directory} does not exist")


def start(directory: Path, recipe: Recipe, environment: Environment) -> None:
    """Write what is known before the first step: `recipe.json` and `environment.json`."""
    atomic.remove_unfinished(directory)
    atomic.write_json(directory / "environment.json", typed.to_json(environment))
    atomic.write_json(directory / "recipe.json", asdict(recipe))


def check_same(directory: Path, recipe: Recipe, environment: Environment) -> None:
    """Raise ValueError, naming the fields, unless a run has this recipe and this seed and data."""
    then = _identity(read_recipe(directory), read_environment(directory))
    now = _identity(recipe, environment)
    if words := differences(then, now, "was"):
        longer = now["epochs"] > then["epochs"]
        hint = f". To train its weights further, start a new run from them with `init=` {directory}" if longer else ""
        raise ValueError(f"{directory} was trained with different settings: {words}{hint}")


def check_same_seeds(directory: Path, recipe: Recipe, environment: Environment) -> None:
    """Raise ValueError unless a new run has the recipe and the data of all seeds beside it, if it is one of several."""
    for sibling in seeds(directory.parent) if re.fullmatch(SEED, directory.name) else []:
        if (sibling / "recipe.json").exists():
            check_same(sibling, recipe, replace(environment, seed=read_environment(sibling).seed))


def _identity(recipe: Recipe, environment: Environment) -> dict[str, Any]:
    """What must not change when a run is resumed, by name; expected values of recipes may."""
    fields = {name: value for name, value in asdict(recipe).items() if not name.startswith("expected_")}
    return fields | {
        "seed": environment.seed,
        "train_images": environment.train_images,
        "data": environment.data_digest or environment.data,  # a folder that was moved is the same data
        "teachers": [teacher.sha256 for teacher in environment.teachers],
        "init": environment.init and environment.init.sha256,
    }


def resumed(directory: Path, now: Environment, step: int) -> tuple[Environment, list[str]]:
    """Note a resume after `step` in a run's `environment.json`; gives its content, and a line for each difference.

    What differs from the run's first process in device, instruction set, threads, precision or torch may change the
    bits. Runs of earlier versions name the processor without its family, and no instruction set.
    """
    then = read_environment(directory)
    same = [now.device.startswith(f"{then.device} (") and "device"]
    same += [then.instruction_set is None and "instruction_set"]
    differing = {
        name: getattr(now, name)
        for name in ("device", "instruction_set", "threads", "ranks", "precision", "torch_version")
        if name not in same and getattr(now, name) != getattr(then, name)
    }
    entry = {"step": step, "date": now.date, "git_revision": now.git_revision, **differing}
    environment = replace(then, resumes=(*then.resumes, entry), data=now.data)  # where the data lies now
    atomic.write_json(directory / "environment.json", typed.to_json(environment))
    warnings = [
        f"{name} was {getattr(then, name)} and is {value}: results may differ" for name, value in differing.items()
    ]
    return environment, warnings


def record_path(recipe_name: str, name: str, device: torch.device) -> Path:
    """Where a record goes: `results/RECIPE/NAME.json`, or `results/RECIPE/cuda/NAME.json` from a GPU.

    Raises ValueError if the record exists already, and if the source is not committed: a record names a commit.
    """
    folder = Path("results") / recipe_name / ("cuda" if device.type == "cuda" else "")
    path = folder / f"{name}.json"
    if path.exists():
        raise ValueError(f"{path} exists already: move this record away first")
    revision = machine.git_revision()
    if revision is None or revision.endswith("-dirty"):
        raise ValueError("`record=` needs tinycifar to run from a git checkout whose source is committed")
    return path


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Lock a run directory against other trainings while it is entered; ValueError if it is locked already."""
    lock = FileLock(directory / ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another process is training {directory}") from None
