"""The checks of single cells fire on the records that they are for, and are silent on honest ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_inv.checks.records import (
    check_adversarial_inputs,
    check_completeness,
    check_consistency,
    check_crashes,
    check_inputs_changed,
    check_lost_successes,
    check_step_budget,
)
from robustbench_inv.results.record import Distances, ModelOutput
from robustbench_inv.testing.toy_cells import toy_cell, toy_record

BROKEN = (0.0, 0.1, 0.2, None, 0.1, None)
HONEST = toy_cell("pgd", BROKEN)


def view(cell=HONEST, **changes):
    return replace(cell, **changes)


def with_record(record, cell=HONEST):
    """Replace the record of the same sample."""
    return view(
        cell, records=tuple(record if r.sample == record.sample else r for r in cell.records)
    )


def images(shift=0.0, sample=1):
    """Return kept images that agree with HONEST's records, that of one sample shifted."""
    clean = np.full((6, 4), 0.5, np.float32)
    shown = clean + np.array([[eps or 0.0] for eps in BROKEN], np.float32)
    shown[sample] += np.float32(shift)
    return {"samples": np.arange(6), "clean": clean, "adversarial": shown}


def test_all_are_silent_on_an_honest_cell():
    cell = view(read_images=images)
    verdicts = [
        check_adversarial_inputs(cell),
        check_lost_successes(cell),
        check_consistency(cell),
        check_completeness(cell, range(6)),
        check_crashes(cell),
    ]
    assert [v.id for v in verdicts] == ["C14", "C15", "C22", "C23", "C30"]
    assert {v.verdict for v in verdicts} == {"PASS"}, [v.evidence for v in verdicts]
    assert {v.subject for v in verdicts} == {"pgd on toy, linf=0.1,0.2, four, seed 0"}


@pytest.mark.parametrize(
    "change",
    [
        {"replayed": False},
        {"within_budget": False},
        {"status": "budget"},
        {"distance": Distances(4, 1.2, 0.6, 0.3)},
    ],
)
def test_c14_fires_on_inputs_that_may_not_be_shown(change):
    verdict = check_adversarial_inputs(with_record(toy_record(2, 0.2, **change)))
    assert (verdict.verdict, verdict.value) == ("FAIL", pytest.approx(1 / 6))
    assert "samples 2" in verdict.evidence


def test_c14_lets_one_sample_in_a_thousand_pass_with_a_warning():
    many = toy_cell("pgd", [0.1] * 1000)
    assert (
        check_adversarial_inputs(with_record(toy_record(7, 0.1, replayed=False), many)).verdict
        == "WARN"
    )


def test_c14_allows_a_minimal_attack_to_end_beyond_the_sweep():
    far = toy_record(3, within_budget=False, distance=Distances(4, 2.0, 1.0, 0.5))
    minimal = toy_cell("cw", BROKEN, attack={"kind": "minimum-norm"})
    assert check_adversarial_inputs(with_record(far, minimal)).verdict == "PASS"
    assert check_adversarial_inputs(with_record(far)).verdict == "FAIL"


@pytest.mark.parametrize("shift", [0.01, -0.7, np.nan])
def test_c14_recomputes_kept_images(shift):
    verdict = check_adversarial_inputs(view(read_images=lambda: images(shift)))
    assert verdict.verdict == "FAIL"
    assert "1 differ from their record (kept images recomputed): samples 1." in verdict.evidence


def test_c14_names_what_is_not_a_number():
    none = toy_record(3, within_budget=False, status="numerics")
    verdict = check_adversarial_inputs(with_record(none))
    assert verdict.verdict == "FAIL"
    assert "1 have an input or output that is not a number, 0 left budget" in verdict.evidence


def test_c14_sees_an_image_outside_the_box_at_the_right_distance():
    outside = images()
    outside["clean"][:] = outside["adversarial"][:] = 1.0
    outside["adversarial"] += np.array([[eps or 0.0] for eps in BROKEN], np.float32)
    assert "3 differ" in check_adversarial_inputs(view(read_images=lambda: outside)).evidence


def test_c15_has_nothing_to_say_of_a_search_on_a_substitute():
    helper = {"access": "transfer", "substitute": {"name": "lenet", "digest": "e" * 64}}
    verdict = check_lost_successes(view(toy_cell("pgd", BROKEN, threat=helper)))
    assert (verdict.verdict, verdict.value) == ("NA", None)
    assert verdict.subject.startswith("pgd on toy")


def test_c15_counts_each_sample_once():
    note = {"event": "silent_success", "block": 0, "samples": [1, 4], "count": 2}
    verdict = check_lost_successes(
        view(events=(note, note, {"event": "block_time", "seconds": 1.0}))
    )
    assert (verdict.verdict, verdict.value) == ("WARN", 2)
    assert "2 of 3 successes" in verdict.evidence


def test_c15_tells_of_successes_that_were_none_when_judged_again():
    note = {"event": "silent_success", "samples": [1, 3, 5]}
    verdict = check_lost_successes(view(events=(note,)))
    assert (verdict.verdict, verdict.value) == ("WARN", 3)
    assert "1 of 3 successes were found by a query and not returned; 2 others" in verdict.evidence


