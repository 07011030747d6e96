"""What a report says of invariance cells: shares, who judged, and how often that errs."""

import json

import pytest

from robustbench_inv.reporting.html import write_report
from robustbench_inv.reporting.run_results import group_cells, read_runs
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.oracle_error import OracleError, write_oracle_error


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
        info["threat"]["oracle"] = {
            "name": "p", "digest": "e" * 64, "source": source, "rule": "majority",
            "members": [{"name": n, "digest": "d" * 64} for n in "ab"], "excluded": ["c is left out"],
        }  # fmt: skip
        file.write_text(json.dumps(info))
        if source == "panel p":
            write_oracle_error(file.parent, OracleError(source, "clean inputs", 50, 1, 2))
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
    assert rows["p"][2:7] == ["4", "50.0", "50.0", "50.0", "25.0"]
    assert rows["p"][9:] == ["panel p", "2.0", "4.0"]
    assert rows["human"][4:7] == ["75.0", "75.0", "0.0"]
    assert rows["human"][10:] == ["—", "—"]
    (fact,) = panel.frame.to_dict("records")
    assert (fact["success"], fact["oracle_error_rate"], fact["oracle"]) == (0.5, 0.02, "panel p")
    assert fact["oracle_error_rate_low"] < 0.02 < fact["oracle_error_rate_high"]


def test_there_is_no_table_without_invariance_cells(writer, record):
    run = writer.cell([record(0)]).finish()
    cells = [cell for result in read_runs([run]) for cell in result.cells]
    assert build_tables("invariance", cells) == []


def test_the_report_says_who_judged(run, tmp_path):
    html = write_report([run], tmp_path / "r.html").read_text()
    for words in (
        "Prediction unchanged, class changed", "majority of a, b; c is left out; wrong on 1, undecided on 2 of 50",
        "Agrees with label", "e" * 64,
    ):  # fmt: skip
        assert words in html
    assert len(list((tmp_path / "r_files" / "tables").glob("invariance-*.csv"))) == 2
