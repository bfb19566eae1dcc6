"""The processes of the service: signals, replacement, sockets."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.test_app import Client, Running, png, start
from tinycifar.serve import supervisor

pytestmark = pytest.mark.slow


def test_a_signal_lets_the_requests_at_hand_finish(exports: Path, tmp_path: Path) -> None:
    running = start(exports / "minute.onnx", tmp_path / "log")
    content = png()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[:100])
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(content[100:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"probability"' in answer
    assert running.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=5)


@pytest.mark.parametrize("seconds", [*(pytest.param(of, marks=pytest.mark.end_to_end) for of in (0.0, 0.3)), 1.5])
def test_an_interrupt_while_it_starts_ends_it_quietly(exports: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "tinycifar", "serve", exports / "minute.onnx", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 30
    while not children.read_text().split() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed = process.communicate(timeout=20)[1]
    assert process.returncode in (0, 130)
    assert "Traceback" not in printed


SIGINT_IS_BLOCKED = """
import multiprocessing, signal
from tinycifar.serve import supervisor

def tell(pipe):
    pipe.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=tell, args=[theirs])
        with supervisor._no_interrupt():
            process.start()
        print(ours.recv())
        process.join()
"""


def test_no_process_is_started_that_an_interrupt_reaches(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SIGINT_IS_BLOCKED)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_a_worker_that_is_killed_is_replaced_and_none_outlives_the_service(exports: Path, tmp_path: Path) -> None:
    running = start(exports / "minute.onnx", tmp_path / "log")
    assert running.ask("POST", "/predict", png())[0] == 200
    first, second = running.workers()
    os.kill(first, signal.SIGKILL)
    until = time.monotonic() + 20
    while len(workers := set(running.workers()) - {first}) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(workers) == 2
    assert second in workers
    for _ in range(20):
        assert running.ask("POST", "/predict", png())[0] == 200
    running.stop(signal.SIGKILL)
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processes share one socket")
def test_connections_are_shared_out_among_the_processes() -> None:
    sockets = supervisor._listen("127.0.0.1", 0, 2)
    address = sockets[0].getsockname()
    clients = [socket.create_connection(address) for _ in range(40)]
    taken = []
    for one in sockets:
        one.setblocking(False)
        taken.append(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.accept()[0].close()
                taken[-1] += 1
    assert sum(taken) == 40
    assert min(taken) > 1  # by chance less often than once in a billion
    with pytest.raises(OSError, match="in use"):
        supervisor._listen("127.0.0.1", address[1], 2)
    for one in [*clients, *sockets]:
        one.close()


def test_a_port_in_use_is_told_in_one_line(exports: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "tinycifar", "serve", exports / "minute.onnx", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


TERMINATED_AT_START = """
import os, signal
from tinycifar.serve import app, supervisor

ending = app.open_model
start = supervisor.multiprocessing.get_context("spawn").Process.start

def start_and_signal(process):
    os.kill(os.getpid(), signal.SIGTERM)  # it arrives while the process is started
    start(process)

if __name__ == "__main__":
    supervisor.multiprocessing.get_context("spawn").Process.start = start_and_signal
    supervisor.serve(app.open_model("minute"), port=0, workers=2)
"""


def test_sigterm_while_a_process_is_started_ends_the_service_with_code_0(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TERMINATED_AT_START.replace("ending = app.open_model\n", ""))
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_the_address_of_all_ipv6_interfaces_answers_ipv4_too() -> None:
    (listening,) = supervisor._listen("::", 0, 1)
    try:
        port = listening.getsockname()[1]
    except OSError:
        pytest.skip("needs IPv6")
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, port), timeout=5).close()
    listening.close()


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    client_max_body_size 12m;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{upstream}; {line} }} }}
}}
"""


@pytest.fixture(scope="module")
def behind_a_proxy(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that browsers know as classify.example."""
    log = tmp_path_factory.mktemp("behind") / "log"
    running = start(exports / "minute.onnx", log, "--allow-host", "classify.example")
    yield running
    running.stop()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
@pytest.mark.parametrize("line", ["", "proxy_set_header Host $host;", "proxy_set_header Host $http_host;"])
def test_the_page_works_behind_nginx(behind_a_proxy: Running, tmp_path: Path, line: str) -> None:
    running = behind_a_proxy
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = NGINX.format(folder=tmp_path, port=port, upstream=running.port, line=line)
    (tmp_path / "nginx.conf").write_text(settings)
    proxy = subprocess.Popen(["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        host = f"classify.example:{port}"
        behind = Client(port)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if behind.ask("GET", "/", headers={"Host": host})[0] == 200:
                    break
            time.sleep(0.1)
        for origin, expected in (
            (f"https://{host}", 200),
            ("https://classify.example", 200),
            ("https://evil.example", 403),
        ):
            assert behind.ask("POST", "/predict", png(), {"Host": host, "Origin": origin})[0] == expected
    finally:
        proxy.terminate()
        proxy.wait(20)
