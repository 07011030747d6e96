"""Tables of invariance attacks, fixed inputs and metamers."""

import json
from dataclasses import replace

import pytest

from robustbench_inv.reporting.html import write_report
from robustbench_inv.reporting.run_results import group_cells, read_runs
from robustbench_inv.reporting.table_formats import BLANK
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.oracle_error import OracleError, write_oracle_error
from robustbench_inv.results.rate import ChangeDetection
from robustbench_inv.results.record import ModelOutput


@pytest.fixture
def run(writer, record):
    """The same images judged by a panel and by people."""
    for oracle, classes in (("panel p", (5, 5, None, 3)), ("human", (5, 5, 5, 3))):
        records = [
            record(i, oracle_label=k, oracle_source=oracle, broken_at=0.5 if k == 5 else None)
            for i, k in enumerate(classes)
        ]
        about = {"attack": "metamer", "kind": "invariance", "goal": "keep-decision", "norm": "l2"}
        writer.cell(records, **about, epsilons=[], dataset=oracle)
    path = writer.finish()
    for entry in json.loads((path / "plan.json").read_text())["cells"]:
        file = path / entry["digest"] / "cell.json"
        info = json.loads(file.read_text())
        source, info["dataset"]["name"] = info["dataset"]["name"], "mnist5k"
        info["dataset"]["digest"] = "c" * 64
        info["threat"]["oracle"] = {
            "name": "p", "digest": "e" * 64, "source": source, "rule": "majority",
            "members": [{"name": n, "digest": "d" * 64} for n in "ab"], "excluded": ["c is left out"],
        }  # fmt: skip
        file.write_text(json.dumps(info))
        if source == "panel p":
            seen = ChangeDetection("altered inputs", 100, 80, 100, 10)
            write_oracle_error(file.parent, OracleError(source, "clean inputs", 50, 1, 2, seen))
    return path


def test_oracles_do_not_compete(run):
    cells = [cell for result in read_runs([run]) for cell in result.cells]
    found = group_cells(cells)
    assert sorted(panel.oracle for panel in found) == ["human", "panel p"]
    assert {panel.title for panel in found} == {
        f"mnist5k · ℓ2 · invariance · oracle: {name}" for name in ("human", "panel p")
    }


def test_shares_and_the_oracles_own_error(run):
    cells = [cell for result in read_runs([run]) for cell in result.cells]
    human, panel = build_tables("invariance", cells)
    rows = {table.title.rpartition(" ")[2]: [cell.text for cell in table.rows[0]] for table in (human, panel)}  # fmt: skip
    assert rows["p"][2:8] == ["ℓ2, any distance", "4", "50.0", "50.0", "50.0", "25.0"]
    assert rows["p"][8] == "ℓ2 ∞"
    assert rows["human"][8] == "ℓ2 0.1"
    assert rows["p"][11:] == [
        "panel p",
        "2.0",
        "4.0",
        "50.0",
    ]  # 0.5 changed of 0.5 unchanged predictions
    assert rows["human"][5:8] == ["75.0", "75.0", "0.0"]
    assert rows["human"][12:] == ["—", "—", "—"]
    (fact,) = panel.frame.to_dict("records")
    assert (fact["success"], fact["oracle_error_rate"], fact["oracle"]) == (0.5, 0.02, "panel p")
    assert 0 < fact["corrected_success_low"] < fact["corrected_success"] == 0.5
    assert fact["oracle_error_rate_low"] < 0.02 < fact["oracle_error_rate_high"]


def test_there_is_no_table_without_invariance_cells(writer, record):
    run = writer.cell([record(0)]).finish()
    cells = [cell for result in read_runs([run]) for cell in result.cells]
    assert build_tables("invariance", cells) == []


def test_the_report_says_who_judged(run, tmp_path):
    html = write_report([run], tmp_path / "r.html").read_text()
    for words in (
        "Blindness to class changes, judged by 2 other networks", "majority of a, b; c is left out; wrong on 1, undecided on 2 of 50",
        "Agrees with label", "e" * 64,
    ):  # fmt: skip
        assert words in html
    assert len(list((tmp_path / "r_files" / "tables").glob("invariance-*.csv"))) == 2


