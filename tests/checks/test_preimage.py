"""C33 fires where activations are not those that were to be kept, through the engine and by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.checks.invariance_checks import check_preimage, uses_preimage_solver
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.models.plain_networks import MLP
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.toy_cells import toy_cell

N = 2000
HONEST = toy_cell("relu-preimage", (0.1,) * N)


def view(**columns):
    """Return a cell in which numbers were measured of its first samples."""
    usual = {"activation_error": 1e-6, "changed_units": 0, "solver_status": 0}
    values = {
        name: [*columns.get(name, ()), *[rest] * (N - len(columns.get(name, ())))]
        for name, rest in usual.items()
    }
    note = {"event": "sample_values", "block": 0, "samples": list(range(N)), "values": values}
    return replace(HONEST, events=(note,))


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"activation_error": [1e-3]}, "PASS"),
        ({"activation_error": [2e-3, 5e-4]}, "WARN"),
        ({"activation_error": [2e-3, None, 1.0]}, "FAIL"),
        ({"changed_units": [1, 1]}, "WARN"),
        ({"changed_units": [1, 7, 0, 2]}, "FAIL"),
        ({"solver_status": [1, 1, 1, 1, 1]}, "WARN"),
    ],
)
def test_the_grades(columns, wanted):
    verdict = check_preimage(view(**columns))
    assert (verdict.id, verdict.verdict) == ("C33", wanted), verdict.evidence


def test_a_cell_of_another_attack_is_not_asked():
    assert not uses_preimage_solver(HONEST)
    assert uses_preimage_solver(view())


class Kinked(MLP):
    """Something that is not affine comes before the first ReLU."""

    def forward(self, images):
        return super().forward(images**3)


class Judged(ArrayDataset):
    """Data with an oracle for every input."""

    oracle_source = "exact"

    def classify(self, images):
        return torch.zeros(len(images), dtype=torch.int64)


@pytest.mark.parametrize(("kind", "wanted"), [(MLP, "PASS"), (Kinked, "FAIL")])
def test_through_the_engine(tmp_path, kind, wanted):
    torch.manual_seed(0)
    model = kind((8,), (1, 5, 5), 3).eval()
    assert isinstance(model, nn.Module)
    images = torch.rand((30, 1, 5, 5))
    labels = model(images).argmax(1)
    labels[:3] = torch.arange(3)
    data = Judged(images, labels, "judged")
    run = rbi.evaluate(
        model=model, attack="relu-preimage", threat="none", dataset=data, out=tmp_path
    )
    grades = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert grades["C33"] == wanted
    assert grades["C22"] == "PASS"
