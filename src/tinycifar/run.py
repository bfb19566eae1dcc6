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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from tinycifar import atomic, machine
from tinycifar.data.dataset import Digests
from tinycifar.recipes import Recipe

RUN_BYTES = 15_000_000  # logits, a report, and to spare
SEEN = "seen.npy"
BYTES_A_PARAMETER = 4 * 2 + 8 * 3  # weights twice, while they are replaced; three checkpoints with momentum


def create(out: Path | None, recipe_name: str, parameters: int) -> Path:
    """Make and return the run directory of a model of that size: `out`, or a new dated one under `runs/RECIPE/`.

    Raises ValueError if `out` is in use, OSError if it cannot be made or the disk is nearly full.
    """
    out = place(out, recipe_name)
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    needed = RUN_BYTES + BYTES_A_PARAMETER * parameters
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"a run needs {needed / 1e6:.0f} MB of disk, {free / 1e6:.1f} MB are free", str(out)
        )
    return out


def place(out: Path | None, recipe_name: str) -> Path:
    """Where a run goes: `out`, or a new dated directory under `runs/RECIPE/`; makes nothing. ValueError if in use."""
    if out is None:
        parent = Path("runs") / recipe_name
        stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        names = (f"{stamp}-{number}" if number > 1 else stamp for number in itertools.count(1))
        out = next(parent / name for name in names if not (parent / name).exists())
    check_unused(out)
    return out


def check_unused(out: Path | None) -> None:
    """Raise ValueError if `out` exists and is not an empty folder: a run never writes over another.

    What remains of a run that was killed before it wrote `recipe.json` does not count.
    """
    if out is None or not out.exists():
        return
    unfinished = {".lock", "environment.json"}
    if not out.is_dir() or any(not (path.name in unfinished or atomic.is_unfinished(path)) for path in out.iterdir()):
        raise ValueError(f"the output folder {out} is in use; name a new or an empty one with `out=`")


@contextlib.contextmanager
def as_written(directory: Path) -> Iterator[None]:
    """Turn the errors that content of another form causes into a ValueError that names the directory."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, MemoryError) as error:
        if isinstance(error, ValueError) and str(directory) in str(error):
            raise  # it names the file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{directory} holds a file that is not as tinycifar writes it ({reason[:200]})") from None


def read_recipe(directory: Path) -> Recipe:
    """The recipe a run was trained with; ValueError, naming the file, if it is missing or none of this version's."""
    path = directory / "recipe.json"
    content = atomic.read_json(path)
    try:
        return Recipe(**content)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no recipe that this version knows: {error}") from None


def read_environment(directory: Path) -> dict[str, Any]:
    """What `environment.json` says of a run; ValueError, naming the file, if it is missing or lacks what is needed."""
    path = directory / "environment.json"
    content = atomic.read_json(path)
    kinds = {
        "data": str,
        "seed": int,
        "train_images": int,
        "threads": int,
        "device": str,
        "precision": str,
        "resumes": list,
    }
    limit, teachers, init, digest = (
        content.get(key) if isinstance(content, dict) else None for key in ("limit", "teachers", "init", "data_digest")
    )
    if not (
        isinstance(content, dict)
        and all(type(content.get(key)) is kind for key, kind in kinds.items())
        and (limit is None or type(limit) is int)
        and (digest is None or type(digest) is str)
        and isinstance(teachers or [], list)
        and isinstance(init or {}, dict)
        and all(isinstance(of, dict) and type(of.get("source")) is str for of in teachers or [])
    ):
        raise ValueError(f"{path} does not name {', '.join(kinds)} of the run")
    return content


EVALUATION = {
    "data": str,
    "split": str,
    "images": int,
    "correct": int,
    "accuracy": float,
    "accuracy_interval": list,
    "loss": float,
    "accuracy_tta": float,
    "top2_accuracy": float,
    "top3_accuracy": float,
    "ece": float,
    "brier": float,
    "images_per_second": float,
    "classes": list,
    "confusion": list,
    "reliability": list,
}
"""What an `evaluation.json` holds at least, and of which kind."""


def read_evaluation(directory: Path) -> dict[str, Any]:
    """What `evaluation.json` says of a run; ValueError, naming the file, if it is missing or lacks what is needed."""
    path = directory / "evaluation.json"
    content = atomic.read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in EVALUATION.items()):
        raise ValueError(f"{path} is not as tinycifar writes it: evaluate the run again")
    return content


