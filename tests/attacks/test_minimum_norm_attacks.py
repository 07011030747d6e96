"""cw-adaptive, DDN, DeepFool and FMN: closed-form optima, scales, goals and batches."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.cw import FIRST_SEARCH, REFINEMENTS, AdaptiveCarliniWagner
from robustbench_inv.attacks.deepfool import DeepFool
from robustbench_inv.attacks.linearization import (
    distance_scaled_loss,
    linear_distance,
    linearize,
    max_distance,
)
from robustbench_inv.attacks.losses import logit_margin
from robustbench_inv.attacks.minimum_norm import DDN, FMN
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, norm
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.testing.toys import StochasticToy
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

ATTACKS = [
    (AdaptiveCarliniWagner(), "l2"),
    (DDN(), "l2"),
    (DeepFool("l2"), "l2"),
    (DeepFool("linf"), "linf"),
    *((FMN(steps=20), name) for name in ("l0", "l1", "l2", "linf")),
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
    [AdaptiveCarliniWagner(steps=25), DDN(steps=30), DeepFool(), DeepFool("linf"), FMN(steps=15)],
)
def test_they_pass_the_harness(attack):
    check_attack(attack)


@each_attack
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_they_end_close_to_the_optimum(attack, name, classes):
    model, images, labels = linear_problem(8, classes, shape=(1, 5, 5))
    adversarial, _ = run(attack, name, model, images, labels)
    assert (model(adversarial).decision != labels).all()
    if name == "l0":
        return
    ratio = distances(images, adversarial, name) / model.distance(images, labels, name)
    assert ratio.min() >= 1 - 1e-9
    if classes == 2 or isinstance(attack, DeepFool):
        assert ratio.max() <= 1.03
    assert ratio.max() <= 1.2


def test_the_nearest_of_three_tied_classes_is_found():
    """Logits that are as far apart, of boundaries that are not: where the cross-entropy heads between them."""
    weights = torch.zeros(4, 16, dtype=torch.float64)
    weights[1, :4], weights[2, 4:8], weights[3, 8:12] = 1.0, 1.1, 1.2
    model = LinearClassifier(weights, torch.tensor([0.2, 0.0, -0.2, -0.4]) - weights.sum(1) / 2)
    images = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    for attack in (DDN(), AdaptiveCarliniWagner(), DeepFool(), FMN()):
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
    model, images, labels = linear_problem(6, 3, shape=(1, 4, 4))
    plain, _ = run(attack, name, model, images, labels)
    adversarial, _ = run(attack, name, Answering(model, CHANGES[change]), images, labels)
    assert (model(adversarial).decision != labels).all()
    expected = distances(images, plain, name)
    assert torch.allclose(distances(images, adversarial, name), expected, rtol=0.01)


@each_attack
def test_the_scale_of_the_inputs_does_not_matter(attack, name):
    model, images, labels = linear_problem(6, 3, shape=(1, 4, 4))
    grey = LinearClassifier(model.weights / 255, model.biases, (0.0, 255.0))
    plain, _ = run(attack, name, model, images, labels)
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
    model, images, labels = linear_problem(4)
    plain, _ = run(attack, name, model, images, labels)
    adversarial, _ = run(attack, name, model, images, labels, budget=LpBall(name, 1.0))
    assert torch.equal(adversarial, plain)


@each_attack
def test_without_gradient_the_search_ends_at_once(attack, name):
    model, images, labels = linear_problem(3)
    flat = Answering(model, lambda output, _: Output(output.logits.detach()))
    adversarial, meter = run(attack, name, flat, images, labels)
    assert torch.equal(adversarial, images)
    assert meter.forward_passes.max() <= 2
    assert meter.zero_gradient.all()


@each_attack
def test_a_lucky_draw_ends_no_search(attack, name):
    model, images, labels = linear_problem(3, shape=(1, 4, 4))
    fresh = StochasticToy(model, scale=0.05, draws=2)
    adaptive = isinstance(attack, AdaptiveCarliniWagner)
    if adaptive:  # the number of its searches follows the distances, and balancing takes a pass
        attack = replace(attack, searches=1)
    _, meter = run(attack, name, fresh, images, labels)
    assert meter.found.any()
    passes = meter.forward_passes
    assert passes.max() - passes.min() <= int(adaptive)
    assert passes.min() > attack.steps


def test_deepfool_stops_a_broken_sample():
    model, images, labels = linear_problem(8, 3)
    _, meter = run(DeepFool(bisections=0), "l2", model, images, labels)
    assert (meter.forward_passes == 2).all()  # on a linear model the first step crosses
    assert (meter.backward_passes == 4).all()  # of each query, one for each other class


def test_deepfool_among_many_classes():
    """Time and memory are those of its candidates, not of all thousand classes."""
    model, images, labels = linear_problem(8, 1000, shape=(1, 8, 8))
    adversarial, meter = run(
        DeepFool(candidates=5, later_candidates=2), "l2", model, images, labels
    )
    assert (model(adversarial).decision != labels).all()
    steps = meter.forward_passes - DeepFool().bisections
    assert torch.equal(meter.backward_passes, 5 + 2 * (steps - 1))
    near, _ = run(DeepFool(candidates=999), "l2", model, images, labels)
    best = model.distance(images, labels, "l2")
    assert (norm(near - images, "l2") / best).max() <= 1.01


def test_bisections_move_a_success_to_the_boundary():
    model, images, labels = linear_problem(6, 3)
    best = model.distance(images, labels, "l2")
    ratios = [
        norm(run(DeepFool(bisections=b), "l2", model, images, labels)[0] - images, "l2") / best
        for b in (0, 3, 9)
    ]
    assert torch.allclose(ratios[0], torch.full_like(best, 1.02))
    assert (ratios[1] <= ratios[0]).all()
    assert ratios[2].max() <= 1.003


@pytest.mark.parametrize("confidence", [0.5, 2.0])
def test_carlini_wagner_is_as_sure_as_it_should_be(confidence):
    model, images, labels = linear_problem(6, 3)
    adversarial, _ = run(AdaptiveCarliniWagner(confidence=confidence), "l2", model, images, labels)
    margins = logit_margin(model(adversarial), labels)
    assert margins.min() > confidence
    assert margins.max() <= 1.25 * confidence


def test_cw_adaptive_returns_the_closest_if_none_has_the_confidence():
    model, images, labels = linear_problem(4, 3)
    adversarial, _ = run(AdaptiveCarliniWagner(confidence=1e4), "l2", model, images, labels)
    assert (model(adversarial).decision != labels).all()


def test_cw_adaptive_stops_a_sample_whose_constant_was_right():
    model, images, labels = linear_problem(6, 2)
    _, meter = run(AdaptiveCarliniWagner(steps=30), "l2", model, images, labels)
    _, first = run(FIRST_SEARCH, "l2", model, images, labels)
    # one search, the clean image, the end, the balance; after the first search its result and the balance there; refinement
    more = meter.forward_passes - (first.forward_passes + 2 + 30 + 3)
    assert 1 <= more.min() <= more.max() <= 7 * REFINEMENTS


def test_closest_adversarial_is_kept_for_each_sample():
    images = torch.zeros(2, 1, 1, 2)
    batch = Batch(images, torch.tensor([0, 0]), torch.arange(2))
    nearest = ClosestAdversarial(batch, ThreatModel(Unbounded("l1")))
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
    assert torch.equal(
        about.nearest(1)[:, 0],
        about.classes.gather(1, about.distances.argmin(1)[:, None])[:, 0],
    )
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
        *((FMN, bad) for bad in ({"steps": 0}, {"gamma": 1.0}, {"rel_step": 0.0}, {"loss": "x"})),
        *((DDN, bad) for bad in ({"steps": 0}, {"gamma": 0.0}, {"bisections": -1})),
        *((DeepFool, bad) for bad in ({"norm": "l1"}, {"candidates": 0}, {"overshoot": -0.1})),
        *(
            (AdaptiveCarliniWagner, bad)
            for bad in ({"searches": 0}, {"confidence": -1.0}, {"rel_step": 0})
        ),
    ],
)
def test_unusable_parameters_are_named(build, bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        build(**bad)


RIVALS = {
    ("ddn", "l2"): ("DDNAttack", {"steps": 60}),
    ("deepfool", "l2"): ("L2DeepFoolAttack", {}),
    ("deepfool-linf", "linf"): ("LinfDeepFoolAttack", {}),
    ("fmn", "l0"): ("L0FMNAttack", {"steps": 60}),
    ("fmn", "l1"): ("L1FMNAttack", {"steps": 60}),
    ("fmn", "l2"): ("L2FMNAttack", {"steps": 60}),
    ("fmn", "linf"): ("LInfFMNAttack", {"steps": 60}),
    ("cw-adaptive", "l2"): (
        "L2CarliniWagnerAttack",
        {
            "binary_search_steps": 4,
            "steps": 50,
            "stepsize": 0.1,
            "initial_const": 0.1,
            "abort_early": False,
        },
    ),
}
"""Foolbox's attacks of the same names, with about twice our passes; docs/benchmarks.md has them at full length."""


@pytest.mark.parametrize(("attack", "name"), RIVALS)
def test_on_digits_the_median_is_no_further_than_foolbox(attack, name):
    foolbox = pytest.importorskip("foolbox")
    classifier, data = load_model("mnist-cnn").classifier, load_dataset("mnist5k")
    ids = torch.tensor(select_samples(data.labels, 40 if name == "linf" else 20))
    images, labels = data.batch(ids)
    theirs, parameters = RIVALS[attack, name]
    model = foolbox.PyTorchModel(classifier.module, bounds=(0, 1), device="cpu")
    _, peer, fell = getattr(foolbox.attacks, theirs)(**parameters)(
        model, images, labels, epsilons=None
    )
    adversarial, _ = run(load_attack(attack).attack, name, classifier, images, labels)
    assert (classifier(adversarial).decision != labels).all()
    far = torch.where(fell, distances(images, peer, name), float("inf"))
    assert distances(images, adversarial, name).median() <= far.median()
