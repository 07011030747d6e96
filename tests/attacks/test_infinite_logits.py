"""Attacks on models that rule classes out by −inf: the result is that on the same model without these classes."""

from functools import partial

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.boundary import BoundaryAttack
from robustbench_inv.attacks.cw import CarliniWagner
from robustbench_inv.attacks.deepfool import DeepFool
from robustbench_inv.attacks.ensemble import Ensemble, SquareThenAPGD
from robustbench_inv.attacks.fast_minimum_norm import DDN, FMN
from robustbench_inv.attacks.hopskipjump import HopSkipJump
from robustbench_inv.attacks.local_search import LocalSearch
from robustbench_inv.attacks.losses import LOSSES
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.square import SquareAttack
from robustbench_inv.models.reject_option import reject
from robustbench_inv.tensors import Output, norm
from robustbench_inv.threat.goals import Misclassify, MisclassifyAccepted, Target

INF = float("inf")
CW = CarliniWagner(steps=30, searches=2, learning_rate=0.05, initial_constant=1.0)
ATTACKS = {
    **{f"pgd {name}": (PGD(steps=8, loss=name), "linf") for name in LOSSES},
    "fgsm dlr": (FGSM(loss="dlr"), "l2"),
    **{f"apgd {name}": (APGD(steps=10), name) for name in ("l1", "l2", "linf")},
    "apgd targeted": (APGD(steps=10, loss="dlr", target_classes=5), "linf"),
    "fmn in larger balls": (
        Ensemble((FMN(steps=5), APGD(steps=9, target_classes=2, radius_schedule=(2.0,)))),
        "l2",
    ),
    **{f"fmn {name}": (FMN(steps=10), name) for name in ("l0", "l1", "l2", "linf")},
    "ddn": (DDN(steps=10), "l2"),
    "deepfool l2": (DeepFool(), "l2"),
    "deepfool linf": (DeepFool(norm="linf"), "linf"),
    "cw": (CW, "l2"),
    "minimum norm": (MinimumNorm(steps=15), "l2"),
    "square": (SquareAttack(queries=30), "linf"),
    "square then apgd": (SquareThenAPGD(queries=20, steps=5, long_queries=30), "linf"),
    "local search": (LocalSearch(rounds=8), "l0"),
    "boundary": (BoundaryAttack(steps=20), "l2"),
    "hopskipjump": (HopSkipJump(steps=2), "l2"),
}
"""An attack of each family, and the norm of its threat."""


def ruled_out(lab, places, rule, classes=4):
    """Return the problem of the tests with more classes at some places, whose logits ``rule`` makes of the others."""
    model, images, labels = lab.problem(classes=classes)
    total = classes + len(places)
    kept = torch.tensor([k for k in range(total) if k not in places])

    def change(output, _):
        wide = output.logits.new_full((len(output.logits), total), -INF)
        return Output(rule(wide.index_copy(1, kept, output.logits), kept))

    changed = lab.Changed(model, change)
    changed.num_classes = total
    return changed, images, kept[labels]


def masked(wide, _kept):
    return wide


def added(wide, kept):
    """Return the logits of other classes from the input as well, and −inf added to them: a gradient flows through."""
    others = wide.where(wide > -INF, 0) + 3 * wide[:, kept[:1]]
    penalty = torch.full_like(wide, -INF).index_fill(1, kept, 0)
    return others.index_copy(1, kept, wide[:, kept]) + penalty


@pytest.mark.parametrize("rule", [masked, added])
@pytest.mark.parametrize("name", ATTACKS)
def test_the_result_is_that_without_the_classes(lab, name, rule):
    attack, measured = ATTACKS[name]
    threat = lab.threat_for(attack, measured)
    plain = lab.run(attack, threat=threat)
    assert plain.broken.any()
    wide = lab.run(attack, ruled_out(lab, (0, 2, 5, 6), rule), threat)
    assert torch.equal(wide.broken, plain.broken)
    far, same = (norm(ran.images - ran.meter.batch.images, measured) for ran in (plain, wide))
    assert torch.allclose(far, same, rtol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "name",
    ["pgd dlr", "fgsm dlr", "apgd targeted", "deepfool l2", "fmn l2", "fmn l0", "minimum norm"],
)
def test_two_or_three_possible_classes_of_ten(lab, name, classes):
    attack, measured = ATTACKS[name]
    threat = lab.threat_for(attack, measured)
    plain = lab.run(attack, lab.problem(classes=classes), threat)
    places = range(1, 11 - classes)
    wide = lab.run(attack, ruled_out(lab, places, added, classes), threat)
    assert plain.broken.any()
    assert torch.equal(wide.broken, plain.broken)


