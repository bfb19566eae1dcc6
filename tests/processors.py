"""Runs the numerical tests as less capable x86 processors would, with one and two threads; `make test-processors`.

oneDNN and ATen choose their kernels by what the processor can do, unless environment variables restrict them, which
must be set before torch is loaded. ONNX Runtime and MKL have no such variables: they use this processor's kernels
throughout. Exit code 1 if a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
# What trains, computes logits or gradients, draws augmentations, or compares an exported model with its original.
NUMERICAL = [
    "test_augment.py",
    "test_checkpoint.py",
    "test_distill.py",
    "test_heatmaps.py",
    "test_inference.py",
    "test_learning.py",
    "test_models.py",
    "test_optim.py",
    "test_training.py",
    "formats",
    "scale/test_distributed.py",
]
OWN = "own"
# oneDNN's instruction set, ATen's and the number of threads: each value of one with several of the others. The first
# stands for all in the short form, beside the processor's own, which `make test` uses: less than any processor has.
COMBINATIONS = [
    ("AVX2", "default", 1),
    ("AVX2", "avx2", 1),
    ("SSE41", "default", 2),
    (OWN, OWN, 1),
    (OWN, OWN, 2),
    ("AVX2", "avx2", 2),
    ("AVX512_CORE", OWN, 1),
]
SHORT = 1
SHOW_ISA = """
import torch
torch.nn.functional.conv2d(torch.ones(2, 8, 8, 8), torch.ones(8, 8, 3, 3))
print("aten:" + torch.backends.cpu.get_cpu_capability())
"""
ISA_NAMES = {"SSE41": "SSE4.1", "AVX2": "AVX2", "AVX512_CORE": "AVX-512"}


@dataclass(frozen=True)
class Outcome:
    """How many tests passed, failed and were skipped, and the lines that name those that failed."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: tuple[str, ...]


def restricted(onednn: str, aten: str, threads: int) -> dict[str, str]:
    """The environment of a process that uses these instruction sets at most."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    }
    environment |= {} if onednn == OWN else {"ONEDNN_MAX_CPU_ISA": onednn}
    environment |= {} if aten == OWN else {"ATEN_CPU_CAPABILITY": aten}
    return environment | {"TEST_THREADS": str(threads)}


def instruction_sets(environment: dict[str, str]) -> tuple[str, str]:
    """What oneDNN and ATen say they use in such a process."""
    command = [sys.executable, "-c", SHOW_ISA]
    done = subprocess.run(
        command, env=environment | {"ONEDNN_VERBOSE": "1"}, capture_output=True, text=True, check=True
    )
    onednn = re.search(r"info,cpu,isa:(.*)", done.stdout)
    aten = re.search(r"^aten:(.*)", done.stdout, re.M)
    assert onednn is not None, done.stdout
    assert aten is not None
    return onednn[1].removeprefix("Intel "), aten[1]


def run_tests(environment: dict[str, str], threads: int, words: list[str]) -> Outcome:
    """Run the numerical tests, or those that `words` name, in as many processes as there are cores for."""
    processes = max(1, (os.cpu_count() or 1) // threads)
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--numprocesses", str(processes)]
    command += ["--dist", "loadfile", "-m", "not end_to_end and not full_data"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, *(words or [str(TESTS / name) for name in NUMERICAL])],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])}
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    if done.returncode and not failed:
        raise RuntimeError(f"pytest ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    seconds = time.perf_counter() - start
    return Outcome(counts.get("passed", 0), failed, counts.get("skipped", 0), seconds, tuple(failures))


def main(arguments: list[str] | None = None) -> int:
    """Run every combination, print a line each, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help=f"the first {SHORT} of {len(COMBINATIONS)} combinations")
    parser.add_argument("tests", nargs="*", help="run these instead of all numerical tests")
    asked = parser.parse_args(arguments)
    failures: list[str] = []
    done: set[tuple[str, str, int]] = set()
    if asked.short:  # beside `make test`, which has run the tests as this processor does
        done.add((*instruction_sets(restricted(OWN, OWN, 1)), 1))
    for onednn, aten, threads in COMBINATIONS[: SHORT if asked.short else None]:
        environment = restricted(onednn, aten, threads)
        used = instruction_sets(environment)
        if (*used, threads) in done:
            print(f"{used[0]}, {used[1]}, {threads} thread: no less than this processor has")
            continue
        done.add((*used, threads))
        outcome = run_tests(environment, threads, asked.tests)
        name = f"{used[0]}, {used[1]}, {threads} thread{'s' if threads > 1 else ''}"
        counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        print(f"{name}: {counts} in {outcome.seconds:.0f} s", flush=True)
        failures += [f"{name}: {line}" for line in outcome.failures]
        if outcome.failed and not outcome.failures:
            failures.append(f"{name}: {outcome.failed} failed")
    for line in failures:
        print(line)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