def cells_of(run):
    return [cell for result in read_runs([run]) for cell in result.cells]


def seen(make, decisions, oracles, label=3, **changes):
    """Return records of samples 0, 1, … with a decision after and the oracle's class each."""
    return [
        make(
            sample,
            label=label,
            adversarial=ModelOutput(decision, None, None),
            oracle_label=oracle,
            oracle_source=None if oracle is None else "human",
            **changes,
        )
        for sample, (decision, oracle) in enumerate(zip(decisions, oracles, strict=True))
    ]


def shown(table, row, column):
    return table.rows[row][table.columns.index(column)]


GIVEN = {"attack": "counterpart", "kind": "fixed-input", "epsilons": [], "norm": "l2"}


@pytest.fixture
def altered(writer, record):
    """Two models on set a, the first on set b as well; a sample that was wrong before counts like the others."""
    run, keep = writer, {**GIVEN, "goal": "keep-decision"}
    records = seen(record, [3, 3, 7, 1], [3, 7, 7, 3])
    wrong = record(
        4,
        label=3,
        status="already_wrong",
        adversarial=ModelOutput(7, None, None),
        oracle_label=7,
        oracle_source="human",
    )
    run.cell([*records, wrong], model="one", dataset="set-x:set=a", **keep)
    run.cell(seen(record, [3, 3, 3, 3], [3, 7, 7, 3]), model="two", dataset="set-x:set=a", **keep)
    run.cell(seen(record, [3, 3], [7, None]), model="one", dataset="set-x:set=b", **keep)
    return run.finish()


def test_agreement_with_people_and_with_labels(altered):
    (table,) = build_tables("agreement", cells_of(altered))
    assert table.columns == ("Model", "a: human", "a: label", "b: human", "b: label")
    assert [row[0].text for row in table.rows] == ["one", "two"]
    assert shown(table, 0, "a: human").share == 3 / 5
    assert shown(table, 0, "a: label").share == 2 / 5
    assert shown(table, 1, "a: human").share == 2 / 4
    assert shown(table, 1, "a: label").share == 1
    assert shown(table, 0, "b: human").share == 0  # of the one that people could name
    assert shown(table, 0, "b: label").share == 1
    assert shown(table, 1, "b: human") == shown(table, 1, "b: label") == BLANK
    assert "3 of 5 (a), 1 of 2 (b)" in table.caption
    frame = table.frame.set_index(["model", "dataset"])
    assert frame.agrees_with_oracle_where_changed["one", "set-x:set=a"] == 2 / 3
    assert frame.agrees_with_oracle_where_changed["two", "set-x:set=a"] == 0
    assert frame.agrees_with_oracle_low["two", "set-x:set=a"] == pytest.approx(0.15, abs=0.005)


def test_accuracy_before_and_after_a_shift(writer, record):
    records = seen(record, [3, 3, 7, 7], [None] * 4)
    wrong = record(4, label=3, status="already_wrong", adversarial=ModelOutput(3, None, None))
    about = {**GIVEN, "attack": "shift", "goal": "misclassify", "dataset": "planted"}
    run = writer.cell([*records, wrong], **about).finish()
    (table,) = build_tables("agreement", cells_of(run))
    assert table.columns == ("Model", "planted: clean", "planted: adversarial")
    assert shown(table, 0, "planted: clean").share == 4 / 5
    assert shown(table, 0, "planted: adversarial").share == 3 / 5


