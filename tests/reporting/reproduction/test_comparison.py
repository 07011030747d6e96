"""Published beside ours: every number against counts known beforehand, and again from the small file."""

import gzip
from math import inf, nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.reproduction.comparison import compare_accuracies, find_datasets
from robustbench_inv.reporting.reproduction.outcomes import (
    ReproductionOutcomes,
    outcomes_to_gzip,
    read_outcomes,
)
from robustbench_inv.reporting.reproduction.paper_report import build_paper_report
from robustbench_inv.results.summary import Rate

HERE = {"mnist": "mnist"}
ADDRESSES = (
    "mnist-cnn | fgsm | linf=0.1,0.2",
    "mnist-cnn | pgd | linf=0.1,0.2",
    "mnist-js:sigmoid=true | fgsm | linf=0.1,0.2",
    "mnist-js | pgd | linf=0.1,0.2",
)


def outcomes(columns, dataset="mnist"):
    """Outcomes of the first columns, one list of eps for each."""
    index = pd.MultiIndex.from_tuples(
        [(dataset, i, i % 10) for i in range(len(columns[0]))], names=["dataset", "sample", "label"]
    )
    return pd.DataFrame(dict(zip(ADDRESSES, columns, strict=False)), index=index)


def test_every_number_is_what_was_counted(item, run):
    found = {(e.row.label, e.column.name): e for e in build_paper_report(item, [run]).entries}
    assert found["Clean", "CNN"].ours == Rate(40, 40)
    assert found["Clean", "CNN"].adaptive is None
    assert (found["F 0.1", "CNN"].ours, found["F 0.1", "CNN"].adaptive) == (
        Rate(20, 40),
        Rate(10, 40),
    )
    js = found["F 0.2", "JS"]
    assert (js.ours, js.adaptive) == (Rate(32, 40), Rate(0, 40))
    assert js.difference == pytest.approx(0.1)
    assert (js.model, js.published, js.far) == ("mnist-js:sigmoid=true", 0.7, False)


def test_a_far_number_needs_a_remark(item, write_run):
    run = write_run({("mnist-cnn", "fgsm"): (30, 40), ("mnist-js:sigmoid=true", "fgsm"): (0, 0)})
    found = {
        (e.row.label, e.column.name): e for e in build_paper_report(item, [run.finish()]).entries
    }
    cnn, js = found["F 0.1", "CNN"], found["F 0.2", "JS"]
    assert (cnn.far, cnn.unexplained, cnn.to_json()["explained"]) == (True, True, False)
    assert (js.far, js.unexplained, js.to_json()["explained"]) == (True, False, True)
    assert js.to_json()["remark"] == "Fewer epochs."
    assert found["F 0.2", "CNN"].to_json()["explained"] is None


def test_what_was_not_run_is_absent_not_zero(item, write_run):
    found = build_paper_report(item, [write_run({("mnist-cnn", "fgsm"): (20, 36)}).finish()])
    js = found.entries[1].to_json()
    assert (js["column"], js["ours"], js["difference"], js["interval"]) == ("JS", None, None, None)
    assert {str(address) for address in found.evidence.missing} == set(ADDRESSES[1:])


def test_the_worst_case_is_of_single_samples(item):
    frame = outcomes([[0.1, inf, inf, 0.0], [inf, 0.2, inf, 0.0]])
    evidence = ReproductionOutcomes(item, frame, HERE)
    clean, tenth, fifth = item.rows
    cnn = item.columns[0]
    assert evidence.held("published", clean, cnn, "mnist", 0).tolist() == [True, True, True, False]
    assert evidence.held("adaptive", tenth, cnn, "mnist", 0.1).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert evidence.held("adaptive", fifth, cnn, "mnist", 0.2).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_only_samples_that_all_saw_are_combined(item):
    evidence = ReproductionOutcomes(item, outcomes([[inf, inf, 0.1], [nan, inf, nan]]), HERE)
    row, cnn = item.rows[1], item.columns[0]
    assert evidence.held("published", row, cnn, "mnist", 0.1).tolist() == [True, True, False]
    assert evidence.held("adaptive", row, cnn, "mnist", 0.1).tolist() == [True]


FELL = st.sampled_from([0.0, 0.1, 0.2, inf])


@settings(max_examples=25, deadline=None)
@given(data=st.lists(st.tuples(FELL, FELL, FELL, FELL), min_size=1, max_size=12))
def test_adaptive_is_never_above_as_published(item, data):
    frame = outcomes(list(map(list, zip(*data, strict=True))))
    for entry in compare_accuracies(ReproductionOutcomes(item, frame, HERE)):
        assert entry.adaptive is None or entry.adaptive.successes <= entry.ours.successes


def test_the_table_can_be_recomputed_from_the_small_file(item, run, tmp_path):
    found = build_paper_report(item, [run])
    path = tmp_path / "outcomes.csv.gz"
    path.write_bytes(outcomes_to_gzip(found.evidence.outcomes))
    again = read_outcomes(path)
    pd.testing.assert_frame_equal(again, found.evidence.outcomes)
    assert (
        compare_accuracies(ReproductionOutcomes(item, again, find_datasets(item, again)))
        == found.entries
    )


def test_the_small_file_tells_held_from_not_asked_and_is_the_same_each_time(tmp_path):
    frame = outcomes([[inf, nan, 0.0], [0.1, 1 / 3, inf]])
    data = outcomes_to_gzip(frame)
    assert data == outcomes_to_gzip(frame.copy())
    assert data[4:8] == bytes(4), "no time of writing"
    lines = gzip.decompress(data).decode().splitlines()
    assert lines[1:] == ["mnist,0,0,,0.1", "mnist,1,1,-,0.3333333333", "mnist,2,2,0,"]
    (tmp_path / "o.csv.gz").write_bytes(data)
    read = read_outcomes(tmp_path / "o.csv.gz")
    assert np.array_equal(read.isna(), frame.isna())
    assert read.index.equals(frame.index)


@pytest.mark.parametrize("data", [b"", b"no gzip", gzip.compress(b"a,b\n1,2\n", mtime=0)])
def test_a_damaged_file_is_one_line(tmp_path, data):
    (tmp_path / "o.csv.gz").write_bytes(data)
    with pytest.raises(BadResults, match="cannot read the outcomes") as caught:
        read_outcomes(tmp_path / "o.csv.gz")
    assert "\n" not in str(caught.value)


def test_two_cells_of_one_name_are_not_mixed(item, write_run):
    fallen = {("mnist-cnn", "fgsm"): (20, 36)}
    runs = [write_run(fallen, "a").finish(), write_run(fallen, "b", version=1).finish()]
    with pytest.raises(BadResults, match="two cells are called mnist-cnn"):
        build_paper_report(item, runs)


def test_several_data_sets_need_a_word(item, write_run):
    fallen = {("mnist-cnn", "fgsm"): (20, 36)}
    runs = [write_run(fallen, "a").finish(), write_run(fallen, "b", "mnist5k").finish()]
    with pytest.raises(BadResults, match="name one: --dataset"):
        build_paper_report(item, runs)
    assert build_paper_report(item, runs, dataset="mnist5k").entries[0].ours == Rate(40, 40)


def test_records_of_other_things_are_none(item, write_run):
    run = write_run({("mnist-other", "fgsm"): (1, 2)}).finish()
    with pytest.raises(BadResults, match="no records of paper/table-1"):
        build_paper_report(item, [run])
