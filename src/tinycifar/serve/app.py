"""An HTTP service over an exported model, with the page of the static export."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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

from tinycifar import data, trained
from tinycifar.catalog import MOST_PIXELS
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.evaluation import outside
from tinycifar.formats import onnx_file, parity, web
from tinycifar.predictions import softmax
from tinycifar.serve.gate import SECONDS, Gate, Limits, Outer
from tinycifar.words import is_printable

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

MOST_BYTES_AT_ONCE = 60_000_000  # of all that are being received or wait
MOST_WAITING = 256
MOST_TOGETHER = 8  # pictures in one batch
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


@dataclass(frozen=True)
class Served:
    """An exported model in memory: what its metadata says, its ONNX file's content, and samples for its page."""

    name: str
    about: dict[str, Any]
    content: bytes
    samples: tuple[web.Sample, ...] = ()

    @property
    def classes(self) -> list[str]:
        """The names of its classes."""
        return list(self.about["classes"])

    @property
    def form(self) -> web.Form:
        """What its images are."""
        return web.Form(*(self.about[name] for name in ("image_size", "fit", "channels")))


def open_model(source: str) -> Served:
    """Read an ONNX file of ours, or export what `trained.load` takes; ValueError for anything else.

    Samples are of the model's own data, if that is where it was, or of CIFAR-10.
    """
    path = Path(source)
    if path.suffix == ".onnx" and path.is_file():
        served = read_model(path.stem, path)
        known = tuple(served.classes) == CLASSES
        shown = web.samples(data.sample(served.form.image_size, served.form.channels)) if known else ()
        return replace(served, samples=shown)
    model = trained.load(source, "cpu")
    shown = ()
    try:
        dataset = parity.known_data(model)
        shown = web.samples(dataset)
    except (OSError, ValueError):  # what is to be served is the model; without its data it is tried on other pictures
        dataset = data.sample(model.image_size, model.channels)
    with tempfile.TemporaryDirectory() as folder:
        exported = onnx_file.to_onnx(model, Path(folder) / "model.onnx", dataset)
        return replace(read_model(model.name, exported.path), samples=shown)


def read_model(name: str, path: Path) -> Served:
    content = path.read_bytes()
    onnx_file.runtime()
    try:
        session = onnx_file.session(content, threads=1)
        metadata = session.get_modelmeta().custom_metadata_map
        about = {key: metadata[key] for key in ("model", "recipe", "weights_sha256")}
        about |= {key: json.loads(metadata[key]) for key in ("classes", "temperature")}
        # Files of before there were models of own data say neither.
        about |= {"data": metadata.get("data", "cifar10"), "image_size": json.loads(metadata.get("image_size", "32"))}
        about |= {"fit": metadata.get("fit", "crop"), "channels": json.loads(metadata.get("channels", "3"))}
        pictures.check_fit(about["fit"])
        classes, temperature, size = about["classes"], about["temperature"], about["image_size"]
        about["kept"] = [float(value) for value in json.loads(metadata.get("kept", "[]"))]
        if len(about["kept"]) not in (0, len(outside.KEEP_PERCENT)) or not all(map(math.isfinite, about["kept"])):
            raise ValueError("thresholds that are none")
        if about["channels"] not in pictures.CHANNELS:
            raise ValueError("channels that are none")
        if not (isinstance(classes, list) and all(isinstance(name, str) and is_printable(name) for name in classes)):
            raise ValueError("classes that are none")
        if not (temperature is None or 0 < float(temperature) < math.inf):
            raise ValueError("a temperature that is none")
        if type(size) is not int or not 0 < size <= MOST_PIXELS:
            raise ValueError("a size that is none")
        zeros = np.zeros((1, about["channels"], size, size), np.float32)
        logits, _ = session.run([onnx_file.LOGITS, onnx_file.ACTIVATION], {onnx_file.INPUT: zeros})
        if logits.shape != (1, len(classes)):
            raise ValueError("another number of classes")
    except Exception:  # onnxruntime has many kinds for a file that is none
        raise ValueError(f"{path} is no ONNX file that tinycifar exported") from None
    return Served(name, about, content)


@dataclass(frozen=True)
class Asked:
    """What is to be told of a picture: its most probable classes, whether with maps, and from which score on."""

    top: int = web.SHOWN
    activation: bool = False
    threshold: float | None = None


@dataclass
class _Job:
    """A picture file's content that waits to be classified, and where the answer goes."""

    content: bytes
    asked: Asked
    answer: asyncio.Future[dict[str, Any]]


