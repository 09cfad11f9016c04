"""Freed memory stays with the process while heads train, and goes back afterwards."""

import ctypes
import resource
import sys

import pytest
import torch

from cspipe.headtrain import allocator
from cspipe.headtrain.allocator import freed_memory_kept

PAGES = 40 * 256
"""Of 40 MB."""

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's own calls"
)


def faults() -> int:
    """Pages that were mapped so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def cycles(count: int, number: int) -> int:
    """Pages that are mapped when blocks of 40 MB in all are asked for, written and given back, again and again."""
    before = faults()
    for _ in range(count):
        blocks = [torch.ones((10 << 20) // number) for _ in range(number)]
        del blocks
    return faults() - before


@glibc
@pytest.mark.parametrize("number", [1, 10])
def test_blocks_are_mapped_in_the_first_steps_and_not_in_every_one(number):
    with freed_memory_kept(torch.device("cpu")):
        cycles(10, number)
        assert cycles(10, number) < 3 * PAGES


@glibc
def test_memory_goes_back_to_the_system_afterwards_even_where_training_fails():
    def resident() -> int:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1])

    with pytest.raises(KeyError), freed_memory_kept(torch.device("cpu")):
        blocks = [torch.ones(1 << 20) for _ in range(100)]
        held = resident()
        del blocks
        raise KeyError
    assert held - resident() > 50 * 1024


def test_nothing_is_changed_for_another_device(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
    with freed_memory_kept(torch.device("meta")):
        pass
