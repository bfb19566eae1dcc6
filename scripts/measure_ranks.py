"""Times one process of two threads and two processes of one thread under torchrun, in turn, on CIFAR-10 in the cache.

Prints steps a second of each round, and the medians; for `docs/SCALE.md`. The machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "1 process, 2 threads": [sys.executable, "-m", "tinycifar", "train", "--threads", "2"],
    "2 processes, 1 thread": [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("-m", "tinycifar", "train", "--threads", "1"),
    ],
}


def steps_a_second(command: list[str], recipe: str, images: int, out: Path) -> float:
    """Train two epochs of whole batches of 250 and time the second one."""
    settings = ["epochs=2", "batch_size=250", "skip_easiest=0", "watch_test=false"]
    words = [recipe, "--limit", str(images), "--out", str(out), *(word for of in settings for word in ("--set", of))]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return images / 250 / float(last["train_seconds"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000, help="a multiple of 250")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("minute", "reference-30"):
            found: dict[str, list[float]] = {name: [] for name in WAYS}
            for number in range(asked.rounds):
                for way, (name, command) in enumerate(WAYS.items()):
                    out = Path(folder) / f"{recipe}-{number}-{way}"
                    found[name].append(steps_a_second(command, recipe, asked.images, out))
                    print(f"{recipe}, {name}: {found[name][-1]:.2f} steps/s", flush=True)
            for name, values in found.items():
                print(f"{recipe}, {name}: median {statistics.median(values):.2f} steps/s of {asked.rounds}")


if __name__ == "__main__":
    main()
