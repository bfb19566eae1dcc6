"""Two processes that train as one, over gloo on this machine; torchrun itself in `tests/faults.py --ranks 2`."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import faults
from conftest import environment, float64
from tinycifar import augment, checkpoint, cli, data, optim, recipes, run, training
from tinycifar.epochs import epoch_generator, plan
from tinycifar.recipes import Recipe
from tinycifar.scale import distributed

CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
# Loaded once, not by every rank anew.
CONTEXT.set_forkserver_preload(["tinycifar.cli", "tinycifar.commands.train"])
IMAGES = 25  # batches of 5, of which the ranks have 3 and 2


def short(name: str, *settings: str) -> Recipe:
    fixed = ["epochs=2", "batch_size=5", "precision=float32", "watch_test=false", "skip_easiest=0"]
    return recipes.with_settings(recipes.get(name), [*fixed, *settings])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def on_ranks(function: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """Call a function in so many processes, as torchrun would start them; gives what each returned or raised."""
    port = free_port()
    pipes = []
    for rank in range(world):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        process = CONTEXT.Process(target=_on_rank, args=(environment, theirs, function, arguments), daemon=True)
        process.start()
        theirs.close()
        pipes.append((process, ours))
    answers = []
    for process, ours in pipes:
        assert ours.poll(600), "a rank hangs"
        try:
            answers.append(ours.recv())
        except EOFError:
            answers.append(None)  # it was killed
        process.join(600)
        assert process.exitcode is not None
    return answers


def _on_rank(environment: dict[str, Any], pipe: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    torch.set_num_threads(1)
    try:
        pipe.send(function(*arguments))
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))


def train(
    recipe: Recipe, out: Path | None, interrupted: tuple[int, int] | None = None, **options: Any
) -> tuple[Any, ...]:
    """Train; gives record, signal and digest of the weights. `interrupted`: which rank has a Ctrl-C at which batch."""
    with contextlib.ExitStack() as patches:
        parallel = distributed.Ranks.parallel
        wrap = mock.patch.object(distributed.Ranks, "parallel", autospec=True, side_effect=parallel)
        wrapped = patches.enter_context(wrap)
        if interrupted is not None and interrupted[0] == distributed.here().rank:
            interrupting = faults.Interrupting(augment.build(recipe.augmentation), interrupted[1])
            patches.enter_context(mock.patch.object(augment, "build", return_value=interrupting))
        result = training.train(recipe, "sample", **{"out": out, "limit": 60, **options})
    model = wrapped.call_args.args[1]
    weights = b"".join(parameter.detach().contiguous().numpy().tobytes() for parameter in model.parameters())
    return result.record, result.stopped_by, hashlib.sha256(weights).hexdigest()


@distributed.as_one
def in_float64_without_dropout(folder: Path) -> None:
    with float64(), mock.patch.object(nn.Dropout, "forward", lambda self, x: x):
        for name in ("minute", "reference-30"):
            train(short(name), folder / name, limit=IMAGES, evaluate=False)


def averaging_halves(recipe: Recipe, weighted: bool = True) -> tuple[nn.Module, Tensor]:
    """Model and last loss of each image after a training in one process that averages the gradients of two halves.

    Of 5 images one half has 3 and the other 2; without weights, a mistake, both count as much.
    """
    dataset = data.sample().limit(IMAGES)
    images, labels = dataset.train_images, dataset.train_labels
    mean, std = data.sample().statistics()  # the sample is known, and its mean and deviation are those of CIFAR-10
    augmentation = augment.build(recipe.augmentation, 32, mean)
    torch.manual_seed(0)
    model = recipe.build().to(memory_format=torch.channels_last)
    model.mean.copy_(torch.tensor(mean).view(3, 1, 1))
    model.std.copy_(torch.tensor(std).view(3, 1, 1))
    model.prepare(images)
    names = ("nesterov", "weight_decay", "muon_learning_rate", "muon_momentum")
    settings: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    settings |= {"learning_rate": recipe.max_learning_rate, "momentum": recipe.max_momentum}
    optimizers = optim.build(model, recipe.optimizer, **settings)
    schedule = plan(recipe, len(images)).schedule
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    small_steps = int(recipe.small_fraction * len(images) / recipe.batch_size)
    last_losses, step = torch.zeros(len(images)), 0
    model.train()
    for epoch in range(recipe.epochs):
        generator = epoch_generator(0, epoch)
        order = torch.randperm(len(images), generator=generator)
        drawn = augmentation.draw(len(images), generator)
        for rows in torch.split(order, recipe.batch_size):
            parts = []
            for half in (rows[0::2], rows[1::2]):
                statistics = [buffer.clone() for buffer in model.buffers()]
                inputs = augmentation.apply(images[half], {name: values[half] for name, values in drawn.items()})
                if step < small_steps:
                    inputs = augment.reduced(inputs, 24)
                logits = model(inputs.contiguous(memory_format=torch.channels_last))
                smoothing = recipe.label_smoothing
                losses = functional.cross_entropy(logits, labels[half], label_smoothing=smoothing, reduction="none")
                weight = len(half) / len(rows) if weighted else 0.5
                parts.append(torch.autograd.grad(weight * losses.mean(), learned))
                last_losses[half] = losses.detach()
            for buffer, of_first in zip(model.buffers(), statistics, strict=True):
                buffer.copy_(of_first)  # the running statistics are those of the first half
            for parameter, first, second in zip(learned, *parts, strict=True):
                parameter.grad = first + second
            optim.set_rates(optimizers, *schedule(step))
            for optimizer in optimizers:
                optimizer.step()
            step += 1
    assert step == 10
    return model, last_losses


def latest(directory: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint of a run, all of which are whole."""
    newest, problems = checkpoint.latest(directory)
    assert newest is not None
    assert problems == []
    return newest


