"""``invbench compare``: sentences, JSON, and errors in one line."""

import json

import pytest

import robustbench_inv as rbi
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem


@pytest.fixture
def run(tmp_path):
    """Return the results of a linear model, and of the same with its classes in another order."""
    model, x, y = linear_problem(12)
    weights = [each.detach() for each in (model.weights, model.biases)]
    rolled = LinearClassifier(*(each.roll(1, 0) for each in weights), model.bounds)
    models = {"right": model, "rolled": rolled}
    noise = RandomPerturbation()
    out = tmp_path / "run"
    rbi.evaluate(model=models, attack=noise, threat="linf=0.01", x=x, y=y, out=out, checks=False)
    return out


def test_sentences_and_page(invbench, run):
    printed = invbench("compare", run)
    assert printed.code == 0, printed.err
    assert (
        "rolled classifies 100.0 points fewer of clean samples correctly than right" in printed.out
    )
    assert f"page: {run / 'compare.html'}" in printed.out
    assert "rolled and right, compared" not in (run / "compare.html").read_text()


def test_json_lists_the_samples(invbench, run, tmp_path):
    printed = invbench("compare", run, "--json", "--out", tmp_path / "new" / "page.html")
    data = json.loads(printed.out)
    clean, *_ = data["results"]
    assert clean["quantity"] == "clean"
    assert (clean["lost"], clean["gained"]) == (list(range(12)), [])
    assert data["page"] == str(tmp_path / "new" / "page.html")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing"),
        (["run", "--model", "right"], "one model cannot be compared"),
        (["run", "run", "--model", "right", "rold"], "did you mean rolled"),
        (["run", "run", "--model", "a", "b", "c"], "too many models"),
    ],
)
def test_what_does_not_fit_is_one_line(invbench, arguments, message):
    printed = invbench("compare", *arguments)
    assert printed.code in (1, 2)
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err
