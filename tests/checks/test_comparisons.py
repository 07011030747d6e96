"""Each check that compares cells fires where one attack shows up another."""

from dataclasses import replace

import pytest

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import (
    check_distances,
    check_eps_scale,
    check_gradient_free,
    check_monotone,
    check_single_step,
    escalate_saturation,
)
from robustbench_inv.testing.toy_cells import toy_cell as cell

STRONG = [0.1] * 150 + [0.2] * 40 + [None] * 10
WEAK = [0.1] * 100 + [0.2] * 40 + [None] * 60


def views(*cells):
    return list(cells)


def noise(broken, **options):
    return cell("noise", broken, gradients=False, **options)


def lpf(norm, *epsilons):
    return {"norm": norm, "epsilons": list(epsilons), "goal": "misclassify"}


def test_c1_compares_cells_of_the_same_attack():
    small = cell("pgd", STRONG, epsilons=(0.1, 0.2))
    large = cell("pgd", [0.3] * 190 + [None] * 10, epsilons=(0.3,))
    (verdict,) = check_monotone(views(small, large))
    assert (verdict.verdict, verdict.value) == ("PASS", 0.0)
    lost = cell("pgd", [None] * 20 + [0.3] * 170 + [None] * 10, epsilons=(0.3,))
    (verdict,) = check_monotone(views(small, lost))
    assert (verdict.verdict, verdict.value) == ("WARN", pytest.approx(0.1))


def test_c1_says_nothing_of_cells_that_are_not_comparable():
    small = cell("pgd", STRONG)
    others = [
        cell("fgsm", WEAK, epsilons=(0.3,)),
        replace(cell("pgd", WEAK), info=replace(small.info, seed=1)),
    ]
    for other in others:
        assert check_monotone(views(small, other)) == []


@pytest.mark.parametrize(
    ("extra", "expected"), [(0, "PASS"), (1, "WARN"), (2, "WARN"), (3, "FAIL")]
)
def test_c3_fires_when_one_step_breaks_what_iterations_do_not(extra, expected):
    fgsm = cell("fgsm", [0.1] * 100 + [None] * (100 - extra) + [0.2] * extra)
    (verdict,) = check_single_step(views(fgsm, cell("pgd", STRONG)))
    assert (verdict.verdict, verdict.value) == (expected, extra / 200)
    assert ("199" in verdict.evidence) == (extra > 0)


def test_c3_takes_pgd_of_one_step_for_a_single_step():
    once = cell("pgd", WEAK, parameters={"steps": 1})
    assert (
        check_single_step(views(once, cell("pgd", STRONG, parameters={"steps": 40})))[0].verdict
        == "PASS"
    )


@pytest.mark.parametrize(
    "other",
    [
        cell("pgd", WEAK, epsilons=(0.3,)),
        cell("pgd", WEAK, threat=lpf("l2", 0.1, 0.2)),
        cell("pgd", WEAK, model={"name": "another"}),
        noise(WEAK),
    ],
)
def test_c3_needs_the_same_model_norm_and_eps(other):
    assert {v.verdict for v in check_single_step(views(cell("fgsm", STRONG), other))} == {"NA"}


def test_c3_knows_the_libraries_names():
    adapter = {"implementation": "robustbench_inv.attacks.adapters.foolbox:FoolboxAttack"}
    fast, slow = (
        cell(
            name,
            broken,
            attack={**adapter, "parameters": {"attack": name, "parameters": [["steps", n]]}},
        )
        for name, broken, n in (("LinfFastGradientAttack", WEAK, None), ("LinfPGD", STRONG, 40))
    )
    fast_view, slow_view = views(fast, slow)
    assert (fast_view.single_step, fast_view.iterative) == (True, False)
    assert (slow_view.single_step, slow_view.iterative) == (False, True)
    assert slow_view.attack.own_parameters["steps"] == 40
    assert (cell("MIFGSM", WEAK)).iterative


@pytest.mark.parametrize(("extra", "expected"), [(0, "PASS"), (1, "WARN"), (2, "FAIL")])
def test_c5_fires_when_noise_breaks_what_no_gradient_attack_breaks(extra, expected):
    broken = [0.2] * 20 + [None] * (180 - extra) + [0.1] * extra
    (verdict,) = check_gradient_free(views(noise(broken), cell("fgsm", WEAK), cell("pgd", STRONG)))
    assert (verdict.verdict, verdict.value) == (expected, extra / 200)


