"""Models that reject in a report: attacks, noise and other data in one table, and the curve of risk and coverage."""

import re
from dataclasses import replace

import pytest

from robustbench_inv.reporting.figures import FigureContext, draw_figures
from robustbench_inv.reporting.headlines import build_headlines
from robustbench_inv.reporting.invariance_tables import fixed_input_tables
from robustbench_inv.reporting.rejection_scores import (
    has_scores,
    knows_thresholds,
    scores_to_reject,
    selective_clean,
)
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.reporting.table_formats import BLANK
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.record import ModelOutput
from robustbench_inv.results.summary import Rate
from robustbench_inv.testing.toy_cells import toy_cell

STRANGE = {
    "goal": "accept",
    "attack": "out-of-distribution",
    "kind": "fixed-input",
    "norm": "l2",
    "epsilons": [],
}


@pytest.fixture
def run(writer, record):
    """Four samples of class 3: the least sure is wrong and rejected; an attack fools two, strangers one."""
    scores = [(5.0, True), (4.0, True), (3.0, True), (-1.0, False)]
    clean = [
        replace(record(i), clean=ModelOutput(3 if i < 3 else 5, score, accepted))
        for i, (score, accepted) in enumerate(scores)
    ]
    fooling = [
        replace(r, adversarial=ModelOutput(4 if i < 2 else 3, (2.0, -2.0, 3.0, 1.0)[i], i != 1))
        for i, r in enumerate(clean)
    ]
    strange = [
        replace(
            r,
            adversarial=ModelOutput(3, (-3.0, -4.0, 4.5, -1.5)[i], i == 2),
            broken_at=0.1 if i == 2 else None,
            goal_reached=i == 2,
            backward_passes=0,
        )
        for i, r in enumerate(clean)
    ]
    return (
        writer.cell(fooling, model="m", goal="misclassify-accepted")
        .cell(strange, model="m", **STRANGE)
        .cell(fooling, model="m")
        .finish()
    )


def cells_of(path):
    (found,) = read_runs([path])
    return found.cells


def test_attacks_and_other_data_stand_in_one_table(run):
    answers, scores = build_tables("rejection", cells_of(run))
    assert [t.name for t in (answers, scores)] == ["rejection-mnist5k", "detection-mnist5k"]
    attacks = ["pgd", "pgd", "out-of-distribution"]
    assert list(answers.frame.attack) == list(scores.frame.attack) == attacks
    assert [row[1].detail for row in answers.rows] == [
        "goal: misclassified, ℓ∞ ≤ 0.1", "goal: misclassified and accepted, ℓ∞ ≤ 0.1", "goal: accepted",
    ]  # fmt: skip
    assert list(answers.frame.rejected_adversarial) == [1 / 4, 1 / 4, 3 / 4]
    assert answers.frame.undetected_errors[0] == 1 / 4
    assert answers.frame.undetected_errors.isna().tolist() == [
        False,
        False,
        True,
    ]  # no answer to a stranger is right
    assert list(answers.frame.false_rejection) == [1 / 4] * 3
    # of strangers all four ought to be rejected, of the attacked inputs the two wrong ones
    assert [len(scores_to_reject(c)) for c in cells_of(run)] == [2, 4, 2]


OTHER_THRESHOLDS = ("auroc", "aupr", "detected_at_1", "detected_at_2", "detected_at_5", "fpr_at_95")


def test_a_detector_aware_attack_measures_no_other_threshold(run):
    """It stops just past the model's own threshold: a stricter one rejects what it would have moved farther."""
    _, scores = build_tables("rejection", cells_of(run))
    assert [knows_thresholds(cell) for cell in cells_of(run)] == [True, False, False]
    columns = [f"{name}{end}" for name in OTHER_THRESHOLDS for end in ("", "_low", "_high")]
    oblivious, aware, _ = (scores.frame[columns].iloc[k] for k in range(3))
    assert aware.isna().all()
    assert not oblivious.isna().any()
    # clean 5, 4, 3, −1 against the wrong 2, −2; one of these is below all but the lowest clean score
    assert (oblivious.auroc, oblivious.detected_at_5, oblivious.fpr_at_95) == (7 / 8, 1 / 2, 1 / 2)
    assert [cell.plain for cell in scores.rows[1][3:9]] == [BLANK.plain] * 6
    assert BLANK.plain not in [cell.plain for cell in (*scores.rows[0][3:], *scores.rows[1][9:])]
    assert "Blank for searches of accepted inputs" in scores.caption


def test_a_search_of_accepted_noise_measures_no_other_threshold(run):
    """Distal inputs are noise that follows the gradient until the model accepts it; other noise takes no gradient."""
    noise = cells_of(run)[1]
    distal = replace(noise, records=tuple(replace(r, backward_passes=9) for r in noise.records))
    assert (knows_thresholds(noise), knows_thresholds(distal)) == (False, True)


