"""FGSM, PGD and random perturbations on models with closed-form results."""

from dataclasses import dataclass

import pytest
import torch

from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.protocol import Attack, Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, flatten, norm
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.goals import Misclassify, Target
from robustbench_inv.threat.threat_model import ThreatModel

TUNED = PGD(40, 1, 1.0, decay=True, loss="scaled-ce")
ATTACKS = [
    FGSM(),
    RandomPerturbation(draws=3),
    *(PGD(steps=8, loss=x) for x in ("ce", "margin", "dlr", "scaled-ce")),
]


@dataclass(frozen=True)
class Model:
    """A classifier made of a function from flattened inputs to logits."""

    function: object
    num_classes: int = 2
    bounds: tuple[float, float] = (0.0, 1.0)
    dtype: torch.dtype = torch.float64

    def __call__(self, images):
        return Output(self.function(flatten(images)))


def run(attack, model, images, labels, threat, start=None, ids=None):
    ids = torch.arange(len(labels)) if ids is None else ids
    batch, rng = Batch(images, labels, ids, start), SampleRNG(0, ids)
    meter = CountingModel(model, batch, threat, rng)
    return attack.run(meter, batch, threat, rng), meter


def wrong(model, images, labels):
    return model(images).decision != labels


def bumpy(points):
    """Two classes of a function with many local maxima; class 1 is rare."""
    height = torch.cos(40 * points).sum(1) + 0.5 * torch.cos(3 * points).sum(1) - 3
    return torch.stack([torch.zeros_like(height), height], 1)


def bumpy_problem(n=60, dtype=torch.float64):
    images = 0.5 + 0.3 * SampleRNG(5, torch.arange(n)).uniform((1, 1, 4), dtype=dtype)
    return Model(bumpy, dtype=dtype), images, torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_fills_the_protocol(attack):
    assert isinstance(attack, Attack)
    assert (attack.kind, attack.norms) == ("fixed-budget", frozenset({"l2", "linf"}))


