"""Goals that do not fit an attack are refused when the evaluation is planned."""

import pytest

from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.evaluation.jobs import EvaluationRequest
from robustbench_inv.evaluation.plan import make_plan


def plan(attack, threat):
    request = {"models": ["mnist-lenet5"], "dataset": "mnist5k", "samples": 4}
    return make_plan(EvaluationRequest(attacks=[attack], threat=threat, **request))


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        ("pgd", "linf=0.1:goal=keep-decision"),
        ("pgd", "linf=0.1:goal=keep-logits"),
        ("apgd", "linf=0.1:goal=accept"),
        ("fmn", "none:goal=keep-decision"),
        ("deepfool", "none:goal=accept"),
        ("foolbox:LinfPGD", "linf=0.1:goal=keep-logits"),
        ("noise-image", "none:goal=misclassify"),
        ("noise-image", "none:goal=target:offset=1"),
        ("distal", "none:goal=keep-decision"),
        ("noise-image", "linf=0.1"),
        ("out-of-distribution", "l2=3"),
        ("invariance-ball", "linf=0.1:goal=misclassify"),
        ("collision", "none:goal=target:offset=1"),
        ("foolbox:NewtonFoolAttack", "none:goal=target:offset=1"),
        ("torchattacks:DeepFool", "none:goal=target:offset=1"),
        ("torchattacks:SparseFool", "none:goal=target-accepted:offset=1"),
    ],
)
def test_a_goal_that_does_not_fit_the_attack_is_refused(attack, threat):
    with pytest.raises(CapabilityMismatch):
        plan(attack, threat)


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        ("pgd", "linf=0.1:goal=target:offset=1"),
        ("pgd", "linf=0.1:goal=misclassify-accepted"),
        ("noise-image", "none"),
        ("invariance-ball", "linf=0.1"),
        ("foolbox:LinfPGD", "linf=0.1:goal=target:offset=1"),
        ("torchattacks:PGD", "linf=0.1:goal=target:offset=1"),
    ],
)
def test_a_goal_that_fits_is_planned(attack, threat):
    assert len(plan(attack, threat).jobs) == 1


@pytest.mark.parametrize(
    ("attack", "threat", "hint"),
    [
        ("deepfool", "linf=0.1", "for linf write deepfool-linf$"),
        ("deepfool-linf", "l2=1", "for l2 write deepfool$"),
        ("fgsm", "l1=3", "for l1 write apgd or apgd-targeted"),
    ],
)
def test_an_attack_of_another_norm_names_those_that_fit(attack, threat, hint):
    with pytest.raises(CapabilityMismatch, match=hint):
        plan(attack, threat)
