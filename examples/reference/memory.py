"""What is freed stays with the process, to be used again at once."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# of glibc's malloc.h, with their defaults
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULTS = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65_536}


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within this context, glibc asks the system for no large block by itself and gives nothing back.

    It does so for every large tensor otherwise, and each first touch of a page is a fault: two thirds of the time of a
    training step on the virtual machine that this was measured on.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
