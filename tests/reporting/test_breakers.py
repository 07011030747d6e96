"""A cascade's members in the report and on the terminal, from a run of the engine."""

import pytest

import robustbench_inv as rbi
from robustbench_inv.attacks.ensemble import Ensemble
from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.cli.run_tables import print_run
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.reporting.html import write_report
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.testing.analytic_problems import linear_problem


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cascade, and an attack that is none, on a linear model of 40 samples; some fall to each member."""
    model, images, labels = linear_problem(40, 4, (1, 3, 3))
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 4  # wrong to begin with
    return rbi.evaluate(
        model=model,
        attack=[Ensemble((RandomPerturbation(draws=20), FGSM(), PGD(steps=5))), FGSM()],
        threat="linf=0.035",
        dataset=ArrayDataset(images, labels, "linear", num_classes=4),
        out=tmp_path_factory.mktemp("run"),
        checks=False,
    )


def cells_of(run):
    return [cell for result in read_runs([run.path]) for cell in result.cells]


def test_the_counts_are_those_of_the_records(run):
    cascade, other = run.to_json()
    told, kept = cascade["ensemble"], cascade["robust_accuracy"][-1]
    assert other["ensemble"] is None
    assert list(told["broken_by"]) == ["RandomPerturbation", "FGSM", "PGD"]
    assert (told["robust"], told["misclassified_clean"]) == (kept["successes"], 1)
    assert told["broken_during_search"] == 0
    assert sum(told["broken_by"].values()) + told["robust"] + 1 == 40
    assert min(*map(told["broken_by"].get, ("RandomPerturbation", "FGSM")), told["robust"]) > 0


def test_the_table_has_a_column_for_each_member(run):
    (table,) = build_tables("breakers", cells_of(run))
    told = run.to_json()[0]["ensemble"]
    numbers = (told["misclassified_clean"], *told["broken_by"].values(), told["robust"])
    counts = list(map(str, numbers))
    assert table.columns[4:] == (
        *("Misclassified clean", "RandomPerturbation", "FGSM", "PGD", "Robust"),
    )
    assert [[cell.text for cell in row[4:]] for row in table.rows] == [counts]
    assert table.frame["count"].sum() == 40
    assert build_tables("breakers", cells_of(run)[1:]) == []


def test_report_and_terminal_show_it(run, tmp_path, capsys):
    page = write_report([run.path], tmp_path).read_text()
    assert "Broken by: linear" in page
    print_run(run)
    left = run.to_json()[0]["ensemble"]["robust"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "broken by" in line]
    assert line.startswith("ensemble on ")
    assert line.endswith(f"; misclassified before 1, robust {left}")
