"""An HTTP service over an exported model, with the page of the static export."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinycifar import cifar10, export, pictures, trained, web
from tinycifar.gate import LOOPBACK, SECONDS, Gate, Outer

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

MOST_BYTES = 10_000_000  # of one upload
MOST_BYTES_AT_ONCE = 60_000_000  # of all that are being received or wait
MOST_WAITING = 256
MOST_TOGETHER = 8  # pictures in one batch
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


@dataclass(frozen=True)
class Served:
    """An exported model in memory: what its metadata says, and its ONNX file's content."""

    name: str
    about: dict[str, Any]
    content: bytes

    @property
    def classes(self) -> list[str]:
        """The names of its classes."""
        return list(self.about["classes"])


def open_model(source: str) -> Served:
    """Read an ONNX file of ours, or export what `trained.load` takes; ValueError for anything else."""
    path = Path(source)
    if path.suffix == ".onnx" and path.is_file():
        return read_model(path.stem, path)
    model = trained.load(source, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        return read_model(model.name, export.to_onnx(model, Path(folder) / "model.onnx").path)


def read_model(name: str, path: Path) -> Served:
    content = path.read_bytes()
    export.runtime()
    try:
        session = export.session(content, threads=1)
        metadata = session.get_modelmeta().custom_metadata_map
        about = {key: metadata[key] for key in ("model", "recipe", "weights_sha256")}
        about |= {key: json.loads(metadata[key]) for key in ("classes", "temperature")}
        classes, temperature = about["classes"], about["temperature"]
        if not (isinstance(classes, list) and all(isinstance(of, str) and of.isprintable() for of in classes)):
            raise ValueError("classes that are none")
        if not (temperature is None or 0 < float(temperature) < math.inf):
            raise ValueError("a temperature that is none")
        zeros = np.zeros((1, 3, 32, 32), np.float32)
        logits, _ = session.run([export.LOGITS, export.ACTIVATION], {export.INPUT: zeros})
        if logits.shape != (1, len(classes)):
            raise ValueError("another number of classes")
    except Exception:  # onnxruntime has many kinds for a file that is none
        raise ValueError(f"{path} is no ONNX file that tinycifar exported") from None
    return Served(name, about, content)


@dataclass
class _Job:
    """A picture file's content that waits to be classified, and where the answer goes."""

    content: bytes
    activation: bool
    answer: asyncio.Future[dict[str, Any]]


class Service:
    """What answers in one process: a model, a thread that asks it, and a bounded queue before it.

    What `large` gives is held while a large picture is decoded, which bounds the memory of all processes together;
    `most_bytes` is how many bytes of uploads this one holds.
    """

    def __init__(
        self,
        model: Served,
        large: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        most_bytes: int = MOST_BYTES_AT_ONCE,
    ) -> None:
        self.model = model
        self.session = export.session(model.content, threads=1)
        self.large = large
        self.most_bytes = most_bytes
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.waiting = 0
        self.bytes = 0
        threading.Thread(target=self._work, name="predict", daemon=True).start()

    def _work(self) -> None:
        try:
            while True:
                self._answer_some()
        finally:
            os._exit(1)  # without this thread nothing would be answered; the process is replaced

    def _answer_some(self) -> None:
        """Decode one by one, and classify together, the jobs that wait, up to `MOST_TOGETHER`."""
        jobs = [self.jobs.get()]
        with contextlib.suppress(queue.Empty):
            while len(jobs) < MOST_TOGETHER:
                jobs.append(self.jobs.get_nowait())
        answers: list[tuple[asyncio.Future[dict[str, Any]], dict[str, Any] | Exception]] = []
        decoded = []
        for job in jobs:
            if not job.answer.done():  # else its time has run out
                try:
                    decoded.append((job, self.decode(job.content)))
                except ValueError as error:
                    answers.append((job.answer, HTTPException(400, str(error))))
                except Exception as error:
                    answers.append((job.answer, error))
        try:
            found = self.classify([pixels for _, pixels in decoded], any(job.activation for job, _ in decoded))
            answers += [(job.answer, answer) for (job, _), answer in zip(decoded, found, strict=True)]
        except Exception as error:
            answers += [(job.answer, error) for job, _ in decoded]
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
            jobs[0].answer.get_loop().call_soon_threadsafe(_deliver, answers)

    def decode(self, content: bytes) -> pictures.Pixels:
        """A picture file's content as the model sees it, uint8 (3, 32, 32); ValueError if it is no picture."""
        return pictures.decode(content, self.large)

    def classify(self, pixels: Sequence[pictures.Pixels], activation: bool) -> list[dict[str, Any]]:
        """What the model says of pictures, each uint8 (3, 32, 32), in one batch; `activation` adds logits and map."""
        if not pixels:
            return []
        start = time.perf_counter()
        images = np.stack(pixels).astype(np.float32) / np.float32(255)
        outputs = [export.LOGITS, export.ACTIVATION] if activation else [export.LOGITS]
        logits, *maps = self.session.run(outputs, {export.INPUT: images})
        milliseconds = 1e3 * (time.perf_counter() - start)
        scaled = logits.astype(float) / (self.model.about["temperature"] or 1)
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        probabilities = powers / powers.sum(1, keepdims=True)
        found = []
        for number, values in enumerate(probabilities.tolist()):
            ranked = sorted(zip(values, self.model.classes, strict=True), reverse=True, key=lambda pair: pair[0])
            answer: dict[str, Any] = {
                "model": self.model.name,
                "classes": [{"class": name, "probability": value} for value, name in ranked],
                "milliseconds": milliseconds,
            }
            if activation:
                answer |= {"logits": logits[number].tolist(), "activation": maps[0][number].flatten().tolist()}
            found.append(answer)
        return found

    async def predict(self, request: Request) -> Response:
        """POST /predict: a picture as the body or as a form's file -> its classes and their probabilities."""
        self._refuse_if_full()
        with contextlib.ExitStack() as held:
            try:
                async with timeout(SECONDS):
                    content = await _picture(request.headers, await self._receive(request, held))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"the upload took longer than {SECONDS:.0f} seconds") from None
            self._refuse_if_full()  # others may have come while it was received
            self.waiting += 1
            held.callback(self._answered)
            answer = asyncio.get_running_loop().create_future()
            job = _Job(content, request.query_params.get("activation") == "1", answer)
            held.callback(setattr, job, "content", b"")  # also where it waits still and nobody waits for it
            self.jobs.put(job)
            try:
                async with timeout(SECONDS):
                    return JSONResponse(await answer)
            except asyncio.TimeoutError:
                raise _busy() from None

    async def _receive(self, request: Request, held: contextlib.ExitStack) -> bytes:
        """The body, counted as held until `held` is left."""
        parts: list[bytes] = []
        received = 0
        async for part in request.stream():
            parts.append(part)
            received += len(part)
            self.bytes += len(part)
            held.callback(self._released, len(part))
            if received > MOST_BYTES:
                raise HTTPException(413, f"an upload may have {MOST_BYTES:,} bytes")
            if self.bytes > self.most_bytes:
                raise _busy()
        return b"".join(parts)

    def _refuse_if_full(self) -> None:
        if self.waiting >= MOST_WAITING:
            raise _busy()

    def _answered(self) -> None:
        self.waiting -= 1

    def _released(self, count: int) -> None:
        self.bytes -= count

    async def health(self, _: Request) -> Response:
        """GET /health: that the service answers, and how many pictures wait."""
        return JSONResponse({"status": "ok", "waiting": self.waiting})

    async def models(self, _: Request) -> Response:
        """GET /models: what is served."""
        return JSONResponse({"models": [{"name": self.model.name, **self.model.about}]})