class Service:
    """What answers in one process: a model, a thread that asks it, and a bounded queue before it.

    What `large` gives is held while a large picture is decoded, which bounds the memory of all processes together.
    This process holds at most `most_bytes` of uploads.
    """

    def __init__(
        self,
        model: Served,
        large: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        most_bytes: int = MOST_BYTES_AT_ONCE,
        limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.model = model
        self.session = onnx_file.session(model.content, threads=1)
        self.large = large
        self.most_bytes = most_bytes
        self.limits = limits
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
                except MemoryError:
                    answers.append((job.answer, _busy()))
                except Exception as error:
                    answers.append((job.answer, error))
        try:
            results = self.classify([pixels for _, pixels in decoded], [job.asked for job, _ in decoded])
            answers += [(job.answer, answer) for (job, _), answer in zip(decoded, results, strict=True)]
        except Exception as error:
            answers += [(job.answer, error) for job, _ in decoded]
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
            jobs[0].answer.get_loop().call_soon_threadsafe(_deliver, answers)

    def decode(self, content: bytes) -> pictures.Pixels:
        """A picture file's content as the model sees it, uint8 (C, S, S); ValueError if it is no picture."""
        form = self.model.form
        return pictures.decode(content, self.large, form.image_size, form.fit, pictures.WEB, form.channels)

    def classify(self, pixels: Sequence[pictures.Pixels], asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """What the model says of pictures, each uint8 (C, S, S), in one batch: as much of each as is asked."""
        if not pixels:
            return []
        start = time.perf_counter()
        images = np.stack(pixels).astype(np.float32) / np.float32(255)
        outputs = [onnx_file.LOGITS, *([onnx_file.ACTIVATION] if any(job.activation for job in asked) else [])]
        logits, *maps = self.session.run(outputs, {onnx_file.INPUT: images})
        milliseconds = 1e3 * (time.perf_counter() - start)
        probabilities = softmax(logits.astype(float) / (self.model.about["temperature"] or 1))
        names = self.model.about["classes"]
        answers = []
        scores = outside.scores(logits)
        for number, (options, values) in enumerate(zip(asked, probabilities, strict=True)):
            ranked = np.argsort(-values, kind="stable")[: options.top].tolist()
            classes = [{"class": names[index], "probability": float(values[index])} for index in ranked]
            if options.activation:
                for entry, index in zip(classes, ranked, strict=True):
                    entry["activation"] = maps[0][number, index].flatten().tolist()
            answer = {"model": self.model.name, "classes": classes, "milliseconds": milliseconds}
            if options.threshold is not None:
                answer |= {"score": float(scores[number]), "none_of_these": bool(scores[number] < options.threshold)}
            answers.append(answer)
        return answers

    async def predict(self, request: Request) -> Response:
        """POST /predict: a picture as the body or as a form's file -> its classes and their probabilities.

        These are the ten most probable ones, or as many as `?top=` says; `?activation=1` adds a map to each, by rows.
        With `?keep=` or `?threshold=` the answer says whether the picture is none of these.
        """
        self._refuse_if_full()
        query = request.query_params
        if not re.fullmatch(r"[1-9]\d{0,3}", top := query.get("top", str(web.SHOWN)), flags=re.ASCII):
            raise HTTPException(400, "top takes the number of classes to return, 1 to 9999")
        try:
            keep, threshold = (float(query[name]) if name in query else None for name in ("keep", "threshold"))
            limit = outside.chosen(self.model.about["kept"], keep, threshold, self.model.name)
        except ValueError as error:
            raise HTTPException(400, f"keep and threshold: {error}") from None
        asked = Asked(int(top), query.get("activation") == "1", limit)
        with contextlib.ExitStack() as held:
            try:
                async with timeout(self.limits.upload_seconds):
                    content = await self._picture(request.headers, await self._receive(request, held))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"the upload took longer than {self.limits.upload_seconds} seconds") from None
            self._refuse_if_full()  # others may have come while it was received
            self.waiting += 1
            held.callback(self._answered)
            answer = asyncio.get_running_loop().create_future()
            job = _Job(content, asked, answer)
            held.callback(setattr, job, "content", b"")  # also where it waits still and nobody waits for it
            self.jobs.put(job)
            try:
                async with timeout(SECONDS):
                    return JSONResponse(await answer)
            except asyncio.TimeoutError:
                raise _busy() from None

    async def _receive(self, request: Request, held: contextlib.ExitStack) -> bytes:
        """The body, counted as held until `held` is left; it may take long, but may not pause for long."""
        parts: list[bytes] = []
        received = 0
        stream = request.stream()
        while True:
            try:
                async with timeout(SECONDS):
                    part = await anext(stream)
            except StopAsyncIteration:
                return b"".join(parts)
            except asyncio.TimeoutError:
                raise HTTPException(408, f"nothing of the upload arrived for {SECONDS:.0f} seconds") from None
            parts.append(part)
            received += len(part)
            self.bytes += len(part)
            held.callback(self._released, len(part))
            if received > self.limits.upload_bytes:
                raise HTTPException(413, f"an upload may have {self.limits.upload_bytes:,} bytes")
            if self.bytes > self.most_bytes:
                raise _busy()

    async def _picture(self, headers: Headers, body: bytes) -> bytes:
        """The picture in a body: all of it, or the one file of a form, which is parsed in memory."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            content = body
        else:

            async def stream() -> AsyncGenerator[bytes, None]:
                yield body

            parser = MultiPartParser(headers, stream(), max_files=1, max_fields=10)
            parser.spool_max_size = self.limits.upload_bytes + 1  # larger files would be written to disk
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
            raise HTTPException(
                400, "the request has no picture; send a PNG, JPEG or WebP file as the body or in a form"
            )
        return content

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


def assets(model: Served) -> dict[str, tuple[str, bytes]]:
    """The page by path: type and content of every file that is served, and of no other."""
    files = {
        f"/{path.name}": (TYPES[path.suffix], path.read_bytes()) for path in map(web.PAGE.joinpath, web.FILES_OF_PAGE)
    }
    files["/"] = files.pop("/index.html")
    files |= {f"/{name}": (TYPES[".png"], content) for name, _, content in model.samples}
    temperature, kept = model.about["temperature"], model.about["kept"]
    about = web.about(model.name, model.classes, model.form, temperature, model.samples, "server", kept)
    files["/model.json"] = "application/json", json.dumps(about).encode()
    return files


def create_app(service: Service, hosts: Sequence[str] = ()) -> Callable[..., Any]:
    """The service as an ASGI application.

    `hosts` are further names by which clients may address it, as of `gate.host_names`; `gate.Gate` says which requests
    are answered. No CORS headers are sent.
    """
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health),
        Route("/models", service.models),
        *(Route(path, _asset(*file)) for path, file in assets(service.model).items()),
    ]
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _error, Exception: _failed, ClientDisconnect: _gone}
    )
    app.router.redirect_slashes = False
    return Outer(Gate(app, hosts))


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
