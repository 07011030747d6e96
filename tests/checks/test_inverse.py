"""C32 fires where an inverse is none, through the engine and by hand, and is silent on a rotation."""

from dataclasses import replace

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.checks.invariance_checks import check_inverse, uses_inverse
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import rotation_classifier
from robustbench_inv.testing.toy_cells import toy_cell

HONEST = toy_cell("metamer", (0.1,) * 2000)


def view(**columns):
    """Return a cell in which numbers were measured of its first samples."""
    note = {"event": "sample_values", "block": 0, "samples": list(range(2000))}
    values = {
        name: [*given, *[1e-6] * (2000 - len(given))]
        for name, given in ({"reencoding_error": [], "reconstruction_error": []} | columns).items()
    }
    return replace(HONEST, events=({**note, "values": values},))


@pytest.mark.parametrize("name", ["reencoding_error", "reconstruction_error"])
def test_the_grades(name):
    grades = {
        "PASS": [1e-3],
        "WARN": [2e-3, 5e-4],
        "FAIL": [2e-3, 2e-3, float("nan")],
    }
    for wanted, errors in grades.items():
        verdict = check_inverse(view(**{name: [None if e != e else e for e in errors]}))
        assert verdict.id == "C32"
        assert verdict.verdict == wanted, verdict.evidence
    assert "samples 0, 1, 2; try float64" in verdict.evidence
    assert "inf" in verdict.evidence


def test_a_cell_without_an_inverse_is_not_asked():
    assert not uses_inverse(HONEST)
    assert uses_inverse(view())


class Swapped(ArrayDataset):
    """Data whose oracle always sees another class."""

    oracle_source = "exact"

    def classify(self, images):
        return (rotation_classifier(dtype=images.dtype)(images).decision + 1) % 3


@pytest.mark.parametrize(("inverse_error", "wanted"), [(0.0, "PASS"), (0.01, "FAIL")])
def test_through_the_engine(tmp_path, inverse_error, wanted):
    model = rotation_classifier(inverse_error=inverse_error)
    images = SampleRNG(0, torch.arange(30), "test").uniform((1, 6, 6), dtype=torch.float64)
    data = Swapped(images, model(images).decision, "swapped")
    run = rbi.evaluate(model=model, attack="metamer", threat="none", dataset=data, out=tmp_path)
    grades = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert grades["C32"] == wanted
    assert grades["C22"] == "PASS"
