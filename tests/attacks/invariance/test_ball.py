"""The model-agnostic invariance attack: alignment against brute force, and moves whose end is known."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import pad

from robustbench_inv.attacks.invariance.ball import Alignment, InvarianceBall, closest_of
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, norm
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel


@dataclass(frozen=True)
class Brightness:
    """Class 1 if the mean is above a threshold; never for a threshold above 1."""

    threshold: float = 2.0
    bounds = (0.0, 1.0)
    num_classes = 3
    dtype = torch.float64

    def __call__(self, images):
        beyond = images.flatten(1).mean(1) - self.threshold
        return Output(torch.stack([-beyond, beyond, torch.full_like(beyond, -9)], 1))


def noise_images(n, shape=(1, 6, 6), stream="ball"):
    return SampleRNG(0, torch.arange(n), stream).uniform(shape, dtype=torch.float64)


def batch_of(images, labels, donors, classes):
    """Return a batch whose pool holds other samples."""
    ids = torch.arange(100, 100 + len(donors))
    pool = InputPool(ids, lambda _: (donors, torch.tensor(classes)))
    return Batch(images, torch.tensor(labels), torch.arange(len(images)), pool=pool)


def attack(model, batch, budget, **parameters):
    threat, rng = ThreatModel(budget, KeepDecision()), SampleRNG(0, batch.ids)
    meter = CountingModel(model, batch, threat, rng, keep_best=False)
    return InvarianceBall(**parameters).run(meter, batch, threat, rng), meter


def shifted(image, dy, dx, low=0.0):
    """Return an image moved down and right, pixel by pixel."""
    moved = torch.full_like(image, low)
    h, w = image.shape[-2:]
    for i in range(h):
        for j in range(w):
            if 0 <= i - dy < h and 0 <= j - dx < w:
                moved[..., i, j] = image[..., i - dy, j - dx]
    return moved


def test_alignment_equals_an_exhaustive_search():
    images, donors = noise_images(4, (2, 5, 4)), noise_images(6, (2, 5, 4), "donors")
    labels = [0, 1, 2, 2, 1, 0]
    batch = batch_of(images, [0, 1, 2, 0], donors, labels)
    targets, far = Alignment(shift=2, angle=0, angles=1).targets(batch, 0.0)
    for i, own in enumerate([0, 1, 2, 0]):
        for label in range(3):
            if label == own:
                assert far[i, label] == float("inf")
                continue
            tried = [
                shifted(donors[k], dy, dx)
                for k in range(6)
                if labels[k] == label
                for dy in range(-2, 3)
                for dx in range(-2, 3)
            ]
            distances = torch.stack([(t - images[i]).norm() for t in tried])
            assert far[i, label] == pytest.approx(float(distances.min()))
            assert torch.allclose(targets[i, label], tried[int(distances.argmin())])


@pytest.mark.parametrize("turns", [-1, 1])
def test_alignment_turns_donors(turns):
    image = noise_images(1)
    batch = batch_of(image, [0], torch.rot90(image, turns, (2, 3)), [1])
    targets, far = Alignment(shift=0, angle=90, angles=3).targets(batch, 0.0)
    assert far[0, 1] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(targets[0, 1], image[0], atol=1e-6)


def rotated(image, degrees):
    """Return a donor (1, 1, h, w) rotated to either side."""
    return Alignment(shift=0, angle=degrees, angles=3, neighbours=1)._turned(image)[0]


def test_a_square_in_a_wide_image_stays_under_a_quarter_turn():
    wide = torch.zeros(1, 1, 8, 32, dtype=torch.float64)
    wide[..., 2:6, 14:18] = 1
    for image in (wide, wide.transpose(2, 3)):
        for turned in rotated(image, 90.0):
            assert torch.allclose(turned, image[0], atol=1e-6)


def test_a_bar_in_a_wide_image_is_rotated_by_the_angle_and_keeps_its_length():
    image = torch.zeros(1, 1, 16, 64, dtype=torch.float64)
    image[..., 7:9, 20:44] = 1
    for turned, sign in zip(rotated(image, 30.0), (-1, 0, 1), strict=True):
        y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(64) - 31.5, indexing="ij")
        weight = turned[0] / turned.sum()
        long, high, mixed = ((weight * each).sum() for each in (x * x, y * y, x * y))
        # of the second moments, the long axis has half of this angle
        degrees = float(torch.rad2deg(torch.atan2(2 * mixed, long - high))) / 2
        assert degrees == pytest.approx(-30 * sign, abs=1)
        assert float(long + high) == pytest.approx(12**2 / 3, rel=0.03)


def test_of_equal_distances_the_order_does_not_depend_on_the_batch():
    distances = torch.ones(20, 10).masked_fill(noise_images(20, (10,)) > 0.5, torch.inf)
    together, alone = (
        torch.stack([classes for _, classes in closest_of(torch.zeros(len(part), 10, 3), part, 8)])
        for part in (torch.cat([distances, torch.ones(1, 10)]), distances)
    )
    for row, each in enumerate(distances):
        expected = each.isfinite().nonzero()[:, 0].tolist()[:8]
        assert [k for k in together[:, row].tolist() if k >= 0] == expected
        assert [k for k in alone[:, row].tolist() if k >= 0] == expected


def test_alignment_shifts_in_the_lower_bound():
    image = noise_images(1) - 1.0
    batch = batch_of(image, [0], image, [1])
    moved = batch_of(shifted(image, 1, -2, low=-1.0), [0], image, [1])
    for each in (batch, moved):
        targets, far = Alignment(angle=0, angles=1).targets(each, -1.0)
        assert far[0, 1] == pytest.approx(0, abs=1e-6)
        assert torch.allclose(targets[0, 1], each.images[0])


def test_alignment_takes_the_nearest_of_several_donors_and_none_of_a_missing_class():
    image, donors = noise_images(1), noise_images(8, stream="donors")
    batch = batch_of(image, [0], donors, [2] * 8)
    few, some = (Alignment(0, 0, 1, neighbours=k).targets(batch, 0.0)[1] for k in (1, 8))
    assert torch.allclose(few, some)
    assert few[0, 2] == pytest.approx(float((donors - image).flatten(1).norm(dim=1).min()))
    assert few[0, 1] == float("inf")


def test_inputs_that_are_no_images_are_neither_rotated_nor_shifted():
    points, donors = noise_images(3, (7,)), noise_images(2, (7,), "donors")
    targets, far = Alignment().targets(batch_of(points, [0, 0, 0], donors, [1, 1]), 0.0)
    assert targets.shape == (3, 2, 7)
    assert torch.allclose(far[:, 1], torch.cdist(points, donors).min(1).values)


@pytest.mark.parametrize("budget", [LpBall("linf", 0.2), LpBall("l2", 0.7), LpBall("l0", 9)])
def test_a_constant_classifier_ends_at_the_projection_of_the_target(budget):
    images, donors = noise_images(5), noise_images(3, stream="donors")
    batch = batch_of(images, [0] * 5, donors, [1, 1, 1])
    adversarial, meter = attack(Brightness(), batch, budget)
    target = Alignment().targets(batch, 0.0)[0][:, 1]
    assert torch.allclose(adversarial, budget.project(images, target))
    assert budget.contains(images, adversarial).all()
    assert torch.allclose(
        budget.distance(images, adversarial), torch.full((5,), budget.eps).double()
    )
    assert set(meter.forward_passes.tolist()) == {2}


def test_without_a_budget_the_target_itself_is_returned():
    images, donors = noise_images(5), noise_images(3, stream="donors")
    batch = batch_of(images, [0] * 5, donors, [1, 2, 1])
    targets, far = Alignment().targets(batch, 0.0)
    for name in ("l2", "linf", "l0"):
        adversarial, _ = attack(Brightness(), batch, Unbounded(name))
        nearest = far.argmin(1)
        assert torch.allclose(adversarial, targets[torch.arange(5), nearest])


@pytest.mark.parametrize("name", ["l2", "linf"])
def test_a_threshold_lets_it_go_as_far_as_the_threshold(name):
    image = torch.full((1, 1, 6, 6), 0.2, dtype=torch.float64)
    donor = torch.full_like(image, 0.8)
    batch = batch_of(image, [0], donor, [1])
    eps = {"linf": 0.3, "l2": 0.3 * 6}[name]
    for threshold in (0.21, 0.33, 0.4999, 0.501):
        adversarial, meter = attack(
            Brightness(threshold), batch, LpBall(name, eps), shift=0, angle=0
        )
        brightness = float(adversarial.mean())
        end = min(threshold, 0.5)
        assert end - 0.3 / 2**8 - 1e-9 <= brightness <= end + 1e-12
        assert meter.forward_passes.item() == (2 if threshold > 0.5 else 2 + 8)


def test_another_class_is_tried_before_going_half_the_way():
    image = torch.full((1, 1, 4, 4), 0.5).double()
    bright, dark = torch.full_like(image, 0.75), torch.full_like(image, 0.2)
    batch = batch_of(image, [0], torch.cat([bright, dark]), [1, 2])
    options = {"shift": 0, "angle": 0.0}
    both, _ = attack(Brightness(0.6), batch, LpBall("linf", 0.2), **options)
    assert both.mean() == pytest.approx(0.3)
    first, _ = attack(Brightness(0.6), batch, LpBall("linf", 0.2), targets=1, **options)
    assert 0.59 < first.mean() <= 0.6


def test_a_sample_without_another_class_does_not_change():
    images = noise_images(2)
    batch = batch_of(images, [0, 1], noise_images(1, stream="donors"), [1])
    adversarial, meter = attack(Brightness(), batch, LpBall("linf", 0.1))
    assert meter.failures == {1: "no_start"}
    assert torch.equal(adversarial[1], images[1])
    assert norm(adversarial - images, "linf")[0] == pytest.approx(0.1)


def test_it_keeps_the_rules_of_attacks():
    check_attack(InvarianceBall(angles=3, neighbours=2))


@pytest.mark.parametrize(
    "wrong", [{"shift": -1}, {"angle": -3.0}, {"angles": 0}, {"neighbours": 0}, {"targets": 0}]
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(BadParameter, match=f"unusable {next(iter(wrong))}"):
        InvarianceBall(**wrong)


def test_padding_is_that_of_torch():
    """The shift by hand that other tests compare with is a crop of the padded image."""
    image = noise_images(1, (1, 4, 4))
    assert torch.equal(shifted(image, 1, -1), pad(image, [1, 1, 1, 1])[..., :4, 2:])
