"""One training on several processes: the ranks 0 to N-1 that `torchrun` starts act as one.

Each rank computes its part of every batch, and DistributedDataParallel averages the gradients, so that weights and
optimizers are the same on all of them. Rank 0 alone writes, evaluates and prints. What waits here for the other ranks
is called by all of them in the same order. Without torchrun there is one rank, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: imported later, as by DDP, it keeps the group and its threads
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from tinycifar import signals, typed
from tinycifar.environment import Environment
from tinycifar.words import differences

P = ParamSpec("P")
R = TypeVar("R")

# A process that dies is noticed at once, as its connections end; this is for a machine that is lost without notice. It
# must be longer than what rank 0 does alone: filling the cache, an evaluation.
TIMEOUT = datetime.timedelta(minutes=30)
FAILURES = (ValueError, OSError, FloatingPointError)  # what a command reports in one line


class LostRankError(RuntimeError):
    """Another process of the run has ended; `report` is set on one of those that are left."""

    exit_code = 1

    def __init__(self, message: str, report: bool) -> None:
        super().__init__(message)
        self.report = report


class _SharedError(Exception):
    """An error that all ranks know."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, eq=False)
class Step:
    """The result of a backward pass of all processes.

    Tensors (N,) have a value for each image of the batch: the loss trained on, the loss against the label, and whether
    the label was predicted. `signal` is the number of one that any process received, `checkpoint_due` what rank 0
    decided.
    """

    losses: Tensor
    label_losses: Tensor
    correct: Tensor
    signal: int | None
    checkpoint_due: bool


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is, and its number on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    launch: str = ""
    """Identifies this start of torchrun on this machine; the same when it starts processes again."""

    @property
    def first(self) -> bool:
        """Whether this process writes, evaluates and prints."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device that `name` means here: of GPUs each process of a machine takes that of its own number."""
        if self.world == 1:
            return name
        if name == "mps":
            raise ValueError("several processes train on CPUs or on CUDA's GPUs, not on mps")
        gpus = torch.cuda.device_count()
        if name == "auto":
            name = "cuda" if gpus else "cpu"
        if gpus == 0 or not name.startswith("cuda"):
            return name
        own = f"cuda:{self.local_rank}"
        if name not in ("cuda", own):
            raise ValueError(f"each of several processes takes the GPU of its own number: give cuda, not {name}")
        if self.local_rank >= gpus:
            raise ValueError(f"this machine has {gpus} GPUs, fewer than processes: start at most {gpus} processes here")
        torch.cuda.set_device(self.local_rank)
        return own

    def exchange(self, value: Any = None, error: Exception | None = None) -> list[Any]:
        """Wait for all ranks and return the `value` of each; an error of one rank is raised on all instead."""
        if self.world == 1:
            return [value]
        answers: list[Any] = [None] * self.world
        dist.all_gather_object(answers, (value, error))
        for rank, (_, failure) in enumerate(answers):
            if failure is not None:
                raise _SharedError(_of_rank(rank, failure))
        return [value for value, _ in answers]

    def signal(self, stop: signals.StopSignal) -> int | None:
        """The number of the signal that any of the ranks received, the same on all of them."""
        return max(self.exchange(stop.received or 0)) or None

    def began(self, out: Path | None) -> bool:
        """Whether this very start of torchrun began the run in `out`, and has started the processes again since."""
        started = out is not None and self.launch != "" and (out / "recipe.json").exists()
        launches = typed.read(Environment, out / "environment.json").torchrun if started and out is not None else ()
        return any(self.exchange(self.launch in launches))

    def share(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process computes; all of them if it is alone."""
        return rows[self.rank :: self.world]

    def backward(
        self,
        images: int,
        losses: Tensor,
        label_losses: Tensor,
        correct: Tensor,
        *,
        signal: int | None = None,
        checkpoint_due: bool = False,
    ) -> Step:
        """Backpropagate the mean loss of a batch of `images` images, of which this process computed its `share`.

        The tensors have a value for each image of the share. Afterwards the gradients are those of the whole batch, and
        what is returned is about the whole batch and the same on every process.
        """
        share = len(losses) * self.world / images  # processes average their gradients, and shares may differ in size
        (losses.mean() * share).backward()  # type: ignore[no-untyped-call]
        losses, label_losses = losses.detach(), label_losses.detach()
        if self.world == 1:
            return Step(losses, label_losses, correct, signal, checkpoint_due)
        longest = -(-images // self.world)
        packed = torch.zeros(2 + 3 * longest, device=losses.device)
        packed[:2] = torch.tensor([signal or 0, checkpoint_due])
        values = torch.stack([value.to(packed) for value in (losses, label_losses, correct)])
        packed[2:].view(3, longest)[:, : len(losses)] = values
        parts = [torch.empty_like(packed) for _ in range(self.world)]
        dist.all_gather(parts, packed)
        of_ranks = torch.stack(parts)
        # Rank r has the images r, r + world, ... of the batch.
        in_order = of_ranks[:, 2:].view(self.world, 3, longest).permute(1, 2, 0).flatten(1)[:, :images]
        number, due = of_ranks[:, :2].amax(0).tolist()
        return Step(in_order[0], in_order[1], in_order[2], int(number) or None, bool(due))

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` so that a backward pass leaves on every rank the mean of all ranks' gradients.

        Weights and buffers become those of rank 0; in every forward pass the buffers do, running statistics among them.
        """
        if self.world == 1:
            return model
        index = next(model.parameters()).device.index
        parallel = DistributedDataParallel(model, device_ids=None if index is None else [index])
        parallel.register_comm_hook(None, lambda _, bucket: _mean_in_order(bucket))
        # Reported for 1x1 filters; it costs nothing for such small models.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return parallel

    def reseed(self, seed: int) -> None:
        """Have every rank but the first draw its dropout from a stream of its own, that of (`seed`, rank)."""
        if self.rank:
            state = np.random.SeedSequence(seed, spawn_key=(0, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))

    def check_alike(self, **settings: Any) -> None:
        """Raise ValueError, naming what differs, unless all ranks were started with the same settings."""
        first, *others = self.exchange(settings)
        for rank, theirs in enumerate(others, 1):
            if words := differences(theirs, first, "is"):
                raise ValueError(f"rank {rank} was started with different settings than rank 0: {words}")

    @contextlib.contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """Let one process of each machine run a block before the others: it fills the machine's cache."""
        if self.local_rank:
            self.exchange()
        yield
        if not self.local_rank:
            self.exchange()


def here() -> Ranks:
    """The ranks, from torchrun's environment variables; one rank without them.

    Raises ValueError if another launcher has set only some of them: each process would train all by itself.
    """
    variables = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        rank, world, local_rank = (int(value or 0) for value in variables.values())
    except ValueError:
        raise ValueError(f"{', '.join(variables)} must be whole numbers, as torchrun sets them") from None
    if variables["RANK"] and world > 1 and not variables["LOCAL_RANK"]:
        raise ValueError(
            "RANK and WORLD_SIZE are set without LOCAL_RANK; start processes that train as one by torchrun"
        )
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # LOGS/RUN_RANDOM/attempt_N/RANK/error.json
    launch = Path(error_file).parts[-4] if error_file and len(Path(error_file).parts) > 4 else ""
    return Ranks(rank, world, local_rank, launch) if all(variables.values()) else Ranks()


def as_one(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that all ranks call end on all of them if it ends on one.

    The ranks are connected while it runs. ValueError, OSError and FloatingPointError of one are raised on each, with
    "rank N: " in front unless it is rank 0's; LostRankError if another process has ended.
    """

    @functools.wraps(function)
    def joined(*arguments: P.args, **options: P.kwargs) -> R:
        ranks = here()
        if ranks.world == 1 or dist.is_initialized():
            return function(*arguments, **options)
        store = None
        try:
            with _dying_of_sigterm():
                store = _store(ranks)
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=TIMEOUT)
            try:
                return function(*arguments, **options)
            except FAILURES as error:
                with contextlib.suppress(RuntimeError):  # the others may have ended
                    ranks.exchange(error=error)
                raise
        except _SharedError as shared:
            raise shared.error from None
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise _lost(ranks.rank, store) from None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return joined


def _store(ranks: Ranks) -> Store:
    """Where the ranks find each other, empty at first.

    torchrun keeps one store over all its restarts, in which they would find the addresses of processes that are dead
    (pytorch issue 135712). How often it restarted is counted by each machine for itself, so that it serves as a name on
    one machine only; on several TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has torchrun make a new one each time.
    """
    shared, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(ranks.world)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "0"
    return PrefixStore(f"tinycifar/{attempt}", shared)


@contextlib.contextmanager
def _dying_of_sigterm() -> Iterator[None]:
    """Have SIGTERM end the process even while it waits for another inside torch, where no handler of Python's runs."""
    handler = None
    with contextlib.suppress(ValueError):  # outside the main thread there are no handlers
        handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _mean_in_order(bucket: Any) -> Any:
    """The mean of the ranks' gradients, always added in the order of the ranks.

    By default the order follows from the place in the bucket, and gradients are packed anew after the first step, so
    that with three ranks or more a resume would give other bits.
    """
    gradients = bucket.buffer()
    parts = [torch.empty_like(gradients) for _ in range(dist.get_world_size())]
    done = dist.all_gather(parts, gradients, async_op=True).get_future()
    return done.then(lambda _: functools.reduce(torch.add, parts) / len(parts))


def _of_rank(rank: int, error: Exception) -> Exception:
    """An error as the other ranks report it."""
    if rank == 0:
        return error
    if isinstance(error, OSError):
        return OSError(error.errno, f"rank {rank}: {error.strerror or error}", error.filename)
    return (FloatingPointError if isinstance(error, FloatingPointError) else ValueError)(f"rank {rank}: {error}")


def _lost(rank: int, store: Store | None) -> LostRankError:
    """What the ranks that are left raise; the first of them reports it."""
    report = True
    with contextlib.suppress(RuntimeError):  # the store may have ended too
        report = store is None or store.add("lost", 1) == 1
    return LostRankError(
        f"{f'rank {rank}: ' if rank else ''}another process of this run has ended, so this one ends too. "
        "The last checkpoint is whole: resume with `resume=`, or have torchrun restart with --max-restarts",
        report,
    )