def _deliver(answers: Iterable[tuple[asyncio.Future[dict[str, Any]], dict[str, Any] | Exception]]) -> None:
    for future, answer in answers:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _busy() -> HTTPException:
    return HTTPException(503, "too many pictures wait; ask again later", {"Retry-After": "1"})


async def _picture(headers: Headers, body: bytes) -> bytes:
    """The picture in a body: all of it, or the one file of a form, which is parsed in memory."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        content = body
    else:

        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        parser = MultiPartParser(headers, stream(), max_files=1, max_fields=10)
        parser.spool_max_size = MOST_BYTES + 1  # else a file of more than a megabyte would be written to disk
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:
            raise HTTPException(400, f"the form cannot be read: {error}") from None
        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(form.close)
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise HTTPException(400, "the form has no file; send one picture in a field of any name")
            content = await files[0].read()
    if not content:
        raise HTTPException(400, "the request has no picture; send a PNG, JPEG or WebP file as the body or in a form")
    return content


def assets(model: Served) -> dict[str, tuple[str, bytes]]:
    """The page by path: type and content of every file that is served, and of no other."""
    found = {
        f"/{path.name}": (TYPES[path.suffix], path.read_bytes()) for path in map(web.PAGE.joinpath, web.FILES_OF_PAGE)
    }
    found["/"] = found.pop("/index.html")
    samples = web.samples() if tuple(model.classes) == cifar10.CLASSES else []
    found |= {f"/{name}": (TYPES[".png"], content) for name, _, content in samples}
    about = web.about(
        model.name, model.classes, model.about["temperature"], [(name, label) for name, label, _ in samples], "server"
    )
    found["/model.json"] = "application/json", json.dumps(about).encode()
    return found


def create_app(service: Service, hosts: Sequence[str] = ()) -> Callable[..., Any]:
    """The service as an ASGI application.

    Requests are answered only if their Host names this machine's loopback or one of `hosts`, and their Origin, if any,
    is the same host; no other site's page may ask (no CORS headers are sent).
    """
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health),
        Route("/models", service.models),
        *(Route(path, _asset(*of)) for path, of in assets(service.model).items()),
    ]
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _error, Exception: _failed, ClientDisconnect: _gone}
    )
    app.router.redirect_slashes = False
    return Outer(Gate(app, {*LOOPBACK, *hosts}))


def _asset(kind: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "the server failed"}, 500)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # to nobody
