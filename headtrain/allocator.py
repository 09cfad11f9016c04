"""Blocks that every step asks for and gives back stay with the process while heads train on a CPU.

glibc returns the top of its heap to the system whenever much of it is free, and maps a large block by itself, and asks
for both again in the next step: with many heads at once thousands of pages are then mapped and cleared anew in each
step, a seventh of its time where 45 supervised heads learn together.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""

MAPPED_AFTERWARDS = 1 << 16
"""Blocks that may be mapped by themselves, as glibc has it; while heads train none is."""

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
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        library.mallopt(MMAP_MAX, MAPPED_AFTERWARDS)
        library.mallopt(TRIM_THRESHOLD, KEPT_AFTERWARDS)
        library.malloc_trim(0)
