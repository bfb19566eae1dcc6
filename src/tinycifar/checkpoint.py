"""Checkpoints: the whole state of a training, written so that a loadable one always remains.

A checkpoint is two files in a run's `checkpoints/`: `step-N.safetensors`, all tensors with all else as JSON in its
metadata, and its manifest `step-N.json`, which holds the size and SHA-256 of the former and is written last. What has
no manifest was not finished; what does not fit its manifest is damaged. Nothing is pickled or unpickled. Until the run
is finished the logits of its teachers lie beside them, in `teacher-N.safetensors`, with manifests too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.optim import Optimizer

from tinycifar import atomic, run

FOLDER = "checkpoints"
KEPT = 2  # should the newest be damaged, the one before it is there


class SaveError(OSError):
    """Something of a run that could not be written; what was saved before is as it was."""

    exit_code = 1


@contextlib.contextmanager
def saving(step: int) -> Iterator[None]:
    """Turn the disk's errors while the state after `step` is written into a SaveError that says what that means."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}: stopped at step {step:,}, what was saved before is as it was"
        raise SaveError(error.errno, reason, error.filename) from None


@dataclass
class State:
    """Where a training is, besides its model, its optimizers and torch's generators.

    Whatever a step depends on and is not here follows from recipe, seed, epoch and step: rates, order, augmentation.
    """

    last_losses: Tensor
    """Of each image when last trained on, (N,)."""
    losses_before: Tensor
    """The same when the epoch began."""
    epoch_loss: Tensor
    """Sum over the images of the epoch so far."""
    epoch_correct: Tensor
    """How many of them were right."""
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches finished in the current epoch."""
    step: int = 0
    images_seen: int = 0
    epoch_seconds: float = 0.0
    """Seconds of training in the current epoch."""
    wall_seconds: float = 0.0
    """Since the run began, without the time between an interruption and the resume."""
    contradicted: float = 0.0
    """As `labels.contradicted` judged the labels last; 1 before the first time."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The metrics of the epochs finished."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights after the epoch with the best validation accuracy, if the recipe keeps them."""

    @classmethod
    def at_start(cls, images: int, device: torch.device) -> State:
        """That before the first step, for so many training images."""
        losses, total = torch.zeros(images, device=device), torch.zeros((), device=device)
        return cls(losses, losses.clone(), total, total.clone(), contradicted=1.0)

    def add_batch(self, rows: Tensor, losses: Tensor, label_losses: Tensor, correct: Tensor) -> None:
        """Count a step on the images `rows`: the losses trained on, those against the labels, and which were right."""
        self.step += 1
        self.batch += 1
        self.images_seen += len(rows)
        self.last_losses[rows] = losses
        self.epoch_loss += label_losses.sum()
        self.epoch_correct += correct.sum()

    def next_epoch(self, entry: dict[str, Any]) -> None:
        """Finish the current epoch, whose metrics are `entry`."""
        self.history = [*self.history, entry]
        self.losses_before = self.last_losses.clone()
        self.epoch_loss, self.epoch_correct = torch.zeros_like(self.epoch_loss), torch.zeros_like(self.epoch_correct)
        self.epoch, self.batch, self.epoch_seconds = self.epoch + 1, 0, 0.0

    @property
    def train_seconds(self) -> float:
        """Of training in all."""
        return math.fsum([self.epoch_seconds, *(entry["train_seconds"] for entry in self.history)])


@dataclass(frozen=True)
class Checkpoint:
    """A file's content: tensors, and in `about` what JSON can hold."""

    path: Path
    tensors: dict[str, Tensor]
    about: dict[str, Any]


