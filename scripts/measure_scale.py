"""Measure what one core and two cores of this machine train and serve; writes `results/scale.json`.

Training is timed in turn in four ways, steps of whole batches of 250 in the second of three epochs, in all of which
trainings at once run beside each other: one process of one thread, one of two, two trainings of one thread at once, and
two processes under torchrun that train one model. The service has
one process on core 0, and clients that ask again at once on core 1. The machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinycifar import atomic, data, machine, run, trained
from tinycifar.data import pictures
from tinycifar.formats import web

BATCH = 250
CLIENTS = 8
SECONDS = 5.0
RECIPES = ("minute", "reference-30")
MODELS = ("minute", "nano", "accurate")
TRAIN = [sys.executable, "-m", "tinycifar", "train"]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TRAIN[1:]]
WAYS = {  # by name: the command, its threads, and how many of it run at once
    "1 thread": (TRAIN, 1, 1),
    "2 threads": (TRAIN, 2, 1),
    "2 trainings of 1 thread": (TRAIN, 1, 2),
    "2 ranks of 1 thread": (RANKS, 1, 1),
}


def images_a_second(way: str, recipe: str, images: int, folder: Path) -> float:
    """Train three epochs and give the speed of the second one, of all trainings together."""
    command, threads, count = WAYS[way]
    settings = ["epochs=3", f"batch_size={BATCH}", "skip_easiest=0", "watch_test=false"]
    words = [recipe, "--limit", str(images), "--threads", str(threads)]
    words += [word for setting in settings for word in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    outs = [folder / f"{time.monotonic_ns()}-{number}" for number in range(count)]
    processes = [
        subprocess.Popen([*command, *words, "--out", str(out)], stdout=subprocess.DEVNULL, env=environment)
        for out in outs
    ]
    for process in processes:
        if process.wait():
            raise SystemExit(f"{way}, {recipe}: a training failed")
    seconds = [json.loads((out / "metrics.jsonl").read_text().splitlines()[1]) for out in outs]
    return sum(images / float(second["train_seconds"]) for second in seconds)


def serving(model: str) -> float:
    """Pictures of 32x32 pixels a second that one process on one core answers to."""
    command = [sys.executable, "-m", "tinycifar", "serve", model, "--port", "0", "--workers", "1"]
    with Path(os.devnull).open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {0})
        )
    try:
        assert process.stderr is not None
        address = re.search(r":(\d+)/ ", process.stderr.readline())
        if address is None:
            raise SystemExit("the service did not start")
        content = io.BytesIO()
        pictures.to_image(data.sample().test_images[0]).save(content, "PNG")
        return asyncio.run(_clients(int(address[1]), content.getvalue()))
    finally:
        process.terminate()
        process.wait()


async def _clients(port: int, content: bytes) -> float:
    """Answers a second, after a second that does not count."""
    request = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    start = time.perf_counter() + 1.0

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        while (now := time.perf_counter()) < start + SECONDS:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if length is None or not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the service answered {head!r}")
            await reader.readexactly(int(length[1]))
            answered += now >= start
        writer.close()
        return answered

    return sum(await asyncio.gather(*(ask() for _ in range(CLIENTS)))) / SECONDS


def medians(rates: dict[str, list[float]]) -> dict[str, float]:
    """The median of each row."""
    return {name: statistics.median(values) for name, values in rates.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the record; with `--quick` little is measured and nothing written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="One round on few images, and write nothing.")
    quick = parser.parse_args(arguments).quick
    rounds, images = (1, 2 * BATCH) if quick else (3, 20 * BATCH)
    path = None if quick else run.record_path("", "scale", torch.device("cpu"))
    measured_on = machine.measured_on(torch.device("cpu"))
    content: dict[str, Any] = {"rounds": rounds, "images": images, "training": {}, "serving": {}}
    with tempfile.TemporaryDirectory() as name:
        for recipe in RECIPES[: 1 if quick else None]:
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    rates[way].append(images_a_second(way, recipe, images, Path(name)))
                    print(f"{recipe}, {way}: {rates[way][-1]:,.0f} images/s", flush=True)
            content["training"][recipe] = medians(rates)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the clients' core
    served: dict[str, list[float]] = {model: [] for model in MODELS[: 1 if quick else None]}
    for _ in range(rounds):
        for model in served:
            served[model].append(serving(model))
            print(f"serve {model}: {served[model][-1]:,.0f} pictures/s", flush=True)
    content["serving"] = medians(served)
    with tempfile.TemporaryDirectory() as name:
        web.write(trained.load("accurate", "cpu"), Path(name))
        content["page_bytes"] = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())
    content |= measured_on
    if path is not None:
        atomic.write_json(path, content)
        print(f"Record: {path}")


if __name__ == "__main__":
    main()
