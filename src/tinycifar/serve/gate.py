"""What stands before the service: who may ask, how much may come before a body, headers of answers, and the log."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 65_536  # of a request before its body
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

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def check_hosts(host: str, hosts: Sequence[str]) -> None:
    """Raise ValueError unless `host` is a loopback address or `hosts` are valid names to be asked by."""
    if not host:
        raise ValueError("--host takes an address to listen on, for example 127.0.0.1")
    if not hosts and host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"--host {host} lets other machines in: say by which names they ask, with --allow-host NAME")
    for name in hosts:
        if not re.fullmatch(r"\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+", name, flags=re.ASCII):
            raise ValueError(f"--allow-host takes a name or an address without scheme and port, not {name!r}")


class Gate:
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


class Outer:
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


class Protocol(HttpToolsProtocol):
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
