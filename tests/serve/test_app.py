"""The HTTP service, as a process of its own on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx
import pytest
import uvicorn
from PIL import Image
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from conftest import encoded
from tinycifar import data, inference, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import onnx_file, web
from tinycifar.serve import app, gate, served
from tinycifar.serve.gate import Limits

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser


# An export may differ from its original by 1e-3 in a logit, which changes a probability by at most half of that.
ROUNDED = 5e-4


class Client:
    """A client of a service on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or bytes) and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            about = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(content) if "json" in about.get("content-type", "") else content, about
        finally:
            connection.close()


class Running(Client):
    """A service that runs as a process of its own, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        super().__init__(port)
        self.process, self.log = process, log

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; gives the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stderr.close()
        return code

    def workers(self) -> list[int]:
        """The processes that answer."""
        parent, found = self.process.pid, []
        for pid in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one of them may end meanwhile
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[int]]:
        """The memory of its workers together, in bytes, looked at 200 times a second."""
        files = [Path(f"/proc/{pid}/statm") for pid in self.workers()]
        bytes_used: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.005):
                bytes_used.append(sum(int(file.read_text().split()[1]) for file in files) * os.sysconf("SC_PAGE_SIZE"))

        with ThreadPoolExecutor() as watchers:
            watchers.submit(watch)
            try:
                yield bytes_used
            finally:
                over.set()


def start(model: Path, log: Path, *options: str) -> Running:
    command = [sys.executable, "-m", "tinycifar", "serve", model, "--port", "0", "--workers", "2", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    address = re.fullmatch(r"Serving \S+ at http://[\w.]+:(\d+)/ \(Ctrl-C ends it\)\n", line)
    assert address is not None, line
    return Running(process, int(address[1]), log)


@pytest.fixture(scope="module")
def running(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = start(exports / "minute.onnx", tmp_path_factory.mktemp("served") / "log")
    yield service
    service.stop()


@pytest.fixture
def minute(exports: Path) -> served.Served:
    return served.open_model(str(exports / "minute.onnx"))


@contextlib.contextmanager
def in_a_thread(model: served.Served) -> Iterator[Client]:
    """A client of a service that runs in this process, which starts sooner than one of its own."""
    service = app.Service(model)
    settings = {"port": 0, "log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app.create_app(service), http=gate.Protocol, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def png(index: int = 0) -> bytes:
    return encoded(pictures.to_image(data.sample().test_images[index]))


class Page:
    """The page of a service in a browser."""

    def __init__(self, browser: Browser, port: int) -> None:
        self.page = browser.new_page()
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.answers = 0
        self.page.goto(f"http://127.0.0.1:{port}/")
        self.page.wait_for_selector("html[data-ready]")

    def classify(self, picture: Path) -> dict[str, float]:
        """The probabilities, by class, that the page shows of a picture file; the largest first."""
        self.page.set_input_files("#file", picture)
        self.wait()
        bars = (
            "[...document.querySelectorAll('#bars button')].map(bar => [bar.dataset.class, +bar.dataset.probability])"
        )
        return dict(self.page.evaluate(bars))

    def wait(self) -> None:
        """Wait for one more answer."""
        self.answers += 1
        self.page.wait_for_selector(f"html[data-answers='{self.answers}']")

    def seen(self, size: int) -> np.ndarray[Any, Any]:
        """The pixels (size, size, 3) that the page shows as what the model sees."""
        pixels = self.page.evaluate(f"[...$('seen').getContext('2d').getImageData(0, 0, {size}, {size}).data]")
        return np.array(pixels).reshape(size, size, 4)[:, :, :3]


def by_class(prediction: Any) -> dict[str, float]:
    """The probabilities of a prediction, or of a service's answer, by class; the largest first."""
    return {entry["class"]: entry["probability"] for entry in prediction["classes"]}


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)])


