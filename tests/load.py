"""`make load`: the service under load, beside what onnxruntime gives with decoding in the same minute.

Sixteen clients ask as fast as they are answered, in turn with the same work done in this process on as many threads;
then 200 clients ask at once while 20 others send their pictures a byte at a time, and `/health` is asked all along.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from tinycifar.serve import app
from tinycifar.serve.served import open_model

try:
    from uvloop import run
except ImportError:
    from asyncio import run

SECONDS = 5.0
ROUNDS = 3


def pictures() -> dict[str, bytes]:
    """A picture as small as the model sees it, and one as a camera's, reduced to 640x480."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    large = small.resize((640, 480), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    contents = {}
    for name, picture, kind in (("32x32 PNG", small, "PNG"), ("640x480 JPEG", large, "JPEG")):
        content = io.BytesIO()
        picture.save(content, kind)
        contents[name] = content.getvalue()
    return contents


def directly(service: app.Service, content: bytes) -> float:
    """Pictures a second when all threads of this process decode and classify, one picture at a time."""
    threads = os.cpu_count() or 1
    end = time.perf_counter() + SECONDS

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            service.classify([service.decode(content)], [app.Asked()])
            count += 1
        return count

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as workers:
        done = sum(workers.map(work, range(threads)))
    return done / (time.perf_counter() - start)


def request(content: bytes) -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content


async def ask(port: int, content: bytes, until: float = 0.0) -> list[int]:
    """The statuses that a client gets that asks until that time, at least once, each time after the answer before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses: list[int] = []
    try:
        while not statuses or time.perf_counter() < until:
            writer.write(request(content))
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length))
            statuses.append(int(head[9:12]))
    finally:
        writer.close()
    return statuses


async def busy(port: int, content: bytes, count: int) -> float:
    """Answers a second to `count` clients that keep their connections and ask again at once."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, content, start + SECONDS) for _ in range(count)))
    assert all(status == 200 for statuses in answers for status in statuses)
    return sum(map(len, answers)) / (time.perf_counter() - start)


async def come_together(port: int, content: bytes, many: int, slow: int) -> list[int]:
    """The statuses that `many` clients get that come at once, ten times each, while `slow` ones dawdle."""
    over = False

    async def dawdle() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = request(content)
        writer.write(sent[:-50])
        for byte in sent[-50:]:
            if over:
                break
            await asyncio.sleep(0.2)
            writer.write(bytes([byte]))
        writer.close()

    async def come_ten_times() -> list[int]:
        statuses: list[int] = []
        for _ in range(10):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                statuses += await ask(port, content)
        return statuses

    others = [asyncio.create_task(dawdle()) for _ in range(slow)]
    await asyncio.sleep(0.5)
    answers = await asyncio.gather(*(come_ten_times() for _ in range(many)))
    over = True
    await asyncio.gather(*others)
    return [status for statuses in answers for status in statuses]


def watch(port: int, over: Event, seconds: SimpleQueue[list[float]]) -> None:
    """How long `/health` takes, fifty times a second until it is over; in a process of its own, as a monitor is."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    taken = []
    while not over.is_set():
        start = time.perf_counter()
        connection.request("GET", "/health")
        assert json.load(connection.getresponse())["status"] == "ok"
        taken.append(time.perf_counter() - start)
        time.sleep(0.02)
    seconds.put(taken)


def crowded(port: int, content: bytes) -> dict[str, float]:
    """What a crowd gets, and how long `/health` takes meanwhile."""
    context = multiprocessing.get_context("spawn")
    over, seconds = context.Event(), context.SimpleQueue()
    watcher = context.Process(target=watch, args=(port, over, seconds))
    watcher.start()
    time.sleep(2)
    statuses = run(come_together(port, content, 200, 20))
    over.set()
    watcher.join()
    assert watcher.exitcode == 0, "/health did not answer"
    health = seconds.get()
    return {
        "requests": 2000,
        "answered": statuses.count(200),
        "told to come back": statuses.count(503),
        "dropped": 2000 - len(statuses),
        "health, slowest ms": round(1e3 * max(health), 1),
        "health, median ms": round(1e3 * statistics.median(health), 1),
    }


def main() -> int:
    """Start the service, load it, print what came of it as JSON; 1 unless it holds what is promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minute")
    model = parser.parse_args().model
    command = [sys.executable, "-m", "tinycifar", "serve", model, "--port", "0"]
    with Path(os.devnull).open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    address = re.search(r":(\d+)/ ", line)
    if address is None:
        raise SystemExit(f"the service did not start: {line}")
    port = int(address[1])
    service = app.Service(open_model(model))
    results: dict[str, dict[str, float]] = {}
    missed = False
    try:
        for name, content in pictures().items():
            rates = [(directly(service, content), run(busy(port, content, 16))) for _ in range(ROUNDS)]
            own, served = (statistics.median(values) for values in zip(*rates, strict=True))
            results[name] = {
                "onnxruntime with decoding, a second": round(own),
                "service, 16 clients, a second": round(served),
                "ratio": round(served / own, 2),
            }
            results[f"{name}, 200 clients and 20 slow ones"] = crowd = crowded(port, content)
            missed |= served / own < 0.6 or bool(crowd["dropped"]) or crowd["health, slowest ms"] >= 100
    finally:
        process.terminate()
        process.wait(60)
    print(json.dumps(results, indent=2))
    if missed:
        print("Missed: a ratio of 0.6, nothing dropped, or /health within 100 ms", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
