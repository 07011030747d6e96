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


def test_it_evaluates_until_it_is_decided_and_says_how(invbench, tmp_path, models_file):
    printed = invbench(
        *("compare", tmp_path / "new", "--models", f"b={models_file}:bad", f"g={models_file}:good"),
        *("--attack", "random-perturbation", "--threat", "linf=0.01", "--until-decided"),
        *("--dataset", f"{models_file}:data", "--no-checks", "--json"),
    )
    assert printed.code == 0, printed.err
    data = json.loads(printed.out)
    assert data["decisions"][0].startswith(
        "Decided after 20 of 40 samples in random order (1 look): g is"
    )
    assert data["results"][1]["samples"] == 20


@pytest.fixture
def models_file(tmp_path):
    """Return a file with a linear model, one with its classes in another order, and their data set."""
    path = tmp_path / "own.py"
    path.write_text(
        "from robustbench_inv.data.arrays import ArrayDataset\n"
        "from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem\n"
        "model, x, y = linear_problem(40)\n"
        "def good(): return model\n"
        "def bad():\n"
        "    w, b = model.weights.detach(), model.biases.detach()\n"
        "    return LinearClassifier(w.roll(1, 0), b.roll(1, 0), model.bounds)\n"
        'def data(): return ArrayDataset(x, y, "toy", model.bounds)\n'
    )
    return path


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing"),
        (["run", "--model", "right"], "one model cannot be compared"),
        (["run", "run", "--model", "right", "rold"], "did you mean rolled"),
        (["run", "run", "--model", "a", "b", "c"], "too many models"),
        (["run", "--until-decided"], "nothing to evaluate"),
        (["--model", "a"], "nothing to compare"),
        (["run", "run", "--model", "a", "--attack", "pgd"], "evaluates the models of --model"),
    ],
)
def test_what_does_not_fit_is_one_line(invbench, arguments, message):
    printed = invbench("compare", *arguments)
    assert printed.code in (1, 2)
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err