# |ranks - alone| / |alone - initial| after 10 steps in float64 is at most 5e-15 on an AMD EPYC with AVX-512, AVX2 and
# SSE4.1; if halves of 3 and of 2 images counted as much it would be 0.48 (minute with its former net) and 0.39
# (reference-30).
LIMIT = 1e-9


def trained_parameters(model: nn.Module, tensors: dict[str, Tensor], prefix: str = "") -> Tensor:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return torch.cat([tensors[f"{prefix}{name}"].flatten() for name in names])


@pytest.mark.slow
def test_two_ranks_equal_one_process_that_averages_the_gradients_of_the_same_halves(tmp_path):
    assert on_ranks(in_float64_without_dropout, tmp_path) == [None, None]
    for name in ("minute", "reference-30"):
        recipe = short(name)
        newest = latest(tmp_path / name)
        assert newest.about["state.step"] == 10
        with float64(), mock.patch.object(nn.Dropout, "forward", lambda self, x: x):
            torch.manual_seed(0)
            initial = recipe.build().state_dict()
            model, last_losses = averaging_halves(recipe)
            unequal, _ = averaging_halves(recipe, weighted=False)
        ranks = trained_parameters(model, newest.tensors, "model.")
        alone, wrong, before = (
            trained_parameters(model, tensors) for tensors in (model.state_dict(), unequal.state_dict(), initial)
        )
        assert (ranks - alone).norm() < LIMIT * (alone - before).norm()
        assert (wrong - alone).norm() > 0.1 * (alone - before).norm()
        torch.testing.assert_close(newest.tensors["state.last_losses"], last_losses, rtol=0, atol=LIMIT)
        running = [key for key in model.state_dict() if "running" in key]
        assert running
        for key in running:  # those of rank 0's halves, which a mean over both halves is not
            torch.testing.assert_close(newest.tensors[f"model.{key}"], model.state_dict()[key], rtol=LIMIT, atol=LIMIT)


