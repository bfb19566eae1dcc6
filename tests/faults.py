"""Interrupts trainings in every way and compares what they come to with one that was not; `make faults` runs it.

Exit code 1 if one of them differs, or if the comparison would not have noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch
from torch import nn
from torch.optim import Optimizer

from tinycifar import atomic, augment, checkpoint, recipes, run, training
from tinycifar.checkpoint import Checkpoint, State
from tinycifar.recipes import Recipe

# Both optimizers; dropout, which draws from torch's generator, images left out by their losses, and a teacher.
RECIPES = {
    "minute": ["epochs=12", "batch_size=32", "precision=float32"],
    "reference-30": ["epochs=6", "batch_size=40"],
    "micro": ["teacher=minute", "teacher_views=2", "epochs=6", "batch_size=40", "precision=float32"],
}
DIE_INSIDE = """
import os, signal, sys
from pathlib import Path
from tinycifar import checkpoint, run
where, kind, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
module, function = {"save": (checkpoint, "save"), "start": (run, "start")}[where]
real = getattr(module, function)
inside, calls = False, 0
def dying(call, name):
    def replacement(*arguments, **options):
        global calls
        if inside and name == kind:
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return replacement
def watched(*arguments):
    global inside
    inside = True
    result = real(*arguments)
    inside = False
    return result
setattr(module, function, watched)
os.fsync, Path.replace = dying(os.fsync, "sync"), dying(Path.replace, "rename")
Path.unlink = dying(Path.unlink, "unlink")
from tinycifar.cli import main
main(sys.argv[4:])
"""
# How often it is called what a process dies in. A save: two files, each synced with its folder and renamed once; two
# removed. A start: two files.
CALLS = {"save": {"sync": 4, "rename": 2, "unlink": 2}, "start": {"sync": 4, "rename": 2}}


def recipe_of(name: str) -> Recipe:
    """A recipe in a short form for trainings on the sample."""
    return recipes.with_settings(recipes.get(name), RECIPES[name])


def newest(directory: Path) -> Checkpoint:
    """The newest checkpoint of a run, which has one."""
    stored, _ = checkpoint.latest(directory)
    assert stored is not None
    return stored


def fingerprint(directory: Path) -> dict[str, str]:
    """SHA-256 of all that a finished run came to but seconds and dates: weights, optimizers, metrics, evaluation."""
    stored = newest(directory)
    digests: dict[str, Any] = {}
    for name, tensor in sorted(stored.tensors.items()):
        part = digests.setdefault(name.partition(".")[0], hashlib.sha256())
        part.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    plain = {name: value for name, value in stored.about.items() if "seconds" not in name}
    plain["state.history"] = without_seconds(plain["state.history"])
    texts = {
        "progress": plain,
        "metrics": without_seconds(run.read_metrics(directory)),
        "evaluation": atomic.read_json(directory / "evaluation.json") | {"images_per_second": 0},
    }
    for name, content in texts.items():
        digests[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in ("model.safetensors", "evaluation.safetensors"):
        digests[name] = hashlib.sha256((directory / name).read_bytes())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without how long its epochs took."""
    return [{name: value for name, value in entry.items() if "seconds" not in name} for entry in history]


def train_words(name: str, out: Path) -> list[str]:
    """The command line of a short training."""
    settings = [word for setting in RECIPES[name] for word in ("--set", setting)]
    teacher = ["--teacher", "minute"] if recipe_of(name).teacher else []
    return ["train", name, "--data", "sample", "--out", str(out), "--checkpoint-seconds", "0.3", *settings, *teacher]


def tinycifar(*words: str) -> list[str]:
    """The command that runs `tinycifar` with these words."""
    return [sys.executable, "-m", "tinycifar", *words]


def torchrun(ranks: int, *words: str, restarts: int = 0) -> list[str]:
    """The command that runs `tinycifar` with these words in so many processes that train as one."""
    options = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tinycifar", *words]


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own, of which nothing may be left at the end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            raise AssertionError(f"a process of {command} was left behind")


def wait_for(process: subprocess.Popen[str], beginning: str) -> IO[str]:
    """Read what a process prints up to a line that begins so; gives its output, to read the rest."""
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith(beginning))
    return process.stdout


