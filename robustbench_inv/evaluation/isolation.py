"""Keeps code that uses global random numbers repeatable, and global random numbers as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from robustbench_inv.identity import digest_value

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, block: int, device: torch.device) -> Iterator[None]:
    """Seed all global generators for one block of a cell, and restore them afterwards.

    Our own code takes its random numbers as an argument. A user's model, Foolbox and torchattacks do not:
    without this, a resumed run would give them other numbers than an uninterrupted one.

    Args:
        seed: the seed of the evaluation.
        block: first sample id of the block.
        device: whose generator is seeded besides the CPU's.
    """
    start = int(digest_value({"seed": seed, "block": block})[:8], 16)
    devices = [device] if device.type == "cuda" else []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        torch.manual_seed(start)
        np.random.seed(start)  # noqa: NPY002
        random.seed(start)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