def test_c5_forgives_two_tenths_of_a_point():
    pgd, lucky = cell("pgd", [None] * 1000), noise([0.2] * 2 + [None] * 998)
    assert check_gradient_free(views(pgd, lucky))[0].verdict == "PASS"
    for extra, expected in ((3, "WARN"), (4, "WARN"), (5, "FAIL")):
        lucky = noise([0.2] * extra + [None] * (1000 - extra))
        assert check_gradient_free(views(pgd, lucky))[0].verdict == expected


def test_c5_reads_a_minimal_attack_at_every_eps():
    boundary = noise([0.05] * 2 + [0.7] * 198, epsilons=(), attack={"kind": "minimum-norm"})
    (verdict,) = check_gradient_free(views(cell("pgd", [None] * 2 + [0.1] * 198), boundary))
    assert (verdict.verdict, verdict.value) == ("FAIL", 2 / 200)


def test_c5_takes_analytic_attacks_for_neither():
    closed_form = noise([0.1] * 200)
    closed_form = replace(
        closed_form, records=tuple(replace(r, forward_passes=0) for r in closed_form.records)
    )
    assert check_gradient_free(views(cell("pgd", WEAK), closed_form))[0].verdict == "NA"


def via(access="transfer", **threat):
    helper = {"name": "lenet", "digest": "e" * 64}
    return {**lpf("linf", 0.1, 0.2), "access": access, "substitute": helper, **threat}


@pytest.mark.parametrize("access", ["transfer", "score"])
@pytest.mark.parametrize(("extra", "expected"), [(0, "PASS"), (1, "WARN"), (2, "FAIL")])
def test_c5_fires_when_a_substitute_breaks_what_no_gradient_of_the_model_does(
    access, extra, expected
):
    broken = [0.2] * 20 + [None] * (180 - extra) + [0.1] * extra
    helped = cell("fgsm", broken, threat=via(access))
    (verdict,) = check_gradient_free(views(helped, cell("pgd", STRONG)))
    assert (verdict.verdict, verdict.value) == (expected, extra / 200)
    assert f"fgsm {'via' if access == 'transfer' else 'guided by'} lenet" in verdict.evidence


def test_c5_needs_gradients_of_the_model():
    """All the gradients are a substitute's: nothing is known of the model's."""
    both = views(noise(WEAK), cell("pgd", WEAK, threat=via()))
    assert [v.verdict for v in check_gradient_free(both)] == ["NA"]


def test_gradients_of_a_substitute_say_nothing_of_the_model():
    """One step may transfer better than many (C3), and cross-entropy saturates elsewhere (C7)."""
    one, many = cell("fgsm", STRONG, threat=via()), cell("pgd", WEAK, threat=via())
    assert [v.verdict for v in check_single_step(views(one, many))] == ["NA"]
    assert [v.verdict for v in check_single_step(views(one, cell("pgd", WEAK)))] == ["NA"]
    saturated = CHECKS["C7"].make_verdict("toy", "WARN", 40.0, "Margins are large.")
    assert escalate_saturation([saturated], views(one))[0].verdict == "WARN"
    own = views(cell("pgd", WEAK, parameters={"loss": "margin"}), one)
    assert escalate_saturation([saturated], own)[0].verdict == "WARN"
    ce = views(cell("fgsm", WEAK), cell("pgd", WEAK, parameters={"loss": "margin"}, threat=via()))
    assert escalate_saturation([saturated], ce)[0].verdict == "FAIL"


def test_c1_does_not_take_an_attack_on_a_substitute_for_the_same_attack():
    large = cell("pgd", WEAK, epsilons=(0.3,), threat=via(epsilons=[0.3]))
    assert check_monotone(views(cell("pgd", STRONG), large)) == []


def test_goals_that_keep_the_decision_are_not_compared():
    goal = {**lpf("linf", 0.1, 0.2), "goal": "keep-decision"}
    both = views(cell("fgsm", STRONG, threat=goal), cell("pgd", WEAK, threat=goal))
    assert check_single_step(both) == check_gradient_free(both) == check_monotone(both) == []


@pytest.mark.parametrize(
    ("norm", "epsilons", "expected"),
    [
        ("linf", (0.1, 1.0), "PASS"),
        ("linf", (0.1, 8.0), "WARN"),
        ("linf", (2.0, 8.0), "FAIL"),
        ("linf", (0.5 / 255,), "PASS"),
        ("linf", (0.0001, 0.0009), "WARN"),
        ("l2", (0.0009,), "WARN"),
        ("l2", (2.0,), "PASS"),
        ("l2", (2.1,), "FAIL"),
        ("l1", (4.0,), "PASS"),
        ("l0", (4.0,), "PASS"),
        ("l0", (5.0,), "FAIL"),
    ],
)
def test_c17_holds_eps_against_the_box(norm, epsilons, expected):
    (verdict,) = check_eps_scale(views(cell("pgd", WEAK, threat=lpf(norm, *epsilons))))
    assert verdict.verdict == expected


