"""The checks of a model fit into a time: fewer samples, the most expensive ones not at all."""

import time
from dataclasses import dataclass

import pytest

from robustbench_inv.checks.model_checks import (
    ModelCheck,
    TimeLimit,
    affordable_samples,
    list_probes,
    probe_model,
)
from robustbench_inv.checks.verdict import NOT_MADE
from robustbench_inv.evaluation.loading import load_arrays
from robustbench_inv.testing.toys import Toy


@dataclass(frozen=True)
class Loaded:
    name: str
    classifier: object


@pytest.mark.parametrize("seconds", [0.01, 1.0, 30.0, 1000.0])
def test_checks_end_in_time_with_as_many_samples_as_fit(seconds):
    checks, per_pass = list_probes(deep=True), 1e-3
    found = affordable_samples(checks, seconds, per_pass)
    assert sum(found[c.id] * c.passes for c in checks) * per_pass <= seconds * 1.0001
    assert all(found[c.id] <= c.samples for c in checks)
    assert all(not found[c.id] or found[c.id] >= 4 for c in checks)


def test_without_a_limit_every_check_has_all_its_samples():
    checks = list_probes(deep=True)
    found = affordable_samples(checks, float("inf"), 0.0)
    assert found == {check.id: check.samples for check in checks}


def test_few_samples_are_enough_if_there_are_no_more():
    assert affordable_samples([ModelCheck("C2", 2, 10, print)], 1.0, 1e-3) == {"C2": 2}


def slow(monkeypatch):
    """Let each sample of a forward pass take 10 ms of the clock, without waiting."""
    now, call = [0.0], Toy.__call__

    def slowly(self, images):
        now[0] += 0.01 * len(images)
        return call(self, images)

    monkeypatch.setattr(Toy, "__call__", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_slow_model_gets_fewer_samples_and_the_costly_checks_are_named(
    honest, digits, held_out, monkeypatch
):
    now = slow(monkeypatch)
    verdicts = probe_model(
        Loaded("toy", honest), digits, held_out, deep=True, limit=TimeLimit(30.0, True)
    )
    missing = [v for v in verdicts if v.evidence.startswith(NOT_MADE)]
    assert {v.verdict for v in missing} == {"NA"}
    assert {"C4", "C8"} <= {v.id for v in missing}
    assert {"C6", "C11", "C39"}.isdisjoint(v.id for v in missing)
    assert (
        now[0] < 2 * 30.0
    )  # backward passes are free here, so that a forward pass takes twice the mean


def test_a_limit_that_is_long_enough_changes_nothing(honest, digits, held_out):
    loaded = Loaded("toy", honest)
    limited = probe_model(loaded, digits, held_out[:20], limit=TimeLimit(1e6))
    assert limited == probe_model(loaded, digits, held_out[:20])


def test_time_of_other_processes_takes_no_check_away(honest, digits, held_out, monkeypatch):
    slow(monkeypatch)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    loaded = Loaded("toy", honest)
    assert probe_model(loaded, digits, held_out, limit=TimeLimit(1.0)) == probe_model(
        loaded, digits, held_out
    )


def test_checks_of_the_whole_data_set_take_no_time_for_samples_that_it_lacks(
    honest, digits, monkeypatch
):
    small = load_arrays(*digits.batch(range(0, 5000, 250)))
    slow(monkeypatch)
    verdicts = probe_model(Loaded("toy", honest), small, range(20), limit=TimeLimit(10.0, True))
    assert not [v.id for v in verdicts if v.evidence.startswith(NOT_MADE)]