def test_a_cell_without_a_class_by_the_oracle_has_columns_of_its_own(writer, record):
    """Clean accuracy stood in the oracle's column, and the second of two cells replaced the first."""
    about = {**GIVEN, "goal": "keep-decision", "dataset": "set-x:set=a", "model": "one"}
    nobody = [replace(r, oracle_source=None) for r in seen(record, [3, 3, 1], [None] * 3)]
    run = writer.cell(seen(record, [3, 7, 7], [3, 7, 7]), **about)
    run.cell(nobody, **{**about, "model": "two"})
    run.cell(seen(record, [3, 3, 3], [3, 7, 7]), **about, seed=1)
    (table,) = build_tables("agreement", cells_of(run.finish()))
    assert table.columns[1:] == ("a: human", "a: label", "a: clean", "a: adversarial")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["one", "100.0", "33.3", "—", "—"],
        ["two", "—", "—", "100.0", "66.7"],
        ["one", "33.3", "100.0", "—", "—"],
    ]


def test_an_input_that_was_not_altered_does_not_agree(writer, record):
    """An attack without a valid input keeps the clean one, on which every model agrees with the oracle."""
    unaltered = [replace(r, distance=replace(r.distance, l0=0)) for r in seen(record, [3], [3])]
    about = {**GIVEN, "goal": "keep-decision", "dataset": "set-x:set=a"}
    altered = [replace(r, sample=1) for r in seen(record, [3], [7])]
    (table,) = build_tables("agreement", cells_of(writer.cell([*unaltered, *altered], **about).finish()))  # fmt: skip
    assert shown(table, 0, "a: human").text == "0.0"


def test_a_metamer_without_numbers_has_none_of_the_properties(writer, record):
    """A record whose numbers a kill lost ended the report with a KeyError."""
    values = {"donor_label": [7], "reencoding_error": [1e-6]}
    note = {"event": "sample_values", "samples": [0], "values": values}
    about = {"attack": "metamer", "kind": "invariance", "epsilons": [], "goal": "keep-decision"}
    run = writer.cell(seen(record, [3, 3], [7, 7]), events=[note], **about).finish()
    (table,) = build_tables("metamers", cells_of(run))
    assert shown(table, 0, "Error").text == "∞"
    assert shown(table, 0, "Prediction rounded").share == 0
    assert shown(table, 0, "Donor's class").share == 1 / 2


def test_attacks_that_search_are_passed_over(writer, record):
    run = writer.cell(seen(record, [3], [7]), kind="invariance").finish()
    assert build_tables("agreement", cells_of(run)) == []
    assert build_tables("metamers", cells_of(run)) == []


def test_what_survives_of_metamers(writer, record):
    records = seen(record, [3, 3, 3, 5], [7, 8, 3, None])
    wrong = record(4, label=3, status="already_wrong")
    values = {
        "donor_label": [7, 7, 7, 7],
        "reencoding_error": [1e-6, 2e-5, 1e-6, 1e-6],
        "raw_same_prediction": [1, 1, 1, 1],
        "clipped_same_prediction": [1, 1, 1, 0],
        "rounded_same_prediction": [1, 1, 0, 0],
        "raw_logit_distance": [1e-6, 1e-5, 1e-6, None],
        "clipped_logit_distance": [1e-6, 0.5, 0.2, 1.0],
        "rounded_logit_distance": [0.1, 0.5, 0.2, 1.0],
    }
    note = {"event": "sample_values", "samples": [0, 1, 2, 3], "values": values}
    about = {"attack": "metamer", "kind": "invariance", "epsilons": [], "goal": "keep-decision"}
    run = writer.cell([*records, wrong], events=[note], **about).finish()
    (table,) = build_tables("metamers", cells_of(run))
    assert shown(table, 0, "Metamers").text == "4"
    assert shown(table, 0, "Error").text == "2e-05"
    shares = {c: cell.share for c, cell in zip(table.columns, table.rows[0], strict=True)}
    assert [shares[f"Prediction {w}"] for w in ("decoded", "clipped", "rounded")] == [1, 0.75, 0.5]
    assert [shares[f"Logits {w}"] for w in ("decoded", "clipped", "rounded")] == [0.75, 0.25, 0]
    assert (shares["Donor's class"], shares["Source's class"]) == (0.25, 0.25)
    assert table.frame.donors_class.tolist() == [0.25]
