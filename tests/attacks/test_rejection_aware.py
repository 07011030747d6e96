"""Detector-aware attacks: an accepted misclassification is a success, and losses follow the clearance where it limits."""

from dataclasses import dataclass

import pytest
import torch

from robustbench_inv.attacks.deepfool import DeepFool
from robustbench_inv.attacks.fast_minimum_norm import DDN, FMN
from robustbench_inv.attacks.linearization import distance_scaled_loss
from robustbench_inv.attacks.losses import LOSSES, losses_for
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.attacks.random_inputs import Distal, NoiseImage
from robustbench_inv.attacks.square import SquareAttack
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.reject_option import reject
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, accepted_margin, class_margins, margin, rejected_rank
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import Accept, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

ADAPTIVE, OBLIVIOUS = MisclassifyAccepted(), Misclassify()


def random_output(count=200, classes=4):
    numbers = SampleRNG(0, torch.arange(count)).normal((2 * classes,), dtype=torch.float64)
    logits, clearance = numbers.split(classes, 1)
    accepted = clearance.gather(1, logits.argmax(1, keepdim=True))[:, 0] >= 0
    return Output(logits, None, accepted, clearance), torch.arange(count) % classes


def test_the_margin_is_positive_exactly_when_wrong_and_accepted():
    output, labels = random_output()
    expected = (output.decision != labels) & output.accepted
    assert 10 < expected.sum() < 150
    assert torch.equal(accepted_margin(output, labels) > 0, expected)
    assert torch.equal(ADAPTIVE.margin(output, labels) > 0, expected)
    assert torch.equal(Accept().margin(output, labels) > 0, output.accepted)


