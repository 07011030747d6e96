"""Training objectives against closed forms."""

from math import exp, log
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from robustbench_inv.attacks.budget_geometry import Ball
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.conditional_flow import glow
from robustbench_inv.models.deep_bayes import GBZ
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.training.objectives import (
    F_DIVERGENCES,
    AdversarialCrossEntropy,
    AugmentedCrossEntropy,
    ClassLikelihood,
    ConvexConjugate,
    CrossEntropy,
    DonskerVaradhan,
    EnergyBased,
    EvidenceLowerBound,
    InformationBottleneck,
    TrainingBatch,
)

VALUES = torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 1.0]])


LABELS = torch.tensor([0, 1, 0])


NOISE = SampleRNG(0, torch.arange(3))


def test_donsker_varadhan_is_equation_4():
    joint = (1.0 + 0.25 + 3.0) / 3
    marginal = log(sum(exp(v) for row in VALUES.tolist() for v in row) / 6)
    loss, logits = DonskerVaradhan()(nn.Identity(), TrainingBatch(VALUES, LABELS, NOISE))
    assert abs(loss.item() - (marginal - joint)) < 1e-6
    assert torch.equal(logits, VALUES)


def test_donsker_varadhan_ignores_a_constant():
    shifted, _ = DonskerVaradhan()(nn.Identity(), TrainingBatch(VALUES + 7, LABELS, NOISE))
    plain, _ = DonskerVaradhan()(nn.Identity(), TrainingBatch(VALUES, LABELS, NOISE))
    torch.testing.assert_close(shifted, plain)


def test_donsker_varadhan_is_tight_at_the_true_log_ratio():
    """With deterministic, balanced labels the bound of I(x; y) = log C is reached as T grows."""
    certain = 50 * torch.eye(4)
    loss, _ = DonskerVaradhan()(nn.Identity(), TrainingBatch(certain, torch.arange(4), NOISE))
    assert abs(loss.item() + log(4)) < 1e-5


def test_energy_based_with_all_labels_is_cross_entropy_and_so_are_its_gradients():
    """Equation 6: the losses differ by the constant log C."""
    scores = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    energy, likelihood = (
        EnergyBased().score_loss(scores, labels),
        CrossEntropy().score_loss(scores, labels),
    )
    assert abs((likelihood - energy).item() - log(5)) < 1e-12
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (energy, likelihood)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_energy_based_never_exceeds_donsker_varadhan_in_tightness():
    """log mean exp over all pairs is at least the mean over x of log mean exp over y (Jensen)."""
    scores, labels = torch.randn(20, 5), torch.arange(20) % 5
    assert EnergyBased().score_loss(scores, labels) <= DonskerVaradhan().score_loss(scores, labels)


def test_cross_entropy_matches_its_definition():
    loss, _ = CrossEntropy()(nn.Identity(), TrainingBatch(VALUES, LABELS, NOISE))
    expected = -VALUES.log_softmax(1)[torch.arange(3), LABELS].mean()
    torch.testing.assert_close(loss, expected)


def test_rate_is_the_kl_divergence_to_the_standard_normal():
    torch.manual_seed(0)
    model, images = BottleneckCNN().eval(), torch.rand(3, 1, 28, 28)
    mean, deviation = model.encode(images)
    normal = torch.distributions.Normal
    rate = (
        torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum(1).mean()
    )
    without, _ = InformationBottleneck(beta=0.0)(model, TrainingBatch(images, LABELS, NOISE))
    with_rate, _ = InformationBottleneck(beta=0.5)(model, TrainingBatch(images, LABELS, NOISE))
    torch.testing.assert_close(with_rate - without, 0.5 * rate, rtol=1e-4, atol=1e-3)


def test_jensen_shannon_is_equation_2():
    joint = sum(-log(1 + exp(-v)) for v in (1.0, 0.25, 3.0)) / 3
    marginal = sum(-log(1 + exp(v)) for row in VALUES.tolist() for v in row) / 6
    loss, _ = ConvexConjugate("js")(nn.Identity(), TrainingBatch(VALUES, LABELS, NOISE))
    assert abs(loss.item() + joint + marginal + 2 * log(2)) < 1e-6


F = {
    "js": lambda u: u * log(u) - (u + 1) * log((u + 1) / 2),
    "kl": lambda u: u * log(u),
    "reverse-kl": lambda u: -log(u),
    "pearson": lambda u: (u - 1) ** 2,
}


