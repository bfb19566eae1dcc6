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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import uvicorn
from PIL import Image
from starlette.requests import Request

from conftest import Own
from tinycifar import data, inference, trained
from tinycifar.data import pictures
from tinycifar.data.dataset import CLASSES
from tinycifar.formats import onnx_file, web
from tinycifar.serve import app, gate
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
            connection.putrequest(method, path, skip_host=headers is not None and "Host" in headers)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
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
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def workers(self) -> list[int]:
        """The processes that answer."""
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[int]]:
        """The memory of its workers together, in bytes, looked at 200 times a second."""
        files = [Path(f"/proc/{pid}/statm") for pid in self.workers()]
        found: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.005):
                found.append(sum(int(file.read_text().split()[1]) for file in files) * os.sysconf("SC_PAGE_SIZE"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield found
        finally:
            over.set()
            watcher.join()


def start(model: Path, log: Path, *options: str) -> Running:
    command = [sys.executable, "-m", "tinycifar", "serve", model, "--port", "0", "--workers", "2", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"Serving \S+ at http://[\w.]+:(\d+)/ \(Ctrl-C ends it\)\n", line)
    assert found is not None, line
    return Running(process, int(found[1]), log)


@pytest.fixture(scope="module")
def running(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = start(exports / "minute.onnx", tmp_path_factory.mktemp("served") / "log")
    yield found
    found.stop()


@contextlib.contextmanager
def in_a_thread(source: str) -> Iterator[str]:
    """The URL of a service that runs in this process, which starts sooner than one of its own."""
    service = app.Service(app.open_model(source))
    settings = {"port": 0, "log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app.create_app(service), http=gate.Protocol, **settings))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def png(index: int = 0) -> bytes:
    content = io.BytesIO()
    pictures.to_image(data.sample().test_images[index]).save(content, "PNG")
    return content.getvalue()


def form(content: bytes, name: str = "image") -> tuple[bytes, dict[str, str]]:
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
    return head.encode() + content + b"\r\n--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}


@pytest.mark.parametrize("as_form", [False, True])
def test_a_picture_gets_the_probabilities_that_predict_gives(running: Running, tmp_path: Path, as_form: bool) -> None:
    (tmp_path / "picture.png").write_bytes(png(3))
    body, headers = form(png(3)) if as_form else (png(3), {})
    status, found, _ = running.ask("POST", "/predict", body, headers)
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "picture.png"], top=10)
    assert status == 200
    assert found["model"] == "minute"
    assert [of["class"] for of in found["classes"]] == [of["class"] for of in expected["classes"]]
    for ours, theirs in zip(found["classes"], expected["classes"], strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=ROUNDED)
    assert found["milliseconds"] > 0


def test_health_and_models_answer(running: Running) -> None:
    assert running.ask("GET", "/health")[:2] == (200, {"status": "ok", "waiting": 0})
    (model,) = running.ask("GET", "/models")[1]["models"]
    assert (model["name"], model["model"], model["classes"]) == ("minute", "whitenet", list(CLASSES))


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
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(
    running: Running, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    found = running.ask("POST", "/predict", body, headers)
    assert found[0] == status
    assert message in found[1]["error"]
    assert "\n" not in found[1]["error"]


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
def test_only_this_machines_names_and_the_pages_own_origin_pass(
    running: Running, host: str, origin: str | None, passes: bool
) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        lines = [b"GET /health HTTP/1.1", b"Host: " + host.encode(), b"Connection: close"]
        if origin is not None:
            lines.append(b"Origin: " + origin.encode())
        head = b"\r\n".join(lines).replace(b"PORT", str(running.port).encode())
        connection.sendall(head + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status = int(answer.split()[1])
    assert (status == 200) == passes
    assert 200 <= status < 500
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize(
    "lines",
    [
        [b"GET /health HTTP/1.1"],
        [b"GET /health HTTP/1.1", b"Host: localhost", b"Host: evil.example"],
        [b"GET http://evil.example/health HTTP/1.1", b"Host: evil.example"],
        [b"GET /models HTTP/1.0"],
        [b"GET / HTTP/1.0"],
        [b"POST /health HTTP/1.0", b"Content-Length: 0"],
        [b"GET /models HTTP/1.1", b"Host: 10.0.0.5:8000"],
        [b"GET /health HTTP/1.1", b"Host: 10.0.0.5:8000", b"Origin: http://10.0.0.5:8000"],
        [b"GET /health HTTP/1.1", b"Host: [::ffff:10.0.0.5]"],
    ],
)
def test_a_request_without_one_host_is_refused(running: Running, lines: list[bytes]) -> None:
    assert talk(running, b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n").split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "lines",
    [
        [b"GET /health HTTP/1.0"],
        [b"HEAD /health HTTP/1.0"],
        [b"GET /health HTTP/1.1", b"Host: 10.0.0.5:8000"],
        [b"GET /health HTTP/1.1", b"Host: 203.0.113.9"],
        [b"GET /health HTTP/1.1", b"Host: [2001:db8::7]:8000"],
    ],
)
def test_health_checks_by_address_or_without_a_host_are_answered(running: Running, lines: list[bytes]) -> None:
    assert talk(running, b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n").split()[1] == b"200"


@pytest.mark.parametrize("path", ["/etc/passwd", "/samples/../../app.py", "/%2e%2e/app.py", "//page.js", "/page.js/"])
def test_no_path_leads_to_a_file_that_is_not_on_the_list(running: Running, path: str) -> None:
    status, found, _ = running.ask("GET", path)
    assert status == 404
    assert found == {"error": "Not Found"}


def bomb(side: int, mode: str = "L") -> bytes:
    """A PNG of one colour that is small and large when decoded."""
    content = io.BytesIO()
    Image.new(mode, (side, side)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def malformed(count: int) -> Iterator[bytes]:
    """Damaged pictures of every format, headers that promise too much, and noise."""
    rng = random.Random(0)
    whole = []
    for kind in ("PNG", "JPEG", "WEBP"):
        content = io.BytesIO()
        pictures.to_image(data.sample().test_images[0]).resize((200, 150)).save(content, kind)
        whole.append(content.getvalue())
    for index in range(count):
        content = bytearray(rng.choice(whole))
        match index % 4:
            case 0:
                yield bytes(content[: rng.randrange(1, 60)])
            case 1:
                yield rng.randbytes(rng.randrange(1, 5000))
            case 2:
                yield rng.choice([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"]) + rng.randbytes(500)
            case _:  # a header that promises 60,000 x 60,000 pixels
                head = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
                chunk = b"IHDR" + head
                yield b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + rng.randbytes(100)


def patiently(running: Running, content: bytes) -> int:
    """The status of a prediction, asked for again while the service is busy, as on a machine under load."""
    until = time.monotonic() + 100
    while (status := running.ask("POST", "/predict", content)[0]) == 503 and time.monotonic() < until:
        time.sleep(1)
    return status


def test_malformed_uploads_and_bombs_get_4xx_and_memory_stays(running: Running) -> None:
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


def test_every_request_is_one_line_of_json_in_the_log(running: Running) -> None:
    before = len(running.log.read_text().splitlines())
    running.ask("POST", "/predict", png())
    running.ask("GET", "/a\u0022b".encode().decode("latin-1"))
    running.ask("GET", "/health", headers={"Host": "evil.example"})
    until = time.monotonic() + 20  # a line is written after its answer
    expected = [("GET", '/a"b', 404), ("GET", "/health", 403), ("POST", "/predict", 200)]
    found: list[tuple[str, str, int]] = []
    while len(found) < 3 and time.monotonic() < until:
        time.sleep(0.01)
        lines = [json.loads(line) for line in running.log.read_text().splitlines()[before:]]
        found = [(line["method"], line["path"], line["status"]) for line in lines]
        found = [line for line in found if line in expected]  # uploads of other tests may end only now
    assert sorted(found) == expected
    assert all(line["milliseconds"] >= 0 and line["client"] == "127.0.0.1" for line in lines)


def request(content: bytes, seconds: float = 0.0, query: bytes = b"") -> Request:
    """A request whose picture has come after that time."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": content, "more_body": False}

    return Request({"type": "http", "headers": [], "query_string": query}, receive)


def test_an_upload_that_takes_too_long_is_ended(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = app.open_model(str(exports / "minute.onnx"))
    service = app.Service(model, limits=Limits(upload_seconds=0.1))  # type: ignore[arg-type]
    with pytest.raises(app.HTTPException, match=r"the upload took longer than 0\.1 seconds") as refused:
        asyncio.run(service.predict(request(png(), seconds=10)))
    assert refused.value.status_code == 408
    monkeypatch.setattr(app, "SECONDS", 0.1)
    service = app.Service(model)
    with pytest.raises(app.HTTPException, match="nothing of the upload arrived") as refused:
        asyncio.run(service.predict(request(png(), seconds=10)))
    assert refused.value.status_code == 408
    assert (service.waiting, service.bytes) == (0, 0)


def test_an_upload_that_arrives_steadily_may_take_longer_than_a_pause(
    exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")))
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


def test_a_picture_that_finds_no_memory_gets_503(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")))

    def decode(_: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(service, "decode", decode)
    with pytest.raises(app.HTTPException) as refused:
        asyncio.run(service.predict(request(png())))
    assert refused.value.status_code == 503


def test_a_picture_that_waits_too_long_gets_503_and_leaves_the_queue(
    exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")))
    free = threading.Event()
    monkeypatch.setattr(app, "SECONDS", 0.1)
    monkeypatch.setattr(service, "decode", lambda _: free.wait(10))
    with pytest.raises(app.HTTPException) as refused:
        asyncio.run(service.predict(request(png())))
    free.set()
    assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "1"})
    assert (service.waiting, service.bytes) == (0, 0)


def test_a_full_queue_answers_503_and_when_to_come_back(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")))
    free = threading.Event()
    monkeypatch.setattr(app, "MOST_WAITING", 3)
    monkeypatch.setattr(service, "decode", lambda content: (free.wait(10), pictures.decode(content, service.large))[1])

    async def ask() -> list[Any]:
        asked = [asyncio.create_task(service.predict(request(png()))) for _ in range(5)]
        await asyncio.sleep(0.2)
        free.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert [of.status_code for of in found] == [200, 200, 200, 503, 503]
    assert found[3].headers == {"Retry-After": "1"}
    assert (service.waiting, service.bytes) == (0, 0)


def test_uploads_that_are_too_many_bytes_together_get_503(exports: Path) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")), most_bytes=len(png()))
    assert asyncio.run(service.predict(request(png()))).status_code == 200
    with pytest.raises(app.HTTPException) as refused:
        asyncio.run(service.predict(request(png() + b"1")))
    assert refused.value.status_code == 503
    assert service.bytes == 0


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
def test_headers_that_do_not_end_are_not_waited_for(running: Running) -> None:
    start = time.monotonic()
    assert talk(running, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX: ") == b""
    assert 9 < time.monotonic() - start < 12


def test_headers_that_are_too_large_end_the_connection(running: Running) -> None:
    start = time.monotonic()
    assert talk(running, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000) == b""
    assert time.monotonic() - start < 5


def test_a_body_may_come_in_chunks(running: Running) -> None:
    content = png()
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:100], content[100:]))
    assert b'"probability"' in talk(running, head + chunks + b"0\r\n\r\n")


def test_every_answer_says_that_it_is_what_it_says(running: Running) -> None:
    for path in ("/", "/health", "/nothing"):
        about = running.ask("GET", path)[2]
        assert about["x-content-type-options"] == "nosniff"
        assert about["cross-origin-resource-policy"] == "same-origin"
        assert not any(name.startswith("access-control") for name in about)


def test_pictures_that_come_together_get_each_its_own_answer(running: Running, tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(60)]
    for index, file in enumerate(files):
        file.write_bytes(b"damaged" if index % 10 == 9 else png(index))
    with ThreadPoolExecutor(30) as clients:
        found = list(clients.map(lambda file: running.ask("POST", "/predict", file.read_bytes())[:2], files))
    expected = {of["file"]: of for of in inference.predict(trained.load("minute", "cpu"), files, top=10)}
    answers: list[dict[str, float]] = []
    for file, (status, answer) in zip(files, found, strict=True):
        of = expected[str(file)]
        assert status == (400 if "problem" in of else 200)
        if status == 200:
            ours = {entry["class"]: entry["probability"] for entry in answer["classes"]}
            theirs = {entry["class"]: entry["probability"] for entry in of["classes"]}
            assert ours == pytest.approx(theirs, abs=ROUNDED)
            answers.append(theirs)
    pairs = list(itertools.combinations(answers, 2))
    alike = sum(first == pytest.approx(second, abs=ROUNDED) for first, second in pairs)
    assert alike < 0.05 * len(pairs), "an answer to another picture would be noticed"


def test_the_client_in_the_documents_names_the_class(running: Running, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "SERVING.md").read_text()
    (client,) = re.findall(r"A short client.*?```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(client.splitlines()) <= 10
    (tmp_path / "client.py").write_text(client.replace(":8000/", f":{running.port}/"))
    (tmp_path / "cat.png").write_bytes(png())
    command = [sys.executable, tmp_path / "client.py", tmp_path / "cat.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "cat.png"], top=3)
    assert done.stdout.splitlines() == [f"{of['class']} {of['probability']:.1%}" for of in expected["classes"]]


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("nothing")
    with pytest.raises(ValueError, match="is no ONNX file that tinycifar exported"):
        app.open_model(str(tmp_path / "model.onnx"))


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
    ],
)
def test_a_file_with_other_metadata_is_refused(exports: Path, tmp_path: Path, field: str, value: str) -> None:
    model = onnx.load(exports / "minute.onnx")
    next(entry for entry in model.metadata_props if entry.key == field).value = value
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="is no ONNX file that tinycifar exported"):
        app.open_model(str(tmp_path / "model.onnx"))


def test_in_a_browser_the_page_asks_the_server(running: Running, chromium: Browser, tmp_path: Path) -> None:
    page = chromium.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"http://127.0.0.1:{running.port}/")
    page.wait_for_selector("html[data-ready]")
    (tmp_path / "picture.png").write_bytes(png(7))
    page.set_input_files("#file", tmp_path / "picture.png")
    page.wait_for_selector("html[data-answers='1']")
    bars = "[...document.querySelectorAll('#bars button')].map(bar => [bar.dataset.class, +bar.dataset.probability])"
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "picture.png"], top=10)
    for (name, probability), of in zip(page.evaluate(bars), expected["classes"], strict=True):
        assert (name, probability) == (of["class"], pytest.approx(of["probability"], abs=1e-4))
    page.locator("#samples button").nth(2).click()
    page.wait_for_selector("html[data-answers='2']")
    assert said == []


def test_in_a_browser_a_large_photograph_is_sent_as_the_pixels_that_the_model_sees(
    running: Running, chromium: Browser, tmp_path: Path
) -> None:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{running.port}/")
    page.wait_for_selector("html[data-ready]")
    photo = Image.merge("RGB", [Image.effect_noise((900, 700), 90) for _ in range(3)])
    photo.save(tmp_path / "photo.png")
    assert (tmp_path / "photo.png").stat().st_size > 1_000_000
    with page.expect_request("**/predict*") as sent:
        page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("html[data-answers='1']")
    assert len(sent.value.post_data_buffer or b"") < 10_000
    bars = "[...document.querySelectorAll('#bars button')].map(bar => [bar.dataset.class, +bar.dataset.probability])"
    (expected,) = inference.predict(trained.load("minute", "cpu"), [tmp_path / "photo.png"], top=10)
    for (name, probability), of in zip(page.evaluate(bars), expected["classes"], strict=True):
        assert (name, probability) == (of["class"], pytest.approx(of["probability"], abs=1e-4))


def test_in_a_browser_a_model_of_other_pixels_sees_what_python_sees_and_needs_not_its_data(
    own_run: Own, chromium: Browser, tmp_path: Path
) -> None:
    with in_a_thread(str(own_run.directory)) as address:
        (about,) = Client(int(address[:-1].rpartition(":")[2])).ask("GET", "/models")[1]["models"]
        assert (about["image_size"], about["data"], about["classes"]) == (24, "mine", list(own_run.dataset.classes))
        page = chromium.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        assert page.locator("#samples button").count() == 0
        paths = []
        for index, size in enumerate([(24, 24), (7, 9), (23, 23), (25, 40), (64, 31), (301, 200)]):
            paths.append(tmp_path / f"{index}.png")
            Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)]).save(paths[-1])
        expected = inference.predict(trained.load(own_run.directory, "cpu"), paths)
        for turn, (path, of) in enumerate(zip(paths, expected, strict=True), 1):
            page.set_input_files("#file", path)
            page.wait_for_selector(f"html[data-answers='{turn}']")
            seen = page.evaluate("[...$('seen').getContext('2d').getImageData(0, 0, 24, 24).data]")
            python = pictures.to_array(pictures.read(path), 24).transpose(1, 2, 0)
            assert np.array_equal(np.array(seen).reshape(24, 24, 4)[:, :, :3], python), path
            bars = page.evaluate("[...document.querySelectorAll('#bars button')].map(bar => bar.dataset.class)")
            assert bars == [each["class"] for each in of["classes"]]
        assert page.inner_text("#seen-caption") == "What the model sees: 24 × 24 pixels"
        assert not page.is_visible("#left")
        assert said == []


def test_of_a_thousand_classes_ten_are_told_or_as_many_as_asked(thousand: Own, tmp_path: Path) -> None:
    model = trained.load(thousand.directory, "cpu")
    path = onnx_file.to_onnx(model, tmp_path / "many.onnx", thousand.dataset).path
    service = app.Service(app.open_model(str(path)))

    def ask(query: bytes) -> tuple[int, Any]:
        body = asyncio.run(service.predict(request(png(), query=query))).body
        return len(body), json.loads(bytes(body))

    (tmp_path / "picture.png").write_bytes(png())
    (expected,) = inference.predict(model, [tmp_path / "picture.png"], top=1000)
    for query, count in ((b"", 10), (b"top=3", 3), (b"top=9999", 1000)):
        names = [of["class"] for of in ask(query)[1]["classes"]]
        assert names == [of["class"] for of in expected["classes"]][:count]
    size, found = ask(b"activation=1")
    assert size < 20_000
    assert [len(of["activation"]) for of in found["classes"]] == [16] * 10
    for query in (b"top=0", b"top=x", b"top=-1", b"top=10000"):
        with pytest.raises(app.HTTPException, match="top takes the number of classes"):
            ask(query)


def test_pictures_in_one_batch_get_what_each_asked_for(exports: Path) -> None:
    service = app.Service(app.open_model(str(exports / "minute.onnx")))
    pixels = [service.decode(png(index)) for index in range(2)]
    one, other = service.classify(pixels, [app.Asked(), app.Asked(top=2, activation=True)])
    assert (len(one["classes"]), len(other["classes"])) == (10, 2)
    assert all("activation" not in of for of in one["classes"])
    assert all(len(of["activation"]) == 16 for of in other["classes"])


def test_samples_are_of_ten_classes_at_most_and_of_those_that_have_images(own_run: Own, thousand: Own) -> None:
    own = web.samples(own_run.dataset)
    assert [label for _, label, _ in own] == ["käse", "größe <1>", "猫"]
    with Image.open(io.BytesIO(own[0][2])) as image:
        assert image.size == (24, 24)
    assert [label for _, label, _ in web.samples(thousand.dataset)] == [
        f"class {index:03d}" for index in range(0, 1000, 100)
    ]
    assert [label for _, label, _ in web.samples(data.sample())] == list(CLASSES)
