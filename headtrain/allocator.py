"""Blocks that every step asks for and gives back stay with the process while heads train on a CPU.

glibc returns the top of its heap to the system whenever much of it is free, and asks for it again in the next step:
with fifteen heads at once thousands of pages are then mapped and cleared anew in each step.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

LARGEST_FROM_HEAP = 32 << 20
"""Bytes from which a block is mapped by itself; the most that glibc takes, and where its own adaption ends."""

KEPT, KEPT_AFTERWARDS = 1 << 30, 64 << 20
"""Bytes at the top of the heap that stay free there; the latter is where glibc's own adaption ends."""


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """While it lasts, at most 1 GiB of freed memory stays with the process; then it goes back to the system.

    Does nothing for another device or where the C library has no such calls.
    """
    library = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if not all(hasattr(library, name) for name in ("mallopt", "malloc_trim")):
        yield
        return
    assert library is not None
    library.mallopt(MMAP_THRESHOLD, LARGEST_FROM_HEAP)
    library.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        library.mallopt(TRIM_THRESHOLD, KEPT_AFTERWARDS)
        library.malloc_trim(0)