@pytest.mark.parametrize("name", F_DIVERGENCES)
@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.5])
def test_the_bound_is_tight_at_the_true_ratio_and_nowhere_above(name, ratio):
    """sup_T of g(T) ratio − f*(g(T)) is f(ratio), by the definition of the conjugate."""
    inside, conjugate = F_DIVERGENCES[name]
    values = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    bound = ratio * inside(values) - conjugate(values)
    assert abs(bound.max().item() - F[name](ratio)) < 1e-6


def test_an_unknown_divergence_raises():
    with pytest.raises(BadParameter, match="js, kl"):
        ConvexConjugate("jensen")


TWO_CLASS_LABELS = torch.tensor([0, 1, 1, 0, 1])


FIVE_SAMPLES = SampleRNG(0, torch.arange(5))


class TwoClasses(nn.Module):
    """Logits (0, w·x): its batch norm must not change during the attack."""

    bounds = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))

    def forward(self, points: Tensor) -> Tensor:
        margin = self.norm(points.flatten(1)) @ self.weight
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.fixture
def two_classes():
    model = TwoClasses()
    model.norm.momentum = 0.0  # statistics stay at mean 0 and variance 1
    return model


def points():
    return 0.3 + 0.4 * torch.rand(5, 1, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_attack_reaches_the_optimum_for_a_linear_classifier(two_classes, norm, dual):
    objective = AdversarialCrossEntropy(eps=0.1, norm=norm, steps=20)
    worst = objective._attack(
        two_classes.eval(),
        Ball(points(), LpBall(norm, 0.1), two_classes.bounds),
        TWO_CLASS_LABELS,
        FIVE_SAMPLES,
    )
    rise = (points().flatten(1) @ two_classes.weight) / (1 + 1e-5) ** 0.5
    signed = torch.where(TWO_CLASS_LABELS == 1, rise, -rise)
    expected = softplus(-(signed - 0.1 * two_classes.weight.norm(dual)))
    logits = two_classes(worst)
    found = nn.functional.cross_entropy(logits, TWO_CLASS_LABELS, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_eps_grows_over_the_ramp(two_classes):
    """At progress 0 the loss is the clean one, at the end of the ramp that of the whole ball."""
    objective = AdversarialCrossEntropy(eps=0.1, ramp=0.5)
    loss = [
        objective(two_classes, TrainingBatch(points(), TWO_CLASS_LABELS, FIVE_SAMPLES, p))[0].item()
        for p in (0.0, 0.25, 0.5, 1.0)
    ]
    clean = nn.functional.cross_entropy(two_classes(points()), TWO_CLASS_LABELS).item()
    assert loss[0] == pytest.approx(clean, abs=1e-6)
    assert loss[0] < loss[1] < loss[2]
    assert loss[2] == pytest.approx(loss[3], rel=1e-4)


def test_adversarial_examples_are_computed_in_evaluation_mode(two_classes):
    seen = []
    two_classes.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    loss, scores = AdversarialCrossEntropy(eps=0.1, steps=2)(
        two_classes, TrainingBatch(points(), TWO_CLASS_LABELS, FIVE_SAMPLES)
    )
    assert seen == [False, False, True]
    assert scores.shape == (5, 2)
    loss.backward()
    assert two_classes.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "fields", [{"eps": 0.0}, {"eps": 0.1, "norm": "l1"}, {"eps": 0.1, "ramp": 1.0}]
)
def test_invalid_fields_raise(fields):
    with pytest.raises(BadParameter):
        AdversarialCrossEntropy(**fields)


DIGIT_RNG = SampleRNG(0, torch.arange(4), "train/0")


DIGIT_LABELS = torch.tensor([0, 2, 1, 1])


DIGITS = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class Fixed(nn.Module):
    """Log-likelihoods that do not depend on the images."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(-100 * torch.rand(4, 3, generator=torch.Generator()))

    def forward(self, images):
        return self.scores


def gbz():
    torch.manual_seed(0)
    return GBZ(3, dimensions=4, hidden=8).eval()


def test_likelihood_of_the_true_class_in_nats_for_each_element():
    model, images = Fixed(), torch.zeros(4, 1, 5, 5)
    loss, scores = ClassLikelihood()(model, TrainingBatch(images, DIGIT_LABELS, DIGIT_RNG))
    own = torch.stack([model.scores[i, y] for i, y in enumerate(DIGIT_LABELS)])
    torch.testing.assert_close(loss, -own.mean() / 25)
    assert torch.equal(scores, model.scores)
    more, _ = ClassLikelihood(classification=0.5)(
        model, TrainingBatch(images, DIGIT_LABELS, DIGIT_RNG)
    )
    torch.testing.assert_close(more - loss, 0.5 * cross_entropy(model.scores, DIGIT_LABELS))


def test_a_conditional_flow_learns_to_classify():
    torch.manual_seed(0)
    model = glow((1, 4, 4), 3, stages=1, blocks=1, width=4).train()
    images = DIGITS[:, :, :4, :4] / 3 + DIGIT_LABELS[:, None, None, None] / 3
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss, scores = ClassLikelihood(0.01)(model, TrainingBatch(images, DIGIT_LABELS, DIGIT_RNG))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert torch.equal(scores.argmax(1), DIGIT_LABELS)


def test_the_evidence_bound_is_the_mean_weight_of_the_true_class():
    model = gbz()
    loss, scores = EvidenceLowerBound(warm_up=0.0)(
        model, TrainingBatch(DIGITS, DIGIT_LABELS, DIGIT_RNG)
    )
    latent = DIGIT_RNG.normal((4,))
    with torch.no_grad():
        every = model.averaged_logits(DIGITS, latent[None])
    torch.testing.assert_close(loss, -every.gather(1, DIGIT_LABELS[:, None]).mean())
    torch.testing.assert_close(scores, model(DIGITS))
    assert not scores.requires_grad


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)])
def test_the_kl_weight_rises_over_the_warm_up(progress, share):
    model = gbz()
    free, whole, now = (
        EvidenceLowerBound(warm_up)(model, TrainingBatch(DIGITS, DIGIT_LABELS, DIGIT_RNG, at))[0]
        for warm_up, at in ((1.0, 0.0), (0.0, 0.0), (0.2, progress))
    )
    torch.testing.assert_close(now, torch.lerp(free, whole, share))
    assert (whole - free).abs() > 0.01


def test_every_parameter_gets_a_gradient():
    model = gbz().train()
    EvidenceLowerBound()(model, TrainingBatch(DIGITS, DIGIT_LABELS, DIGIT_RNG))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_equal_logits_cost_log_c():
    model = Fixed()
    with torch.no_grad():
        model.scores.fill_(-7.0)
    loss, _ = ClassLikelihood(2.0)(model, TrainingBatch(torch.zeros(4, 7), DIGIT_LABELS, DIGIT_RNG))
    assert loss.item() == pytest.approx(1 + 2 * log(3))


STROKES = torch.zeros(3, 1, 28, 28)
STROKES[:, :, 6:22, 12:16] = 1.0


def augmented(**strength):
    return AugmentedCrossEntropy(**{"deform": 0.0, **strength}).augment(STROKES, NOISE)


def test_without_a_strength_images_stay():
    assert torch.equal(augmented(), STROKES)


@pytest.mark.parametrize(
    "strength", [{"deform": 1.0}, {"fade": 0.75}, {"dots": 0.9}, {"noise": 0.3}, {"hole": 9}]
)
def test_augmentation_changes_pixels_inside_the_bounds(strength):
    images = augmented(**strength)
    assert not torch.equal(images, STROKES)
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, augmented(**strength))  # the same draw for the same epoch


def test_a_wide_image_is_deformed_as_the_digit_in_its_centre():
    """Rotation and shear are in pixels; without shifts and displacement, borders of zeros change nothing."""
    draw = torch.tensor([[1.0, 1.0, 0.5, -0.5, 0.0, 0.0, 0.0]]).expand(3, -1)
    still = SimpleNamespace(normal=lambda shape, **_: torch.zeros(3, *shape))
    deformed = AugmentedCrossEntropy(deform=1.0)._deformed
    wide = torch.nn.functional.pad(STROKES, (14, 14))
    expected = torch.nn.functional.pad(deformed(STROKES, draw, still), (14, 14))
    torch.testing.assert_close(deformed(wide, draw, still), expected, rtol=0, atol=1e-5)


def test_fading_adds_nothing_and_keeps_part_of_every_stroke():
    images = augmented(fade=0.75)
    assert (images <= STROKES).all()
    assert (images >= 0.2499 * STROKES).all()


def test_a_hole_erases_at_most_its_square():
    erased = (augmented(hole=9) != STROKES).flatten(1).sum(1)
    assert (erased <= 81).all()
