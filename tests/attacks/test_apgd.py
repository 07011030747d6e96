"""Auto-PGD: the closed form of linear models, its checkpoints, targets, and logits of any scale."""

from dataclasses import dataclass, replace

import pytest
import torch

from robustbench_inv.attacks.apgd import (
    APGD,
    MALT_CLASSES,
    MALTAPGD,
    APGDState,
    checkpoint_steps,
)
from robustbench_inv.attacks.budget_geometry import Ball
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.reject_option import reject
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, flatten, top_other_classes
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.testing.toys import StochasticToy
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

NORMS = ("l1", "l2", "linf")


@dataclass(frozen=True)
class Model:
    """A classifier made of a function from flattened inputs to logits."""

    function: object
    num_classes: int
    bounds: tuple[float, float] = (0.0, 1.0)
    dtype: torch.dtype = torch.float64

    def __call__(self, images):
        return Output(self.function(flatten(images)))


def run(attack, model, images, labels, threat, start=None):
    ids = torch.arange(len(labels))
    batch, rng = Batch(images, labels, ids, start), SampleRNG(0, ids)
    meter = CountingModel(model, batch, threat, rng)
    return attack.run(meter, batch, threat, rng), meter


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(
    ("attack", "classes"),
    [
        *((APGD(50, loss=loss), 2) for loss in ("ce", "scaled-ce", "dlr")),
        *((APGD(50, loss="dlr", target_classes=9), count) for count in (3, 6)),
        (APGD(50, loss="margin", target_classes=9), 1000),
    ],
    ids=repr,
)
def test_linear_model_is_broken_exactly_beyond_the_analytic_distance(attack, classes, name):
    model, images, labels = linear_problem(2, classes)
    nearest = float(model.distance(images[:1], labels[:1], name))
    for factor in (0.999, 1.01):
        threat = ThreatModel(LpBall(name, factor * nearest))
        adversarial, _ = run(attack, model, images[:1], labels[:1], threat)
        assert bool((model(adversarial).decision != labels[:1]).all()) == (factor > 1)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=30),
        APGD(steps=10, loss="dlr", target_classes=9),
        APGD(steps=60, radius_schedule=(4.0, 2.0)),
    ],
    ids=repr,
)
def test_fulfils_the_contract(attack):
    check_attack(attack, min_success_rate=1.0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_larger_budgets_lead_back_in_from_beyond_a_plateau(norm):
    """Half the way to the best point of the ball nothing changes, and no gradient is to be had."""
    eps = {"linf": 0.2, "l2": 0.5}[norm]
    reach = eps * {"linf": 9, "l2": 3}[norm]

    def plateau(flat):
        beyond = ((flat - 0.5).sum(1) - 0.5 * reach).clamp_min(0) - 1e-3
        return torch.stack([-beyond, beyond], 1)

    images = torch.full((120, 1, 3, 3), 0.5, dtype=torch.float64)
    labels, threat = torch.zeros(120, dtype=torch.int64), ThreatModel(LpBall(norm, eps))
    model, broken = Model(plateau, 2), []
    for radius_schedule in ((), (8.0, 4.0, 2.0)):
        adversarial, meter = run(
            APGD(80, radius_schedule=radius_schedule), model, images, labels, threat
        )
        assert threat.budget.contains(images, adversarial).all()
        broken.append(int((model(adversarial).decision != labels).sum()))
        assert broken[-1] == int(meter.found.sum())
    assert broken[1] > broken[0]


def test_unusable_widths_are_refused():
    for radius_schedule in ((1.0,), (2.0, 3.0), (0.5,)):
        with pytest.raises(BadParameter, match="radius_schedule"):
            APGD(100, radius_schedule=radius_schedule)
    with pytest.raises(BadParameter, match="steps"):
        APGD(2, radius_schedule=(3.0, 2.0))


def test_checkpoints_are_the_papers():
    assert checkpoint_steps(100, "linf") == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoint_steps(100, "l1")[:3] == [4, 8, 12]
    assert checkpoint_steps(1, "l2") == [1]


def test_steps_without_progress_are_halved_and_restart_at_the_best():
    clean = torch.full((4, 1, 2, 2), 0.5, dtype=torch.float64)
    state = APGDState.start(Ball(clean, LpBall("linf", 0.1), (0.0, 1.0)), clean)
    state = replace(
        state,
        images=clean + 0.1,
        best=clean - 0.1,
        n_increases=torch.tensor([8.0, 7.0, 10.0, 10.0]),
        last_best_losses=torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64),
        best_losses=torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.float64),
        halved=torch.tensor([False, False, False, True]),
    )
    after = state.adapt_step_size(10)
    # seven of ten uphill are too few; a best that has stood still since the last checkpoint counts unless steps were cut
    assert after.halved.tolist() == [False, True, True, False]
    assert after.step_sizes.tolist() == pytest.approx([0.2, 0.1, 0.1, 0.2])
    assert (after.images[after.halved] == 0.4).all()
    assert (after.images[~after.halved] == 0.6).all()


