"""A running training as TensorBoard's event files in its run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
STEPS = 10  # between two points of the loss


def check() -> None:
    """Raise ValueError, with what is needed, unless TensorBoard is installed."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        raise ValueError('`tensorboard=` needs another package: pip install "tinycifar[tensorboard]"') from None


class View:
    """Writes scalars over the steps of a run, in `directory`; for None it writes nothing.

    What an interrupted run wrote behind the first step that is added is not shown any more. A view must not end what it
    shows: if the disk fails, `warn` gets a line and nothing more is written. `torch.utils.tensorboard` writes in a
    thread, whose traceback would be printed instead (tests/scale/test_live.py).
    """

    def __init__(self, directory: Path | None, warn: Callable[[str], None]) -> None:
        self._directory, self._warn = directory, warn
        self._file: Any = None

    def __enter__(self) -> View:
        return self

    def add(self, step: int, **values: float) -> None:
        """Add values by name at a step: those of the step itself, or of the epoch that ends with it."""
        if self._directory is None:
            return
        try:
            self._write(step, values)
        except OSError as error:
            self._warn(f"TensorBoard shows nothing more of this run: {error.strerror or error}")
            self._directory = None

    def _write(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        events = [Event(wall_time=now, step=step)]
        events[0].summary.value.extend(Summary.Value(tag=name, simple_value=value) for name, value in values.items())
        if self._file is None:
            assert self._directory is not None
            folder = self._directory / FOLDER
            folder.mkdir(exist_ok=True)
            self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("xb")
            version = Event(wall_time=now, file_version="brain.Event:2")
            start = Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START))
            events = [version, start, *events]
        writer = RecordWriter(self._file)
        for event in events:
            writer.write(event.SerializeToString())
        self._file.flush()

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # what was left to be written
                if self._directory is not None:
                    self._warn(f"TensorBoard's last values are missing: {error.strerror or error}")