def capture(
    model: nn.Module,
    optimizers: list[Optimizer],
    state: State,
    device: torch.device,
    rank_states: Sequence[dict[str, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that decides how a training continues: tensors by name, and values for JSON.

    `rank_states` are the `generators` of each of several processes that train as one (default: those of this process).
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": tensor for name, tensor in entries.items()}
    for rank, states in enumerate(rank_states or [generators(device)]):
        tensors |= {f"generator.{f'{rank}.' if rank else ''}{name}": state for name, state in states.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    about: dict[str, Any] = {}
    for name in (item.name for item in fields(state) if item.name != "best"):
        value = getattr(state, name)
        (tensors if isinstance(value, Tensor) else about)[f"state.{name}"] = value
    return tensors, about


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators in this process, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizers: list[Optimizer], device: torch.device, rank: int = 0
) -> State:
    """Restore the result of `capture`; ValueError if it is of another model or other optimizers.

    The generators of a rank that the checkpoint does not have stay as they are.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, value in (*checkpoint.tensors.items(), *checkpoint.about.items()):
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = value
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    try:
        model.load_state_dict(parts["model"])
        for name, tensor in parts.get("optimizer", {}).items():
            number, index, key = name.split(".")
            states[int(number)].setdefault(int(index), {})[key] = tensor.to(device)
        for optimizer, entries in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        stored, prefix = parts["generator"], f"{rank}." if rank else ""
        if rank == 0 or f"{prefix}cpu" in stored:
            torch.set_rng_state(stored[f"{prefix}cpu"])
        if device.type == "cuda" and f"{prefix}cuda" in stored:
            torch.cuda.set_rng_state(stored[f"{prefix}cuda"], device)
        values: dict[str, Any] = parts["state"]
        values |= {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return State(**values, best={name: tensor.to(device) for name, tensor in parts.get("best", {}).items()})
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{checkpoint.path} does not fit this model: {str(error).splitlines()[0]}") from None


def save(
    directory: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    state: State,
    device: torch.device,
    rank_states: Sequence[dict[str, Tensor]] | None = None,
) -> Path:
    """Write the checkpoint of a run after `state.step` updates, then remove all but the newest ones; gives its file.

    Raises OSError if the disk fails; earlier checkpoints are then unchanged.
    """
    folder = directory / FOLDER
    path = folder / f"step-{state.step}.safetensors"
    _write(path, *capture(model, optimizers, state, device, rank_states))
    for old in _files(folder)[:-KEPT]:
        _remove(old)
    return path


def save_view(directory: Path, view: int, logits: Tensor) -> None:
    """Write the logits that the teachers of a run gave for a view of its images, so that a resume has them."""
    _write(directory / FOLDER / f"teacher-{view}.safetensors", {"logits": logits}, {})


def read_view(directory: Path, view: int) -> Tensor | None:
    """The logits that `save_view` wrote; None if there are none, or damaged ones."""
    try:
        return read(directory / FOLDER / f"teacher-{view}.safetensors").tensors["logits"]
    except (FileNotFoundError, KeyError, ValueError):
        return None


def remove_views(directory: Path) -> None:
    """Remove what `save_view` wrote."""
    for path in (directory / FOLDER).glob("teacher-*.safetensors"):
        _remove(path)


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    # Sums over a tensor round differently in another memory layout, so the layout is part of the state.
    strides = {name: list(tensor.stride()) for name, tensor in tensors.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = to_safetensors(stored, metadata={"tinycifar": json.dumps({"about": about, "strides": strides})})
    path.parent.mkdir(exist_ok=True)
    atomic.write_bytes(path, content)
    atomic.write_bytes(path.with_suffix(".json"), _manifest(path.name, content))


def _remove(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)  # first: a file without its manifest counts for nothing
    path.unlink(missing_ok=True)


def latest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, and a line about each newer one that is damaged.

    Damaged ones are renamed to end in `.damaged`. Without a whole checkpoint it is None if no epoch was finished, so
    that nothing is lost by starting over; otherwise ValueError, and nothing is renamed.
    """
    folder = directory / FOLDER
    problems: list[str] = []
    aside: list[Path] = []
    newest = None
    for path in reversed(_files(folder)):
        try:
            newest = read(path)
            break
        except ValueError as error:
            problems.append(str(error))
            aside += [path, path.with_suffix(".json")]
    if newest is None and (run.read_metrics(directory) or (directory / "evaluation.json").exists()):
        raise ValueError(f"{directory} has no whole checkpoint to resume from{''.join(f'; {p}' for p in problems)}")
    for inside in (directory, folder):
        atomic.remove_unfinished(inside)
    for path in aside:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
    instead = "starting over" if newest is None else f"going back to {newest.path.name}"
    return newest, [f"{problem}; {instead}" for problem in problems]


def read(path: Path) -> Checkpoint:
    """Read one checkpoint file; ValueError, naming it, unless its bytes are those that were written.

    Raises OSError if the disk cannot be read, which says nothing about the file.
    """
    content = path.read_bytes()
    try:
        manifest = path.with_suffix(".json").read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} was not finished: it has no manifest") from None
    if manifest != _manifest(path.name, content):
        raise ValueError(f"{path} is damaged: it does not fit its manifest")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = json.loads(stored.metadata()["tinycifar"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no dict)
        about, strides = dict(metadata["about"]), metadata["strides"]
        for name, tensor in tensors.items():
            tensors[name] = torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype).copy_(tensor)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint of tinycifar: {error}") from None
    return Checkpoint(path, tensors, about)


def _manifest(name: str, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    return (json.dumps({"file": name, "bytes": len(content), "sha256": digest}, indent=2) + "\n").encode()


def _files(folder: Path) -> list[Path]:
    """Checkpoint files, oldest first; none if there is no folder, OSError if it cannot be read."""
    paths = list(folder.iterdir()) if folder.exists() else []
    files = [path for path in paths if re.fullmatch(r"step-\d+\.safetensors", path.name)]
    return sorted(files, key=lambda path: int(path.stem.removeprefix("step-")))
