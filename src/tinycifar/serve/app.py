"""An HTTP service over an exported model, with the page of the static export."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinycifar import typed
from tinycifar.data import pictures
from tinycifar.evaluation import outside
from tinycifar.formats import onnx_file, web
from tinycifar.predictions import softmax
from tinycifar.serve.gate import SECONDS, Gate, Limits, Outer
from tinycifar.serve.served import Served

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

MOST_BYTES_AT_ONCE = 60_000_000  # of all that are being received or wait
MOST_WAITING = 256
MOST_TOGETHER = 8  # pictures in one batch
OPTIONS = ("top", "activation", "keep", "threshold")  # of `/predict`
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


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
        logging.getLogger("python_multipart").setLevel(
            logging.ERROR
        )  # a form that cannot be read is its sender's mistake
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
        answers: list[tuple[_Job, dict[str, Any] | Exception]] = []
        decoded = []
        for job in jobs:
            if not job.answer.done():  # else its time has run out
                try:
                    decoded.append((job, self.decode(job.content)))
                except ValueError as error:
                    answers.append((job, HTTPException(400, str(error))))
                except Exception as error:
                    answers.append((job, error))
        waiting = [job for job, _ in decoded]
        try:
            results = self.classify([pixels for _, pixels in decoded], [job.asked for job in waiting])
            answers += zip(waiting, results, strict=True)
        except Exception as error:
            answers += [(job, error) for job in waiting]
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
            jobs[0].answer.get_loop().call_soon_threadsafe(_deliver, answers)

    def decode(self, content: bytes) -> pictures.Pixels:
        """A picture file's content as the model sees it, uint8 (C, S, S); ValueError if it is no picture."""
        about = self.model.about
        return pictures.decode(content, self.large, about.image_size, about.fit, pictures.WEB, about.channels)

    def classify(self, pixels: Sequence[pictures.Pixels], asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """What the model says of pictures, each uint8 (C, S, S), in one batch: as much of each as is asked."""
        if not pixels:
            return []
        start = time.perf_counter()
        images = np.stack(pixels).astype(np.float32) / np.float32(255)
        outputs = [onnx_file.LOGITS, *([onnx_file.ACTIVATION] if any(job.activation for job in asked) else [])]
        logits, *maps = self.session.run(outputs, {onnx_file.INPUT: images})
        milliseconds = 1e3 * (time.perf_counter() - start)
        probabilities = softmax(logits.astype(float) / (self.model.about.temperature or 1))
        scores = outside.scores(logits)
        names = self.model.about.classes
        answers = []
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
        asked = self._asked(request.query_params)
        try:
            async with timeout(self.limits.upload_seconds):
                body = await self._receive(request)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the upload took longer than {self.limits.upload_seconds} seconds") from None
        length = len(body)
        try:
            content = await self._picture(request.headers, body)
            del body  # a form is not held beside its file
            self._refuse_if_full()  # others may have come while it was received
            return JSONResponse(await self._answer(content, asked))
        finally:
            self.bytes -= length

    def _asked(self, query: QueryParams) -> Asked:
        """What the query asks for; HTTPException, with what is allowed, for anything else."""
        for name, _ in query.multi_items():
            if name not in OPTIONS:
                raise HTTPException(400, f"unknown parameter {name[:100]!a}; allowed are: {', '.join(OPTIONS)}")
            if len(query.getlist(name)) > 1:
                raise HTTPException(400, f"{name} is given twice; give it once")
        if not re.fullmatch(r"[1-9]\d{0,3}", top := query.get("top", str(web.SHOWN)), flags=re.ASCII):
            raise HTTPException(400, "top takes the number of classes to return, 1 to 9999")
        if (activation := query.get("activation", "0")) not in ("0", "1"):
            raise HTTPException(400, "activation takes 1 for a map with each class, or 0 for none")
        numbers: dict[str, float | None] = {"keep": None, "threshold": None}
        for name in numbers.keys() & query.keys():
            try:
                numbers[name] = float(query[name])
            except ValueError:
                raise HTTPException(400, f"{name} takes a number, not {query[name][:100]!a}") from None
        try:
            limit = outside.chosen(self.model.about.kept, numbers["keep"], numbers["threshold"], self.model.name)
        except ValueError as error:
            raise HTTPException(400, str(error).replace("=`", "").replace("`", "")) from None
        return Asked(int(top), activation == "1", limit)

    async def _answer(self, content: bytes, asked: Asked) -> dict[str, Any]:
        """What the thread says of a picture, when it comes to it."""
        job = _Job(content, asked, asyncio.get_running_loop().create_future())
        self.waiting += 1
        self.jobs.put(job)
        try:
            async with timeout(SECONDS):
                return await job.answer
        except (asyncio.TimeoutError, MemoryError):
            raise _busy() from None
        finally:
            self.waiting -= 1
            job.content = b""  # if nobody waits for it any more, it may still be in the queue

    async def _receive(self, request: Request) -> bytes:
        """The body, counted in `bytes` from now on; it may take long, but may not pause for long."""
        parts: list[bytes] = []
        received = 0
        stream = request.stream()
        try:
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
                if received > self.limits.upload_bytes:
                    raise HTTPException(413, f"an upload may have {self.limits.upload_bytes:,} bytes")
                if self.bytes > self.most_bytes:
                    raise _busy()
        except BaseException:  # a client that has gone, and a timeout outside, too
            self.bytes -= received
            raise

    async def _picture(self, headers: Headers, body: bytes) -> bytes:
        """The picture in a body: all of it, or the one file of a form, which is parsed in memory."""
        content = body
        if headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":

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
                if not files:
                    raise HTTPException(400, "the form has no file; send one picture in a field of any name")
                if misplaced := sorted(form.keys() & OPTIONS):
                    raise HTTPException(
                        400, f"{misplaced[0]} is a field of the form; give it in the address: /predict?{misplaced[0]}="
                    )
                content = await files[0].read()
        if not content:
            raise HTTPException(
                400, "the request has no picture; send a PNG, JPEG or WebP file as the body or in a form"
            )
        return content

    def _refuse_if_full(self) -> None:
        if self.waiting >= MOST_WAITING:
            raise _busy()

    async def health(self, _: Request) -> Response:
        """GET /health: that the service answers, and how many pictures wait."""
        return JSONResponse({"status": "ok", "waiting": self.waiting})

    async def models(self, _: Request) -> Response:
        """GET /models: what is served."""
        return JSONResponse({"models": [{"name": self.model.name, **typed.to_json(self.model.about)}]})


def _deliver(answers: Iterable[tuple[_Job, dict[str, Any] | Exception]]) -> None:
    for job, answer in answers:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


def _busy() -> HTTPException:
    return HTTPException(503, "too many pictures wait; ask again later", {"Retry-After": "1"})


def assets(model: Served) -> dict[str, tuple[str, bytes]]:
    """The page by path: type and content of every file that is served, and of no other."""
    files = {
        f"/{path.name}": (TYPES[path.suffix], path.read_bytes()) for path in map(web.PAGE.joinpath, web.FILES_OF_PAGE)
    }
    files["/"] = files.pop("/index.html")
    files |= {f"/{name}": (TYPES[".png"], content) for name, _, content in model.samples}
    about = model.about
    content = web.about(model.name, about.classes, about.form, about.temperature, model.samples, "server", about.kept)
    files["/model.json"] = "application/json", json.dumps(content).encode()
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