def form(content: bytes, fields: Sequence[str] = ()) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form with a file, and with other fields behind it."""
    parts = [b'name="image"; filename="a.png"\r\n\r\n' + content]
    parts += [f'name="{field}"\r\n\r\n1'.encode() for field in fields]
    body = b"".join(b"--xyz\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return body + b"--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}


@pytest.mark.parametrize("as_form", [False, True])
def test_a_picture_gets_the_probabilities_that_predict_gives(running, tmp_path, as_form):
    (tmp_path / "picture.png").write_bytes(png(3))
    body, headers = form(png(3), fields=["note"]) if as_form else (png(3), {})
    status, answer, _ = running.ask("POST", "/predict", body, headers)
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "picture.png"], top=10)
    assert (status, answer["model"]) == (200, "minute")
    assert list(by_class(answer)) == list(by_class(expected))
    assert by_class(answer) == pytest.approx(by_class(expected), abs=ROUNDED)
    assert answer["milliseconds"] > 0


def test_health_and_models_answer(running):
    assert running.ask("GET", "/health")[:2] == (200, {"status": "ok", "waiting": 0})
    (model,) = running.ask("GET", "/models")[1]["models"]
    assert (model["name"], model["model"], model["classes"]) == ("minute", "minutenet", list(CLASSES))


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"", {}, 400, "has no picture"),
        (b"no picture", {}, 400, "no PNG, JPEG or WEBP image"),
        (png()[:200], {}, 400, "it is damaged"),
        (b"x" * 10_000_001, {}, 413, "an upload may have 10,000,000 bytes"),
        (b"--xyz--", {"Content-Type": "multipart/form-data"}, 400, "the form cannot be read"),
        (b"junk", {"Content-Type": "multipart/form-data; boundary=xyz"}, 400, "the form cannot be read"),
        (b"--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}, 400, "the form has no file"),
        (*form(png(), fields=["top"]), 400, "top is a field of the form; give it in the address: /predict?top="),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(running, body, headers, status, message):
    refused, answer, _ = running.ask("POST", "/predict", body, headers)
    assert refused == status
    assert message in answer["error"]
    assert "\n" not in answer["error"]


def test_what_is_no_form_adds_no_line_to_the_log(caplog):
    with mock.patch.object(onnx_file, "session"):
        service = app.Service(mock.Mock())
    headers = Headers({"Content-Type": "multipart/form-data; boundary=xyz"})
    with pytest.raises(HTTPException, match="the form cannot be read"):
        asyncio.run(service._picture(headers, b"junk"))
    assert caplog.records == []


def host_cases() -> list[tuple[str, str | None, bool]]:
    """Host, Origin, and whether the request may pass; PORT stands for the service's."""
    good = ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST:PORT", "localhost", "[::1]:PORT"]
    bad = [
        "evil.example", "evil.example:PORT", "localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost",
        "localhost@evil.example", "evil.example#localhost", "evil.example/localhost", "localhost:PORT:80",
        "localhost:x", "127.0.0.2", "127.1", "0.0.0.0", "0x7f000001", "2130706433", "[::]", "[::ffff:127.0.0.1]",
        "localhost.", "localhost ,evil.example", "local host", "", "*", "localhost\t.evil.example", "ｌocalhost",
    ]  # fmt: skip
    origins = [
        "http://evil.example", "https://evil.example", "null", "http://localhost:1", "http://127.0.0.1:PORT1",
        "http://localhost.evil.example:PORT", "file://", "", "http://localhost:PORT/", "chrome-extension://abcdef",
    ]  # fmt: skip
    return [
        *((host, None, True) for host in good),
        *((host, None, False) for host in bad),
        *(("localhost:PORT", origin, False) for origin in origins),
        ("localhost:PORT", "http://localhost:PORT", True),
    ]


@pytest.mark.parametrize(("host", "origin", "passes"), host_cases())
def test_only_this_machines_names_and_the_pages_own_origin_pass(running, host, origin, passes):
    lines = ["GET /health HTTP/1.1", f"Host: {host}", *([] if origin is None else [f"Origin: {origin}"])]
    head = "\r\n".join([*lines, "Connection: close"]).replace("PORT", str(running.port))
    answer = talk(running, head.encode() + b"\r\n\r\n")
    status = int(answer.split()[1])
    assert (status == 200) == passes
    assert 200 <= status < 500
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize(
    ("statuses", "lines"),
    [
        (("400", "403"), ["GET /health HTTP/1.1"]),
        (("400", "403"), ["GET /health HTTP/1.1", "Host: localhost", "Host: evil.example"]),
        (("403",), ["GET http://evil.example/health HTTP/1.1", "Host: evil.example"]),
        (("403",), ["GET /models HTTP/1.0"]),
        (("403",), ["GET / HTTP/1.0"]),
        (("403",), ["POST /health HTTP/1.0", "Content-Length: 0"]),
        (("403",), ["GET /models HTTP/1.1", "Host: 10.0.0.5:8000"]),
        (("403",), ["GET /health HTTP/1.1", "Host: 10.0.0.5:8000", "Origin: http://10.0.0.5:8000"]),
        (("403",), ["GET /health HTTP/1.1", "Host: [::ffff:10.0.0.5]"]),
        (("200",), ["GET /health HTTP/1.0"]),
        (("200",), ["HEAD /health HTTP/1.0"]),
        (("200",), ["GET /health HTTP/1.1", "Host: 10.0.0.5:8000"]),
        (("200",), ["GET /health HTTP/1.1", "Host: 203.0.113.9"]),
        (("200",), ["GET /health HTTP/1.1", "Host: [2001:db8::7]:8000"]),
    ],
)
def test_a_request_needs_one_host_unless_it_is_a_health_check_by_address(running, statuses, lines):
    head = "\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n"
    assert talk(running, head.encode()).decode().split()[1] in statuses


