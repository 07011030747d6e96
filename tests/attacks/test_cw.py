"""Carlini & Wagner as published: closed-form optimum, Foolbox with the same parameters, goals, batches, the box."""

from dataclasses import dataclass, replace

import pytest
import torch

from robustbench_inv.attacks.cw import CarliniWagner
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel, inside_box
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, norm
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

SHORT = CarliniWagner(
    steps=70, searches=9, learning_rate=0.05, initial_constant=1.0, abort_early=False
)


def run(attack, model, images, labels, goal=None, rows=None):
    rows = torch.arange(len(labels)) if rows is None else rows
    batch = Batch(images[rows], labels[rows], rows)
    threat, rng = ThreatModel(Unbounded("l2"), goal or Misclassify()), SampleRNG(0, rows)
    meter = CountingModel(model, batch, threat, rng, keep_best=False)
    return attack.run(meter, batch, threat, rng), meter


def test_it_passes_the_harness():
    check_attack(CarliniWagner(60, 6, learning_rate=0.02, initial_constant=1.0))


@pytest.mark.parametrize(
    ("attack", "classes", "size"),
    [
        (SHORT, 2, 1),
        (SHORT, 3, 8),
        (CarliniWagner(steps=400, learning_rate=0.04, initial_constant=0.1), 3, 2),
    ],
)
def test_it_ends_within_5_percent_of_the_closed_form_optimum(attack, classes, size):
    model, images, labels = linear_problem(size, classes, shape=(1, 5, 5))
    adversarial, meter = run(attack, model, images, labels)
    assert (model(adversarial).decision != labels).all()
    ratio = norm(adversarial - images, "l2") / model.distance(images, labels, "l2")
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.05
    assert (meter.forward_passes <= attack.searches * attack.steps).all()
    assert torch.equal(meter.forward_passes, meter.backward_passes)


def test_with_many_classes_it_ends_near_the_optimum():
    """f6 pushes the class of the largest logit, whose boundary need not be the closest."""
    model, images, labels = linear_problem(8, 8, shape=(1, 5, 5))
    adversarial, _ = run(SHORT, model, images, labels)
    ratio = norm(adversarial - images, "l2") / model.distance(images, labels, "l2")
    assert ratio.median() <= 1.05
    assert ratio.max() <= 1.2


@pytest.mark.slow
def test_foolbox_with_the_same_parameters_is_no_closer():
    data, model = load_dataset("mnist5k"), load_model("mnist-cnn").classifier
    images, labels = data.batch(list(select_samples(data.labels, 10)))
    attack = CarliniWagner(60, 4, learning_rate=0.1, initial_constant=0.1, abort_early=False)
    adversarial, _ = run(attack, model, images, labels)
    assert (model(adversarial).decision != labels).all()
    peer = load_attack(
        "foolbox:L2CarliniWagnerAttack:steps=60,binary_search_steps=4,stepsize=0.1,initial_const=0.1,"
        "abort_early=false"
    )
    theirs, _ = run(peer.attack, model, images, labels)
    ours = norm(adversarial - images, "l2").median()
    assert ours <= 1.02 * norm(theirs - images, "l2").median()


@pytest.mark.parametrize("size", [3])
def test_results_do_not_depend_on_the_batch(size):
    model, images, labels = linear_problem(7, 4, shape=(1, 4, 4))
    attack = CarliniWagner(30, 4, 0.05, 1.0, abort_early=False)
    whole, meter = run(attack, model, images, labels)
    parts = [run(attack, model, images, labels, rows=few) for few in torch.arange(7).split(size)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), whole, rtol=0, atol=1e-9)
    passes = torch.cat([part.forward_passes for _, part in parts])
    assert torch.equal(passes, meter.forward_passes)


def test_elements_at_the_bounds_stay_in_the_box_and_can_move():
    model, images, labels = linear_problem(6, 3, shape=(1, 4, 4))
    images = images.round()
    labels = model(images).decision
    adversarial, _ = run(CarliniWagner(steps=300, learning_rate=0.1), model, images, labels)
    assert inside_box(adversarial, (0.0, 1.0)).all()
    assert (model(adversarial).decision != labels).all()
    assert ((adversarial - images).abs() > 0.05).any()


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0)])
def test_other_bounds(bounds):
    model, images, labels = linear_problem(4, 3, shape=(1, 4, 4))
    low, high = bounds

    @dataclass(frozen=True)
    class Scaled:
        dtype: torch.dtype = torch.float64
        num_classes: int = 3
        bounds: tuple = (low, high)

        def __call__(self, x):
            return model((x - low) / (high - low))

    wide = low + (high - low) * images
    adversarial, _ = run(SHORT, Scaled(), wide, labels)
    assert (Scaled()(adversarial).decision != labels).all()
    assert inside_box(adversarial, bounds).all()


