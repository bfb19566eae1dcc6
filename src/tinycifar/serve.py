"""An HTTP service over an exported model, with the page of the static export."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinycifar import data, export, pictures, trained, web

MOST_BYTES = 10_000_000  # of one upload
MOST_BYTES_AT_ONCE = 60_000_000  # of all that are being received or wait
MOST_WAITING = 256
SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Served:
    """An exported model in memory: what its metadata says, and its session."""

    name: str
    about: dict[str, Any]
    session: Any

    @property
    def classes(self) -> list[str]:
        """The names of its classes."""
        return list(self.about["classes"])


def open_model(source: str) -> Served:
    """Open an ONNX file of ours, or export what `trained.load` takes and open that; ValueError for anything else."""
    path = Path(source)
    if path.suffix == ".onnx" and path.is_file():
        return _opened(path.stem, path)
    model = trained.load(source, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        exported = export.to_onnx(model, Path(folder) / "model.onnx")
        return _opened(model.name, exported.path)


def _opened(name: str, path: Path) -> Served:
    try:
        session = export.session(path, threads=1)
        metadata = session.get_modelmeta().custom_metadata_map
        about = {key: metadata[key] for key in ("model", "recipe", "weights_sha256")}
        about |= {key: json.loads(metadata[key]) for key in ("classes", "temperature")}
    except ValueError:
        raise
    except Exception:  # onnxruntime has many kinds for a file that is none
        raise ValueError(f"{path} is no ONNX file that tinycifar exported") from None
    return Served(name, about, session)


class Service:
    """What answers: one model, worker threads, and a bounded queue before them."""

    def __init__(self, model: Served, threads: int) -> None:
        self.model = model
        self.workers = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self.large = threading.Lock()  # large pictures are decoded one at a time, which bounds memory
        self.waiting = 0
        self.bytes = 0

    def answer(self, content: bytes, activation: bool) -> dict[str, Any]:
        """What the model says of a picture file's content; ValueError if that is no picture."""
        pixels = pictures.to_tensor(pictures.decode_square(content, self.large)).numpy()
        start = time.perf_counter()
        images = pixels[None].astype(np.float32) / np.float32(255)
        outputs = [export.LOGITS, export.ACTIVATION] if activation else [export.LOGITS]
        logits, *maps = self.model.session.run(outputs, {export.INPUT: images})
        milliseconds = 1e3 * (time.perf_counter() - start)
        scaled = logits[0].astype(float) / (self.model.about["temperature"] or 1)
        powers = np.exp(scaled - scaled.max())
        probabilities = powers / powers.sum()
        classes = self.model.classes
        found: dict[str, Any] = {
            "model": self.model.name,
            "classes": [
                {"class": classes[i], "probability": float(probabilities[i])} for i in (-probabilities).argsort()
            ],
            "milliseconds": milliseconds,
        }
        if activation:
            found |= {"logits": logits[0].tolist(), "activation": maps[0].flatten().tolist()}
        return found

    async def predict(self, request: Request) -> Response:
        """POST /predict: a picture as the body or as a form's file -> its classes and their probabilities."""
        self._refuse_if_full()
        with contextlib.ExitStack() as held:
            try:
                with anyio.fail_after(SECONDS):
                    content = await _picture(request.headers, await self._receive(request, held))
            except TimeoutError:
                raise HTTPException(408, f"the upload took longer than {SECONDS:.0f} seconds") from None
            self._refuse_if_full()  # others may have come while it was received
            self.waiting += 1
            held.callback(self._answered)
            activation = request.query_params.get("activation") == "1"
            try:
                with anyio.fail_after(SECONDS):
                    loop = asyncio.get_running_loop()
                    return JSONResponse(await loop.run_in_executor(self.workers, self.answer, content, activation))
            except TimeoutError:
                raise _busy() from None
            except ValueError as error:
                raise HTTPException(400, str(error)) from None

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
            if self.bytes > MOST_BYTES_AT_ONCE:
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
    found = {f"/{path.name}": (TYPES[path.suffix], path.read_bytes()) for path in web.PAGE.iterdir()}
    found["/"] = found.pop("/index.html")
    samples = web.samples("cifar10" if tuple(model.classes) == data.CLASSES else None)
    found |= {f"/{name}": (TYPES[".png"], content) for name, _, content in samples}
    about = web.about(
        model.name, model.classes, model.about["temperature"], [(name, label) for name, label, _ in samples], "server"
    )
    found["/model.json"] = "application/json", json.dumps(about).encode()
    return found


def create_app(model: Served, *, threads: int, hosts: Sequence[str] = (), log: bool = True) -> Callable[..., Any]:
    """The service as an ASGI application.

    Requests are answered only if their Host names this machine's loopback or one of `hosts`, and their Origin, if any,
    is the same host; no other site's page may ask (no CORS headers are sent).
    """
    service = Service(model, threads)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health),
        Route("/models", service.models),
        *(Route(path, _asset(*of)) for path, of in assets(model).items()),
    ]
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _error, Exception: _failed, ClientDisconnect: _gone}
    )
    app.router.redirect_slashes = False
    gate = _Gate(app, {*LOOPBACK, *hosts})
    return _Log(gate) if log else gate


def _asset(kind: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return answer


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "the server failed"}, 500)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # to nobody


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


class _Log:
    """Prints one line of JSON a request."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            line = {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "bytes": sent,
                "milliseconds": round(1e3 * (time.perf_counter() - start), 2),
            }
            with contextlib.suppress(OSError):  # whoever read the log has gone
                print(json.dumps(line), flush=True)


def check_hosts(host: str, hosts: Sequence[str]) -> None:
    """Raise ValueError unless `host` is a loopback address or `hosts` are valid names to be asked by."""
    if not hosts and host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"--host {host} lets other machines in: say by which names they ask, with --allow-host NAME")
    for name in hosts:
        if not re.fullmatch(r"\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+", name, flags=re.ASCII):
            raise ValueError(f"--allow-host takes a name or an address without scheme and port, not {name!r}")


def serve(
    model: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    hosts: Sequence[str] = (),
    threads: int | None = None,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until a signal: SIGTERM and SIGINT end it after the requests at hand.

    `started` is called with the address once connections are taken. Raises ValueError as `check_hosts` does, and
    OSError where the port is taken.
    """
    check_hosts(host, hosts)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listening:
        app = create_app(model, threads=threads or os.cpu_count() or 1, hosts=hosts)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=10,
            timeout_graceful_shutdown=int(2 * SECONDS),
        )
        shown = f"[{host}]" if ":" in host else host
        started(f"http://{shown}:{listening.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[listening])