def resume(directory: Path, name: str) -> None:
    """Resume to the end, or repeat the command if it was killed before the run existed."""
    started = (directory / "recipe.json").exists()
    words = ["train", "--resume", str(directory)] if started else train_words(name, directory)
    done = subprocess.run(tinycifar(*words), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_at_a_moment(directory: Path, name: str, chance: random.Random, whole_seconds: float) -> str:
    """Start a training and kill it after a random part of the seconds that a whole one takes from its start on."""
    seconds = chance.uniform(0, whole_seconds)
    with started(tinycifar(*train_words(name, directory))) as process:
        time.sleep(seconds)
        process.kill()
        process.wait()
    return f"{seconds:.2f} s after the start"


def kill_a_rank(directory: Path, name: str, chance: random.Random, ranks: int, whole_seconds: float) -> str:
    """Kill a random one of the ranks at a random moment of a training under torchrun, which is to start them again."""
    seconds, rank = chance.uniform(0, whole_seconds), chance.randrange(ranks)
    with started(torchrun(ranks, *train_words(name, directory), restarts=1)) as process:
        while not (directory / "recipe.json").exists():
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.001)
        time.sleep(seconds)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = any(kill_if_rank(int(pid), rank) for pid in children)
        assert process.stdout is not None
        told = process.stdout.read()
        assert process.wait() == 0, told
        left = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        assert not left, f"torchrun left processes behind: {left}"  # they have sessions of their own
    went_on = re.search(r"Resuming (after step \d+)", told)
    again = f"went on {went_on[1]}" if went_on else "started over" if found else "had ended"
    return f"rank {rank} {seconds:.2f} s after the start, {again}"


def kill_if_rank(pid: int, rank: int) -> bool:
    """Kill a process if torchrun gave it this rank; whether it did, which an ended process prevents."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def kill_inside(where: str, directory: Path, name: str, chance: random.Random) -> str:
    """Have a training kill itself at a random sync, renaming or removal of a "save" or of its "start"."""
    kind = chance.choice(list(CALLS[where]))
    number = chance.randint(1, CALLS[where][kind] * (3 if where == "save" else 1))
    words = [where, kind, str(number), *train_words(name, directory)]
    with started([sys.executable, "-c", DIE_INSIDE, *words]) as process:
        assert process.stdout is not None
        process.stdout.read()
        process.wait()
        assert process.returncode == -signal.SIGKILL
    return f"in {kind} {number} of its {where}"


def stop_by_signal(directory: Path, name: str, chance: random.Random, number: int, whole_seconds: float) -> str:
    """Start a training, send a signal at a random moment of it, and have it leave in order within 10 seconds."""
    seconds = chance.uniform(0, 0.8 * whole_seconds)
    with started(tinycifar(*train_words(name, directory))) as process:
        output = wait_for(process, "Epoch 1/")
        time.sleep(seconds)
        sent = time.monotonic()
        process.send_signal(number)
        rest = output.read()
        code = process.wait()
    took = time.monotonic() - sent
    finished = (directory / "evaluation.json").exists()  # the signal came when all was done
    assert code == 128 + number or (finished and code in (0, -number)), (code, rest)
    assert finished or f"tinycifar train --resume {directory}" in rest, rest
    assert took < 10, took
    return f"signal {number} {seconds:.2f} s after the first epoch, left in {took:.2f} s"


class Interrupting:
    """An augmentation that sends this process a signal, a Ctrl-C if no other is named, at its n-th batch."""

    def __init__(self, real: augment.Augmentation, batch: int, number: int = signal.SIGINT) -> None:
        self.real, self.left, self.number = real, batch, number

    def draw(self, count: int, generator: torch.Generator) -> augment.Parameters:
        """As the real one."""
        return self.real.draw(count, generator)

    def apply(self, images: torch.Tensor, parameters: augment.Parameters) -> torch.Tensor:
        """As the real one."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.real.apply(images, parameters)


def interrupt(recipe: Recipe, directory: Path, batch: int, number: int = signal.SIGINT, **options: Any) -> None:
    """Train on the sample, in this process, a new run or one to resume, with a signal in the n-th batch."""
    interrupting = Interrupting(augment.build(recipe.augmentation), batch, number)
    directory_argument = {"resume" if (directory / "recipe.json").exists() else "out": directory}
    with mock.patch.object(augment, "build", return_value=interrupting):
        result = training.train(recipe, "sample", **directory_argument, **options)
    assert result.stopped_by == number


def forgetting(part: str) -> Callable[..., State]:
    """`checkpoint.restore`, but what begins with `part` stays as it was before."""
    restore = checkpoint.restore

    def partly(
        found: Checkpoint, model: nn.Module, optimizers: list[Optimizer], device: torch.device, rank: int
    ) -> State:
        at_start = State.at_start(len(found.tensors["state.last_losses"]), device)
        tensors, about = checkpoint.capture(model, optimizers, at_start, device)
        kept = {name: value for name, value in found.tensors.items() if not name.startswith(part)}
        kept_about = {name: value for name, value in found.about.items() if not name.startswith(part)}
        changed = replace(found, tensors={**tensors, **kept}, about={**about, **kept_about})
        return restore(changed, model, optimizers, device, rank)

    return partly


