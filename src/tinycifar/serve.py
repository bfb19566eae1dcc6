"""An HTTP service over an exported model, with the page of the static export."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import math
import multiprocessing
import os
import queue
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from filelock import FileLock
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tinycifar import cifar10, export, memory, pictures, trained, web

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

MOST_BYTES = 10_000_000  # of one upload
MOST_BYTES_AT_ONCE = 60_000_000  # of all that are being received or wait
MOST_WAITING = 256
MOST_TOGETHER = 8  # pictures in one batch
MOST_WORKERS = 4  # unless told otherwise
MOST_DEATHS = 4  # of processes within a minute
MOST_HEAD_BYTES = 65_536  # of a request before its body
BACKLOG = 2048  # connections that wait to be taken by a process
LOCK_SECONDS = 0.005  # between two looks at whether a large picture may be decoded
MODEL_FILE = "model.onnx"
SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ENCODED_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


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
        return _opened(path.stem, path)
    model = trained.load(source, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        return _opened(model.name, export.to_onnx(model, Path(folder) / "model.onnx").path)


def _opened(name: str, path: Path) -> Served:
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
    return _Outer(_Gate(app, {*LOOPBACK, *hosts}))


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


class WorkerError(Exception):
    """A process of the service that failed."""


class _Gate:
    """Refuses requests whose Host or Origin is not on the list: pages of other sites, and names that lead here."""

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: set[str]) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope["headers"])):
            await JSONResponse({"error": problem}, 403)(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send)
        # WebSockets are closed unanswered.

    def _problem(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        values = [(name.decode("latin-1").lower(), value.decode("latin-1").lower()) for name, value in headers]
        hosts = [value for name, value in values if name == "host"]
        if len(hosts) != 1 or not self._known(hosts[0]):
            return "this Host is not served; start the service with --allow-host to allow it"
        if any(
            value not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for name, value in values if name == "origin"
        ):
            return "pages of another Origin may not ask"
        return None

    def _known(self, host: str) -> bool:
        found = re.fullmatch(r"(\[[0-9a-f:]+\]|[a-z0-9.-]+)(?::\d{1,5})?", host, flags=re.ASCII)
        return found is not None and found[1] in self.hosts


class _Outer:
    """Adds `HEADERS` to every answer, and prints one line of JSON a request."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *ENCODED_HEADERS]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            line = {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"][:300],  # short lines are written whole, whoever else writes
                "status": status,
                "bytes": sent,
                "milliseconds": round(1e3 * (time.perf_counter() - start), 2),
            }
            with contextlib.suppress(OSError):  # whoever read the log has gone
                print(json.dumps(line), flush=True)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with limits to how long and how large what stands before a body may be."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request."""
        super().connection_made(transport)
        self.head_bytes: int | None = 0
        self.patience: asyncio.TimerHandle | None = self.loop.call_later(SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Count what comes before a body."""
        super().data_received(data)
        if self.head_bytes is not None:
            self.head_bytes += len(data)
            if self.head_bytes > MOST_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """Wait for the headers of another request on the same connection; uvicorn closes one that has none."""
        super().on_message_begin()
        self.head_bytes = 0
        if self.patience is None:
            self.patience = self.loop.call_later(SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        """From here on the application waits."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        self.head_bytes = None
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None


def check_hosts(host: str, hosts: Sequence[str]) -> None:
    """Raise ValueError unless `host` is a loopback address or `hosts` are valid names to be asked by."""
    if not host:
        raise ValueError("--host takes an address to listen on, for example 127.0.0.1")
    if not hosts and host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"--host {host} lets other machines in: say by which names they ask, with --allow-host NAME")
    for name in hosts:
        if not re.fullmatch(r"\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+", name, flags=re.ASCII):
            raise ValueError(f"--allow-host takes a name or an address without scheme and port, not {name!r}")


def serve(
    model: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    hosts: Sequence[str] = (),
    workers: int | None = None,
    started: Callable[[str], None] = lambda _: None,
    replaced: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve with that many processes, by default one a core but four at most, until SIGTERM or SIGINT.

    They end after the requests at hand. `started` is called with the address once all take connections, `replaced` with
    a line when one that ended is replaced. Raises ValueError as `check_hosts` does, OSError where the port is taken,
    and WorkerError where processes end again and again.
    """
    check_hosts(host, hosts)
    count = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    context = multiprocessing.get_context("spawn")
    processes: dict[SpawnProcess, socket.socket] = {}
    ending = False

    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(one) for one in _listen(host, port, count)]
        name = opened.enter_context(tempfile.TemporaryDirectory())

        def end(*_: object) -> None:
            nonlocal ending
            ending = True
            for one in sockets:
                one.close()  # the processes close theirs
            for process in processes:
                process.terminate()

        folder = Path(name)
        (folder / MODEL_FILE).write_bytes(model.content)  # what a process is started with must fit into a pipe
        ready, is_ready = context.Pipe(duplex=False)
        most_bytes = max(MOST_BYTES, MOST_BYTES_AT_ONCE // count)
        port = sockets[0].getsockname()[1]

        def begin(listening: socket.socket) -> None:
            arguments = listening, folder, model.name, tuple(hosts), most_bytes, is_ready
            process = context.Process(target=_work, args=arguments)
            try:
                with _no_interrupt():  # of the terminal, which reaches all processes; this one ends the others
                    process.start()
            except OSError:
                if not ending:  # else `listening` may be closed
                    raise
            else:
                processes[process] = listening

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for one in sockets:
                if not ending:
                    begin(one)
            up = 0
            deaths: list[float] = []
            while not ending:
                if ready in connection.wait([ready, *(process.sentinel for process in processes)]):
                    ready.recv()
                    up += 1
                    if up == count and not ending:
                        shown = hosts[0] if hosts else f"[{host}]" if ":" in host else host
                        started(f"http://{shown}:{port}/")
                for process in [process for process in processes if not process.is_alive() and not ending]:
                    listening = processes.pop(process)
                    deaths = [at for at in deaths if time.monotonic() - at < 60] + [time.monotonic()]
                    if len(deaths) > MOST_DEATHS:
                        raise WorkerError(f"the processes of the service keep ending, with code {process.exitcode}")
                    replaced(f"a process of the service ended with code {process.exitcode} and is replaced")
                    begin(listening)
        finally:
            end()
            for process in processes:
                process.join()
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int, count: int) -> list[socket.socket]:
    """That many sockets on one port; OSError where it is taken.

    Linux shares the connections out among several. Elsewhere the list has one socket `count` times, and a process may
    take all connections that come at a time. `port` 0 takes a free one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    alone = socket.create_server((host, port), family=family, backlog=BACKLOG)
    if sys.platform != "linux":
        return [alone] * count
    port = alone.getsockname()[1]
    alone.close()  # it was open to find whether the port is free: those that share one would not tell
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            sockets.append(socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True))
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Let no SIGINT through, nor to processes that are started meanwhile, ever; where there is such a thing."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    listening: socket.socket, folder: Path, name: str, hosts: Sequence[str], most_bytes: int, is_ready: Connection
) -> None:
    """One process of the service."""
    memory.return_freed()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()  # however it ended
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    lock = FileLock(folder / "large")
    service = Service(_opened(name, folder / MODEL_FILE), lambda: lock.acquire(poll_interval=LOCK_SECONDS), most_bytes)
    config = uvicorn.Config(
        create_app(service, hosts),
        http=_Protocol,
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=10,
        timeout_graceful_shutdown=int(2 * SECONDS),
    )
    is_ready.send(True)
    uvicorn.Server(config).run(sockets=[listening])
