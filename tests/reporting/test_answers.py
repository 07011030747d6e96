"""The first screen answers: which model is best, can the numbers be trusted, what broke the models."""

from dataclasses import replace

import pytest

from robustbench_inv.checks.audit_verdict import CONCLUSIONS, conclude
from robustbench_inv.reporting.answers import answer_questions
from robustbench_inv.reporting.headlines import build_headlines
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.testing.toy_cells import toy_cell


def cell(model, robust, attack="pgd", n=60, eps=0.1):
    broken = [eps if i >= robust else None for i in range(n)]
    return toy_cell(attack, broken, epsilons=[eps], model={"name": model, "digest": model})


def answers(cells, **verdicts):
    conclusions = [
        replace(each, verdict=verdicts.get(each.model, CONCLUSIONS[0]), reasons=())
        for each in conclude(cells, [])
    ]
    found = answer_questions(build_headlines(cells, wilson), conclusions)
    return {each.question.split()[0]: " ".join(each.sentences) for each in found}


def test_the_best_model_is_more_robust_than_every_other():
    text = answers([cell("a", 50), cell("b", 20)])["Which"]
    assert text.startswith("a: 83.3 % [")
    assert text.endswith("robust at ℓ∞ ≤ 0.1 on four, more than every other model.")


def test_models_that_the_samples_do_not_separate_are_named_together():
    text = answers([cell("a", 50), cell("b", 49), cell("c", 10)])["Which"]
    assert "on these samples it is not shown to be better than b." in text
    assert " c" not in text


def test_a_model_whose_numbers_must_not_be_published_is_not_the_best():
    found = answers([cell("a", 60), cell("b", 20), cell("c", 5)], a=CONCLUSIONS[2])
    assert found["Which"].startswith("b: 33.3 %")
    assert found["Which"].endswith("Left out, for numbers that must not be published: a.")
    assert "Do not publish: 1 of 3 (a)" in found["Can"]


def test_a_sweep_is_compared_over_all_its_budgets():
    broken = {"a": [0.1] * 3 + [0.3] * 57, "b": [0.1] * 6 + [0.2] * 54}
    cells = [
        toy_cell("pgd", where, epsilons=[0.1, 0.2, 0.3], model={"name": model, "digest": model})
        for model, where in broken.items()
    ]
    assert answers(cells)["Which"].endswith("more than every other model.")
    assert answers(cells[::-1])["Which"].startswith("a: ")


def test_models_with_other_samples_are_not_ranked():
    text = answers([cell("a", 50), cell("b", 20, n=40)])["Which"]
    assert "not ranked" in text


def far(model, distance, attack="ddn", n=60):
    broken = [distance + i / 1000 for i in range(n)]
    about = {"model": {"name": model, "digest": model}, "attack": {"kind": "minimum-norm"}}
    return toy_cell(attack, broken, epsilons=[], **about)


def test_models_are_compared_by_distance_without_a_budget():
    found = answers([far("a", 1.0), far("b", 2.0), far("b", 1.5, "fmn")])
    assert found["Which"].startswith("b: broken at a median ℓ∞ distance of 1.53 [1.5")
    assert found["Which"].endswith("on four, farther than every other model.")


def test_of_attacks_that_break_every_sample_the_strongest_has_the_smallest_distances():
    found = answers([far("a", 2.0, "ddn"), far("a", 1.0, "fmn")])
    assert found["What"] == "Small changes (ℓ∞, four): fmn."
    assert found["Which"].startswith(
        "Only one model was attacked in this way, a: broken at a median ℓ∞ distance of 1.03"
    )


@pytest.mark.parametrize(
    ("robust", "expected"),
    [(60, "no attack succeeded"), (30, "strong on 1 of 2 models; no attack succeeded on 1")],
)
def test_the_strongest_attack_is_named_and_whether_nothing_broke(robust, expected):
    cells = [cell("a", robust, "strong"), cell("b", 60, "strong")]
    assert answers(cells)["What"] == f"Small changes (ℓ∞, four): {expected}."