# Each part of the state, and a recipe whose result depends on it.
PARTS = {
    "model.": "minute",
    "optimizer.0": "reference-30",
    "optimizer.1": "minute",
    "generator.cpu": "reference-30",
    "state.last_losses": "minute",
    "state.losses_before": "minute",
    "state.epoch_loss": "minute",
    "state.epoch_correct": "minute",
    "state.epoch": "minute",
    "state.batch": "minute",
    "state.step": "minute",
    "state.images_seen": "minute",
    "state.history": "minute",
}


# Parts that matter only if the hardest images are trained on, which the sample is too small for: a model that has seen
# so little contradicts its labels.
OF_THE_HARDEST = ("state.last_losses", "state.losses_before")


def is_noticed(part: str, folder: Path, expected: dict[str, str]) -> bool:
    """Whether a run that was resumed without a part of its state has another fingerprint, or fails."""
    recipe = recipe_of(PARTS[part])
    directory = folder / f"without {part}"
    with contextlib.ExitStack() as patched:
        if part in OF_THE_HARDEST:
            patched.enter_context(mock.patch.object(training, "MOST_CONTRADICTED", 1.0))
            expected = fingerprint(training.train(recipe, "sample", out=folder / f"with {part}").directory)
        interrupt(recipe, directory, 17)  # in the second epoch of minute and of the reference
        patched.enter_context(mock.patch.object(checkpoint, "restore", forgetting(part)))
        try:
            training.train(recipe, "sample", resume=directory)
        except (ValueError, IndexError):
            return True
    return fingerprint(directory) != expected


def main(arguments: list[str] | None = None) -> int:
    """Do all of it, print a line each, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=20, help="kill -9 at random moments, a third of them inside a save or start"
    )
    parser.add_argument("--ranks", type=int, default=1, help="have torchrun start so many processes; kills of one only")
    parser.add_argument("--signals", type=int, default=20, help="Ctrl-C and SIGTERM at random moments")
    parser.add_argument("--controls", type=int, default=len(PARTS), help="parts of the state left out, one at a time")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
    chance = random.Random(asked.seed)
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected, seconds = {}, {}
        for recipe in RECIPES:
            words = train_words(recipe, folder / recipe)
            command = tinycifar(*words) if asked.ranks == 1 else torchrun(asked.ranks, *words)
            before = time.time()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            first, last = (folder / recipe / name for name in ("recipe.json", "evaluation.json"))
            seconds[recipe] = last.stat().st_mtime - (before if asked.ranks == 1 else first.stat().st_mtime)
            expected[recipe] = fingerprint(folder / recipe)

        def compare(label: str, recipe: str, directory: Path, how: str) -> int:
            begun = sorted(path.name for path in (directory / checkpoint.FOLDER).glob("step-*.safetensors"))
            if asked.ranks == 1:
                resume(directory, recipe)
            found = fingerprint(directory)
            differing = [part for part, digest in expected[recipe].items() if found[part] != digest]
            verdict = f"DIFFERS in {', '.join(differing)}" if differing else "equal"
            then = f"checkpoints then: {', '.join(begun) or 'none'}; " if asked.ranks == 1 else ""
            print(f"{label} {recipe}: {how}; {then}resumed: {verdict}", flush=True)
            return bool(differing)

        for number in range(asked.kills):
            recipe, directory = list(RECIPES)[number % len(RECIPES)], folder / f"kill-{number}"
            if asked.ranks > 1:
                how = kill_a_rank(directory, recipe, chance, asked.ranks, seconds[recipe])
            elif number % 3 == 0:
                how = kill_inside("start" if number % 2 else "save", directory, recipe, chance)
            else:
                how = kill_at_a_moment(directory, recipe, chance, seconds[recipe])
            failures += compare(f"kill {number + 1}/{asked.kills}", recipe, directory, how)
        for number in range(asked.signals):
            recipe, directory = list(RECIPES)[number % len(RECIPES)], folder / f"signal-{number}"
            sent = (signal.SIGINT, signal.SIGTERM)[number // 2 % 2]
            how = stop_by_signal(directory, recipe, chance, sent, seconds[recipe])
            failures += compare(f"signal {number + 1}/{asked.signals}", recipe, directory, how)
        for part in chance.sample(list(PARTS), asked.controls):
            noticed = is_noticed(part, folder, expected[PARTS[part]])
            print(f"control: resumed without {part}: {'noticed' if noticed else 'NOT NOTICED'}", flush=True)
            failures += not noticed
    print(f"{asked.kills} kills, {asked.signals} signals, {asked.controls} controls: {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