@pytest.mark.parametrize(
    ("attack", "classes", "beyond"),
    [
        (FGSM(), 2, 1.001),
        (TUNED, 2, 1.001),
        (PGD(loss="margin", random_start=False), 2, 1.001),
        # with more classes the gradient of a smooth loss points between their boundaries
        (PGD(loss="margin"), 3, 1.1),
        (TUNED, 10, 1.3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["l2", "linf"])
def test_linear_model_is_broken_exactly_beyond_the_analytic_distance(attack, name, classes, beyond):
    model, images, labels = linear_problem(5, classes)
    nearest = model.distance(images, labels, name).tolist()
    for factor in (0.7, 0.999, beyond):
        for i, distance in enumerate(nearest):
            threat, one = ThreatModel(LpBall(name, factor * distance)), slice(i, i + 1)
            adversarial, _ = run(attack, model, images[one], labels[one], threat)
            assert bool(wrong(model, adversarial, labels[one])) == (factor > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["l2", "linf"])
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_stays_in_budget_and_bounds(attack, name, dtype):
    model, images, labels = bumpy_problem(20, dtype)
    for bounds in ((0.0, 1.0), (0.45, 0.85)):
        model = Model(bumpy, bounds=bounds, dtype=dtype)
        for eps in (0.0, 0.05, 10.0):
            budget = LpBall(name, eps)
            adversarial, _ = run(attack, model, images, labels, ThreatModel(budget))
            assert adversarial.dtype == dtype
            assert inside_box(adversarial, bounds).all()
            assert budget.contains(images, adversarial).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_outcome_does_not_depend_on_the_batch(attack):
    model, images, labels = bumpy_problem(24)
    threat, ids = ThreatModel(LpBall("linf", 0.15)), torch.arange(len(labels))
    reference, _ = run(attack, model, images, labels, threat)
    for size in (1, 7):
        parts = [
            run(attack, model, images[i], labels[i], threat, ids=i)[0] for i in ids.split(size)
        ]
        assert torch.allclose(torch.cat(parts), reference, atol=1e-12)
    backwards, _ = run(attack, model, images.flip(0), labels, threat, ids=ids.flip(0))
    assert torch.allclose(backwards.flip(0), reference, atol=1e-12)


def test_fgsm_step_is_eps_times_the_direction():
    model, images, labels = linear_problem(4, 2)
    slope = (model.weights[1 - labels] - model.weights[labels]).reshape(images.shape)
    adversarial, meter = run(FGSM(), model, images, labels, ThreatModel(LpBall("linf", 0.01)))
    assert torch.allclose(adversarial, images + 0.01 * slope.sign())
    adversarial, _ = run(FGSM(), model, images, labels, ThreatModel(LpBall("l2", 0.2)))
    direction = slope / norm(slope, "l2").reshape(-1, 1, 1, 1)
    assert torch.allclose(adversarial, images + 0.2 * direction)
    assert (meter.forward_passes == 1).all()
    assert (meter.backward_passes == 1).all()


def test_broken_samples_leave_the_working_set():
    model, images, labels = linear_problem(8, 2)
    distance = model.distance(images, labels, "linf")
    threat = ThreatModel(LpBall("linf", 1.01 * float(distance.median())))
    pgd = PGD(rel_step=0.1, decay=False, random_start=False)
    adversarial, meter = run(pgd, model, images, labels, threat)
    fell = wrong(model, adversarial, labels)
    assert 0 < fell.sum() < 8
    assert (meter.forward_passes[~fell] == 41).all()
    assert (meter.backward_passes[~fell] == 40).all()
    # steps of eps/10 from the clean input: the k-th iterate, tested by the (k+1)-th pass, is k eps/10 away
    expected = (distance[fell] / (0.1 * threat.budget.eps)).floor() + 2
    assert (meter.forward_passes[fell] == expected).all()


def test_a_success_of_an_earlier_iterate_is_kept():
    """The only adversarial inputs are in a band that the search crosses and leaves (check C15)."""

    def band(points):
        x = points[:, 0]
        return torch.stack(
            [torch.full_like(x, 0.1), torch.where((x > 0.58) & (x < 0.62), 1 + x, x - 1)], 1
        )

    model, images = Model(band), torch.full((1, 1), 0.5, dtype=torch.float64)
    labels = torch.zeros(1, dtype=torch.int64)
    pgd = PGD(steps=10, rel_step=0.2, decay=False, loss="margin", random_start=False)
    adversarial, meter = run(pgd, model, images, labels, ThreatModel(LpBall("linf", 0.5)))
    assert adversarial.item() == pytest.approx(0.6)
    assert wrong(model, adversarial, labels)
    assert meter.forward_passes.item() == 2


def test_without_success_the_best_margin_is_kept():
    def hill(points):
        height = -((points[:, 0] - 0.63) ** 2)
        return torch.stack([torch.zeros_like(height) + 1e-3, height], 1)

    model, images = Model(hill), torch.full((1, 1), 0.5, dtype=torch.float64)
    pgd = PGD(steps=7, rel_step=0.4, decay=False, random_start=False)
    adversarial, _ = run(pgd, model, images, torch.tensor([0]), ThreatModel(LpBall("linf", 0.25)))
    assert adversarial.item() == pytest.approx(0.6)  # the iterates are 0.5, 0.6, 0.7, 0.6, …


def test_last_step_is_tested():
    model, images, labels = linear_problem(6, 2)
    eps = 1.05 * float(model.distance(images, labels, "linf").max())
    pgd = PGD(steps=1, rel_step=1.0, random_start=False)
    adversarial, meter = run(pgd, model, images, labels, ThreatModel(LpBall("linf", eps)))
    assert wrong(model, adversarial, labels).all()
    assert (meter.forward_passes == 2).all()


def test_restarts_only_add_successes_and_skip_broken_samples():
    model, images, labels = bumpy_problem()
    threat = ThreatModel(LpBall("linf", 0.1))
    once, meter_once = run(PGD(steps=5, loss="margin"), model, images, labels, threat)
    many, meter_many = run(PGD(steps=5, loss="margin", restarts=6), model, images, labels, threat)
    before, after = wrong(model, once, labels), wrong(model, many, labels)
    assert 0 < before.sum() < after.sum()
    assert torch.equal(many[before], once[before])
    assert torch.equal(meter_many.forward_passes[before], meter_once.forward_passes[before])
    assert (meter_many.forward_passes[~after] == 36).all()


def test_first_restart_begins_where_the_batch_says():
    model, images, labels = bumpy_problem(10)
    start = images + 0.02
    pgd = PGD(steps=1, rel_step=1e-9, decay=False)
    adversarial, _ = run(pgd, model, images, labels, ThreatModel(LpBall("linf", 0.1)), start=start)
    assert torch.allclose(adversarial, start, atol=1e-9)
    adversarial, _ = run(pgd, model, images, labels, ThreatModel(LpBall("linf", 0.01)), start=start)
    assert torch.allclose(adversarial, images + 0.01, atol=1e-9)


def test_aims_at_a_class():
    model, images, labels = linear_problem(9, 3)
    rows = labels != 2
    threat = ThreatModel(LpBall("l2", 0.4), Target(2))
    for loss in ("ce", "margin", "dlr", "scaled-ce"):
        adversarial, _ = run(PGD(loss=loss), model, images[rows], labels[rows], threat)
        assert (model(adversarial).decision == 2).all()


def test_useless_gradients_give_clean_finite_images():
    def constant(points):
        return torch.stack([torch.ones_like(points[:, 0]), 0 * points[:, 0]], 1)

    model, images, labels = Model(constant), *bumpy_problem(5)[1:]
    for name in ("l2", "linf"):
        threat = ThreatModel(LpBall(name, 0.1))
        adversarial, meter = run(PGD(random_start=False), model, images, labels, threat)
        assert torch.equal(adversarial, images)
        assert meter.zero_gradient.all()


def test_noise_stops_at_the_first_success():
    model, images, labels = bumpy_problem()
    threat = ThreatModel(LpBall("linf", 0.15))
    adversarial, meter = run(RandomPerturbation(draws=20), model, images, labels, threat)
    fell = wrong(model, adversarial, labels)
    assert 0 < fell.sum() < len(labels)
    assert (meter.forward_passes[~fell] == 20).all()
    assert (meter.forward_passes[fell] < 20).any()
    assert (meter.backward_passes == 0).all()


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"restarts": 0}, {"rel_step": 0.0}, {"rel_step": float("nan")}]
)
def test_unusable_parameters_of_pgd(bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        PGD(**bad)


def test_unusable_number_of_draws():
    with pytest.raises(BadParameter, match="draws"):
        RandomPerturbation(draws=0)


def test_unknown_loss_is_rejected():
    model, images, labels = linear_problem(2)
    with pytest.raises(BadParameter, match="unknown loss"):
        run(PGD(loss="hinge"), model, images, labels, ThreatModel(LpBall("l2", 1.0), Misclassify()))


@pytest.mark.parametrize(
    "build",
    [lambda: PGD(loss="ce+foo"), lambda: FGSM(loss="foo"), lambda: FGSM(loss="ce+margin")],
)
def test_a_loss_that_does_not_fit_is_named_before_anything_runs(build):
    with pytest.raises(BadParameter, match="loss"):
        build()