@distributed.as_one
def whole_and_in_parts(folder: Path) -> list[Any]:
    """Train two recipes in one go, and again with a Ctrl-C that only one of the ranks gets."""
    reports = []
    for name, interrupted in (("reference-30", (1, 2)), ("minute", (0, 4))):
        recipe = short(name, "batch_size=20", "skip_easiest=0.4")
        whole = train(recipe, folder / name)
        stopped = train(recipe, folder / f"{name}-parts", interrupted)
        resumed = train(recipe, None, resume=folder / f"{name}-parts")
        reports.append((whole[2], stopped[1], resumed[2], resumed[0]["resumes"][0]["step"], whole[0]["test_accuracy"]))
    return reports


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.end_to_end)])  # the order of additions matters
@pytest.mark.slow
def test_a_run_of_several_ranks_is_resumed_to_the_same_bits_and_all_have_the_same_weights(tmp_path, ranks):
    first, *others = on_ranks(whole_and_in_parts, tmp_path, world=ranks)
    assert others == [first] * (ranks - 1)
    assert [(signal_number, step) for _, signal_number, _, step, _ in first] == [(signal.SIGINT, 2), (signal.SIGINT, 4)]
    for name in ("reference-30", "minute"):
        assert faults.fingerprint(tmp_path / f"{name}-parts") == faults.fingerprint(tmp_path / name)
        tensors = latest(tmp_path / name).tensors
        assert not torch.equal(tensors["generator.cpu"], tensors["generator.1.cpu"])
    environment = run.read_environment(tmp_path / "minute")
    assert environment.ranks == ranks
    _, warnings = run.resumed(tmp_path / "minute", replace(environment, ranks=1), 1)
    assert warnings == [f"ranks was {ranks} and is 1: results may differ"]


def failures(folder: Path, ports: list[int]) -> list[tuple[str, str]]:
    """What trainings end with on this rank that something is wrong with on one of them."""
    rank = distributed.here().rank
    recipe = short("minute", "batch_size=20", "epochs=3")
    (folder / "used").mkdir(exist_ok=True)
    (folder / "used" / "file").touch()
    cases: list[dict[str, Any]] = [
        {"out": None},
        {"out": folder / "used"},
        {"out": folder / "seed", "seed": rank},
        {"out": folder / "device", "device": "cpu" if rank == 0 else "cuda:7"},
        {"out": folder / "few", "limit": 1},
        {"out": folder / "full"},
        {"out": folder / "stop", "stop_after_epoch": 1 + rank},
        {"out": folder / "one", "resume": None} if rank == 0 else {"out": None, "resume": folder / "one"},
        {"out": None, "resume": folder / "alone"},
    ]
    small = short("minute", "batch_size=6", "epochs=3")
    if rank == 0:  # 45 images: a last batch of 3, which two processes spread over the others
        with mock.patch.dict(os.environ):
            os.environ.pop("RANK")
            training.train(small, "sample", out=folder / "alone", limit=45, stop_after_epoch=1)
    reports = []
    full = mock.patch.object(run, "append_metrics", side_effect=OSError(28, "No space left on device"))
    for case, port in zip(cases, ports, strict=False):
        os.environ["MASTER_PORT"] = str(port)
        with full if case["out"] == folder / "full" else contextlib.nullcontext():
            try:
                alone = case.get("resume") == folder / "alone"
                train(small if alone else recipe, **{"limit": 45 if alone else 60} | case)
            except (ValueError, OSError) as error:
                reports.append((type(error).__name__, str(error)))
    for words in (["--seeds", "2"], ["--data", "sample", "--limit", "40", "--set", "precision=float32"]):
        os.environ["MASTER_PORT"] = str(ports.pop())
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            try:
                cli.main(["train", "--out", str(folder / "cli"), *words])
            except SystemExit as left:
                reports.append((str(left.code), out.getvalue()))
    return reports


@pytest.mark.slow
def test_what_is_wrong_on_one_rank_ends_all_and_only_the_first_prints(tmp_path):
    first, second = on_ranks(failures, tmp_path, [free_port() for _ in range(11)])
    assert first[:9] == second[:9]
    words = [
        "several processes need a run directory in common",
        "used is in use",
        "rank 1 was started with different settings than rank 0: seed is 1, not 0",
        "rank 1: no device 'cuda:7' here" if not torch.cuda.is_available() else "rank 1: ",
        "2 processes cannot share a batch of 1 image: each needs at least 2",
        "No space left on device: stopped at step 3, what was saved before is as it was",
        "rank 1 was started with different settings than rank 0: stop_after_epoch is 2, not 1",
        "rank 1 was started with different settings than rank 0: out is None, not ",
        "alone is at step 8 after 45 images, which is not the end of a batch with 2 processes in this version",
    ]
    for (kind, message), expected in zip(first[:9], words, strict=True):
        assert expected in message
        assert kind == ("SaveError" if "space" in expected else "ValueError")
    assert first[9:] == [
        ("2", "tinycifar: --seeds and --record are for one process: leave them out under torchrun\n"),
        ANY,
    ]
    assert first[10][0] == "0"
    assert "2 processes of 1 thread," in first[10][1]
    assert second[9:] == [("2", ""), ("0", "")]