def test_it_reaches_a_target_with_a_confidence():
    model, images, labels = linear_problem(8, 4, shape=(1, 4, 4))
    rows = (labels != 2).nonzero()[:, 0]
    for confidence in (0.0, 0.5):
        attack = CarliniWagner(100, 6, learning_rate=0.05, confidence=confidence)
        adversarial, _ = run(attack, model, images, labels, Target(2), rows)
        logits = model(adversarial).logits
        lead = logits[:, 2] - logits[:, [0, 1, 3]].amax(1)
        assert (lead > confidence).all()
        assert (lead < confidence + 0.2).all()


def test_a_search_that_never_succeeds_returns_the_clean_input():
    model, images, labels = linear_problem(4, 3, shape=(1, 4, 4))
    attack = CarliniWagner(steps=10, searches=2, confidence=1e6)
    adversarial, _ = run(attack, model, images, labels)
    assert torch.equal(adversarial, images)


def test_a_rejected_input_is_no_adversarial_example():
    """The model rejects wherever the first pixel is below 0.5; every clean input has it at 0.3."""
    linear, images, labels = linear_problem(6, 3, shape=(1, 4, 4))
    images[:, 0, 0, 0] = 0.3
    labels = linear(images).decision

    @dataclass(frozen=True)
    class Rejecting:
        dtype: torch.dtype = torch.float64
        num_classes: int = 3
        bounds: tuple = (0.0, 1.0)

        def __call__(self, x):
            score = x[:, 0, 0, 0]
            clearance = (score - 0.5)[:, None].expand(-1, 3)
            return Output(linear(x).logits, score, score >= 0.5, clearance)

    adversarial, _ = run(
        CarliniWagner(100, 5, learning_rate=0.05),
        Rejecting(),
        images,
        labels,
        MisclassifyAccepted(),
    )
    output = Rejecting()(adversarial)
    assert (output.accepted & (output.decision != labels)).all()


def test_abort_early_stops_each_sample_by_itself():
    model, images, labels = linear_problem(4, 3, shape=(1, 4, 4))
    plain, whole = run(CarliniWagner(200, 3, 0.1, abort_early=False), model, images, labels)
    early, some = run(CarliniWagner(200, 3, 0.1), model, images, labels)
    assert (whole.forward_passes == 600).all()
    assert (some.forward_passes < 600).all()
    assert torch.equal(model(early).decision, model(plain).decision)


def test_the_preset_has_the_published_parameters():
    assert load_attack("cw").attack == CarliniWagner(10000, 9, 0.01, 1e-3, 0.0, abort_early=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"searches": 0},
        {"learning_rate": 0.0},
        {"initial_constant": -1.0},
        {"confidence": float("inf")},
    ],
)
def test_parameters_are_checked(bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        CarliniWagner(**bad)


def test_invariance_goals_are_refused():
    model, images, labels = linear_problem(2, 3, shape=(1, 4, 4))
    with pytest.raises(Exception, match="invariance"):
        run(SHORT, model, images, labels, KeepDecision())


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 255.0)])
def test_the_range_of_the_inputs_changes_nothing_but_the_scale(low, high):
    """The constants weigh a distance in widths of the box."""
    model, images, labels = linear_problem(8, 3, shape=(1, 5, 5))
    scaled = replace(
        model,
        weights=model.weights / (high - low),
        biases=model.biases - model.weights.sum(1) * low / (high - low),
        bounds=(low, high),
    )
    attack = CarliniWagner(steps=60, searches=4, learning_rate=0.05)
    unit, _ = run(attack, model, images, labels)
    wide, _ = run(attack, scaled, low + (high - low) * images, labels)
    assert (model(unit).decision != labels).all()
    torch.testing.assert_close((wide - low) / (high - low), unit, rtol=0, atol=1e-6)
