"""What glibc does with large blocks of memory that this process frees; elsewhere nothing here does anything."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
DEFAULT_TRIM_BYTES = 128 << 10


def keep_freed() -> None:
    """Keep large freed blocks for the next step instead of giving them back to the system.

    A step frees and asks for hundreds of megabytes of activations. By default each large block is mapped anew, and the
    kernel zeroes it page by page: 28,000 page faults and a sixth of a step's time for the reference on two cores
    (docs/LOG.md), against 20 to 30 MB more memory.
    """
    # Blocks up to that size come from the heap; older versions take no more than 32 MiB.
    if _set(M_MMAP_THRESHOLD, 1 << 30) or _set(M_MMAP_THRESHOLD, 32 << 20):
        _set(M_TRIM_THRESHOLD, (1 << 31) - 1)  # the heap's end is not given back: alone it is slower than neither


def return_freed() -> None:
    """Give every freed block of more than a megabyte back to the system, also after the first."""
    _set(M_MMAP_THRESHOLD, 1 << 20)


_entered = 0


@contextlib.contextmanager
def keeping_freed() -> Iterator[None]:
    """Keep freed memory while it is entered; after the outermost one all that is free goes back to the system."""
    global _entered
    _entered += 1
    keep_freed()
    try:
        yield
    finally:
        _entered -= 1
        if not _entered and platform.libc_ver()[0] == "glibc":
            return_freed()
            _set(M_TRIM_THRESHOLD, DEFAULT_TRIM_BYTES)
            ctypes.CDLL(None).malloc_trim(0)


def _set(option: int, value: int) -> bool:
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(option, value))