def append_metrics(directory: Path, entry: dict[str, Any]) -> None:
    """Add one line, an epoch's metrics, to `metrics.jsonl`."""
    with (directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")


def rewrite_metrics(directory: Path, history: list[dict[str, Any]]) -> None:
    """Make `metrics.jsonl` hold these epochs and no others, whole or not at all."""
    lines = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in history)
    atomic.write_bytes(directory / "metrics.jsonl", lines.encode())


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The epochs of `metrics.jsonl`, oldest first; none if it is not there, ValueError if it is damaged."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: a line of it is no JSON") from None
    if not all(isinstance(entry, dict) and isinstance(entry.get("epoch"), int) for entry in history):
        raise ValueError(f"{path} is damaged: a line of it is no epoch's metrics")
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
    """What `write_hardest` stored; none if there is no such file, ValueError if it is damaged."""
    path = directory / "hardest.json"
    if not path.exists():
        return []
    content = atomic.read_json(path)
    try:
        return [(int(entry["image"]), float(entry["loss"])) for entry in content]
    except (TypeError, KeyError, OverflowError, ValueError):
        raise ValueError(f"{path} is not as tinycifar writes it; remove it") from None


def seeds(directory: Path) -> list[Path]:
    """The runs of a directory that `tinycifar train --seeds` filled, by seed; none if it is another one."""
    found = [path for path in directory.glob("seed-*") if re.fullmatch(r"seed-\d+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def start(directory: Path, recipe: Recipe, details: dict[str, Any]) -> None:
    """Write what is known before the first step: `recipe.json` and `environment.json`."""
    atomic.remove_unfinished(directory)
    atomic.write_json(directory / "environment.json", details)
    atomic.write_json(directory / "recipe.json", asdict(recipe))


def check_same(directory: Path, recipe: Recipe, details: dict[str, Any]) -> None:
    """Raise ValueError, naming the fields, unless a run has this recipe and this seed and data."""
    then, now = asdict(read_recipe(directory)), asdict(recipe)
    told = {"expected_accuracy", "expected_minutes"}  # what a recipe gave, which later records may change
    environment = read_environment(directory)
    for fields, told_of in ((then, environment), (now, details)):
        fields |= {name: told_of[name] for name in ("seed", "train_images")}
        fields["data"] = told_of.get("data_digest") or told_of["data"]  # a folder that was moved is the same data
        fields["teachers"] = [of.get("sha256") for of in told_of.get("teachers") or []]
        fields["init"] = (told_of.get("init") or {}).get("sha256")
    differing = [name for name in now if name not in told and then[name] != now[name]]
    if differing:
        words = ", ".join(f"{name} is {then[name]} there, not {now[name]}" for name in differing)
        longer = "epochs" in differing and now["epochs"] > then["epochs"]
        hint = f". To train its weights further, start a new run from them with `init=` {directory}" if longer else ""
        raise ValueError(f"{directory} was trained with different settings: {words}{hint}")


def resumed(directory: Path, details: dict[str, Any], step: int) -> tuple[dict[str, Any], list[str]]:
    """Note a resume after `step` in a run's `environment.json`; gives its content, and a line for each difference.

    What differs from the run's first process in device, instruction set, threads, precision or torch may change the
    bits. Runs of earlier versions name the processor without its family, and no instruction set.
    """
    content = {"ranks": 1, "instruction_set": None} | read_environment(directory)
    same = [details["device"].startswith(f"{content['device']} (") and "device"]
    same += [content["instruction_set"] is None and "instruction_set"]
    differing = {
        name: details[name]
        for name in ("device", "instruction_set", "threads", "ranks", "precision", "torch_version")
        if name not in same and details[name] != content.get(name)
    }
    entry = {"step": step, "date": details["date"], "git_revision": details["git_revision"], **differing}
    content["resumes"] = [*content["resumes"], entry]
    content["data"] = details["data"]  # where that lies now
    atomic.write_json(directory / "environment.json", content)
    told = [f"{name} was {content.get(name)} and is {value}: results may differ" for name, value in differing.items()]
    return content, told


def record_path(recipe_name: str, name: str, device: torch.device) -> Path:
    """Where a record goes: `results/RECIPE/NAME.json`, or `results/RECIPE/cuda/NAME.json` from a GPU.

    Raises ValueError if a record is there already, and if the source is not that of a commit: a record names one.
    """
    folder = Path("results") / recipe_name / ("cuda" if device.type == "cuda" else "")
    path = folder / f"{name}.json"
    if path.exists():
        raise ValueError(f"there is a record already: move {path} away first")
    revision = machine.git_revision()
    if revision is None or revision.endswith("-dirty"):
        raise ValueError("--record needs tinycifar to run from a git checkout whose source is committed")
    return path


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """While it is entered, no other process may train into this run directory; ValueError if one does."""
    lock = FileLock(directory / ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another process is training {directory}") from None
