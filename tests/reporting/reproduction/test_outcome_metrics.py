"""Attack success, detected, undetected: shares counted by hand on a few samples, cell by cell."""

from math import inf, nan

import pandas as pd
import pytest

from robustbench_inv.catalogue.reproduction_file import read_reproduction
from robustbench_inv.reporting.reproduction.comparison import compare_outcomes
from robustbench_inv.reporting.reproduction.comparison_tables import (
    ATTACK_FORMAT,
    number_bands,
    numbers_table,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    NO_GRADIENT,
    REJECTED,
    ReproductionOutcomes,
    rate_of,
)
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


def frame_of(columns):
    """Outcomes by address, one list for each; four samples."""
    rows = [("mnist", i, i) for i in range(4)]
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "sample", "label"])
    return pd.DataFrame(columns, index=index)


def c(model, offset):
    return f"mnist-{model} | cw | none:goal=target:offset={offset}"


def a(offset):
    return f"mnist-r | cw | none:goal=target-accepted:offset={offset}"


OUTCOMES = {
    # target one class further: one is predicted so before the attack, two succeed (one is rejected), one is robust
    c("r", 1): [0.0, 1.0, 2.0, inf], c("r", 1) + REJECTED: [0.0, 1.0, 0.0, 0.0],
    # target two classes further: all succeed and are rejected
    c("r", 2): [1.0, 1.0, 1.0, 1.0], c("r", 2) + REJECTED: [1.0, 1.0, 1.0, 1.0],
    # detector-aware, one class further: an accepted example of the second sample; three samples requested
    a(1): [0.0, 3.0, inf, nan], a(1) + REJECTED: [0.0, 0.0, 0.0, nan],
    a(2): [inf, 3.0, 3.0, 3.0], a(2) + REJECTED: [0.0, 0.0, 0.0, 0.0],
    c("p", 1): [1.0, 1.0, inf, 0.0], c("p", 2): [1.0, 1.0, 1.0, 1.0],
    # as records name the threat, without the default goal
    "mnist-r | deepfool | none": [1.0, 1.0, 0.0, inf], "mnist-r | deepfool | none" + REJECTED: [1.0, 0.0, 1.0, 0.0],
}  # fmt: skip


@pytest.fixture
def outcomes(item):
    return ReproductionOutcomes(item, frame_of(OUTCOMES), {"mnist": "mnist"})


def rates(outcomes, row, column):
    """Return the share as published and the adaptive one."""
    line = next(each for each in outcomes.item.rows if each.label == row)
    model = next(each for each in outcomes.item.columns if each.name == column)
    sides = ("published", "adaptive")
    return tuple(rate_of(outcomes.counted(line, model, side, "mnist")) for side in sides)


def test_success_is_a_share_of_the_attacked_pairs(outcomes):
    assert rates(outcomes, "C, success", "rejects") == (Rate(6, 7), Rate(0, 0))
    assert rates(outcomes, "C, success", "plain")[0] == Rate(6, 7)


def test_detection_is_a_share_of_the_successes_of_the_published_attack(outcomes):
    published, adaptive = rates(outcomes, "C, detected", "rejects")
    assert published == Rate(5, 6)
    # common pairs: the second and third sample one class further, all four two classes further. Undetected: the
    # third (published attack), the second and three of the four (detector-aware attack)
    assert adaptive == Rate(1, 6)


def test_undetected_is_a_share_of_the_attacked_pairs(outcomes):
    published, adaptive = rates(outcomes, "C, undetected", "rejects")
    assert published == Rate(1, 7)
    # without the sample that was not requested from the adaptive attack
    assert adaptive == Rate(5, 6)


def test_a_model_without_rejection_has_no_detection_rate(outcomes):
    assert rates(outcomes, "C, detected", "plain") == (Rate(0, 0), Rate(0, 0))
    assert rates(outcomes, "C, undetected", "plain")[0] == Rate(6, 7)


def test_a_trial_without_targets_is_one_cell(outcomes):
    assert rates(outcomes, "D, detected", "rejects")[0] == Rate(1, 2)


def test_missing_are_the_cells_of_the_attacked_columns(outcomes, item):
    missing = [str(address) for address in outcomes.missing]
    assert missing == ["mnist-p | deepfool | none"]
    bare = ReproductionOutcomes(
        item, frame_of(OUTCOMES).drop(columns=c("r", 1)), {"mnist": "mnist"}
    )
    assert rates(bare, "C, detected", "rejects") == (Rate(4, 4), Rate(1, 4))


def test_bands_name_their_metric_and_gaps_of_the_paper_stay_blank(outcomes):
    entries = compare_outcomes(outcomes)
    bands = number_bands(entries, ATTACK_FORMAT)
    assert [band.note for band in bands[:3]] == ["attack success", "detected", "undetected"]
    assert [cell.text for cell in bands[1].lines[0][1]] == ["90.0", "—"]
    assert [line for line, _ in bands[2].lines] == ["ours", "adaptive"]
    assert [entry.to_json()["published"] for entry in entries[4:6]] == [None, None]
    table = numbers_table(entries, ATTACK_FORMAT)
    assert table.columns[:2] == ("Row", "Numbers")
    assert table.caption.startswith("Attack success: ")
    assert "Accuracy" not in table.caption


def test_records_give_rejections_and_zero_gradients(
    item, run_writer, record, outcomes_of, tmp_path
):
    def adversarial(sample, *, accepted, zero=False, broken_at=1.0):
        outputs = ModelOutput(sample, 2.0, True), ModelOutput(sample + 1, 2.0, accepted)
        fields = {"clean": outputs[0], "adversarial": outputs[1], "zero_gradient": zero}
        return record(sample, label=sample, broken_at=broken_at, **fields)

    records = [adversarial(0, accepted=False), adversarial(1, accepted=True, zero=True)]
    writer = run_writer(tmp_path / "run-0123abcd")
    writer.cell(records, model="mnist-r", attack="deepfool", kind="minimum-norm", norm="l2", epsilons=[], dataset="mnist")  # fmt: skip
    frame = outcomes_of(item, writer.finish()).outcomes
    name = "mnist-r | deepfool | none"
    assert frame[name + REJECTED].tolist() == [1.0, 0.0]
    assert frame[name + NO_GRADIENT].tolist() == [0.0, 1.0]
