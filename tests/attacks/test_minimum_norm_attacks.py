"""minimum-norm, DDN, DeepFool and FMN: closed-form optima, scales, goals and batches."""

from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.deepfool import DeepFool
from robustbench_inv.attacks.fast_minimum_norm import DDN, FMN
from robustbench_inv.attacks.linearization import (
    distance_scaled_loss,
    linear_distance,
    linearize,
    max_distance,
)
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, Output, norm
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.testing.toys import StochasticToy
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

ATTACKS = [
    (DDN(steps=50, initial_norm=0.1), "l2"),
    (DeepFool("l2"), "l2"),
    (DeepFool("linf"), "linf"),
    *((FMN(steps=40), name) for name in ("l0", "l1", "l2", "linf")),
    *((MinimumNorm(steps=20), name) for name in ("l0", "l1", "l2", "linf")),
]
each_attack = pytest.mark.parametrize(
    ("attack", "name"), ATTACKS, ids=[f"{type(a).__name__}-{n}" for a, n in ATTACKS]
)


@dataclass(frozen=True)
class Answering:
    """A linear classifier with a changed output."""

    linear: LinearClassifier
    change: object
    dtype: torch.dtype = torch.float64
    num_classes: int = field(init=False)
    bounds: tuple = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "num_classes", self.linear.num_classes)
        object.__setattr__(self, "bounds", self.linear.bounds)

    def __call__(self, images):
        return self.change(self.linear(images), images)


@cache
def plain_run(attack, name):
    """Return a linear model, images, labels, and what an attack shows on them; several tests compare others with it."""
    model, images, labels = linear_problem(6, 3, shape=(1, 4, 4))
    return model, images, labels, run(attack, name, model, images, labels)[0]


def run(attack, name, model, images, labels, goal=None, budget=None):
    """Return what an attack shows, and the meter that counted."""
    ids = torch.arange(len(labels))
    batch, threat = Batch(images, labels, ids), ThreatModel(budget or Unbounded(name))
    threat = threat.with_goal(goal or Misclassify())
    meter = CountingModel(model, batch, threat, SampleRNG(0, ids))
    return attack.run(meter, batch, threat, SampleRNG(0, ids)), meter


def distances(images, adversarial, name):
    # adding and subtracting the clean image causes rounding errors, which count in l0
    moved = adversarial - images
    return norm(moved.where(moved.abs() > 1e-9, 0), name)


@pytest.mark.parametrize(
    "attack",
    [
        DDN(steps=40, initial_norm=0.1),
        DeepFool(),
        DeepFool("linf"),
        FMN(steps=10),
        MinimumNorm(steps=6, lagrangian_steps=4),
    ],
)
def test_they_pass_the_harness(attack):
    if isinstance(attack, FMN):  # as published it may end before the boundary
        check_attack(attack, min_success_rate=0.0, max_distance_ratio=float("inf"))
    else:
        check_attack(attack)


@each_attack
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_they_end_close_to_the_optimum(attack, name, classes):
    model, images, labels = linear_problem(8, classes, shape=(1, 5, 5))
    adversarial, _ = run(attack, name, model, images, labels)
    if name == "l2" and isinstance(attack, FMN) and classes > 2:  # as published it may end before
        return
    assert (model(adversarial).decision != labels).all()
    if name == "l0":
        return
    ratio = distances(images, adversarial, name) / model.distance(images, labels, name)
    assert ratio.min() >= 1 - 1e-9
    if classes == 2 or isinstance(attack, DeepFool):
        assert ratio.max() <= 1.04
    # the published losses may push a class whose boundary is not the nearest
    assert ratio.max() <= (1.7 if isinstance(attack, DDN | FMN) else 1.2)


def test_the_nearest_of_three_tied_classes_is_found():
    """Logits that are as far apart, of boundaries that are not: where the cross-entropy heads between them."""
    weights = torch.zeros(4, 16, dtype=torch.float64)
    weights[1, :4], weights[2, 4:8], weights[3, 8:12] = 1.0, 1.1, 1.2
    model = LinearClassifier(weights, torch.tensor([0.2, 0.0, -0.2, -0.4]) - weights.sum(1) / 2)
    images = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    for attack in (DeepFool(), FMN(), MinimumNorm()):
        adversarial, _ = run(attack, "l2", model, images, torch.tensor([0]))
        best = model.distance(images, torch.tensor([0]), "l2").item()
        assert best <= norm(adversarial - images, "l2").item() <= 1.05 * best


CHANGES = {
    "all negative": lambda output, _: Output(output.logits - 1e3),
    "far from zero": lambda output, _: Output(output.logits + 1e6),
    "large": lambda output, _: Output(1e3 * output.logits),
    "small": lambda output, _: Output(1e-3 * output.logits),
}


