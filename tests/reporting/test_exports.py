"""Exports: every record in documented columns, and files that the readers of other tools accept."""

import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pandas as pd
import pytest

from robustbench_inv.checks.audit_verdict import Conclusion, Reason, conclude
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.exports import (
    log_metrics,
    metrics_of,
    records_frame,
    robustness_below,
    to_eval_results,
    to_junit,
    to_parquet,
)
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.results.summary import Rate
from robustbench_inv.testing.toy_cells import toy_cell

DOCUMENTED = Path(__file__).parents[2] / "docs" / "records.md"


def test_robust_accuracy_is_shown_to_reach_a_limit_by_the_lower_end_of_its_interval():
    cell = toy_cell("pgd", [0.1] * 20 + [0.2] * 20 + [None] * 60, epsilons=[0.1, 0.2])
    low = wilson(Rate(60, 100)).low
    assert robustness_below([cell], low - 1e-9) == []
    (text,) = robustness_below([cell], 0.55)
    assert text == "toy, four, linf=0.2: robust accuracy 60.0 % [50.2, 69.1], lower end below 55 %; more samples make the interval shorter"  # fmt: skip
    assert robustness_below([cell], 0.7)[0].endswith("lower end below 70 %")
    other = toy_cell("pgd", [0.1] * 100, epsilons=[0.1], model={"name": "b"})
    assert len(robustness_below([cell, other], 0.1)) == 1


def test_a_limit_is_not_reached_where_no_robust_accuracy_was_measured():
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    cell = toy_cell("x", [1.0], epsilons=(), threat=threat, attack={"kind": "invariance"})
    assert robustness_below([cell], 0.0) == ["no robust accuracy was measured"]


class Logger:
    def __init__(self):
        self.metrics = []

    def log(self, metrics):
        self.metrics.append(metrics)


def test_a_logger_gets_numbers_and_verdicts_in_one_call():
    cells = [toy_cell("pgd", [0.1, None, None, 0.0], epsilons=[0.1])]
    run, logger = SimpleNamespace(cells=cells, conclusions=conclude(cells, [])), Logger()
    assert log_metrics(run, logger) == {
        "clean_accuracy/toy/four": 0.75,
        "robust_accuracy/toy/four/linf=0.1": 0.5,
        "publishable/toy/four": 0.5,
    }
    assert logger.metrics == [log_metrics(run, Logger())]