def test_auroc_of_strangers_counts_pairs(run):
    _, scores = build_tables("rejection", cells_of(run))
    clean, strange = [5.0, 4.0, 3.0, -1.0], [-3.0, -4.0, 4.5, -1.5]
    pairs = [x > y for x in clean for y in strange]
    assert scores.frame.auroc[2] == pytest.approx(sum(pairs) / 16)


def test_what_an_oracle_sees_decides_what_is_wrong(writer, record):
    """A decision that stays is wrong where the oracle sees another class, and right where it sees that one."""
    kept = ModelOutput(3, 1.0, True)
    records = [
        replace(
            record(i),
            clean=kept,
            adversarial=kept,
            oracle_label=7 if i < 3 else 3,
            oracle_source="human",
        )
        for i in range(5)
    ]
    (cell,) = cells_of(writer.cell(records, goal="keep-decision").finish())
    assert scores_to_reject(cell).tolist() == [1.0, 1.0, 1.0]


def test_the_curve_passes_the_model_s_own_threshold(run):
    cell = cells_of(run)[0]
    found = selective_clean(cell)
    assert found.curve.risk.tolist() == [0, 0, 0, 1 / 4]
    assert found.curve.area == 1 / 16
    assert (found.coverage, found.risk) == (Rate(3, 4), Rate(0, 3))


def test_the_figure_shows_clean_inputs_and_each_attacked_model(run):
    (picture,) = draw_figures("risk", FigureContext(cells_of(run)))
    assert picture.name == "risk-mnist5k"
    for word in ("Clean inputs", "m, attacked", "AURC 6.25 %", "pgd (detector-aware)", "pgd: AURC"):
        assert word in picture.svg
    assert "out-of-distribution" not in picture.svg
    assert (
        "Clean inputs: m, AURC 6.25 %; 75.0% accepted, 0.00% of these misclassified." in picture.alt
    )
    # pgd, by score: 3.0 right, 2.0 wrong, 1.0 right, -2.0 wrong
    area = (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    at_own_threshold = "75.0% accepted, 33.33% of these misclassified"
    assert f"pgd, AURC {100 * area:.3g} %; {at_own_threshold}" in picture.alt
    assert f"pgd (detector-aware); {at_own_threshold}" in picture.alt
    assert "pgd (detector-aware): AURC" not in picture.svg
    assert "A detector-aware attack has a dot alone" in picture.caption


def test_a_model_without_rejection_or_score_has_no_curve(writer, record):
    never = [record(i) for i in range(3)]
    silent = [
        replace(r, clean=ModelOutput(3, None, True), adversarial=ModelOutput(3, None, False))
        for r in never
    ]
    cells = cells_of(writer.cell(never).cell(silent, model="s").finish())
    assert [has_scores(cell) for cell in cells] == [False, False]
    assert draw_figures("risk", FigureContext(cells)) == []


def test_an_input_without_a_valid_output_is_accepted_at_any_threshold(run):
    """One such input emptied the table of scores and the figure."""
    cell = cells_of(run)[0]
    silent = ModelOutput(-1, None, True)
    failed = replace(cell.records[3], clean=silent, adversarial=silent, broken_at=0.0, status="model_failure")  # fmt: skip
    mixed = replace(cell, records=(*cell.records[:3], failed))
    assert has_scores(mixed)
    assert selective_clean(mixed).risk == Rate(1, 4)
    assert selective_clean(mixed).curve.risk.tolist() == [1, 1 / 2, 1 / 3, 1 / 4]
    assert not has_scores(replace(cell, records=(failed,)))


@pytest.mark.parametrize("goal", ["misclassify", "misclassify-accepted"])
def test_what_rejects_everything_is_drawn_without_a_dot(writer, record, goal):
    refused = [
        replace(
            record(i), clean=ModelOutput(3, float(i), False), adversarial=ModelOutput(4, 0.0, False)
        )
        for i in range(4)
    ]
    cells = cells_of(writer.cell(refused, goal=goal).finish())
    (picture,) = draw_figures("risk", FigureContext(cells))
    assert "0.0% accepted, none accepted" in picture.alt


def test_inputs_of_no_class_are_in_no_table_of_accuracies(run):
    cells = cells_of(run)
    strange = [cell for cell in cells if cell.threat.no_class]
    assert len(strange) == 1
    for kind in ("worst", "comparison", "agreement"):
        assert build_tables(kind, strange) == []
    assert list(fixed_input_tables(strange, wilson)) == []
    headline = build_headlines(strange, wilson)[0]
    assert headline.group.title == "mnist5k · out-of-distribution inputs"
    assert re.match(r"rejected, % of 4 out-of-distribution inputs", headline.caption)


def test_fixed_inputs_are_no_search():
    goal = {"goal": "misclassify-accepted"}
    searched = toy_cell("pgd", [0.1, None], threat=goal)
    given = toy_cell(
        "shifted-input", [0.1, None], gradients=False, threat=goal, attack={"kind": "fixed-input"}
    )
    taken = [
        replace(
            cell,
            records=tuple(replace(r, clean=replace(r.clean, accepted=True)) for r in cell.records),
        )
        for cell in (searched, given)
    ]
    assert [knows_thresholds(cell) for cell in taken] == [True, False]
