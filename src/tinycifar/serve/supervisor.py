"""The processes of the HTTP service: sockets, start, replacement and end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import uvicorn
from filelock import FileLock

from tinycifar import memory
from tinycifar.serve.app import MOST_BYTES_AT_ONCE, Service, create_app
from tinycifar.serve.gate import SECONDS, Limits, Protocol, host_names, trusted
from tinycifar.serve.served import Served

MOST_WORKERS = 4  # unless told otherwise
MOST_DEATHS = 4  # of processes within a minute
BACKLOG = 2048  # connections that wait to be taken by a process
TERMINAL = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]  # what a terminal sends
POLL_SECONDS = 0.2  # between two looks at whether a signal has arrived
LOCK_SECONDS = 0.005  # between two looks at whether a large picture may be decoded


class WorkerError(Exception):
    """A process of the service that failed."""


def serve(
    model: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    hosts: Sequence[str] = (),
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    proxies: Sequence[str] = (),
    started: Callable[[str], None] = lambda _: None,
    replaced: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve with `workers` processes, by default one per core and at most four, until SIGTERM, SIGINT or SIGHUP.

    `host`, with or without brackets, is the address to listen on; `::` listens for IPv4 as well. `hosts` are the names
    by which clients address it, as of `gate.host_names`, and `proxies` those whose X-Forwarded-For is believed, as of
    `gate.trusted`. On a signal the processes finish the requests at hand and end. `started` is called with the URL once
    all processes accept connections, `replaced` with a line when a process ended and is replaced. Raises ValueError as
    these two do, OSError if the port is taken, and WorkerError if processes end again and again.
    """
    host = host.removeprefix("[").removesuffix("]")
    names, trusted_proxies = host_names(host, hosts), trusted(proxies)
    count = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    context = multiprocessing.get_context("spawn")
    processes: dict[SpawnProcess, socket.socket] = {}
    ending = False

    def end(*_: object) -> None:  # a signal handler: all work is left to the loop
        nonlocal ending
        ending = True

    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(listening) for listening in _listen(host, port, count)]
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        (folder / "model").write_bytes(pickle.dumps(model))  # what a process is started with must fit into a pipe
        ready, is_ready = context.Pipe(duplex=False)
        most_bytes = max(limits.upload_bytes, MOST_BYTES_AT_ONCE // count)
        port = sockets[0].getsockname()[1]

        def begin(listening: socket.socket) -> None:
            arguments = listening, folder, names, most_bytes, limits, trusted_proxies, is_ready
            process = context.Process(target=_work, args=arguments)
            with _guarded():
                process.start()
            processes[process] = listening

        signals = [signal.SIGTERM, *TERMINAL]
        before = {
            number: signal.signal(number, end) for number in signals if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            for listening in sockets:
                if not ending:
                    begin(listening)
            up = 0
            deaths: list[float] = []
            while not ending:
                sentinels = [process.sentinel for process in processes]
                if ready in connection.wait([ready, *sentinels], timeout=POLL_SECONDS):
                    ready.recv()
                    up += 1
                    if up == count and not ending:
                        shown = names[0] if names else f"[{host}]" if ":" in host else host
                        started(f"http://{shown}:{port}/")
                for process in [process for process in processes if not process.is_alive() and not ending]:
                    listening = processes.pop(process)
                    deaths = [at for at in deaths if time.monotonic() - at < 60] + [time.monotonic()]
                    if len(deaths) > MOST_DEATHS:
                        raise WorkerError(f"the processes of the service keep ending, with code {process.exitcode}")
                    replaced(f"a process of the service ended with code {process.exitcode} and is replaced")
                    begin(listening)
        finally:
            for listening in sockets:
                listening.close()  # the processes close theirs
            for process in processes:
                process.terminate()
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
    create = partial(
        socket.create_server,
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
    alone = create((host, port))
    if sys.platform != "linux":
        return [alone] * count
    port = alone.getsockname()[1]
    alone.close()  # it was open to find whether the port is free: those that share one would not tell
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(create((host, port), reuse_port=True)) for _ in range(count)]
        opened.pop_all()  # all of them could be opened, so all stay open
    return sockets


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Let processes that are started meanwhile see no signal of the terminal, nor import from the working folder.

    The terminal sends its signals to all processes; this one ends the others. Python puts the working folder before its
    own modules while it starts a process (from 3.11 on PYTHONSAFEPATH prevents that), and a `signal.py` there, or any
    other file named as one of its modules, would be run instead.
    """
    safe_path = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # the first process would have it started, which lets SIGINT through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)
    try:
        yield
    finally:
        os.environ["PYTHONSAFEPATH"] = safe_path  # empty means no
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    listening: socket.socket,
    folder: Path,
    hosts: Sequence[str],
    most_bytes: int,
    limits: Limits,
    proxies: Sequence[str],
    is_ready: Connection,
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
    model: Served = pickle.loads((folder / "model").read_bytes())  # nobody but the first process may write there
    service = Service(model, lambda: lock.acquire(poll_interval=LOCK_SECONDS), most_bytes, limits)
    config = uvicorn.Config(
        create_app(service, hosts),
        http=Protocol,
        workers=1,
        log_config=None,
        log_level="error",  # no line for what strangers send that is no HTTP, nor advice to install WebSocket libraries
        access_log=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=int(2 * SECONDS),
    )
    is_ready.send(True)
    uvicorn.Server(config).run(sockets=[listening])
