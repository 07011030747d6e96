"""The harness for plugin authors passes good attacks and models, and catches each fault."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.tensors import Output, norm
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.testing.harness import check_attack, check_model


def straight(model, batch, overshoot):
    """Step to the nearest decision boundary of the linear model, in l2."""
    classifier = model.model
    logits = classifier(batch.images).logits
    slopes = classifier.weights - classifier.weights[batch.labels][:, None]
    gaps = logits.gather(1, batch.labels[:, None]) - logits
    ratio = (gaps / slopes.norm(dim=2)).scatter(1, batch.labels[:, None], float("inf"))
    nearest, rows = ratio.argmin(1), torch.arange(len(batch))
    slope = slopes[rows, nearest]
    step = overshoot * (gaps[rows, nearest] / slope.square().sum(1))[:, None] * slope
    shown = batch.images + step.reshape(batch.images.shape)
    model(shown)
    return shown


@dataclass(frozen=True)
class Straight:
    """The nearest adversarial input, with a fault that a test can switch on."""

    overshoot: float = 1.01
    fault: str = ""

    kind: ClassVar = "minimum-norm"
    norms: ClassVar = frozenset({"l2"})

    def run(self, model, batch, threat, noise):
        shown = straight(model, batch, self.overshoot)
        if self.fault == "nan":
            return shown / 0 * 0
        if self.fault == "box":
            return shown + 1
        if self.fault == "shape":
            return shown.flatten(1)
        if self.fault == "dtype":
            return shown.float()
        if self.fault == "global":
            return shown + 1e-9 * torch.rand(1)
        if self.fault == "batch":
            return shown + 1e-3 * len(batch)
        if self.fault == "in place":
            batch.images.add_(1e-3)
        return shown


@dataclass(frozen=True)
class Reckless:
    """Claims to stay in a budget."""

    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})

    def run(self, model, batch, threat, noise):
        return batch.images + 1.1 * threat.budget.eps


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        PGD(10, 1, 1.0, decay=True, loss="margin"),
        PGD(10, 2, 1.0, decay=True, loss="ce+margin"),
    ],
    ids=repr,
)
def test_native_attacks_pass(attack):
    check_attack(attack, min_success_rate=1.0)


@dataclass(frozen=True)
class Forgetful(PGD):
    """Its short run starts from the clean input and ignores the warm start."""

    forgets: bool = False

    @property
    def short_run(self):
        return Forgetful(steps=1, rel_step=0.1, loss="margin", forgets=True)

    def run(self, model, batch, threat, noise):
        return super().run(
            model, replace(batch, start=None) if self.forgets else batch, threat, noise
        )


def test_a_short_run_without_its_warm_start_fails():
    with pytest.raises(AssertionError, match="its short run loses successes of its warm start"):
        check_attack(Forgetful(10, 1, 1.0, decay=True, loss="margin"), min_success_rate=1.0)


def test_noise_passes_without_success():
    check_attack(RandomPerturbation(draws=2))
    with pytest.raises(AssertionError, match="breaks"):
        check_attack(RandomPerturbation(draws=2), min_success_rate=1.0)


def test_the_closest_example_passes():
    check_attack(Straight())


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("nan", "finite"),
        ("box", "bounds"),
        ("shape", "shape"),
        ("dtype", "float32"),
        ("global", "global generator"),
        ("batch", "depend on the batch size"),
        ("in place", "changes its inputs"),
    ],
)
def test_each_fault_of_an_attack_fails(fault, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_attack(Straight(fault=fault))


def test_dependence_on_the_batch_can_be_tolerated():
    check_attack(Straight(fault="batch"), batch_invariant=False)


def test_a_too_distant_example_fails():
    check_attack(Straight(overshoot=1.2))
    with pytest.raises(AssertionError, match="as far away as necessary"):
        check_attack(Straight(overshoot=1.3))


def test_leaving_the_budget_fails():
    with pytest.raises(AssertionError, match="leaves its budget"):
        check_attack(Reckless())


def test_another_object_is_not_an_attack():
    with pytest.raises(AssertionError, match="lacks kind, norms or run"):
        check_attack(object())


@pytest.mark.parametrize("name", ["l1", "l2", "linf"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_linear_distances_are_those_of_the_nearest_input(classes, name):
    model, images, labels = linear_problem(6, classes)
    distance = model.distance(images, labels, name)
    gradients = model.weights - model.weights[labels][:, None]
    best = {"l2": gradients / gradients.norm(dim=2, keepdim=True), "linf": gradients.sign()}
    peak = gradients.abs().amax(2, keepdim=True)
    best["l1"] = torch.where(gradients.abs() == peak, gradients.sign(), 0)
    for factor, any_falls in ((0.999, False), (1.001, True)):
        steps = factor * distance[:, None, None] * best[name].nan_to_num(0)
        shown = images[:, None] + steps.reshape(6, classes, *images.shape[1:])
        assert torch.allclose(norm(steps[0], name).max(), factor * distance[0])
        decisions = torch.stack([model(shown[:, k]).decision for k in range(classes)], 1)
        assert ((decisions != labels[:, None]).any(1) == any_falls).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 6.0)])
def test_linear_inputs_are_far_from_the_bounds(bounds):
    model, images, labels = linear_problem(20, 4, bounds=bounds)
    room = min(float((images - bounds[0]).min()), float((bounds[1] - images).min()))
    assert room > float(model.distance(images, labels, "l1").max())
    assert model.distance(images, (labels + 1) % 4, "l2").eq(0).all()


def test_check_model_passes_a_linear_one():
    model, images, _ = linear_problem(dtype=torch.float32)
    check_model(model, images)


@dataclass(frozen=True)
class Faulty(LinearClassifier):
    """A linear classifier with a fault."""

    fault: str = ""

    def __call__(self, images):
        logits = super().__call__(images).logits
        faults = {
            "nan": lambda: logits / 0,
            "shape": lambda: logits[:, :1],
            "batch": lambda: logits - logits.mean(0),
            "order": lambda: logits + torch.arange(len(logits))[:, None],
            "detached": lambda: logits.detach() + 0 * images.sum(),
        }
        return Output(faults[self.fault]())


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("nan", "finite"),
        ("shape", "logits are"),
        ("batch", "alone"),
        ("order", "reverse order"),
        ("detached", "gradient is zero"),
    ],
)
def test_each_fault_of_a_model_fails(fault, complaint):
    model, images, _ = linear_problem()
    with pytest.raises(AssertionError, match=complaint):
        check_model(Faulty(model.weights, model.biases, fault=fault), images)


def test_inputs_outside_the_bounds_fail():
    model, images, _ = linear_problem()
    with pytest.raises(AssertionError, match="outside its bounds"):
        check_model(model, images + 1)
