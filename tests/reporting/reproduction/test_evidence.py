"""Detected, reached, fooled: shares that are counted by hand on a few samples, cell by cell."""

from math import inf, nan

import pandas as pd
import pytest

from robustbench_inv.catalogue.reproduction_file import read_reproduction
from robustbench_inv.reporting.reproduction.comparison import compare_accuracies
from robustbench_inv.reporting.reproduction.comparison_tables import (
    accuracy_bands,
    comparison_table,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    NO_GRADIENT,
    REJECTED,
    ReproductionOutcomes,
    rate_of,
)
from robustbench_inv.reporting.reproduction.paper_report import build_paper_report
from robustbench_inv.results.record import ModelOutput
from robustbench_inv.results.summary import Rate

ITEM = """
version = 1
title = "A paper, Table 7"
summary = "targets"
paper = "Somebody, 2020"
datasets = ["mnist"]
columns = [
  { name = "rejects", published = "{data}-r" },
  { name = "plain", published = "{data}-p" },
]
trials = [
  { name = "C", group = "g", attack = "cw", threat = "none:goal=target:offset={target}", targets = [1, 2] },
  { name = "A", group = "g", side = "adaptive", attack = "cw", threat = "none:goal=target-accepted:offset={target}", targets = [1, 2], columns = ["rej*"] },
  { name = "D", group = "d", attack = "deepfool", threat = "none:goal=misclassify" },
]
rows = [
  { name = "C", eps = 0, trial = "C", metric = "success" },
  { name = "C", eps = 0, trial = "C", metric = "detected", worst_of = ["g"] },
  { name = "C", eps = 0, trial = "C", metric = "undetected", worst_of = ["g"] },
  { name = "D", eps = 0, trial = "D", metric = "detected" },
]
published = { "C, success" = [80, 100], "C, detected" = [90, nan], "C, undetected" = [nan, nan], "D, detected" = [50, nan] }
"""


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    """The item."""
    folder = tmp_path_factory.mktemp("items") / "paper"
    folder.mkdir()
    (folder / "table-7.toml").write_text(ITEM)
    return read_reproduction(folder / "table-7.toml")


def outcomes(columns):
    """Outcomes by address, one list for each; four samples."""
    rows = [("mnist", i, i) for i in range(4)]
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "sample", "label"])
    return pd.DataFrame(columns, index=index)


def c(model, offset):
    return f"mnist-{model} | cw | none:goal=target:offset={offset}"


def a(offset):
    return f"mnist-r | cw | none:goal=target-accepted:offset={offset}"


OUTCOMES = {
    # towards the next class: one is there before, two are reached, of which one is rejected, one holds
    c("r", 1): [0.0, 1.0, 2.0, inf], c("r", 1) + REJECTED: [0.0, 1.0, 0.0, 0.0],
    # towards the one after: all are reached and rejected
    c("r", 2): [1.0, 1.0, 1.0, 1.0], c("r", 2) + REJECTED: [1.0, 1.0, 1.0, 1.0],
    # one that knows finds an accepted one of the second sample towards the next class, and was asked about three
    a(1): [0.0, 3.0, inf, nan], a(1) + REJECTED: [0.0, 0.0, 0.0, nan],
    a(2): [inf, 3.0, 3.0, 3.0], a(2) + REJECTED: [0.0, 0.0, 0.0, 0.0],
    c("p", 1): [1.0, 1.0, inf, 0.0], c("p", 2): [1.0, 1.0, 1.0, 1.0],
    # as records name it, without the goal that goes without saying
    "mnist-r | deepfool | none": [1.0, 1.0, 0.0, inf], "mnist-r | deepfool | none" + REJECTED: [1.0, 0.0, 1.0, 0.0],
}  # fmt: skip


@pytest.fixture
def evidence(item):
    return ReproductionOutcomes(item, outcomes(OUTCOMES), {"mnist": "mnist"})