def test_c17_has_nothing_to_say_without_eps():
    (verdict,) = check_eps_scale(views(cell("cw", WEAK, epsilons=())))
    assert verdict.verdict == "NA"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([cell("pgd", WEAK, parameters={"loss": "ce"}), cell("fgsm", WEAK)], "FAIL"),
        ([cell("pgd", WEAK, parameters={"loss": "margin"}), cell("fgsm", WEAK)], "WARN"),
        ([cell("pgd", WEAK, parameters={"loss": "ce+dlr"})], "WARN"),
        ([cell("cw", WEAK), cell("fgsm", WEAK)], "WARN"),
        ([noise(WEAK)], "WARN"),
        ([cell("pgd", WEAK, parameters={"loss": "ce"}, model={"name": "another"})], "WARN"),
    ],
)
def test_c7_fails_on_a_plan_of_cross_entropy_alone(cells, expected):
    saturated = CHECKS["C7"].make_verdict("toy", "WARN", 40.0, "Margins are large.")
    fine = CHECKS["C7"].make_verdict("toy", "PASS", 4.0, "Margins are small.")
    other = CHECKS["C6"].make_verdict("toy", "WARN", 0.5, "Gradients are zero.")
    found = escalate_saturation([saturated, fine, other], views(*cells))
    assert [v.verdict for v in found] == [expected, "PASS", "WARN"]


def test_attacks_that_aim_at_different_classes_are_not_compared():
    def threat(label):
        return {"goal": "target", "goal_parameters": {"label": label}}

    one, many = cell("fgsm", STRONG, threat=threat(3)), cell("pgd", WEAK, threat=threat(5))
    assert {v.verdict for v in check_single_step(views(one, many))} == {"NA"}
    same = cell("pgd", WEAK, threat=threat(3))
    assert [v.verdict for v in check_single_step(views(one, same))] == ["FAIL"]


@pytest.mark.parametrize(("attack", "expected"), [("APGD", True), ("APGDT", False)])
def test_targeted_apgd_does_not_climb_cross_entropy(attack, expected):
    (view,) = views(cell("x", WEAK, parameters={"attack": attack}))
    assert view.uses_cross_entropy_only == expected


def near(broken, norm="l2", **parts):
    """A minimum-norm attack; the toy's l2 distances are twice its linf distances."""
    about = {"norm": norm, "epsilons": [], "goal": "misclassify", **parts}
    return cell("minimum-norm", broken, epsilons=(), threat=about, attack={"kind": "minimum-norm"})


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ([0.1] * 20, "PASS"),
        ([0.1] * 19 + [0.2 * 1.04], "PASS"),  # not by more than 5 %
        ([0.1] * 18 + [0.3], "WARN"),
        ([0.1] * 17 + [None] * 3, "FAIL"),
        ([0.1] * 17 + [0.4] * 3, "FAIL"),
    ],
)
def test_c47_fires_when_another_attack_has_closer_examples(missed, expected):
    """``standard`` inside linf 0.2 breaks all samples; its examples lie at an l2 distance of 0.4."""
    standard = cell("standard", [0.2] * len(missed), epsilons=(0.2,))
    (verdict,) = check_distances([near(missed), standard])
    assert (verdict.id, verdict.verdict) == ("C47", expected)
    assert ("found none" in verdict.evidence) == (expected in ("WARN", "FAIL"))


def test_c47_compares_the_best_of_the_minimum_norm_attacks_with_the_same_goal():
    standard = cell("standard", [0.2] * 3, epsilons=(0.2,))
    weak, strong = near([None] * 3), near([0.1] * 3)
    assert [v.verdict for v in check_distances([weak, strong, standard])] == ["PASS"]
    assert [v.verdict for v in check_distances([weak])] == ["NA"]
    targeted = near([None] * 3, goal="target", goal_parameters={"label": 5})
    assert [v.verdict for v in check_distances([targeted, standard])] == ["NA"]
    other = cell("standard", [0.2] * 3, epsilons=(0.2,), model={"name": "other", "digest": "1"})
    assert [v.verdict for v in check_distances([weak, other])] == ["NA"]
    assert not check_distances([standard])