def test_the_first_query_is_no_increase():
    clean = torch.full((1, 4), 0.5, dtype=torch.float64)
    state = APGDState.start(Ball(clean, LpBall("linf", 0.1), (0.0, 1.0)), clean)
    for loss, increases in ((-3.0, 0), (-2.0, 1), (-2.5, 1), (-1.0, 2)):
        state = state.update(clean, torch.tensor([loss], dtype=torch.float64)).step(
            first=increases == 0
        )
        assert state.n_increases.tolist() == [increases]
    assert state.best_losses.tolist() == [-1.0]


def test_in_l1_steps_become_sparser_and_then_shorter():
    clean = torch.full((2, 10), 0.5, dtype=torch.float64)
    state = APGDState.start(Ball(clean, LpBall("l1", 1.0), (0.0, 1.0)), clean)
    assert state.sparsity.tolist() == [2.0, 2.0]
    best = clean.clone()
    best[0, :6] += 0.1
    best[1] += 0.1
    after = replace(state, best=best).adapt_step_size(4)
    assert after.sparsity.tolist() == pytest.approx([4.0, 10 / 1.5])
    assert after.step_sizes.tolist() == pytest.approx([1.0, 1 / 1.5])


@pytest.mark.parametrize("loss", ["scaled-ce", "dlr", "margin"])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1e3, -1e5), (1.0, 1e4)])
def test_neither_shift_nor_scale_of_the_logits_matters(loss, scale, shift):
    """Log-likelihoods are all negative, and far apart."""
    linear, images, labels = linear_problem(6, 5)
    threat = ThreatModel(LpBall("linf", 0.6 * float(linear.distance(images, labels, "linf").max())))
    attack = APGD(steps=12, loss=loss, target_classes=2)
    plain, _ = run(attack, linear, images, labels, threat)
    other = Model(lambda x: scale * linear(x).logits + shift, 5)
    moved, _ = run(attack, other, images, labels, threat)
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-6)


def test_targeted_runs_succeed_where_the_runner_up_misleads():
    """The runner-up's logit is constant; the class behind it can be reached."""

    def function(points):
        x = points[:, 0]
        return torch.stack([0 * x, 0 * x - 0.1, 20 * (x - 0.6)], 1)

    model, images = Model(function, 3), torch.full((2, 1), 0.5, dtype=torch.float64)
    labels, threat = torch.zeros(2, dtype=torch.int64), ThreatModel(LpBall("linf", 0.2))
    for classes, falls in ((0, False), (1, False), (2, True)):
        attack = APGD(steps=10, loss="margin", target_classes=classes)
        adversarial, _ = run(attack, model, images, labels, threat, images - 0.1)
        assert bool((model(adversarial).decision == 2).all()) == falls