def dying(folder: Path) -> None:
    """Have rank 1 killed in the second epoch."""
    recipe = short("minute", "batch_size=20")
    kill = os.kill
    with mock.patch.object(os, "kill", lambda process, number: kill(process, signal.SIGKILL)):
        train(recipe, folder / "run", interrupted=(1, 5))


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_leaves_the_checkpoint_before(tmp_path):
    (kind, message), killed = on_ranks(dying, tmp_path)
    assert (kind, killed) == ("LostRankError", None)
    assert message.startswith("another process of this run has ended")
    assert latest(tmp_path / "run").about["state.step"] == 3


def test_every_process_has_at_least_two_images_of_every_batch():
    recipe = short("minute", "batch_size=20")
    for ranks, images, sizes in (
        (1, 41, [21, 20]),
        (2, 44, [22, 22]),
        (2, 45, [20, 20, 5]),
        (3, 45, [23, 22]),
        (4, 60, [20, 20, 20]),
    ):
        assert plan(recipe, images, ranks).batches == [sizes] * 2
        assert min(len(distributed.Ranks(rank, ranks).share(torch.arange(min(sizes)))) for rank in range(ranks)) >= 2
    with pytest.raises(ValueError, match="11 processes cannot share a batch of 20 images: each needs at least 2"):
        plan(recipe, 20, 11)
    assert plan(short("minute", "skip_easiest=0.9"), 20, 2).images == [20, 4]


def test_one_process_is_no_rank_and_a_restart_is_known_by_the_launch(tmp_path, monkeypatch):
    alone = distributed.here()
    assert alone == distributed.Ranks()
    model = nn.Linear(1, 1)
    assert alone.parallel(model) is model
    assert (alone.exchange(5), alone.device("cuda:3")) == ([5], "cuda:3")
    run.start(tmp_path, recipes.get("minute"), environment(torchrun=("none_abc",)))
    for launch, began in (("none_abc", True), ("none_xyz", False)):
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/torchelastic_x/{launch}/attempt_1/0/error.json")
        assert distributed.here().began(tmp_path) is began
    assert distributed.here().began(None) is False
    assert alone.began(tmp_path) is False


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "RANK and WORLD_SIZE are set without LOCAL_RANK; start processes .* by torchrun",
        ),
        ({"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK, WORLD_SIZE, LOCAL_RANK must be whole numbers"),
    ],
)
def test_another_launcher_that_sets_something_else_is_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.here()


@pytest.mark.end_to_end
def test_torchrun_that_is_told_to_end_leaves_a_checkpoint(tmp_path):
    words = ["train", "--data", "sample", "--epochs", "1000", "--out", str(tmp_path / "run")]
    with faults.started(faults.torchrun(2, *words)) as process:
        for line in process.stdout:
            if line.startswith("Epoch 2/"):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert "Resume with: torchrun --nproc-per-node 2 -m tinycifar train --resume" in rest
    assert rest.count("Stopping after this step") == 1
    latest(tmp_path / "run")


def threads_left(out: Path) -> list[str]:
    training.train(short("minute"), "sample", out=out, limit=IMAGES, evaluate=False)
    return [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_a_training_leaves_no_thread_of_gloo_that_could_abort_the_process_at_its_exit(tmp_path):
    for names in on_ranks(threads_left, tmp_path / "run"):
        assert isinstance(names, list), names  # else the training failed
        assert not [name for name in names if "gloo" in name], names


@pytest.mark.end_to_end
def test_a_run_whose_ranks_are_killed_under_torchrun_comes_to_the_same_bits():
    kills = os.environ.get("KILLS", "2")
    assert faults.main(["--ranks", "2", "--kills", kills, "--signals", "0", "--controls", "0"]) == 0
