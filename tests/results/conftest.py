"""Records and requests for cells that no model was run for."""

from types import SimpleNamespace

import numpy as np
import pytest

from robustbench_inv.results.cell_parts import CellRequest
from robustbench_inv.results.record import Distances, ModelOutput, Record
from robustbench_inv.testing.toy_cells import toy_cell

IDENTITY = {"version": 2, **dict.fromkeys(("model", "attack", "threat", "dataset"), "0" * 64)}
CONTENT = toy_cell("pgd", []).info.to_json()


def record(sample, **changes):
    """Return the record of a sample that held."""
    answer = ModelOutput(prediction=sample % 10, score=None, accepted=None)
    values = {
        "sample": sample,
        "label": sample % 10,
        "clean": answer,
        "adversarial": answer,
        "oracle_label": None,
        "oracle_source": None,
        "distance": Distances(3, 1.5, 0.75**0.5, 0.5),
        "broken_at": None,
        "within_budget": True,
        "goal_reached": False,
        "forward_passes": 12,
        "backward_passes": 11,
        "zero_gradient": False,
        "replayed": True,
        "status": "ok",
    }
    return Record(**(values | changes))


def request(samples, batch_size=4, *, seed=0, redo=False, repair=False):
    """Return a request for samples of a cell."""
    return CellRequest(
        {**CONTENT, "identity": {**IDENTITY, "seed": seed}},
        tuple(samples),
        batch_size,
        redo,
        repair,
    )


def images(samples):
    """Return the kept images of some samples."""
    rows = np.asarray(samples, np.float32)[:, None]
    return {"clean": np.repeat(rows, 3, 1), "adversarial": np.repeat(rows, 3, 1) + 0.5}


def fill(writer, blocks=None, *, keep=False):
    """Write some or all of the missing blocks."""
    while (blocks is None or blocks > 0) and (pending := writer.next_block()):
        kept = images(pending[1]) if keep else None
        writer.append([record(sample) for sample in pending[1]], kept)
        blocks = None if blocks is None else blocks - 1
    if blocks is None:
        writer.finish()


@pytest.fixture(scope="session")
def make():
    """The functions of this file."""
    return SimpleNamespace(record=record, request=request, images=images, fill=fill)
