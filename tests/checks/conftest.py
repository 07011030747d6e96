"""An honest model of the embedded digits, and probes of models made from it."""

import pytest
import torch

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.checks.probe import Probe
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.testing.toys import Toy, least_squares


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return open_dataset("mnist5k")


@pytest.fixture(scope="session")
def honest(digits) -> Toy:
    return least_squares(*digits.batch([i for i in range(5000) if i % 5 < 2]))


@pytest.fixture(scope="session")
def held_out() -> list[int]:
    return list(range(2, 5000, 50))


@pytest.fixture
def probe(digits, held_out):
    """Return the probe of a toy on digits it was not fitted on."""
    return lambda toy: Probe.of("toy", toy, digits, held_out)


@pytest.fixture
def few(digits, held_out):
    """Return the probe of a toy on some of these digits, for what takes hundreds of passes."""
    return lambda toy: Probe.of("toy", toy, digits, held_out[::3])


@pytest.fixture
def grey_probe():
    """Return the probe of a toy on grey images of class 0."""
    images, labels = torch.full((40, 1, 8, 8), 0.5), torch.zeros(40, dtype=torch.int64)
    batch = Batch(images, labels, torch.arange(40))
    return lambda toy: Probe("toy", toy, batch, (0.0, 1.0))