def test_malt_aims_at_the_nearest_boundary_of_a_linear_model_and_logits_at_the_largest_logit():
    """The distance to the boundary of class j is gap / ‖w_j − w_y‖₁, in closed form."""
    torch.manual_seed(1)
    weights = torch.rand(101, 1).double() * torch.randn(101, 30).double()
    model = LinearClassifier(weights, torch.zeros(101).double())
    images, ids = 0.2 + 0.6 * torch.rand(12, 30).double(), torch.arange(12)
    logits = model(images).logits
    labels = logits.argmax(1)
    sizes = (weights - weights[labels][:, None]).abs().sum(2)
    distances = (logits.amax(1, keepdim=True) - logits) / sizes  # 0 / 0 for the label
    order = distances.argsort(1)[:, :3]
    misled = int((order[:, 0] != top_other_classes(logits, labels, 1)[:, 0]).nonzero()[0])
    eps = float(distances[misled, order[misled, 0]]) * 1.001  # reaches the nearest class alone
    threat = ThreatModel(LpBall("linf", eps))
    meter = CountingModel(model, Batch(images, labels, ids), threat, SampleRNG(0, ids))
    attack = MALTAPGD(steps=30, loss="margin", target_classes=3)
    assert torch.equal(attack._other_classes(meter, meter.batch, threat), order)
    assert (meter.backward_passes == MALT_CLASSES).all()
    for kind, is_broken in ((MALTAPGD, True), (APGD, False)):
        attack = kind(steps=30, loss="margin", target_classes=1)
        adversarial, _ = run(attack, model, images, labels, threat)
        assert bool((model(adversarial).decision != labels)[misled]) == is_broken


def test_models_of_few_classes_are_ranked_by_logits():
    model, images, labels = linear_problem(8, 2)
    threat = ThreatModel(LpBall("linf", 0.01))
    first, second = (
        run(kind(5, target_classes=2), model, images, labels, threat) for kind in (APGD, MALTAPGD)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].backward_passes, second[1].backward_passes)


def test_broken_samples_stop_and_the_last_step_is_evaluated():
    model, images, labels = linear_problem(8, 2)
    distances = model.distance(images, labels, "linf")
    threat = ThreatModel(LpBall("linf", float(distances.median()) * 1.001))
    adversarial, meter = run(APGD(steps=20), model, images, labels, threat)
    fell = model(adversarial).decision != labels
    assert 0 < fell.sum() < 8
    assert (meter.forward_passes[~fell] == 21).all()
    assert (meter.backward_passes[~fell] == 20).all()
    assert (meter.forward_passes[fell] < 21).all()


def test_it_reaches_a_target_and_uses_warm_starts():
    model, images, labels = linear_problem(9, 3)
    rows = labels != 2
    threat = ThreatModel(LpBall("l2", 0.4), Target(2))
    for attack in (APGD(), APGD(loss="dlr", target_classes=9)):
        adversarial, _ = run(attack, model, images[rows], labels[rows], threat)
        assert (model(adversarial).decision == 2).all()
    start = images + 0.001
    adversarial, meter = run(
        APGD(steps=1),
        model,
        images,
        model(start).decision,
        ThreatModel(LpBall("linf", 0.002)),
        start,
    )
    assert (meter.forward_passes == 2).all()


def test_it_is_aware_of_the_reject_option():
    """The model accepts confident predictions only, so the attack must reach that confidence."""
    linear, images, labels = linear_problem(6, 3)
    model = reject(linear, "margin", torch.full((3,), 0.2, dtype=torch.float64))
    eps = 2.5 * float(linear.distance(images, labels, "linf").max())
    threat = ThreatModel(LpBall("linf", eps), MisclassifyAccepted())
    for attack in (APGD(loss="dlr"), APGD(loss="margin", target_classes=2)):
        adversarial, _ = run(attack, model, images, labels, threat)
        answer = model(adversarial)
        assert ((answer.decision != labels) & answer.accepted).all()


def test_a_stochastic_model_is_pushed_to_the_end():
    linear, images, labels = linear_problem(4, 3)
    model = StochasticToy(linear, scale=0.01)
    threat = ThreatModel(LpBall("linf", 0.05))
    adversarial, meter = run(APGD(steps=10), model, images, labels, threat)
    assert (linear(adversarial).decision != labels).all()
    assert (meter.forward_passes == 11).all()


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"restarts": 0}, {"target_classes": -1}, {"loss": "hinge"}]
)
def test_unusable_parameters(bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        APGD(**bad)


def test_needs_a_budget():
    model, images, labels = linear_problem(2)
    with pytest.raises(CapabilityMismatch, match="fixed budget"):
        run(APGD(), model, images, labels, ThreatModel(Unbounded(), Misclassify()))