@pytest.mark.parametrize("path", ["/etc/passwd", "/samples/../../app.py", "/%2e%2e/app.py", "//page.js", "/page.js/"])
def test_no_path_leads_to_a_file_that_is_not_on_the_list(running, path):
    assert running.ask("GET", path)[:2] == (404, {"error": "Not Found"})


def bomb(side: int, mode: str = "L") -> bytes:
    """A PNG of one colour that is small and large when decoded."""
    return encoded(Image.new(mode, (side, side)), compress_level=1)


def malformed(count: int) -> Iterator[bytes]:
    """Damaged pictures of every format, headers that promise too much, and noise."""
    rng = random.Random(0)
    picture = pictures.to_image(data.sample().test_images[0]).resize((200, 150))
    whole = [encoded(picture, kind) for kind in ("PNG", "JPEG", "WEBP")]
    promise = bytearray(whole[0])
    promise[16:24] = (60_000).to_bytes(4, "big") * 2  # pixels, in the PNG's header
    promise[29:33] = zlib.crc32(promise[12:29]).to_bytes(4, "big")
    for index in range(count):
        match index % 4:
            case 0:
                yield rng.choice(whole)[: rng.randrange(1, 60)]
            case 1:
                yield rng.randbytes(rng.randrange(1, 5000))
            case 2:
                yield rng.choice([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"]) + rng.randbytes(500)
            case _:
                yield bytes(promise[:33]) + rng.randbytes(100)


def patiently(running: Running, content: bytes) -> int:
    """The status of a prediction, asked for again while the service is busy, as on a machine under load."""
    until = time.monotonic() + 100
    while (status := running.ask("POST", "/predict", content)[0]) == 503 and time.monotonic() < until:
        time.sleep(1)
    return status


def test_malformed_uploads_and_bombs_get_4xx_and_memory_stays(running):
    count = int(os.environ.get("MALFORMED_UPLOADS", "200"))
    # Too many pixels, by far and by one row; and the largest that is allowed, of the kind that takes the most memory.
    bombs = [bomb(14_000), bomb(8_000), bomb(4_097), bomb(4_096, "RGBA")] * 3
    half_sent = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9900000\r\n\r\n" + bytes(9_800_000)
    with ThreadPoolExecutor(12) as clients, running.watched() as memory, contextlib.ExitStack() as open_still:
        assert {running.ask("POST", "/predict", png())[0] for _ in range(20)} == {200}
        before = memory[-1]
        for content in malformed(count):
            assert 400 <= running.ask("POST", "/predict", content)[0] < 500
        answers = list(clients.map(lambda content: patiently(running, content), bombs))
        for _ in range(8):
            stalling = socket.create_connection(("127.0.0.1", running.port), timeout=20)
            open_still.enter_context(stalling).sendall(half_sent)
        later = set(clients.map(lambda content: running.ask("POST", "/predict", content)[0], bombs))
    assert answers == [400, 400, 400, 200] * 3
    assert later <= {200, 400, 503}  # the uploads at hand leave room for few others
    print(f"memory grew by {(max(memory) - before) / 1e6:.0f} MB")
    assert max(memory) - before < 300_000_000
    assert running.ask("GET", "/health")[0] == 200


def test_every_request_is_one_line_of_json_in_the_log(running):
    before = len(running.log.read_text().splitlines())
    running.ask("POST", "/predict", png())
    running.ask("GET", "/a\u0022b".encode().decode("latin-1"))
    running.ask("GET", "/health", headers={"Host": "evil.example"})
    until = time.monotonic() + 20  # a line is written after its answer
    expected = [("GET", '/a"b', 404), ("GET", "/health", 403), ("POST", "/predict", 200)]
    logged: list[tuple[str, str, int]] = []
    while len(logged) < 3 and time.monotonic() < until:
        time.sleep(0.01)
        lines = [json.loads(line) for line in running.log.read_text().splitlines()[before:]]
        logged = [(line["method"], line["path"], line["status"]) for line in lines]
        logged = [line for line in logged if line in expected]  # uploads of other tests may end only now
    assert sorted(logged) == expected
    assert all(line["milliseconds"] >= 0 and line["client"] == "127.0.0.1" for line in lines)


def request(content: bytes, seconds: float = 0.0, query: bytes = b"") -> Request:
    """A request whose picture has come after that time."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": content, "more_body": False}

    return Request({"type": "http", "headers": [], "query_string": query}, receive)


def refusal(service: app.Service, upload: Request) -> app.HTTPException:
    """What a service answers to an upload that it refuses, of which nothing stays behind."""
    with pytest.raises(app.HTTPException) as refused:
        asyncio.run(service.predict(upload))
    assert (service.waiting, service.bytes) == (0, 0)
    return refused.value


def test_an_upload_that_takes_too_long_is_ended(minute, monkeypatch):
    service = app.Service(minute, limits=Limits(upload_seconds=0.1))
    refused = refusal(service, request(png(), seconds=10))
    assert (refused.status_code, refused.detail) == (408, "the upload took longer than 0.1 seconds")
    monkeypatch.setattr(app, "SECONDS", 0.1)
    refused = refusal(app.Service(minute), request(png(), seconds=10))
    assert (refused.status_code, refused.detail) == (408, "nothing of the upload arrived for 0 seconds")


def test_an_upload_that_arrives_steadily_may_take_longer_than_a_pause(minute, monkeypatch):
    service = app.Service(minute)
    content, sent = png(), 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        await asyncio.sleep(0.1)
        part = content[sent : sent + len(content) // 10 + 1]
        sent += len(part)
        return {"type": "http.request", "body": part, "more_body": sent < len(content)}

    async def predict() -> int:
        slow = Request({"type": "http", "headers": [], "query_string": b""}, receive)
        return (await service.predict(slow)).status_code

    monkeypatch.setattr(app, "SECONDS", 0.5)  # ten parts take 1 s
    assert asyncio.run(predict()) == 200
    assert service.bytes == 0


def test_an_upload_that_is_broken_off_is_not_counted_any_more(minute):
    service, messages = app.Service(minute), [{"type": "http.request", "body": png(), "more_body": True}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        asyncio.run(service.predict(Request({"type": "http", "headers": [], "query_string": b""}, receive)))
    assert (service.waiting, service.bytes) == (0, 0)


def test_a_picture_that_finds_no_memory_gets_503(minute, monkeypatch):
    service = app.Service(minute)
    monkeypatch.setattr(service, "decode", mock.Mock(side_effect=MemoryError))
    assert refusal(service, request(png())).status_code == 503


def test_a_picture_that_waits_too_long_gets_503_and_leaves_the_queue(minute, monkeypatch):
    service = app.Service(minute)
    free = threading.Event()
    monkeypatch.setattr(app, "SECONDS", 0.1)
    monkeypatch.setattr(service, "decode", lambda _: free.wait(10))
    refused = refusal(service, request(png()))
    free.set()
    assert (refused.status_code, refused.headers) == (503, {"Retry-After": "1"})


def test_a_full_queue_answers_503_and_when_to_come_back(minute, monkeypatch):
    service = app.Service(minute)
    free = threading.Event()
    monkeypatch.setattr(app, "MOST_WAITING", 3)
    monkeypatch.setattr(service, "decode", lambda content: (free.wait(10), pictures.decode(content, service.large))[1])

    async def ask() -> list[Any]:
        asked = [asyncio.create_task(service.predict(request(png()))) for _ in range(5)]
        await asyncio.sleep(0.2)
        free.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 503]
    assert answers[3].headers == {"Retry-After": "1"}
    assert (service.waiting, service.bytes) == (0, 0)


def test_uploads_that_are_too_many_bytes_together_get_503(minute):
    service = app.Service(minute, most_bytes=len(png()))
    assert asyncio.run(service.predict(request(png()))).status_code == 200
    assert refusal(service, request(png() + b"1")).status_code == 503


@pytest.mark.parametrize(
    ("query", "message"),
    [
        *(
            (f"top={top}", "top takes the number of classes to return, 1 to 9999")
            for top in ("0", "x", "-1", "10000", "")
        ),
        ("top=1&top=3", "top is given twice; give it once"),
        ("activation=true", "activation takes 1 for a map with each class, or 0 for none"),
        ("kept=0.9", "unknown parameter 'kept'; allowed are: top, activation, keep, threshold"),
        ("keep=x", "keep takes a number, not 'x'"),
        ("threshold=", "threshold takes a number, not ''"),
        ("keep=0.9&threshold=1", "keep and threshold exclude each other"),
    ],
)
def test_a_query_that_the_service_does_not_know_is_refused_with_what_is_allowed(minute, query, message):
    refused = refusal(app.Service(minute), request(png(), query=query.encode()))
    assert (refused.status_code, refused.detail) == (400, message)


def talk(running: Running, sent: bytes) -> bytes:
    """What comes back to these bytes until the connection is closed."""
    received = b""
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.end_to_end  # it takes the ten seconds
def test_headers_that_do_not_end_are_not_waited_for(running):
    start = time.monotonic()
    assert talk(running, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX: ") == b""
    assert 9 < time.monotonic() - start < 12


def test_headers_that_are_too_large_end_the_connection(running):
    start = time.monotonic()
    assert talk(running, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000) == b""
    assert time.monotonic() - start < 5


def test_a_body_may_come_in_chunks(running):
    content = png()
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:100], content[100:]))
    assert b'"probability"' in talk(running, head + chunks + b"0\r\n\r\n")


def test_every_answer_says_that_it_is_what_it_says(running):
    for path in ("/", "/health", "/nothing"):
        about = running.ask("GET", path)[2]
        assert about["x-content-type-options"] == "nosniff"
        assert about["cross-origin-resource-policy"] == "same-origin"
        assert not any(name.startswith("access-control") for name in about)


def test_pictures_that_come_together_get_each_its_own_answer(running, tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(60)]
    for index, file in enumerate(files):
        file.write_bytes(b"damaged" if index % 10 == 9 else png(index))
    with ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(lambda file: running.ask("POST", "/predict", file.read_bytes())[:2], files))
    expected = list(inference.predict(trained.load("minute", "cpu"), files, top=10))
    assert [entry["file"] for entry in expected] == list(map(str, files))
    assert [status for status, _ in answers] == [400 if "problem" in entry else 200 for entry in expected]
    theirs = [by_class(entry) for entry in expected if "problem" not in entry]
    ours = [by_class(answer) for status, answer in answers if status == 200]
    assert len(ours) == 54
    assert all(our == pytest.approx(their, abs=ROUNDED) for our, their in zip(ours, theirs, strict=True))
    pairs = list(itertools.combinations(theirs, 2))
    alike = sum(first == pytest.approx(second, abs=ROUNDED) for first, second in pairs)
    assert alike < 0.05 * len(pairs), "an answer to another picture would be noticed"


def test_the_client_in_the_documents_names_the_class(running, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "SERVING.md").read_text()
    (client,) = re.findall(r"A short client.*?```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(client.splitlines()) <= 10
    (tmp_path / "client.py").write_text(client.replace(":8000/", f":{running.port}/"))
    (tmp_path / "cat.png").write_bytes(png())
    command = [sys.executable, tmp_path / "client.py", tmp_path / "cat.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "cat.png"], top=3)
    assert done.stdout.splitlines() == [f"{name} {value:.1%}" for name, value in by_class(expected).items()]


def test_a_file_that_is_no_onnx_is_refused():
    Path("model.onnx").write_text("nothing")
    with pytest.raises(ValueError, match=r"^model\.onnx is no ONNX file that tinycifar exported$"):
        served.open_model("model.onnx")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", "no JSON"),
        ("classes", "5"),
        ("classes", '["one", "two"]'),
        ("classes", json.dumps(["\n"] * 10)),
        ("image_size", "48"),
        ("image_size", "1000000"),
        ("image_size", "null"),
        ("temperature", '"x"'),
        ("temperature", "-1"),
        ("fit", "stretch"),
        ("channels", "2"),
        ("kept", "[1]"),
    ],
)
def test_a_file_with_other_metadata_is_refused(exports, tmp_path, field, value):
    model = onnx.load(exports / "minute.onnx")
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | {field: value})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="is no ONNX file that tinycifar exported"):
        served.open_model(str(tmp_path / "model.onnx"))


def test_in_a_browser_the_page_asks_the_server_and_sends_of_a_large_photograph_what_the_model_sees(
    running, chromium, tmp_path
):
    page = Page(chromium, running.port)
    paths = [tmp_path / "picture.png", tmp_path / "photo.png"]
    paths[0].write_bytes(png(7))
    noise((900, 700)).save(paths[1])
    assert paths[1].stat().st_size > 1_000_000
    expected = map(by_class, inference.predict(trained.load("minute", "cpu"), paths, top=10))
    for path, probabilities in zip(paths, expected, strict=True):
        with page.page.expect_request("**/predict*") as sent:
            shown = page.classify(path)
        assert list(shown) == list(probabilities)
        assert shown == pytest.approx(probabilities, abs=1e-4)
        assert len(sent.value.post_data_buffer or b"") < 10_000
    page.page.locator("#samples button").nth(2).click()
    page.wait()
    assert page.errors == []


def test_in_a_browser_a_model_of_other_pixels_sees_what_python_sees_and_needs_not_its_data(own_run, chromium, tmp_path):
    with in_a_thread(served.open_model(str(own_run.directory))) as client:
        (about,) = client.ask("GET", "/models")[1]["models"]
        assert (about["image_size"], about["data"], about["classes"]) == (24, "mine", list(own_run.dataset.classes))
        page = Page(chromium, client.port)
        assert page.page.locator("#samples button").count() == 0
        paths = []
        for index, size in enumerate([(24, 24), (7, 9), (23, 23), (25, 40), (64, 31), (301, 200)]):
            paths.append(tmp_path / f"{index}.png")
            noise(size).save(paths[-1])
        expected = inference.predict(trained.load(own_run.directory, "cpu"), paths)
        for path, prediction in zip(paths, expected, strict=True):
            assert list(page.classify(path)) == list(by_class(prediction))
            python = pictures.to_array(pictures.read(path), 24).transpose(1, 2, 0)
            assert np.array_equal(page.seen(24), python), path
        assert page.page.inner_text("#seen-caption") == "What the model sees: 24 × 24 pixels"
        assert not page.page.is_visible("#left")
        assert page.errors == []


def test_of_a_thousand_classes_ten_are_told_or_as_many_as_asked(thousand, tmp_path):
    model = trained.load(thousand.directory, "cpu")
    path = onnx_file.to_onnx(model, tmp_path / "many.onnx", thousand.dataset).path
    service = app.Service(served.open_model(str(path)))
    (tmp_path / "picture.png").write_bytes(png())
    (expected,) = inference.predict(model, [tmp_path / "picture.png"], top=1000)
    for query, count in ((b"", 10), (b"top=3", 3), (b"top=9999", 1000), (b"activation=1", 10)):
        body = bytes(asyncio.run(service.predict(request(png(), query=query))).body)
        answer = json.loads(body)
        assert list(by_class(answer)) == list(by_class(expected))[:count]
    assert len(body) < 20_000
    assert [len(entry["activation"]) for entry in answer["classes"]] == [16] * 10


def test_pictures_in_one_batch_get_what_each_asked_for(minute):
    service = app.Service(minute)
    pixels = [service.decode(png(index)) for index in range(2)]
    one, other = service.classify(pixels, [app.Asked(), app.Asked(top=2, activation=True)])
    assert (len(one["classes"]), len(other["classes"])) == (10, 2)
    assert all("activation" not in entry for entry in one["classes"])
    assert all(len(entry["activation"]) == 16 for entry in other["classes"])


def test_samples_are_of_ten_classes_at_most_and_of_those_that_have_images(own_run, thousand):
    own = web.samples(own_run.dataset)
    assert [label for _, label, _ in own] == ["käse", "größe <1>", "猫"]
    with Image.open(io.BytesIO(own[0][2])) as image:
        assert image.size == (24, 24)
    assert [label for _, label, _ in web.samples(thousand.dataset)] == [
        f"class {index:03d}" for index in range(0, 1000, 100)
    ]
    assert [label for _, label, _ in web.samples(data.sample())] == list(CLASSES)
