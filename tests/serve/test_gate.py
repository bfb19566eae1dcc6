"""Who may ask the service; `test_app` tries the rest over the wire."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from tinycifar.serve import gate


def status(host: str, origin: str | None = None, path: str = "/predict", hosts: tuple[str, ...] = ()) -> int:
    """What a request gets from a gate that serves `hosts` as given on the command line; 200 if it passes."""
    answers: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin is not None else [])
    scope = {"type": "http", "method": "POST", "path": path, "http_version": "1.1", "headers": headers}
    asyncio.run(gate.Gate(app, gate.host_names("0.0.0.0", hosts) if hosts else ())(scope, receive, send))
    return answers[0]


@pytest.mark.parametrize("hosts", [[], [b"127.0.0.1", b"127.0.0.1"]])
def test_a_request_without_one_host_is_refused_with_their_number(hosts: list[bytes]) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host) for host in hosts]
    scope = {"type": "http", "method": "GET", "path": "/", "http_version": "1.1", "headers": headers}
    asyncio.run(gate.Gate(None, ())(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 403
    assert f"a request needs one Host header, this one has {len(hosts)}" in sent[1]["body"].decode()


def test_another_address_needs_names() -> None:
    command = [sys.executable, "-m", "tinycifar", "serve", "minute", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "tinycifar: --host 0.0.0.0 lets other machines in: give the names that clients use with --allow-host NAME\n"
    )


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "", "a b", "[::1", "[::1]:80", "[a.example]"])
def test_a_name_has_no_scheme_and_no_port(name: str) -> None:
    with pytest.raises(ValueError, match=r"takes a name or an address without scheme and port.*\[2001:db8::7\]"):
        gate.host_names("0.0.0.0", [name])


def test_an_ipv6_address_without_brackets_is_refused_with_how_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"takes an IPv6 address in brackets: \[2001:db8::7\], not 2001:db8::7"):
        gate.host_names("::", ["2001:db8::7"])


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("classify.example", "classify.example"),
        ("Classify.Example", "classify.example:8000"),
        ("my_service", "my_service:8000"),
        ("a-b.c", "a-b.c"),
        ("192.0.2.7", "192.0.2.7:80"),
        ("[2001:db8::7]", "[2001:db8::7]:80"),
        ("[2001:db8::7]", "[2001:0db8:0:0::7]"),
    ],
)
def test_every_name_that_is_accepted_is_served(name: str, host: str) -> None:
    assert status(host, hosts=(name,)) == 200
    assert status(host, f"http://{host}", hosts=(name,)) == 200
    assert status(host) == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("classify.example", "https://classify.example:8443"),  # nginx: proxy_set_header Host $host
        ("classify.example:8443", "https://classify.example:8443"),  # $http_host
        ("classify.example:443", "https://classify.example"),  # the port written out
        ("127.0.0.1:8000", "https://classify.example"),  # nginx's default: the Host is the upstream's
        ("localhost:8000", "http://classify.example:8080"),
    ],
)
def test_the_page_may_ask_behind_common_proxies(host: str, origin: str) -> None:
    assert status(host, origin, hosts=("classify.example",)) == 200
    assert status(host, origin, hosts=("other.example",)) == 403


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://classify.example.evil.example",
        "https://evil.example/classify.example",
        "https://classify.example@evil.example",
        "https://classify.example:443:80",
        "https://classify.example:x",
        "https://classify.example/",
        "ftp://classify.example",
        "classify.example",
        "https://",
        "null",
        "",
        "http://localhost:8001",
        "http://127.0.0.1:8001",
    ],
)
def test_pages_of_other_origins_are_refused_behind_a_proxy_too(origin: str) -> None:
    for host in ("classify.example", "127.0.0.1:8000"):
        assert status(host, origin, hosts=("classify.example",)) == 403


class Written:
    """A transport that notes what is written at a time."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.closed = False

    def write(self, content: bytes) -> None:
        assert not self.closed
        self.packets.append(content)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return name


def test_head_and_body_of_an_answer_leave_together_and_before_the_connection_is_closed() -> None:
    async def answer(transport: Written) -> None:
        joining = gate.Joining(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
        for parts in ((b"head ", b"body"), (b"next ", b"answer")):
            for part in parts:
                joining.write(part)
            await asyncio.sleep(0)
        assert joining.get_extra_info("peername") == "peername"
        joining.write(b"last")
        joining.close()
        await asyncio.sleep(0)

    transport = Written()
    asyncio.run(answer(transport))
    assert transport.packets == [b"head body", b"next answer", b"last"]
    assert transport.closed
