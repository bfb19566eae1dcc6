"""What every request passes before the service: Host and Origin, limits of headers, headers of answers, the log."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 65_536  # of a request before its body
SECONDS = 10.0  # for the headers of a request, and between two parts of a body
NAME = r"[a-z0-9._-]+"
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


@dataclass(frozen=True)
class Limits:
    """What operators may change: seconds that an idle connection is kept and an upload may take, and its bytes."""

    keep_alive_seconds: int = 75  # longer than the 60 s for which common balancers keep idle connections
    upload_seconds: int = 120
    upload_bytes: int = 10_000_000


def host_names(host: str, hosts: Sequence[str]) -> tuple[str, ...]:
    """The names by which clients may address the service, in lower case, IPv6 addresses in brackets.

    `host` is the address to listen on and `hosts` the names given for it. Raises ValueError, saying what is allowed,
    for a name with a scheme or a port, and if `host` is reachable from other machines and no name is given.
    """
    if not host:
        raise ValueError("--host takes an address to listen on, for example 127.0.0.1")
    if not hosts and host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(
            f"--host {host} lets other machines in: give the names that clients use with --allow-host NAME"
        )
    names = []
    for name in hosts:
        parsed = _address(name)
        if parsed is not None and parsed.version == 6 and not name.startswith("["):
            raise ValueError(f"--allow-host takes an IPv6 address in brackets: [{name}], not {name}")
        if parsed is None and not re.fullmatch(NAME, name.lower(), flags=re.ASCII):
            raise ValueError(
                f"--allow-host takes a name or an address without scheme and port, for example classify.example or "
                f"[2001:db8::7], not {name!r}"
            )
        names.append(name.lower() if parsed is None else _written(parsed))
    return tuple(names)


def trusted(proxies: Sequence[str]) -> list[str]:
    """Addresses and networks of proxies, or `*` for all, as uvicorn takes them; ValueError for anything else."""
    if "*" in proxies:
        return ["*"]
    networks = []
    for proxy in proxies:
        try:
            network = ip_network(proxy, strict=False)
        except ValueError:
            raise ValueError(
                f"--trust-proxy takes an address or a network, for example 10.0.0.5 or 10.0.0.0/8, not {proxy!r}"
            ) from None
        networks.append(str(network))
    return networks


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a host is, in brackets or not; None for a name."""
    try:
        return ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return None


def _written(address: IPv4Address | IPv6Address) -> str:
    return f"[{address.compressed}]" if address.version == 6 else address.compressed


def _without_port(authority: str) -> str | None:
    """The name or address of `name:port`, in the form of `host_names`; None if it is neither."""
    parts = re.fullmatch(rf"(\[[0-9a-f:.]+\]|{NAME})(?::\d{{1,5}})?", authority, flags=re.ASCII)
    if parts is None:
        return None
    parsed = _address(parts[1])
    return parts[1] if parsed is None else _written(parsed)


class Gate:
    """Refuses requests from pages of other sites (by Origin) and to names that only lead here (by Host).

    `hosts` are names as of `host_names`, given by the operator. A Host must be one of them or of this machine's
    loopback names. An Origin must be the Host itself, or have one of `hosts`: behind a proxy the port, the scheme, and
    in nginx's default the whole Host differ from what the browser was given. `GET /health` is also answered to health
    checks that name an address instead, or, in HTTP/1.0, nothing: it tells no more than that the service is up.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)):
            await JSONResponse({"error": problem}, 403)(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send)
        # WebSockets are closed unanswered.

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        hosts, origins = ([value.lower() for value in headers.getlist(name)] for name in ("host", "origin"))
        if not origins and _is_check(scope, hosts):
            return None
        if len(hosts) != 1:
            return f"a request needs one Host header, this one has {len(hosts)}"
        name = _without_port(hosts[0])
        if name is None or name not in {*self.hosts, *LOOPBACK}:
            return (
                f"the Host {hosts[0][:100]!a} is not served; start the service with --allow-host NAME to allow a name"
            )
        for origin in origins:
            if origin in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                continue
            scheme, _, authority = origin.partition("://")
            if scheme not in ("http", "https") or _without_port(authority) not in self.hosts:
                return (
                    f"pages of the Origin {origin[:100]!a} may not ask, as the request's Host is "
                    f"{hosts[0][:100]!a}; if a proxy changed the Host, start the service with --allow-host NAME "
                    "and the name that browsers use"
                )
        return None


def _is_check(scope: Scope, hosts: Sequence[str]) -> bool:
    """Whether this is a health check: its Host is an address of another machine, or in HTTP/1.0 there is none."""
    if scope["path"] != "/health" or scope["method"] not in ("GET", "HEAD"):
        return False
    if not hosts:
        return bool(scope["http_version"] == "1.0")
    name = _without_port(hosts[0]) if len(hosts) == 1 else None
    address = None if name is None else _address(name)
    return address is not None and not (
        address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or (address.version == 6 and address.ipv4_mapped is not None)
    )


class Outer:
    """Adds `HEADERS` to every answer, and prints one line of JSON a request."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0

        async def send_counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *ENCODED_HEADERS]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            line = {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or ("",))[0][:100],  # short lines are written whole, whoever else writes
                "method": scope["method"],
                "path": scope["path"][:300],
                "status": status,
                "bytes": sent,
                "milliseconds": round(1e3 * (time.perf_counter() - start), 2),
            }
            with contextlib.suppress(OSError):  # whoever read the log has gone
                print(json.dumps(line), flush=True)


class Joining:
    """A transport that sends together what is written in one step of the event loop, in as few packets as it fits.

    uvicorn writes the head and the body of an answer one after the other. As two packets, the second one waits for
    clients that are slow to acknowledge the first, and simple clients take the first one for all of the answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, content: bytes) -> None:
        """Keep the content until the loop comes to it; the transport counts it from then on."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(content)

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Close the connection behind what was written."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """uvicorn's, with limits to how long and how large what stands before a body may be."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request."""
        super().connection_made(Joining(transport, self.loop))  # type: ignore[arg-type]
        if self.client is not None:  # a socket for both kinds of addresses has IPv4 ones as ::ffff:192.0.2.7
            self.client = self.client[0].removeprefix("::ffff:"), self.client[1]
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
