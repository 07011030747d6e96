"""``invbench export``: files and refusals in one line."""

from xml.etree import ElementTree as ET

import pytest

import robustbench_inv as rbi
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.testing.analytic_problems import linear_problem


@pytest.fixture
def run(tmp_path):
    """Return the results of a linear model under noise."""
    model, x, y = linear_problem(6)
    noise, out = RandomPerturbation(), tmp_path / "run"
    rbi.evaluate(model={"a": model}, attack=noise, threat="linf=0.01", x=x, y=y, out=out)
    return out


def test_checks_and_verdicts_are_junit(invbench, run):
    printed = invbench("export", run, "junit")
    assert printed.out == f"{run / 'junit.xml'}\n"
    assert len(ET.parse(run / "junit.xml").getroot()[0]) > 20


def test_the_worst_case_is_a_file_of_evaluation_results(invbench, run, tmp_path):
    out = tmp_path / ".eval_results" / "robustness.yaml"
    printed = invbench("export", run, "eval-results", "--hub-dataset", "org/bench", "--out", out)
    assert printed.code == 0, printed.err
    assert "value: 100" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "eval-results"], "--hub-dataset"),
        (["run", "csv"], "csv"),
        (["run", "junit", "--model", "b"], "expected models a"),
        (["run", "eval-results", "--hub-dataset", "bench"], "ORG/NAME"),
        (["run", "eval-results", "--hub-dataset", "o/b", "--source", "javascript:1"], "https://"),
        (["missing", "junit"], "missing"),
    ],
)
@pytest.mark.usefixtures("run")
def test_what_does_not_fit_is_one_line(invbench, arguments, message):
    printed = invbench("export", *arguments)
    assert printed.code in (1, 2)
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err