@each_attack
@pytest.mark.parametrize("change", CHANGES)
def test_neither_offset_nor_scale_of_the_logits_matters(attack, name, change):
    if isinstance(attack, DDN):  # the cross-entropy weighs the classes by the scale
        return
    model, images, labels, plain = plain_run(attack, name)
    adversarial, _ = run(attack, name, Answering(model, CHANGES[change]), images, labels)
    assert (model(adversarial).decision != labels).all()
    expected = distances(images, plain, name)
    assert torch.allclose(distances(images, adversarial, name), expected, rtol=0.01)


@each_attack
def test_the_scale_of_the_inputs_does_not_matter(attack, name):
    model, images, labels, plain = plain_run(attack, name)
    grey = LinearClassifier(model.weights / 255, model.biases, (0.0, 255.0))
    adversarial, _ = run(attack, name, grey, 255 * images, labels)
    assert torch.allclose(adversarial / 255, plain, atol=1e-6)


@each_attack
def test_elements_at_the_bounds_move(attack, name):
    """Almost all pixels of a digit are exactly 0 or 1: tanh⁻¹ of them is infinite."""
    linear, images, _ = linear_problem(6, 3, shape=(1, 4, 4))
    images = (images > 0.5).double()
    model = replace(linear, weights=linear.weights * torch.where(images[0].flatten() > 0, -1, 1))
    labels = model(images).decision
    adversarial, _ = run(attack, name, model, images, labels)
    assert adversarial.isfinite().all()
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    if isinstance(attack, FMN) and name in (
        "l1",
        "l2",
    ):  # as published it may end before the boundary
        return
    assert (model(adversarial).decision != labels).all()


@each_attack
def test_they_aim_at_a_class(attack, name):
    model, images, labels = linear_problem(9, 3)
    rows = labels != 2
    adversarial, _ = run(attack, name, model, images[rows], labels[rows], Target(2))
    assert (model(adversarial).decision == 2).all()


@each_attack
def test_a_rejected_input_is_no_success(attack, name):
    """The model rejects what is less than 0.3 beyond the boundary."""
    model, images, labels = linear_problem(6, 2, shape=(1, 4, 4))

    def cautious(output, _):
        sure = (output.logits[:, 0] - output.logits[:, 1]).abs() > 0.3
        return Output(output.logits, accepted=sure)

    adversarial, meter = run(
        attack, name, Answering(model, cautious), images, labels, MisclassifyAccepted()
    )
    if isinstance(attack, DeepFool):  # it stops at the boundary
        return
    assert meter.classifier(adversarial).accepted.all()
    assert (model(adversarial).decision != labels).all()


@each_attack
def test_other_goals_are_refused(attack, name):
    with pytest.raises(CapabilityMismatch, match="changes the prediction"):
        run(attack, name, *linear_problem(2), KeepDecision())


@each_attack
def test_a_bounded_threat_changes_nothing(attack, name):
    model, images, labels, plain = plain_run(attack, name)
    adversarial, _ = run(attack, name, model, images, labels, budget=LpBall(name, 1.0))
    assert torch.equal(adversarial, plain)


@each_attack
def test_without_gradient_the_search_ends_at_once(attack, name):
    model, images, labels = linear_problem(3)
    flat = Answering(model, lambda output, _: Output(output.logits.detach()))
    adversarial, meter = run(attack, name, flat, images, labels)
    if isinstance(
        attack, MinimumNorm
    ):  # it looks for starting points on the other side, and bisects toward them
        assert (model(adversarial).decision != labels).all()
        assert meter.backward_passes.max() <= attack.steps  # of three runs
    else:
        assert torch.equal(adversarial, images)
        assert meter.forward_passes.max() <= 1 + len(getattr(attack, "loss", "").split("+"))
    assert meter.zero_gradient.all()


@each_attack
def test_a_lucky_draw_ends_no_search(attack, name):
    model, images, labels = linear_problem(3, shape=(1, 4, 4))
    fresh = StochasticToy(model, scale=0.05, draws=2)
    _, meter = run(attack, name, fresh, images, labels)
    assert meter.found.any()
    assert meter.forward_passes.min() > attack.steps


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (DDN(steps=40), "l2"),
        (DeepFool("linf"), "linf"),
        (FMN(steps=40), "l1"),
        (MinimumNorm(steps=20), "l2"),
    ],
)
def test_examples_are_no_lucky_draws(attack, name):
    """Half of them at least lie beyond the boundary of the mean; without confirmation nearly all lie before it."""
    model, images, labels = linear_problem(12, shape=(1, 4, 4))
    adversarial, _ = run(attack, name, StochasticToy(model, scale=0.2, draws=2), images, labels)
    crossed = (model(adversarial).decision != labels).double().mean()
    assert crossed >= 0.4