def documented_columns():
    rows = [line for line in DOCUMENTED.read_text().splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([a-z_.0-9]+)`", row.split("|")[1])]


def test_every_column_is_documented_and_every_record_is_a_row(full_run):
    cells = [cell for run in read_runs([full_run]) for cell in run.cells]
    frame = records_frame(cells)
    assert sorted(frame.columns) == sorted(documented_columns())
    assert len(frame) == sum(len(cell.records) for cell in cells)


def test_robust_accuracy_follows_from_the_rows_as_documented():
    cell = toy_cell("pgd", [0.1, 0.2, None, 0.0])
    frame = records_frame([cell])
    for eps in cell.epsilons:
        robust = frame["broken_at"].isna() | (frame["broken_at"] > eps)
        assert robust.mean() == cell.robust_rate(eps).value


def read_back(cells):
    out = io.BytesIO()
    to_parquet(cells, out)
    return pd.read_parquet(io.BytesIO(out.getvalue()))


def test_parquet_reads_back_with_its_types(full_run):
    cells = [cell for run in read_runs([full_run]) for cell in run.cells]
    back = read_back(cells)
    meant = records_frame(cells)
    assert list(back.columns) == list(meant.columns)
    assert back["broken_at"].isna().sum() == meant["broken_at"].isna().sum()
    assert back["sample"].tolist() == meant["sample"].tolist()
    one = read_back(cells[:1])
    assert one.dtypes.equals(back.dtypes)  # whatever is missing


def test_metrics_are_the_worst_case():
    cells = [toy_cell("pgd", [0.1, None, None, 0.0]), toy_cell("square", [None, 0.2, None, 0.0])]
    assert metrics_of(cells) == {
        "clean_accuracy/toy/four": 0.75,
        "robust_accuracy/toy/four/linf=0.1": 0.5,
        "robust_accuracy/toy/four/linf=0.2": 0.25,
    }


@pytest.mark.parametrize("order", [1, -1])
def test_the_clean_accuracy_is_of_the_samples_of_the_robust_accuracy(order):
    """Two of ten samples are misclassified before any attack, one of the first two."""
    fall = [0.0, 0.1, 0.0, *[None] * 7]
    far = {"epsilons": (), "attack": {"kind": "minimum-norm"}}
    cells = [
        toy_cell("ddn", fall[:2], threat={"norm": "l1"}, **far),
        toy_cell("pgd", fall[:5], threat={"norm": "linf"}, epsilons=(0.1,)),
        toy_cell("square", fall[:2], threat={"norm": "l2"}, epsilons=(0.1,)),
        toy_cell("fmn", fall, threat={"norm": "l0"}, **far),
    ]
    found = metrics_of(cells[::order])
    assert found["clean_accuracy/toy/four"] == 0.6
    assert found["robust_accuracy/toy/four/linf=0.1"] == 0.4


def test_numbers_of_another_goal_have_names_of_their_own():
    goals = "misclassify", "target"
    weak = [toy_cell("fgsm", [None] * 4, threat={"goal": goal}) for goal in goals]
    cells = [toy_cell("pgd", [0.1] * 4), replace(weak[1], digest="1" * 32)]
    found = metrics_of(cells)
    assert found["robust_accuracy/toy/four/linf=0.1"] == 0.0
    assert found["robust_accuracy/toy/four/linf=0.1:goal=target"] == 1.0
    yaml = to_eval_results(cells, "org/bench")
    assert 'task_id: "robust_accuracy_linf_0.1_goal_target"' in yaml


def test_evaluation_results_have_the_keys_of_the_hub():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    cells = [toy_cell("pgd", [0.1, None, None, 0.0])]
    found = yaml.safe_load(to_eval_results(cells, "org/bench", "https://example.org/r"))
    assert [each["value"] for each in found] == [50.0, 50.0]
    assert found[0]["dataset"] == {"id": "org/bench", "task_id": "robust_accuracy_linf_0.1"}
    assert found[0]["source"] == {"url": "https://example.org/r", "name": "robustbench-inv"}
    assert found[0]["notes"] == "4 samples, worst case over pgd"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found[0]["date"])


def test_numbers_that_must_not_be_published_are_refused_and_reservations_are_named():
    cells = [toy_cell("pgd", [0.1, None])]
    few, bad = (
        Conclusion("toy", "four", verdict, (), (Reason("", reason),), (), "", "", "")
        for reason, verdict in (
            ("Few samples.", "publishable with reservations"),
            ("Gradients vanish.", "do not publish"),
        )
    )
    assert "over pgd. Few samples." in to_eval_results(cells, "org/bench", conclusions=[few])
    assert metrics_of(cells, [few])["publishable/toy/four"] == 0.5
    with pytest.raises(BadResults, match="must not be published, got 'Gradients vanish"):
        to_eval_results(cells, "org/bench", conclusions=[bad])


def test_a_name_cannot_break_out_of_the_file():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    name = 'a": {b: c}\n- x: y # "'
    found = yaml.safe_load(to_eval_results([toy_cell(name, [None])], name))
    assert len(found) == 2
    assert {each["dataset"]["id"] for each in found} == {name}


def test_several_models_are_refused():
    cells = [toy_cell("pgd", [None], model={"name": name}) for name in "ab"]
    with pytest.raises(BadResults, match="one model on one data set"):
        to_eval_results(cells, "org/bench")


def test_planned_cells_of_another_run_are_no_reservation_in_junit(
    run_writer, sweep_records, tmp_path
):
    ensemble = {"attack": "standard", "epsilons": [0.1], "members": 2}
    done = run_writer(tmp_path / "done").cell(sweep_records(40, [10], [0.1]), **ensemble)
    later = run_writer(tmp_path / "later").cell([], attack="square", planned=list(range(40)))
    folders = [done.verdict("PASS", "mnist-cnn").finish(), later.finish()]
    first, _ = ET.fromstring(to_junit(read_runs(folders)))
    assert [len(case) for case in first] == [0, 0]  # neither a failure nor a warning


def test_junit_has_a_test_for_each_check_and_each_model(writer, record):
    run = writer.cell([record(0)], model="<net>&").verdict("FAIL", "<net>&", evidence="bad <b>")
    run.verdict("PASS", "<net>&", id="C7").verdict("NA", "<net>&", id="C8", evidence="none")
    run.verdict("WARN", "<net>&", id="C99", evidence="look")
    root = ET.fromstring(to_junit(read_runs([run.finish()])))
    (suite,) = root
    cases = {case.get("name").split(" ")[0]: case for case in suite}
    assert cases["C6"].find("failure").text == "bad <b>"
    assert cases["C8"].find("skipped").get("message") == "none"
    assert cases["C99"].find("system-out").text == "WARN: look"
    assert len(cases["C7"]) == 0
    assert cases["<net>&,"].find("failure").get("message") == "do not publish"
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "2", "1")