def test_leads_are_margins():
    output, _ = random_output()
    for label in range(4):
        expected = -margin(output.logits, torch.full((200,), label))
        torch.testing.assert_close(class_margins(output.logits)[:, label], expected)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_rejected_misclassifications_maximize_acceptance(name):
    """Class 1 has the largest logit and is rejected: its clearance limits the margin."""
    clearance = torch.tensor([[5.0, -2.0, -9.0]], requires_grad=True)
    logits = torch.tensor([[1.0, 4.0, 0.0]], requires_grad=True)
    output = Output(logits, None, torch.tensor([False]), clearance)
    (loss,) = losses_for(name, ADAPTIVE)
    slopes = torch.autograd.grad(
        loss(output, torch.tensor([0])).sum(), (logits, clearance), allow_unused=True
    )
    assert slopes[1].tolist() == [[0.0, 1.0, 0.0]]
    assert slopes[0] is None or not slopes[0].any()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_correct_predictions_use_the_plain_loss(name):
    clearance = torch.tensor([[5.0, 2.0, -9.0]])
    logits = torch.tensor([[4.0, 3.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0])
    found = [
        torch.autograd.grad(
            losses_for(name, goal)[0](Output(logits, None, None, c), labels).sum(), logits
        )[0]
        for goal, c in ((ADAPTIVE, clearance), (OBLIVIOUS, None))
    ]
    torch.testing.assert_close(*found)


def test_at_an_unknown_threshold_the_score_is_maximized():
    score = torch.tensor([0.5], requires_grad=True)
    output = Output(torch.tensor([[1.0, 4.0]]), score, torch.tensor([False]))
    for loss in losses_for("margin+ce", ADAPTIVE):
        (slope,) = torch.autograd.grad(loss(output, torch.tensor([0])).sum(), score)
        assert slope.item() == 1
    (slope,) = torch.autograd.grad(losses_for("margin", Accept())[0](output, None).sum(), score)
    assert slope.item() == 1


RANKED = Output(
    torch.tensor([[2.0, 1.9999, 0.0]] + [[1.0, 2.0, 0.0]] * 7),
    torch.tensor([9.0, torch.nan, -1e9, -3.0, -2.999, 0.5, 1e6, 7.0]),
    torch.tensor([True] + [False] * 6 + [True]),
)
"""A correct input, wrong ones that are rejected in the order of their scores, and a wrong one that is accepted."""


@pytest.mark.parametrize("goal", [ADAPTIVE, Target(1, accepted=True)])
def test_without_a_known_threshold_rejected_successes_are_ranked_by_their_scores(goal):
    labels = torch.zeros(8, dtype=torch.int64)
    (loss,) = losses_for("margin", goal)
    for margins in (goal.margin(RANKED, labels), loss(RANKED, labels)):
        assert (margins.diff() > 0).all()
        assert (margins > 0).tolist() == [False] * 7 + [True]
    unscored = Output(RANKED.logits, None, RANKED.accepted)
    assert goal.margin(unscored, labels)[1:7].tolist() == [0.0] * 6
    assert (OBLIVIOUS.margin(RANKED, labels)[1:] == 1).all()


def test_without_a_known_threshold_acceptance_is_ranked_by_the_score():
    rejected = Output(RANKED.logits[1:7], RANKED.score[1:7], RANKED.accepted[1:7])
    margins = Accept().margin(rejected, None)
    assert (margins.diff() > 0).all()
    assert (margins < 0).all()
    unknown = Output(torch.full((1, 2), torch.nan), torch.zeros(1), torch.tensor([False]))
    assert Accept().margin(unknown, None).isnan().all()
    assert ADAPTIVE.margin(unknown, torch.tensor([0])).isnan().all()


def test_the_rank_of_a_score_is_the_stated_function():
    score = torch.tensor([-3.0, -0.5, 0.0, 1.0, 9.0], dtype=torch.float64)
    expected = torch.tensor([-4.0, -1.5, -1.0, -0.5, -0.1], dtype=torch.float64)
    found = rejected_rank(Output(torch.zeros(5, 2), score))
    torch.testing.assert_close(found * 1e24, expected)


@dataclass(frozen=True)
class Halves:
    """Class 1 if the left half is bright; accepts images whose right half is at least half bright: both are linear."""

    reveals: bool
    decides: float = 1.0
    num_classes: int = 2
    bounds: tuple[float, float] = (0.0, 1.0)
    dtype: torch.dtype = torch.float64

    def __call__(self, images):
        left, right = images.flatten(2).chunk(2, 2)
        lead, score = self.decides * (left.mean((1, 2)) - 0.45), 3 * right.mean((1, 2)) + 2
        accepted, clearance = score >= 3.5, (score - 3.5)[:, None].expand(-1, 2)
        logits = torch.stack([-lead, lead], 1)
        return Output(logits, score, accepted, clearance if self.reveals else None)


def wrong_and_rejected(pixels=16):
    """Return images that ``Halves`` misclassifies and rejects, with their labels and the brightness that is missing."""
    rng = SampleRNG(4, torch.arange(6))
    bright = 0.5 + 0.02 * rng.uniform((1, 1, pixels), dtype=torch.float64)
    dark = 0.3 + 0.1 * rng.uniform((1, 1, pixels), step=1, dtype=torch.float64)
    images = torch.cat([bright, dark], 3)
    return images, torch.zeros(6, dtype=torch.int64), 0.5 - dark.mean((1, 2, 3))


DISTANCES = {"l1": lambda lack: 16 * lack, "l2": lambda lack: 4 * lack, "linf": lambda lack: lack}
"""Of an image to the nearest one whose 16 pixels of the right half are brighter in the mean by the lack."""


@pytest.mark.parametrize("reveals", [True, False])
@pytest.mark.parametrize("norm", sorted(DISTANCES))
def test_the_strong_search_finds_the_closest_accepted_input_of_wrong_and_rejected_ones(
    norm, reveals, lab
):
    """The linearized decision boundary is behind these images, at another distance than the boundary of acceptance."""
    images, labels, lack = wrong_and_rejected()
    model, threat = Halves(reveals), ThreatModel(Unbounded(norm), ADAPTIVE)
    assert (model(images).decision != labels).all()
    assert not model(images).accepted.any()
    ran = lab.run(MinimumNorm(), (model, images, labels), threat)
    output = model(ran.images)
    assert ((output.decision != labels) & output.accepted).all()
    ratio = threat.budget.distance(images, ran.images) / DISTANCES[norm](lack)
    assert 1 - 1e-6 <= ratio.min() <= ratio.max() <= 1.05


@pytest.mark.parametrize("reveals", [True, False])
@pytest.mark.parametrize("goal", [ADAPTIVE, Target(1, accepted=True)])
def test_the_member_of_the_ensemble_finds_accepted_inputs_in_the_budget(goal, reveals, lab):
    images, labels, lack = wrong_and_rejected()
    member = MinimumNorm(30, "scaled-ce", rel_step=1.0, bisections=0, refinements=0)
    model, threat = Halves(reveals), ThreatModel(LpBall("linf", 1.05 * float(lack.max())), goal)
    ran = lab.run(member, (model, images, labels), threat)
    allowed = threat.budget.contains(images, ran.images)
    assert (ran.meter.found | (allowed & model(ran.images).accepted)).all()


def test_scaled_losses_keep_the_score():
    score = torch.tensor([0.5], requires_grad=True)
    output = Output(torch.tensor([[1.0, 4.0]]), score, torch.tensor([False]))
    for loss in losses_for("margin+dlr+scaled-ce", ADAPTIVE):
        scaled = distance_scaled_loss(loss, torch.full((1, 2), 3.0))
        (slope,) = torch.autograd.grad(scaled(output, torch.tensor([0])).sum(), score)
        assert slope.item() == 1


def test_random_squares_climb_the_score_of_a_model_that_hides_its_threshold(lab):
    """Each square adds to the brightness; no single one suffices. A plateau would keep the first candidate."""
    images, labels, lack = wrong_and_rejected(64)
    images = images.reshape(6, 1, 8, 16)
    threat = ThreatModel(LpBall("linf", 1.5 * float(lack.max())), ADAPTIVE)
    results = []
    for reveals in (True, False):
        model = Halves(reveals)
        ran = lab.run(SquareAttack(300), (model, images, labels), threat)
        results.append(model(ran.images).accepted & ran.broken)
    assert results[0].all()
    assert results[1].all()


def test_deepfool_returns_to_the_decision_boundary_and_finds_what_is_accepted_there(lab):
    """It ignores the detector: from a wrong and rejected input it walks back to the boundary, on either side of it."""

    class Doubtful(Halves):
        def __call__(self, images):
            output = super().__call__(images)
            lead = (output.logits[:, 1] - output.logits[:, 0]).abs()
            return Output(output.logits, -lead, lead <= 0.01)

    images, labels, _ = wrong_and_rejected()
    model, threat = Doubtful(False), ThreatModel(Unbounded("l2"), ADAPTIVE)
    assert not model(images).accepted.any()
    ran = lab.run(DeepFool(), (model, images, labels), threat)
    assert (ran.broken & model(ran.images).accepted).all()


def cautious(threshold=0.3, classes=3):
    """Return a linear model that rejects what is not ahead by a threshold, and inputs that it accepts."""
    linear, images, _ = linear_problem(40, classes, shape=(1, 5, 5))
    model = reject(linear, "margin", torch.full((classes,), threshold))
    rows = model(images).accepted
    assert rows.sum() >= 8
    return model, images[rows][:8], model(images[rows][:8]).decision


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_detector_aware_pgd_is_not_detected_more_often(loss, norm, lab):
    model, images, labels = cautious()
    threat = ThreatModel(LpBall(norm, {"linf": 0.08, "l2": 0.4}[norm]))
    fooled = []
    for goal in (ADAPTIVE, OBLIVIOUS):
        # short steps, so that the oblivious attack stops just past the boundary
        attack = PGD(steps=60, rel_step=0.05, decay=False, loss=loss, random_start=False)
        ran = lab.run(attack, (model, images, labels), threat.with_goal(goal))
        output = model(ran.images)
        fooled.append(int(((output.decision != labels) & output.accepted).sum()))
        assert goal == ADAPTIVE or ran.broken.all()
    assert fooled[0] > fooled[1]
    assert fooled[0] == len(labels)


@pytest.mark.parametrize("attack", [DDN(), FMN(), MinimumNorm(steps=40)])
def test_minimum_norm_attacks_end_where_they_are_accepted(attack, lab):
    """Two classes: inputs are accepted beyond a threshold past the boundary, at a known distance."""
    model, images, labels = cautious(0.5, classes=2)
    on, threat = (model, images, labels), ThreatModel(Unbounded("l2"), ADAPTIVE)
    ran = lab.run(attack, on, threat)
    output, linear = model(ran.images), model.base
    assert ((output.decision != labels) & output.accepted).all()
    ahead = class_margins(linear(images).logits).amax(1)
    best = linear.distance(images, labels, "l2") * (ahead + 0.5) / ahead
    ratio = threat.budget.distance(images, ran.images) / best
    assert 1 - 1e-6 <= ratio.min() <= ratio.max() <= 1.1


def likelihoods(target, shape=(1, 4, 4)):
    """Return log-likelihoods of hundreds of nats, all negative, and binary images that are not of the target."""
    linear, images, _ = linear_problem(12, 3, shape=shape)
    weights = 400 * linear.weights
    model = LinearClassifier(weights, -weights.clamp_min(0).sum(1).amax() * torch.ones(3) - 500)
    images = (images > 0.5).double()
    labels = model(images).decision
    return model, images[labels != target], labels[labels != target]


@pytest.mark.parametrize("confidence", [0.0, 500.0, 1000.0])
def test_a_targeted_search_keeps_its_confidence_on_negative_log_likelihoods(confidence, lab):
    """Pixels are exactly 0 and 1, logits all negative (C9); the published protocol's κ are 0, 500 and 1,000."""
    model, images, labels = likelihoods(2)
    assert (model(images).logits < 0).all()
    on, threat = (
        (model, images, labels),
        ThreatModel(Unbounded("l2"), Target(2, confidence=confidence)),
    )
    ran = lab.run(MinimumNorm(), on, threat)
    ahead = class_margins(model(ran.images).logits)[:, 2]
    assert ran.images.isfinite().all()
    assert 0 <= ran.images.min() <= ran.images.max() <= 1
    assert (ahead > 0).all()
    assert (ahead >= confidence).all()


def test_more_confidence_costs_more_distance(lab):
    model, images, labels = likelihoods(2)
    threats = [ThreatModel(Unbounded("l2"), Target(2, confidence=k)) for k in (0.0, 500.0, 1000.0)]
    far = [
        each.budget.distance(images, lab.run(MinimumNorm(), (model, images, labels), each).images)
        for each in threats
    ]
    assert (far[0] < far[1]).all()
    assert (far[1] < far[2]).all()


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_noise_is_inside_the_box_and_each_sample_has_its_own(distribution, lab):
    model, images, labels = linear_problem(4, bounds=(-2.0, 2.0))
    threat = ThreatModel(Unbounded("l2"), Accept())
    adversarial = lab.run(NoiseImage(distribution), (model, images, labels), threat).images
    assert -2 <= adversarial.min() <= adversarial.max() <= 2
    assert adversarial.std() == pytest.approx(
        {"uniform": 4 / 12**0.5, "gaussian": 0.95}[distribution], rel=0.15
    )
    assert not torch.equal(adversarial[0], adversarial[1])
    assert torch.equal(
        adversarial, lab.in_parts(NoiseImage(distribution), 1, (model, images, labels), threat)
    )


def test_distal_inputs_are_accepted_where_noise_is_not(lab):
    linear, images, labels = linear_problem(8, 3)
    model = reject(linear, "margin", torch.full((3,), 8.0))
    on, threat = (model, images, labels), ThreatModel(Unbounded("l2"), Accept())
    rng, distal = (model(lab.run(a, on, threat).images) for a in (NoiseImage(), Distal()))
    assert not rng.accepted.all()
    assert distal.accepted.all()


def test_distal_inputs_do_not_depend_on_the_batch(lab):
    linear, images, labels = linear_problem(8, 3)
    model = reject(linear, "margin", torch.full((3,), 8.0))
    on, threat = (model, images, labels), ThreatModel(Unbounded("l2"), Accept())
    whole = lab.run(Distal(), on, threat).images
    for size in (1, 3):
        assert torch.allclose(lab.in_parts(Distal(), size, on, threat), whole, atol=1e-9)


def test_inputs_that_are_never_accepted_stay_rejected(lab):
    model, images, labels = cautious()
    always = reject(model.base, "margin", torch.full((3,), torch.inf))
    threat = ThreatModel(Unbounded("l2"), Accept())
    adversarial = lab.run(Distal(steps=5), (always, images, labels), threat).images
    assert not always(adversarial).accepted.any()


def unusable_margins(value):
    """Return a model whose margins are a number outside the middle grey, which it accepts."""

    class Unusable:
        num_classes, bounds, dtype = 2, (0.0, 1.0), torch.float64

        def __call__(self, images):
            known = (images == 0.5).flatten(1).all(1)
            clearance = torch.where(known, 1.0, value)[:, None].expand(-1, 2)
            logits = torch.tensor([[1.0, 0.0]]).double().expand(len(images), 2)
            return Output(logits, known.double(), known, clearance)

    return Unusable()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_without_a_usable_margin_the_noise_is_returned_and_not_the_clean_image(value, lab):
    """The clean image is accepted, which says nothing about noise."""
    images, labels = torch.full((4, 1, 3, 3), 0.5, dtype=torch.float64), torch.zeros(4).long()
    model, threat = unusable_margins(value), ThreatModel(Unbounded("l2"), Accept())
    assert model(images).accepted.all()
    on = (model, images, labels)
    found, noise = (lab.run(a, on, threat).images for a in (Distal(steps=3), NoiseImage()))
    assert torch.equal(found, noise)
    assert not model(found).accepted.any()


def test_settings_are_checked():
    with pytest.raises(BadParameter, match="unknown distribution"):
        NoiseImage("pink")
    with pytest.raises(BadParameter, match="unusable steps"):
        Distal(steps=0)
