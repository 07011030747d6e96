"""What a process of the command line is told before torch is imported: how threads wait, and to keep freed memory."""

import ctypes
import os

__all__ = ["settle_process"]

KEPT = {
    # name in the environment, for worker processes: (number for mallopt, from malloc.h; bytes)
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20),
}
"""The GNU allocator hands every larger buffer back to the system, and the next pass faults its pages in again. With
these, a forward pass of 250 digits through the Guess First CNN takes 15 ms instead of 22 on one core, with
backward pass 39 instead of 41 (docs/benchmarks.md). What is kept is no more than what was in use before."""


def settle_process() -> None:
    """Set what this process and its workers go by; what the user has set stays.

    Torch's threads spin while they wait for each other. With one other process on two cores, 250 digits under
    PGD took 13 to 21 s so, and 4 s with threads that sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, (number, size) in KEPT.items():
        if name not in os.environ:
            os.environ[name] = str(size)
            _tell_allocator(number, size)


def _tell_allocator(number: int, size: int) -> None:
    """Set a parameter of the GNU C library's allocator; another library has none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(number, size)
