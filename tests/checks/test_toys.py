"""Suite ``diagnostics``, as a user runs it: every toy is caught by the check meant for it, no honest model fails."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import robustbench_inv as rbi
from robustbench_inv.catalogue.locate import shipped_root
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.toys import (
    adding_noise,
    batch_dependent,
    confident,
    constant,
    dead_relu,
    detached,
    offset,
    other_classes,
    other_inputs,
    probabilities,
    quantised,
    rejecting_all,
)

CAUGHT = {
    "gradient killer": (detached, {"C6": "FAIL", "C2": "FAIL", "C5": "FAIL", "C31": "WARN"}),
    "quantiser": (quantised, {"C6": "FAIL", "C2": "FAIL", "C5": "FAIL"}),
    "dead ReLU": (dead_relu, {"C6": "FAIL", "C2": "FAIL", "C5": "FAIL", "C31": "WARN"}),
    "softmax x 100": (partial(probabilities, factor=100.0), {"C10": "WARN", "C7": "WARN"}),
    "distilled": (partial(confident, factor=100.0), {"C7": "NOTE", "C6": "WARN", "C8": "FAIL"}),
    "random noise layer": (adding_noise, {"C11": "FAIL", "C14": "FAIL"}),
    "batch-dependent": (batch_dependent, {"C11": "FAIL", "C14": "FAIL"}),
    "logit offset 1e6": (offset, {"C8": "FAIL"}),
    "always-reject": (rejecting_all, {"C25": "FAIL"}),
    "divided by 255 twice": (
        partial(other_inputs, change=lambda images: images / 255),
        {"C39": "FAIL", "C41": "FAIL"},
    ),
    "labels of another order": (
        partial(other_classes, names=[3, 0, 7, 1, 9, 2, 5, 4, 6, 8]),
        {"C39": "FAIL", "C42": "FAIL"},
    ),
    "one class": (constant, {"C39": "FAIL"}),
}
"""What is done to an honest model, and what the checks meant for it must say."""

SWEPT = {"gradient killer", "distilled"}
"""Toys that are evaluated at two budgets."""

HONEST = [pytest.param(name, marks=pytest.mark.slow) for name in ("mnist-cnn", "mnist-cnn-at")]
"""Audits of both are tests of ``test_broken_defences``."""

FACTORY = """
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.testing.toys import dead_relu, least_squares

def toy():
    return dead_relu(least_squares(*open_dataset("mnist5k").batch(range(0, 5000, 5))))
"""


@pytest.fixture
def verdicts(digits, tmp_path):
    """Return a function that evaluates a model on a few digits, by default with the suite."""

    def run(model, suite="diagnostics", threat="linf=0.3", **plan):
        plan = {"suite": suite, "threat": threat, "dataset": digits, "samples": 10, **plan}
        ran = rbi.evaluate(model=model, out=tmp_path, **plan)
        assert not ran.failures
        return RunFolder(ran.path).checks()

    return run


def worst(verdicts):
    """Return the worst grade of each check that said anything."""
    order = ("NA", "PASS", "NOTE", "WARN", "FAIL")
    return {
        v["id"]: v["verdict"] for v in sorted(verdicts, key=lambda v: order.index(v["verdict"]))
    }


@pytest.mark.parametrize("name", CAUGHT)
def test_each_toy_is_caught_by_the_checks_meant_for_it(name, honest, verdicts):
    spoil, expected = CAUGHT[name]
    budgets = "linf=0.1,0.3" if name in SWEPT else "linf=0.3"
    found = worst(verdicts(spoil(honest), threat=budgets))
    assert {id_: found[id_] for id_ in expected} == expected


def test_the_model_that_was_spoilt_leaves_all_silent(honest, verdicts):
    found = worst(verdicts(honest, threat=None))
    assert set(found.values()) <= {"NA", "PASS"}, found
    assert {"C4", "C8", "C31"} <= found.keys()


def test_a_distilled_model_that_is_attacked_on_cross_entropy_alone_fails(honest, verdicts):
    attacks = ["pgd:loss=ce", "fgsm"]
    found = verdicts(confident(honest, 100.0), suite=None, attack=attacks, threat="linf=0.1")
    assert worst(found)["C7"] == "FAIL"


@pytest.mark.parametrize("model", HONEST)
def test_no_honest_model_fails(model, verdicts):
    weights: Path = shipped_root() / "models" / model / "weights.safetensors"
    if not weights.exists():
        pytest.skip(f"{model} has no weights here")
    assert [v for v in verdicts(model, samples=5) if v["verdict"] == "FAIL"] == []


def test_the_command_names_the_check(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    asked = "--model mine.py:toy --suite diagnostics --dataset mnist5k --samples 4 --out run"
    command = [sys.executable, "-m", "robustbench_inv", "evaluate", *asked.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {"FAIL C2", "FAIL C5", "FAIL C6"} <= {line[:7] for line in done.stdout.splitlines()}
