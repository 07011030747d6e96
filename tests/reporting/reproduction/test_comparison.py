"""Published numbers beside ours: every number against known counts, and again from the stored outcomes."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.reproduction.comparison import (
    ComparedNumber,
    ComparedRow,
    compare_outcomes,
)
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes
from robustbench_inv.reporting.reproduction.reproduction_report import report_from_runs
from robustbench_inv.results.experiment_result import MeasuredNumber
from robustbench_inv.results.summary import Rate


def numbers_of(item, *runs, **options):
    return report_from_runs(item, runs, **options).parts[0].numbers


def test_every_number_is_a_count(item, run):
    found = {(e.row.label, e.column): e for e in numbers_of(item, run)}
    assert found["Clean", "CNN"].ours.rate == Rate(40, 40)
    assert found["Clean", "CNN"].adaptive is None
    assert (found["F 0.1", "CNN"].ours.rate, found["F 0.1", "CNN"].adaptive) == (
        Rate(20, 40),
        Rate(10, 40),
    )
    js = found["F 0.2", "JS"]
    assert (js.ours.rate, js.adaptive) == (Rate(32, 40), Rate(0, 40))
    assert js.difference == pytest.approx(0.1)
    assert (js.model, js.published, js.needs_remark) == ("mnist-js:sigmoid=true", 0.7, False)


def test_a_large_difference_needs_a_remark(item, write_run):
    run = write_run({("mnist-cnn", "fgsm"): (30, 40), ("mnist-js:sigmoid=true", "fgsm"): (0, 0)})
    found = {(e.row.label, e.column): e for e in numbers_of(item, run.finish())}
    cnn, js = found["F 0.1", "CNN"], found["F 0.2", "JS"]
    assert (cnn.needs_remark, cnn.lacks_remark, cnn.to_json()["has_remark"]) == (True, True, False)
    assert (js.needs_remark, js.lacks_remark, js.to_json()["has_remark"]) == (True, False, True)
    assert js.to_json()["remark"] == "Fewer epochs."
    assert found["F 0.2", "CNN"].to_json()["has_remark"] is None


def test_numbers_that_were_not_run_are_absent(item, write_run, addresses):
    found = report_from_runs(item, [write_run({("mnist-cnn", "fgsm"): (20, 36)}).finish()])
    js = found.parts[0].numbers[1].to_json()
    assert (js["column"], js["ours"], js["difference"]) == ("JS", None, None)
    assert {str(address) for address in found.missing} == set(addresses[1:])


BROKEN_AT = st.sampled_from([0.0, 0.1, 0.2, inf])


@settings(max_examples=25, deadline=None)
@given(
    data=st.lists(st.tuples(BROKEN_AT, BROKEN_AT, BROKEN_AT, BROKEN_AT), min_size=1, max_size=12)
)
def test_adaptive_is_never_above_as_published(item, outcome_frame, data):
    frame = outcome_frame(list(map(list, zip(*data, strict=True))))
    outcomes = ReproductionOutcomes(item, frame, {"mnist": "mnist"})
    for entry in compare_outcomes(outcomes):
        assert entry.adaptive is None or entry.adaptive.successes <= entry.ours.rate.successes


def test_the_table_follows_from_the_stored_outcomes(item, run, outcomes_of):
    assert compare_outcomes(outcomes_of(item, run)) == numbers_of(item, run)


def test_two_cells_of_one_address_are_refused(item, write_run):
    broken = {("mnist-cnn", "fgsm"): (20, 36)}
    runs = [write_run(broken, "a").finish(), write_run(broken, "b", version=1).finish()]
    with pytest.raises(BadResults, match="two cells have the address mnist-cnn"):
        report_from_runs(item, runs)


def test_several_data_sets_need_an_option(item, write_run):
    broken = {("mnist-cnn", "fgsm"): (20, 36)}
    runs = [write_run(broken, "a").finish(), write_run(broken, "b", "mnist5k").finish()]
    with pytest.raises(BadResults, match="choose one with --dataset"):
        report_from_runs(item, runs)
    assert numbers_of(item, *runs, dataset="mnist5k")[0].ours.rate == Rate(40, 40)


def test_records_of_other_cells_do_not_count(item, write_run):
    run = write_run({("mnist-other", "fgsm"): (1, 2)}).finish()
    with pytest.raises(BadResults, match="no records of paper/table-1"):
        report_from_runs(item, [run])


def test_unfinished_cells_of_earlier_definitions_are_not_on_the_page(
    item, run_writer, sweep_records, tmp_path
):
    """A folder kept 18 cells of a withdrawn network: the page called itself not finished."""
    about = {"attack": "fgsm", "epsilons": [0.1, 0.2], "dataset": "mnist", "planned": [*range(50)]}
    run = run_writer(tmp_path / "run-0123abcd")
    for model, started in (("mnist-cnn", True), ("mnist-old", True), ("mnist-older", False)):
        run.cell(sweep_records(40, (20, 36), [0.1, 0.2]), model=model, started=started, **about)
    page = report_from_runs(item, [run.finish()]).page
    assert page.pending == (("fgsm on mnist-cnn", 40, 50),)


def test_a_published_amount_of_zero_is_compared():
    row = ComparedRow("a", "a", is_amount=True)
    equal, other = (
        ComparedNumber(row, "c", 0.0, MeasuredNumber("a", "c", value)) for value in (0.0, 0.5)
    )
    assert (equal.needs_remark, other.needs_remark) == (False, True)