def rates(evidence, row, column):
    """Return the share as published and the adaptive one."""
    line = next(each for each in evidence.item.rows if each.label == row)
    model = next(each for each in evidence.item.columns if each.name == column)
    sides = ("published", "adaptive")
    return tuple(rate_of(evidence.share(side, line, model, "mnist")) for side in sides)


def test_success_is_of_all_pairs_that_were_attacked(evidence):
    assert rates(evidence, "C, success", "rejects") == (Rate(6, 7), Rate(0, 0))
    assert rates(evidence, "C, success", "plain")[0] == Rate(6, 7)


def test_detection_is_of_those_that_the_published_attack_reached(evidence):
    published, adaptive = rates(evidence, "C, detected", "rejects")
    assert published == Rate(5, 6)
    # the pairs that both saw: the second and third sample towards the next class, all four towards the other.
    # Fooled: the third by the published attack, the second, and three of the four by the one that knows
    assert adaptive == Rate(1, 6)


def test_fooled_is_of_all_that_were_attacked(evidence):
    published, adaptive = rates(evidence, "C, undetected", "rejects")
    assert published == Rate(1, 7)
    # without the sample that the adaptive attack was not asked about
    assert adaptive == Rate(5, 6)


def test_a_model_that_never_rejects_detects_nothing_and_is_not_said_to(evidence):
    assert rates(evidence, "C, detected", "plain") == (Rate(0, 0), Rate(0, 0))
    assert rates(evidence, "C, undetected", "plain")[0] == Rate(6, 7)


def test_an_attack_without_cells_of_its_own_is_one_cell(evidence):
    assert rates(evidence, "D, detected", "rejects")[0] == Rate(1, 2)


def test_what_is_missing_is_what_the_columns_are_attacked_by(evidence, item):
    missing = [str(address) for address in evidence.missing]
    assert missing == ["mnist-p | deepfool | none"]
    bare = ReproductionOutcomes(
        item, outcomes(OUTCOMES).drop(columns=c("r", 1)), {"mnist": "mnist"}
    )
    assert rates(bare, "C, detected", "rejects") == (Rate(4, 4), Rate(1, 4))


def test_rows_tell_what_they_count_and_gaps_of_the_paper_stay_gaps(evidence):
    entries = compare_accuracies(evidence)
    reached, detected, fooled, _ = accuracy_bands(entries)
    assert [band.note for band in (reached, detected, fooled)] == ["success", "detected", "fooled"]
    assert [cell.text for cell in detected.lines[0][1]] == ["90.0", "—"]
    assert [cell.text for cell in fooled.lines[2][1]] == ["—", "—"]
    assert [entry.to_json()["published"] for entry in entries[4:6]] == [None, None]
    table = comparison_table(entries)
    assert table.columns[:2] == ("Attack", "Success / detected / fooled")
    assert "Accuracy" not in table.caption


def test_records_tell_of_rejections_and_of_gradients(item, run_writer, record, tmp_path):
    def shown(sample, *, accepted, zero=False, broken_at=1.0):
        clean, adversarial = ModelOutput(sample, 2.0, True), ModelOutput(sample + 1, 2.0, accepted)
        told = {"clean": clean, "adversarial": adversarial, "zero_gradient": zero}
        return record(sample, label=sample, broken_at=broken_at, **told)

    records = [shown(0, accepted=False), shown(1, accepted=True, zero=True)]
    writer = run_writer(tmp_path / "run-0123abcd")
    writer.cell(records, model="mnist-r", attack="deepfool", kind="minimum-norm", norm="l2", epsilons=[], dataset="mnist")  # fmt: skip
    frame = build_paper_report(item, [writer.finish()]).evidence.outcomes
    name = "mnist-r | deepfool | none"
    assert frame[name + REJECTED].tolist() == [1.0, 0.0]
    assert frame[name + NO_GRADIENT].tolist() == [0.0, 1.0]
