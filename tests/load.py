"""`make load`: the service under load, beside what onnxruntime gives with decoding in the same minute.

Sixteen clients ask as fast as they are answered, in turn with the same work done in this process on as many threads;
then 200 clients ask at once while 20 others send their pictures a byte at a time, and `/health` is asked all along.
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
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from tinycifar import serve

SECONDS = 5.0
ROUNDS = 3


def pictures() -> dict[str, bytes]:
    """A picture as small as the model sees it, and one as a camera's, reduced to 640x480."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    large = small.resize((640, 480), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    found = {}
    for name, picture, kind in (("32x32 PNG", small, "PNG"), ("640x480 JPEG", large, "JPEG")):
        content = io.BytesIO()
        picture.save(content, kind)
        found[name] = content.getvalue()
    return found


def directly(service: serve.Service, content: bytes) -> float:
    """Pictures a second when all threads of this process decode and classify."""
    threads = os.cpu_count() or 1
    end = time.perf_counter() + SECONDS

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            service.answer(content, activation=False)
            count += 1
        return count

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as workers:
        done = sum(workers.map(work, range(threads)))
    return done / (time.perf_counter() - start)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request on an open connection; gives the status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    await reader.readexactly(int(length[1]))
    return int(head[9:12])


def predict(content: bytes) -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content


async def clients(port: int, content: bytes, count: int) -> float:
    """Answers a second to `count` clients that keep their connections and ask again at once."""
    end = time.perf_counter() + SECONDS
    done = 0

    async def client() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            assert await ask(reader, writer, predict(content)) == 200
            done += 1
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(count)))
    return done / (time.perf_counter() - start)


async def crowd(port: int, content: bytes, many: int, slow: int) -> dict[str, object]:
    """What `many` clients at once get, each ten times, while `slow` ones dawdle, and how long `/health` takes then."""
    statuses: list[int] = []
    dropped = 0
    health: list[float] = []
    over = False

    async def one() -> None:
        nonlocal dropped
        for _ in range(10):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                statuses.append(await ask(reader, writer, predict(content)))
                writer.close()
            except (OSError, asyncio.IncompleteReadError):
                dropped += 1

    async def dawdle() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in predict(content):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.2)
            if over:
                break
        writer.close()

    async def watch() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not over:
            start = time.perf_counter()
            assert await ask(reader, writer, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
            health.append(time.perf_counter() - start)
            await asyncio.sleep(0.02)
        writer.close()

    others = [asyncio.create_task(work) for work in (watch(), *(dawdle() for _ in range(slow)))]
    await asyncio.sleep(0.5)
    await asyncio.gather(*(one() for _ in range(many)))
    over = True
    await asyncio.gather(*others)
    return {
        "requests": 10 * many,
        "answered": statuses.count(200),
        "told to come back": statuses.count(503),
        "dropped": dropped,
        "health, slowest ms": round(1e3 * max(health), 1),
        "health, median ms": round(1e3 * statistics.median(health), 1),
    }


def main() -> None:
    """Start the service, load it, print what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minute")
    model = parser.parse_args().model
    command = [sys.executable, "-m", "tinycifar", "serve", model, "--port", "0"]
    with Path(os.devnull).open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = int(process.stderr.readline().split(":")[2].split("/")[0])
    service = serve.Service(serve.open_model(model), threads=1)
    found: dict[str, object] = {}
    try:
        for name, content in pictures().items():
            rates = [(directly(service, content), asyncio.run(clients(port, content, 16))) for _ in range(ROUNDS)]
            own, served = (statistics.median(values) for values in zip(*rates, strict=True))
            found[name] = {
                "onnxruntime with decoding, a second": round(own),
                "service, 16 clients, a second": round(served),
                "ratio": round(served / own, 2),
            }
            found[f"{name}, 200 clients and 20 slow ones"] = asyncio.run(crowd(port, content, 200, 20))
    finally:
        process.terminate()
        process.wait(60)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
