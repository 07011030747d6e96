"""Evaluations that stop when they are decided: the right answer, the same records, honest words, refusals."""

import json

import pytest

import robustbench_inv as rbi
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.engine import until
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem

SAMPLES = 60


@pytest.fixture(scope="module")
def problem():
    """Return a linear model, one with its classes in another order, and samples."""
    model, x, y = linear_problem(SAMPLES)
    weights = [each.detach() for each in (model.weights, model.biases)]
    return model, LinearClassifier(*(each.roll(1, 0) for each in weights), model.bounds), x, y


@pytest.fixture
def decide(problem, tmp_path):
    """Return a function that evaluates the two models until they are told apart."""
    good, bad, x, y = problem

    def run(*, models=None, name="run", **options):
        settings = {
            "attack": RandomPerturbation(),
            "threat": "linf=0.01",
            "x": x,
            "y": y,
            "until_decided": True,
            "checks": False,
            "out": tmp_path / name,
            **options,
        }
        return rbi.evaluate(models or {"bad": bad, "good": good}, **settings)

    return run


def test_it_stops_at_the_first_look_if_every_sample_differs(decide):
    run = decide()
    (decision,) = run.decisions
    assert decision.decided
    assert (decision.samples, decision.population, decision.looks) == (20, SAMPLES, (20,))
    assert decision.sentence.startswith(
        "Decided after 20 of 60 samples in random order (1 look): good is"
    )
    assert "difference on all 60 samples [+60.0, +100.0] points" in decision.sentence
    assert {len(cell.records) for cell in run.cells} == {20}
    assert decision.sentence in str(run)


def test_its_samples_are_random_and_the_same_for_a_seed_and_its_records_are_those_of_a_full_run(
    decide,
):
    first, again = decide(), decide(name="again")
    ids = [record.sample for record in first.cells[0].records]
    assert ids == [record.sample for record in again.cells[0].records]
    assert ids != list(range(20))
    assert ids != [record.sample for record in decide(name="other", seed=1).cells[0].records]
    whole = {
        (c.digest, r.sample): r
        for c in decide(name="all", until_decided=False).cells
        for r in c.records
    }
    assert all(
        whole[cell.digest, record.sample] == record
        for cell in first.cells
        for record in cell.records
    )


def test_equal_models_are_evaluated_on_all_samples_and_not_told_apart(decide, problem):
    good, _, _, _ = problem
    twin = LinearClassifier(good.weights.detach() * 2, good.biases.detach() * 2, good.bounds)
    run = decide(models={"a": good, "b": twin})
    (decision,) = run.decisions
    assert not decision.decided
    assert decision.looks == (20, 30, 40, 50, 60)
    assert "are not told apart" in decision.sentence
    assert "difference on all" not in decision.sentence
    cell = run.cells[0]
    assert cell.looks == (20, 30, 40, 50)
    assert "was looked at after 20, 30, 40, 50 of 60 samples" in str(run)
    result = next(r for r in rbi.compare(run.path).results if r.quantity == "robust")
    assert result.decided
    assert result.looked
    assert "confidence sequence" in result.sentence


def test_a_limit_is_decided_for_each_model(decide):
    run = decide(fail_under=0.5)
    texts = {decision.models: decision.sentence for decision in run.decisions}
    assert "is at least 50 %" in texts["good",]
    assert "of all 60 samples [" in texts["good",]
    assert "is below 50 %" in texts["bad",]
    assert all(decision.samples == 20 for decision in run.decisions)


def test_an_interrupted_run_asks_at_the_same_looks(decide):
    decide(until_decided=False, samples="first:60")
    (decision,) = decide().decisions
    assert decision.looks == (20,)


def test_the_page_says_how_it_was_decided_and_others_keep_the_decision(decide):
    run = decide()
    page = rbi.compare(run.path)
    assert page.decisions == (run.decisions[0].sentence,)
    assert run.decisions[0].sentence in page.write(run.path / "compare.html").read_text()
    decide(until_decided=False)
    assert [each.question for each in run.decisions] == [run.decisions[0].question]


def test_a_damaged_decision_is_refused(decide):
    run = decide()
    path = run.path / "plan.json"
    plan = json.loads(path.read_text())
    plan["decisions"][0]["samples"] = "many"
    path.write_text(json.dumps(plan))
    assert run.decisions == []  # the plan is made from the cells


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["mnist-cnn"]}, "nothing to decide"),
        ({"existing": "skip"}, "cannot stop early"),
        ({"fail_under": 40.0}, "unusable fail_under"),
        ({"fail_under": float("nan")}, "unusable fail_under"),
        ({"fail_under": 0.4, "until_decided": False}, "has no effect"),
        ({"until_decided": "yes"}, "unusable until_decided"),
    ],
)
def test_what_cannot_be_decided_is_refused(decide, options, message, problem):
    if "models" in options:
        options = {"models": {"good": problem[0]}}
    with pytest.raises(BadParameter, match=message):
        decide(**options)


def test_samples_added_by_hand_are_a_look_and_stages_that_the_clock_ends_are_none(decide):
    with until(1e18):
        decide(until_decided=False, samples=20, name="timed")
        timed = decide(until_decided=False, samples=40, name="timed")
    assert [cell.looks for cell in timed.cells] == [(), ()]
    one = decide(until_decided=False, samples=20)
    assert [cell.looks for cell in one.cells] == [(), ()]
    more = decide(until_decided=False, samples=40)
    assert [cell.looks for cell in more.cells] == [(20,), (20,)]
