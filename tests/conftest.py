"""What several test files share."""

import os
import signal
from pathlib import Path

import pytest

from tinycifar import cifar10

# Tests are small: more threads gain nothing, and where other processes hold the cores they wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"
# A shell that runs the tests in the background has Ctrl-C ignored, here and in every process started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_folder_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every test runs in a folder of its own; only those marked for the full data see the user's cache.

    Only the tests of `cifar10` fill a cache, from sources of their own: none uses the network.
    """

    def fill(*arguments: object) -> None:
        raise AssertionError("a test asked for CIFAR-10 from the network")

    monkeypatch.chdir(tmp_path)
    if not {"full_data", "end_to_end"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setenv("TINYCIFAR_CACHE", str(tmp_path / "cache"))
        if request.module.__name__ != "test_cifar10":
            monkeypatch.setattr(cifar10, "_fill", fill)
