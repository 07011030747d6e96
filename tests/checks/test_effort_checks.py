"""Checks of what an attack did, on records made by hand."""

from dataclasses import replace

import pytest

from robustbench_inv.checks.records import check_inputs_changed, check_step_budget
from robustbench_inv.results.record import Distances
from robustbench_inv.testing.toy_cells import toy_cell, toy_record

MOVED = Distances(4, 0.8, 0.4, 0.2)


def held(moved, idle):
    """Return a cell of samples that hold: some shown moved, some as they were."""
    cell = toy_cell("pgd", [None] * (moved + idle))
    lines = [toy_record(i, None, distance=MOVED) for i in range(moved)]
    lines += [toy_record(moved + i, None) for i in range(idle)]
    return replace(cell, records=tuple(lines))


@pytest.mark.parametrize(
    ("moved", "idle", "verdict"), [(9, 1, "PASS"), (8, 2, "WARN"), (4, 6, "FAIL")]
)
def test_c16_counts_samples_that_hold_and_are_shown_as_they_were(moved, idle, verdict):
    found = check_inputs_changed(held(moved, idle))
    assert (found.verdict, found.value) == (verdict, idle / 10)


def test_c16_fires_on_one_success_without_a_change():
    cell = toy_cell("pgd", [0.1, 0.1])
    false = toy_record(1, 0.1, distance=Distances(0, 0.0, 0.0, 0.0))
    view = replace(cell, records=(cell.records[0], false))
    assert check_inputs_changed(view).verdict == "FAIL"
    assert check_inputs_changed(cell).verdict == "PASS"


def test_c16_asks_nothing_of_an_attack_that_seeks_the_nearest_success():
    cell = toy_cell("ddn", [None, None, 0.1], attack={"kind": "minimum-norm"})
    assert check_inputs_changed(cell).verdict == "PASS"


def test_c16_has_nothing_to_say_where_nothing_was_attacked():
    assert check_inputs_changed(toy_cell("pgd", [0.0, 0.0])).verdict == "NA"


@pytest.mark.parametrize(
    ("parameters", "reach"),
    [
        ({"steps": 40, "rel_step": 0.1, "decay": False}, 4.0),
        ({"steps": 10, "rel_step": 0.1, "decay": False}, 1.0),
        ({"steps": 40, "rel_step": 1.0, "decay": True}, 20.5),
        ({"parameters": {"steps": 40, "rel_stepsize": 0.03}}, 1.2),
        ({"parameters": {"steps": 40, "alpha": 0.01}}, 2.0),
    ],
)
def test_c19_adds_up_the_steps(parameters, reach):
    found = check_step_budget(toy_cell("pgd", [0.1, None], parameters=parameters))
    assert found.value == pytest.approx(reach)
    assert found.verdict == ("PASS" if reach >= 2 else "WARN")


@pytest.mark.parametrize("parameters", [{"steps": 1, "rel_step": 1.0}, {"steps": 40}, {}])
def test_c19_leaves_alone_what_states_no_steps(parameters):
    cell = toy_cell("pgd", [0.1], parameters=parameters)
    assert check_step_budget(cell).verdict == "NA"