@pytest.mark.parametrize(
    "change",
    [
        {"goal_reached": False},
        {"broken_at": None},
        {"broken_at": 0.0},
        {"broken_at": 0.15},
        {"status": "already_wrong"},
        {"status": "crash"},
        {"within_budget": False},
        {"clean": ModelOutput(5, None, None)},
        {"distance": Distances(4, float("nan"), 0.2, 0.1)},
    ],
)
def test_c22_fires_on_records_that_contradict_themselves(change):
    verdict = check_consistency(with_record(toy_record(1, 0.1, **change)))
    assert verdict.verdict == "FAIL"
    assert "sample 1: " in verdict.evidence


def test_c22_knows_that_a_rejected_error_is_no_failure():
    rejected = toy_record(3, clean=ModelOutput(5, -1.0, accepted=False))
    goal = {"norm": "linf", "epsilons": [0.1, 0.2], "goal": "misclassify-accepted"}
    assert (
        check_consistency(with_record(rejected, toy_cell("pgd", BROKEN, threat=goal))).verdict
        == "PASS"
    )
    assert check_consistency(with_record(rejected)).verdict == "FAIL"


@pytest.mark.parametrize(
    "shown", [ModelOutput(5, 0.0, accepted=True), ModelOutput(3, 0.0, accepted=False)]
)
def test_c22_fires_on_an_invariance_failure_without_the_prediction(shown):
    goal = {"norm": "linf", "epsilons": [0.1, 0.2], "goal": "keep-decision"}
    kept = with_record(
        toy_record(1, 0.1, adversarial=ModelOutput(3, 0.0, accepted=True)),
        toy_cell("lst", BROKEN, threat=goal),
    )
    failure = with_record(
        toy_record(1, 0.1, adversarial=shown), toy_cell("lst", BROKEN, threat=goal)
    )
    counts = [check_consistency(cell).value for cell in (kept, failure)]
    assert counts[1] == counts[0] + 1


def test_c22_sees_rates_that_cannot_be_recomputed():
    verdict = check_consistency(view(records=(*HONEST.records, HONEST.records[0])))
    assert (verdict.verdict, "recomputed" in verdict.evidence) == ("FAIL", True)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, None]), max_size=30))
def test_c22_and_c14_are_silent_on_any_consistent_cell(broken):
    cell = view(toy_cell("pgd", broken))
    assert check_consistency(cell).verdict == "PASS"
    assert check_adversarial_inputs(cell).verdict == "PASS"


@pytest.mark.parametrize(
    ("requested", "lines", "fault"),
    [
        (range(7), HONEST.records, "1 missing"),
        (range(6), (*HONEST.records, HONEST.records[5]), "1 doubled"),
        (range(6), (*HONEST.records, toy_record(99)), "1 not requested: samples 99"),
    ],
)
def test_c23_fires_on_wrong_sets_of_samples(requested, lines, fault):
    cell = view(records=lines, requested=tuple(range(6)))
    verdict = check_completeness(cell, requested)
    assert (verdict.verdict, verdict.value) == ("FAIL", 1)
    assert fault in verdict.evidence


def test_c23_of_a_cell_without_records_says_that_it_has_no_number():
    verdict = check_completeness(view(records=(), requested=(0, 1)), [0, 1])
    assert (verdict.verdict, verdict.value) == ("NOTE", 2)
    assert "the cell has none; run the same command again" in verdict.evidence


def test_c23_allows_samples_of_an_earlier_request():
    assert check_completeness(view(), [0, 1, 2]).verdict == "PASS"


@pytest.mark.parametrize(
    ("lines", "events", "count"),
    [
        ([toy_record(1, status="numerics")], (), 1),
        ([], ({"event": "undefined_output", "samples": [2]},), 1),
    ],
)
def test_c30_counts_inputs_without_an_output_that_is_a_number(lines, events, count):
    cell = toy_cell("pgd", [None] * 4)
    changed = {r.sample: r for r in lines}
    records = tuple(changed.get(r.sample, r) for r in cell.records)
    verdict = check_crashes(view(cell, records=records, events=events))
    assert (verdict.verdict, verdict.value) == ("FAIL", count / 4)
    assert f"was not a number on {count} unbroken ones" in verdict.evidence


@pytest.mark.parametrize(("crashed", "expected"), [(0, "PASS"), (1, "WARN"), (3, "FAIL")])
def test_c30_shows_crashes_and_their_reasons(crashed, expected):
    cell = toy_cell("pgd", [None] * 200)
    lines = [replace(r, status="crash") if r.sample < crashed else r for r in cell.records]
    note = {"event": "crash", "reason": "RuntimeError: no memory of it", "samples": [0]}
    verdict = check_crashes(view(cell, records=tuple(lines), events=(note,) * bool(crashed)))
    assert verdict.verdict == expected
    assert ("no memory of it" in verdict.evidence) == bool(crashed)


def test_c30_counts_what_fell_before_the_search_at_a_smaller_eps_crashed():
    cell = toy_cell("pgd", [0.1, 0.2, None, None], epsilons=(0.1, 0.2))
    note = {"event": "crash", "reason": "no luck", "samples": [0, 1, 2], "eps": 0.1}
    verdict = check_crashes(view(cell, events=(note,)))
    assert (verdict.verdict, verdict.value) == ("FAIL", 0.5)


def test_c30_mentions_other_reasons_without_judging_them():
    verdict = check_crashes(with_record(toy_record(3, status="no_start")))
    assert (verdict.verdict, "1 no_start" in verdict.evidence) == ("PASS", True)


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
