"""Ctrl-C and SIGTERM, kept until a step is done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

ended_by: int | None = None
"""The signal that ends this process, once it has come: libraries may turn its exception into another one."""


def end(number: int, frame: FrameType | None) -> None:
    """Handle a signal: raise KeyboardInterrupt for Ctrl-C, else SystemExit; both clean up files and processes."""
    global ended_by
    ended_by = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


class StopSignal:
    """While it is entered, the first Ctrl-C, SIGTERM or SIGHUP sets `.received`; a second one acts immediately.

    A signal that the process was started to ignore stays ignored. Outside the main thread, where Python allows no
    signal handler, nothing is caught. With `quiet` nothing is printed when a signal comes.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            with contextlib.suppress(ValueError):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
        with contextlib.suppress(OSError):  # the terminal may be gone
            if not self._quiet:
                os.write(2, b"\nStopping after this step and saving; a second signal ends immediately\n")

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
