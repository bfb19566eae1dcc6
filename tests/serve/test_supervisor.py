"""The processes of the service: signals, replacement, sockets."""

import contextlib
import json
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

from conftest import wait_for
from serve.test_app import Client, Running, png, start
from tinycifar.serve import supervisor

pytestmark = pytest.mark.slow


def test_a_signal_lets_the_requests_at_hand_finish(exports, tmp_path):
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


@pytest.mark.parametrize("seconds", [*(pytest.param(time, marks=pytest.mark.end_to_end) for time in (0.0, 0.3)), 1.5])
def test_an_interrupt_while_it_starts_ends_it_quietly(exports, seconds):
    command = [sys.executable, "-m", "tinycifar", "serve", exports / "minute.onnx", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: children.read_text().strip() != "", 30)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed = process.communicate(timeout=20)[1]
    assert process.returncode in (0, 130)
    assert "Traceback" not in printed


SIGNALS_ARE_BLOCKED = """
import multiprocessing, signal
from tinycifar.serve import supervisor

def report(pipe):
    pipe.send({signal.SIGINT, signal.SIGHUP} <= signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=report, args=[theirs])
        with supervisor._guarded():
            process.start()
        print(ours.recv())
        process.join()
"""


def test_no_process_is_started_that_a_signal_of_the_terminal_reaches(tmp_path):
    (tmp_path / "program.py").write_text(SIGNALS_ARE_BLOCKED)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older versions of Python always look there first")
def test_it_runs_where_a_file_is_named_as_a_module_of_python_and_a_hangup_ends_it(exports):
    for name in ("signal", "queue", "random"):
        Path(f"{name}.py").write_text("raise SystemExit('it was imported')")
    program = (
        "import sys; sys.path.remove(''); "  # as the command `tinycifar` has it
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from tinycifar.cli import main; main()"
    )
    words = ["serve", exports / "minute.onnx", "--port", "0", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("Serving minute at")
    process.send_signal(signal.SIGHUP)  # as a terminal does that is closed
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_a_worker_that_is_killed_is_replaced_and_none_outlives_the_service(exports, tmp_path):
    running = start(exports / "minute.onnx", tmp_path / "log")
    assert running.ask("POST", "/predict", png())[0] == 200
    first, second = running.workers()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(set(running.workers()) - {first}) == 2, 20)
    workers = set(running.workers()) - {first}
    assert second in workers
    for _ in range(20):
        assert running.ask("POST", "/predict", png())[0] == 200
    running.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processes share one socket")
def test_connections_are_shared_out_among_the_processes():
    sockets = supervisor._listen("127.0.0.1", 0, 2)
    address = sockets[0].getsockname()
    clients = [socket.create_connection(address) for _ in range(40)]
    taken = []
    for listening in sockets:
        listening.setblocking(False)
        taken.append(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                listening.accept()[0].close()
                taken[-1] += 1
    assert sum(taken) == 40
    assert min(taken) > 1  # by chance less often than once in a billion
    with pytest.raises(OSError, match="in use"):
        supervisor._listen("127.0.0.1", address[1], 2)
    for opened in [*clients, *sockets]:
        opened.close()


def test_a_port_in_use_is_reported_in_one_line(exports):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "tinycifar", "serve", exports / "minute.onnx", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


TERMINATED_AT_START = """
import os, signal
from tinycifar.serve import app, served, supervisor

Process = supervisor.multiprocessing.get_context("spawn").Process
start = Process.start

def start_and_signal(process):
    os.kill(os.getpid(), signal.SIGTERM)  # it arrives while the process is started
    start(process)

if __name__ == "__main__":
    Process.start = start_and_signal
    supervisor.serve(served.open_model("minute"), port=0, workers=2)
"""


def test_sigterm_while_a_process_is_started_ends_the_service_with_code_0(tmp_path):
    (tmp_path / "program.py").write_text(TERMINATED_AT_START)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


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
    """A service that browsers know as classify.example, on all interfaces, IPv6 ones too if there are any."""
    log = tmp_path_factory.mktemp("behind") / "log"
    address = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    options = ["--host", address, "--allow-host", "classify.example", "--trust-proxy", "127.0.0.1"]
    running = start(exports / "minute.onnx", log, *options)
    yield running
    running.stop()


def test_ipv4_is_answered_on_ipv6_interfaces_too_and_the_log_names_the_client_that_a_proxy_reports(behind_a_proxy):
    if socket.has_dualstack_ipv6():
        socket.create_connection(("::1", behind_a_proxy.port), timeout=5).close()
    expected = ["127.0.0.1", "203.0.113.5"]
    for headers in ({}, {"X-Forwarded-For": expected[1]}):
        assert behind_a_proxy.ask("GET", "/models", headers=headers)[0] == 200
    until = time.monotonic() + 20  # a line is written after its answer
    clients: list[str] = []
    while len(clients) < 2 and time.monotonic() < until:
        time.sleep(0.01)
        lines = [json.loads(line) for line in behind_a_proxy.log.read_text().splitlines()]
        clients = [line["client"] for line in lines if line["path"] == "/models"]
    assert sorted(clients) == expected  # each process writes its own lines


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
@pytest.mark.parametrize("line", ["", "proxy_set_header Host $host;", "proxy_set_header Host $http_host;"])
def test_the_page_works_behind_nginx(behind_a_proxy, tmp_path, line):
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
