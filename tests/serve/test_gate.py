"""Who may ask the service; `test_app` tries the rest over the wire."""

import asyncio
from typing import Any
from unittest import mock

import pytest
from starlette.responses import JSONResponse

from tinycifar.serve import gate

Headers = list[tuple[bytes, bytes]]


def answer(headers: Headers, hosts: tuple[str, ...] = (), **scope: Any) -> tuple[int, bytes]:
    """Status and body that a request gets from a gate that serves `hosts`, as given on the command line."""
    messages: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse("passed")(scope, receive, send)

    async def send(message: Any) -> None:
        messages.append(message)

    request = {"type": "http", "method": "POST", "path": "/predict", "http_version": "1.1", "headers": headers, **scope}
    names = gate.host_names("0.0.0.0", hosts) if hosts else ()
    asyncio.run(gate.Gate(app, names)(request, None, send))
    return messages[0]["status"], messages[1]["body"]


def status(host: str, origin: str | None = None, hosts: tuple[str, ...] = ()) -> int:
    headers = {"host": host} if origin is None else {"host": host, "origin": origin}
    return answer([(name.encode(), value.encode()) for name, value in headers.items()], hosts)[0]


@pytest.mark.parametrize("hosts", [[], [b"127.0.0.1", b"127.0.0.1"]])
def test_a_request_without_one_host_is_refused_with_their_number(hosts):
    refused, body = answer([(b"host", host) for host in hosts])
    assert refused == 403
    assert f"a request needs one Host header, this one has {len(hosts)}" in body.decode()


def test_another_address_needs_names():
    with pytest.raises(ValueError, match="lets other machines in") as refused:
        gate.host_names("0.0.0.0", [])
    assert str(refused.value) == (
        "--host 0.0.0.0 lets other machines in: give the names that clients use with --allow-host NAME"
    )


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "", "a b", "[::1", "[::1]:80", "[a.example]"])
def test_a_name_has_no_scheme_and_no_port(name):
    with pytest.raises(ValueError, match=r"takes a name or an address without scheme and port.*\[2001:db8::7\]"):
        gate.host_names("0.0.0.0", [name])


@pytest.mark.parametrize("name", ["nginx", "10.0.0.0/33", "10.0.0.5:80", "[::1]", ""])
def test_a_trusted_proxy_is_an_address_or_a_network(name):
    assert gate.trusted(["10.0.0.5", "10.0.0.5/8", "::1"]) == ["10.0.0.5/32", "10.0.0.0/8", "::1/128"]
    assert gate.trusted(["*"]) == ["*"]
    with pytest.raises(ValueError, match="--trust-proxy takes an address or a network, for example"):
        gate.trusted([name])


def test_an_ipv6_address_without_brackets_is_refused_with_how_it_is_written():
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
def test_every_name_that_is_accepted_is_served(name, host):
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
def test_the_page_may_ask_behind_common_proxies(host, origin):
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
def test_pages_of_other_origins_are_refused_behind_a_proxy_too(origin):
    for host in ("classify.example", "127.0.0.1:8000"):
        assert status(host, origin, hosts=("classify.example",)) == 403


def test_head_and_body_of_an_answer_leave_together_and_before_the_connection_is_closed():
    transport = mock.Mock(is_closing=lambda: False)

    async def answer() -> None:
        joining = gate.Joining(transport, asyncio.get_running_loop())
        for parts in ((b"head ", b"body"), (b"next ", b"answer")):
            for part in parts:
                joining.write(part)
            await asyncio.sleep(0)
        assert joining.get_extra_info("peername") is transport.get_extra_info.return_value
        joining.write(b"last")
        joining.close()
        await asyncio.sleep(0)

    asyncio.run(answer())
    written = [mock.call.write(packet) for packet in (b"head body", b"next answer", b"last")]
    asked = mock.call.get_extra_info("peername")
    assert transport.mock_calls == [*written[:2], asked, written[2], mock.call.close()]