@pytest.mark.parametrize("name", NORMS)
def test_without_a_gradient_at_the_clean_input_a_search_begins_at_the_other_side(name):
    model, images, labels = linear_problem(6, 2, shape=(1, 4, 4))
    narrow = 0.4 * (model(images).logits[:, 0] - model(images).logits[:, 1]).abs().min()

    def saturated(output, _):
        return Output((output.logits - output.logits.mean(1, True)).clamp(-narrow, narrow))

    masked = Answering(model, saturated)
    adversarial, _ = run(MinimumNorm(steps=20), name, masked, images, labels)
    assert (model(adversarial).decision != labels).all()
    if name != "l0":
        ratio = distances(images, adversarial, name) / model.distance(images, labels, name)
        assert ratio.max() <= 1.5
    inside, _ = run(MinimumNorm(steps=20), name, masked, images, labels, budget=LpBall(name, 0.1))
    assert torch.equal(inside, images), "inside a ball nothing but the ball is searched"


def test_deepfool_stops_a_broken_sample():
    model, images, labels = linear_problem(8, 3)
    _, meter = run(DeepFool(), "l2", model, images, labels)
    assert (meter.forward_passes == 2).all()  # on a linear model the first step crosses
    assert (meter.backward_passes == 4).all()  # of each query, one for each other class


def test_deepfool_among_many_classes():
    """Time and memory are those of its candidates, not of all thousand classes."""
    model, images, labels = linear_problem(8, 1000, shape=(1, 8, 8))
    adversarial, meter = run(DeepFool(candidates=5), "l2", model, images, labels)
    assert (model(adversarial).decision != labels).all()
    assert torch.equal(meter.backward_passes, 5 * meter.forward_passes)
    near, _ = run(DeepFool(candidates=999), "l2", model, images, labels)
    best = model.distance(images, labels, "l2")
    assert (norm(near - images, "l2") / best).max() <= 1.03


def test_closest_adversarial_is_kept_for_each_sample():
    images = torch.zeros(2, 1, 1, 2)
    batch = Batch(images, torch.tensor([0, 0]), torch.arange(2))
    linear = LinearClassifier(torch.eye(2), torch.zeros(2))
    meter = CountingModel(linear, batch, ThreatModel(Unbounded("l1")), SampleRNG(0, batch.ids))
    nearest = ClosestAdversarial(batch, meter.threat, meter)
    right, wrong = Output(torch.tensor([[1.0, 0.0]])), Output(torch.tensor([[0.0, 1.0]]))
    for step, output in ((3.0, wrong), (1.0, right), (2.0, wrong), (2.5, wrong)):
        nearest.update(torch.full((1, 1, 1, 2), step), output, torch.tensor([1]))
    assert nearest.found.tolist() == [False, True]
    assert nearest.images.flatten().tolist() == [0.0, 0.0, 2.0, 2.0]
    assert nearest.distances.tolist() == [float("inf"), 4.0]


@pytest.mark.parametrize("name", ["l1", "l2", "linf"])
def test_linearised_distances_are_those_of_a_linear_model(name):
    model, images, labels = linear_problem(5, 6)
    batch = Batch(images, labels, torch.arange(5))
    meter = CountingModel(model, batch, ThreatModel(Unbounded(name)), SampleRNG(0, batch.ids))
    about = linearize(meter, meter.threat, images, labels, batch.ids, 5)
    assert torch.allclose(about.distances.amin(1), model.distance(images, labels, name))
    assert (meter.backward_passes == 5).all()
    # scaled to distances, the largest logit belongs to the nearest boundary
    gaps = distance_scaled_loss(lambda output, _: output.logits, about.rates)(model(images), labels)
    assert torch.allclose(-gaps.gather(1, about.classes), about.distances)


def test_linear_distance_in_l0_counts_the_steepest_elements():
    slopes = torch.tensor([[3.0, -2.0, 1.0]]).expand(5, 3)
    gaps = torch.tensor([0.0, 3.0, 3.1, 5.5, 99.0])
    assert linear_distance(gaps, slopes, "l0").tolist() == [0, 1, 2, 3, 3]
    assert linear_distance(2 * gaps, slopes, "l0", width=2.0).tolist() == [0, 1, 2, 3, 3]


def test_no_image_is_further_than_the_furthest_corner():
    images = torch.tensor([[0.25, 1.0]])
    assert max_distance(images, (0.0, 1.0), "linf").item() == 1
    assert max_distance(images, (0.0, 1.0), "l1").item() == 1.75
    assert max_distance(images, (0.0, 1.0), "l0").item() == 2


@pytest.mark.parametrize(
    ("build", "bad"),
    [
        *((FMN, bad) for bad in ({"steps": 0}, {"gamma": 1.0}, {"step_size": 0.0})),
        *((DDN, bad) for bad in ({"steps": 0}, {"gamma": 0.0}, {"initial_norm": -1.0})),
        *((DeepFool, bad) for bad in ({"norm": "l1"}, {"candidates": 0}, {"overshoot": -0.1})),
        *((MinimumNorm, bad) for bad in ({"steps": 0}, {"bisections": -1}, {"loss": "x"})),
        *((MinimumNorm, bad) for bad in ({"gamma": 1.0}, {"rel_step": 0.0})),
    ],
)
def test_unusable_parameters_are_named(build, bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        build(**bad)
