"""A training while it goes on, as TensorBoard's event files in its run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
STEPS = 10  # between two points of the loss


def check() -> None:
    """Raise ValueError, with what is needed, unless TensorBoard is installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError('--tensorboard needs another package: pip install "tinycifar[tensorboard]"') from None


class View:
    """Writes scalars over the steps of a run, in `directory`; for None it writes nothing.

    What an interrupted run wrote behind the first step that is added is not shown any more.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._writer: Any = None

    def __enter__(self) -> View:
        return self

    def add(self, step: int, **values: float) -> None:
        """Add values by name at a step: those of the step itself, or of the epoch that ends with it."""
        if self._directory is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory / FOLDER), purge_step=step, flush_secs=5)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()