@pytest.mark.parametrize("goal", [Target(3), Target(offset=1, confidence=0.1)])
@pytest.mark.parametrize(
    "name", ["pgd dlr", "apgd targeted", "fmn l2", "deepfool l2", "minimum norm"]
)
def test_a_target_is_reached_as_without_the_classes(lab, name, goal):
    attack, measured = ATTACKS[name]
    threat = lab.threat_for(attack, measured, goal)
    plain, wide = (
        lab.run(attack, on, threat) for on in (lab.problem(), ruled_out(lab, (4, 5), masked))
    )
    if goal.label is not None:
        assert torch.allclose(plain.images, wide.images, atol=1e-6)
    reached = goal.margin(wide.meter(wide.images), wide.meter.batch.labels) > 0
    assert reached.any()


@pytest.mark.parametrize("score", ["likelihood", "max-softmax", "margin", "energy"])
def test_a_reject_option_attacked_with_ruled_out_classes(lab, score):
    results = []
    for on, count in ((lab.problem(), 4), (ruled_out(lab, (0, 3), added), 6)):
        model = reject(on[0], score, torch.full((count,), 0.1, dtype=torch.float64))
        threat = lab.threat_for(PGD(), "linf", MisclassifyAccepted())
        attacks = (PGD(steps=8, loss=loss) for loss in ("ce", "margin"))
        results += [lab.run(attack, (model, *on[1:]), threat).images for attack in attacks]
    plain, wide = results[:2], results[2:]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, wide, strict=True))


def mask_by_input(output, images):
    """Rule the last class out on bright images, and the first on dark ones."""
    bright = images.flatten(1).mean(1) > 0.5
    masks = torch.stack([~bright, *[torch.zeros_like(bright)] * 2, bright], 1)
    return Output(output.logits.masked_fill(masks, -INF))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_class_that_some_inputs_rule_out(lab, name):
    attack, measured = ATTACKS[name]
    model, images, _ = lab.problem()
    changed = lab.Changed(model, mask_by_input)
    ran = lab.run(
        attack, (changed, images, changed(images).decision), lab.threat_for(attack, measured)
    )
    assert ran.images.isfinite().all()
    assert ran.broken.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_without_another_class_nothing_is_broken_and_nothing_raises(lab, name):
    attack, measured = ATTACKS[name]
    model, images, labels = lab.problem()
    alone = lab.Changed(
        model,
        lambda output, _: Output(output.logits.clone().index_fill(1, torch.arange(1, 4), -INF)),
    )
    ran = lab.run(attack, (alone, images, 0 * labels), lab.threat_for(attack, measured))
    assert not ran.broken.any()
    assert ran.images.isfinite().all()


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("foolbox:LinfPGD:steps=5", "linf"),
        ("foolbox:L2DeepFoolAttack", "l2"),
        ("foolbox:L2CarliniWagnerAttack:steps=20,binary_search_steps=2,stepsize=0.05", "l2"),
        ("foolbox:L1FMNAttack:steps=10", "l1"),
        ("torchattacks:PGD:steps=5", "linf"),
        ("torchattacks:CW:steps=20,lr=0.05", "l2"),
        ("torchattacks:DeepFool", "l2"),
        ("torchattacks:APGDT:n_classes=6", "linf"),
    ],
)
def test_attacks_of_other_libraries(lab, name, measured):
    attack = rbi.load_attack(name.removesuffix(":n_classes=6")).attack
    threat = lab.threat_for(attack, measured)
    plain, wide = (
        lab.run(attack, on, threat) for on in (lab.problem(), ruled_out(lab, (0, 5), masked))
    )
    assert plain.broken.any()
    assert wide.broken.sum() >= plain.broken.sum()


def test_goals_of_ruled_out_classes_are_not_reached():
    output = Output(torch.tensor([[1.0, -INF, 0.5], [-INF, 2.0, -INF]]))
    labels = torch.tensor([0, 1])
    for goal in (Misclassify(), Target(2), partial(Target, accepted=True)(2)):
        assert (goal.margin(output, labels) <= 0).all()
    assert Target(1).margin(output, torch.tensor([0, 0])).tolist() == [-INF, INF]
