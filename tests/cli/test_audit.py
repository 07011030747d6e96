"""``invbench audit`` from end to end."""

import json
import re

import pytest

from robustbench_inv.attacks.ensemble import Ensemble
from robustbench_inv.errors import DEADLINE_PASSED, DeadlinePassed

NETWORK = """
import torch
from torch import nn

def build(high: float = 1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model.bounds = (0.0, high)
    return model

def fitted():
    from robustbench_inv.data.registry import open_dataset
    from robustbench_inv.testing.toys import least_squares
    return least_squares(*open_dataset("mnist5k").batch(range(0, 5000, 5)))
"""


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return ("--dataset", "mnist5k", "--threat", "linf=0.1", "--samples", 8, "--out", "run")


def test_an_untrained_network_is_not_to_be_published(invbench, arguments):
    done = invbench("audit", "net.py:build", *arguments, "--fail-on", "do-not-publish")
    assert done.code == 3, done.err
    assert "verdict on net.py:build, mnist5k: do not publish. The model classifies" in done.out
    cells = json.loads(invbench("audit", "net.py:build", *arguments, "--json").out)
    assert "standard" in {cell["attack"] for cell in cells}
    assert {cell["samples"] for cell in cells} == {8}


def test_wrong_bounds_are_named_and_set_the_exit_code(invbench, arguments):
    done = invbench("audit", "net.py:build:high=255.0", *arguments, "--fail-on", "reservations")
    assert done.code == 3
    assert "do not publish. net.py:build:high=255.0 and mnist5k differ in the range" in done.err
    assert invbench("audit", "net.py:build:high=255.0", *arguments).code == 2


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_a_time_limit_is_positive(invbench, arguments, minutes):
    assert invbench("audit", "net.py:build", *arguments, f"--minutes={minutes}").code == 2


def test_a_time_limit_that_no_attack_meets_is_an_error(invbench, arguments):
    done = invbench("audit", "net.py:build", *arguments, "--minutes", "0.0001")
    assert done.code == 2
    assert "no attack ended within the time limit" in done.err
    assert "raise --minutes" in done.err


def test_attacks_that_the_time_limit_stops_are_named_and_the_others_count(
    invbench, arguments, monkeypatch
):
    monkeypatch.setattr(Ensemble, "run", lambda *_: raise_deadline())
    done = invbench("audit", "net.py:fitted", *arguments)
    assert done.code == 0, done.err
    assert "standard on net.py:fitted" in done.err
    assert "the time for all attacks is over; raise --minutes" in done.err
    assert "verdict on net.py:fitted, mnist5k: publishable with reservations" in done.out


def raise_deadline():
    raise DeadlinePassed(DEADLINE_PASSED)


def test_times_of_attacks_and_checks_are_told_apart(invbench, arguments):
    done = invbench("audit", "net.py:build", *arguments)
    assert "attack time" in done.out
    assert re.search(r"\[1/\d+\] .*, 8 samples: done after", done.err), "the stage is named"
    assert re.search(r"time: [\d.]+ s for the attacks, [\d.]+ s for the checks", done.out)
    cells = json.loads(invbench("audit", "net.py:build", *arguments, "--json").out)
    assert all(cell["attack_seconds"] >= 0 and cell["check_seconds"] >= 0 for cell in cells)
