"""Memory of weights that were let go goes back to the system at once.

glibc raises the size from which blocks are mapped, and given back, with the sizes that it sees, up to 32 MB. Below it
freed blocks stay with the process between others, and a run that reads a model layer by layer comes to hold gigabytes.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # of malloc.h
_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Map blocks of a megabyte and more for the rest of the process; does nothing where the C library is another."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES)
