"""Level set traversal on a linear model, whose level sets are hyperplanes, and on a saturated one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.invariance.level_set_traversal import LevelSetTraversal
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

N, WIDTH = 24, 12


def linear_classifier(scale=1.0):
    """Two classes, divided by the mean of the first half of the pixels."""
    linear = nn.Linear(WIDTH, 2)
    half = torch.cat([torch.ones(WIDTH // 2), torch.zeros(WIDTH // 2)])
    linear.weight.data = scale * torch.stack([-half, half])
    linear.bias.data = scale * torch.tensor([3.0, -3.0])
    return ModuleClassifier(nn.Sequential(nn.Flatten(), linear), (0.0, 1.0), 2)


def batch():
    generator = torch.Generator().manual_seed(0)
    labels, ids = torch.arange(N) % 2, torch.arange(N)
    images = 0.35 + 0.3 * torch.rand(N, 1, 1, WIDTH, generator=generator)
    images[..., : WIDTH // 2] += 0.1 * (2 * labels - 1)[:, None, None, None]
    return Batch(
        images, labels, ids, pool=InputPool(ids, lambda rows: (images[rows], labels[rows]))
    )


def run(attack, given, model=None, budget=None):
    model = model or linear_classifier()
    threat = ThreatModel(budget or Unbounded(), KeepDecision())
    meter = CountingModel(model, given, threat, SampleRNG(0, given.ids), keep_best=False)
    return attack.run(meter, given, threat, SampleRNG(0, given.ids)), meter, model


def confidence(model, images, classes):
    return model(images).logits.softmax(1).gather(1, classes[:, None])[:, 0]


def test_on_a_linear_model_the_walk_ends_at_the_donors_projection_on_the_level_set():
    given = batch()
    found, meter, model = run(LevelSetTraversal(steps=400, push=1e-6), given)
    donors = given.images[meter.logged["donor"]]
    gradient = model.module[1].weight[1].detach()
    offset = (donors - given.images).flatten(1)
    along = (offset @ gradient) / gradient.square().sum()
    ends = given.images + (offset - along[:, None] * gradient).reshape(given.images.shape)
    torch.testing.assert_close(found, ends, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("drop", [0.02, 0.3])
def test_confidence_drops_by_at_most_the_bound_and_the_prediction_stays(scale, drop):
    given, model = batch(), linear_classifier(scale)
    found, _, _ = run(LevelSetTraversal(drop=drop, rate=0.2), given, model)
    classes = model(given.images).decision
    assert torch.equal(model(found).decision, classes)
    assert (
        confidence(model, given.images, classes) - confidence(model, found, classes)
    ).max() <= drop + 1e-6
    assert (found - given.images).flatten(1).abs().amax(1).min() > 0.05


def test_a_saturated_softmax_hides_no_direction():
    """The gradient of its cross-entropy underflows to zero, so that a walk along it would cross the boundary at once."""
    given = batch()
    soft, _, _ = run(LevelSetTraversal(push=1e-9), given, linear_classifier(1.0))
    saturated, _, _ = run(LevelSetTraversal(push=1e-9), given, linear_classifier(1e4))
    torch.testing.assert_close(saturated, soft, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.1)])
def test_a_budget_contains_the_walk(norm, eps):
    given = batch()
    found, _, _ = run(LevelSetTraversal(), given, budget=LpBall(norm, eps))
    assert LpBall(norm, eps).contains(given.images, found).all()
    assert (found != given.images).flatten(1).any(1).all()


def test_an_accepted_input_stays_accepted():
    class Rejecting:
        """Rejects where the second half of the pixels is bright."""

        num_classes, bounds, dtype = 2, (0.0, 1.0), torch.float32

        def __init__(self):
            self.inner = linear_classifier()

        def __call__(self, images):
            score = 0.5 - images.flatten(1)[:, WIDTH // 2 :].mean(1)
            return Output(self.inner(images).logits, score, score >= 0)

    given, model = batch(), Rejecting()
    before = model(given.images).accepted
    free, _, _ = run(LevelSetTraversal(), given)
    found, _, _ = run(LevelSetTraversal(), given, model)
    assert (before & ~model(free).accepted).any()
    assert (model(found).accepted | ~before).all()


def test_each_step_costs_one_forward_and_one_backward_pass():
    _, meter, _ = run(LevelSetTraversal(steps=7, donors=2), batch())
    assert meter.backward_passes.tolist() == [2 * 8] * N
    assert meter.forward_passes.tolist() == [1 + 2 * 8] * N


def test_several_donors_end_closer_to_one_of_them_than_the_first_alone():
    given = batch()
    one = run(LevelSetTraversal(), given)[1].logged["remaining_distance"]
    four = run(LevelSetTraversal(donors=4), given)[1].logged["remaining_distance"]
    assert (four <= one).all()
    assert (four < one).any()


def test_the_farthest_donor_is_farther_than_the_nearest():
    given = batch()
    distances = []
    for rule in ("nearest", "farthest"):
        donors = given.images[run(LevelSetTraversal(rule), given)[1].logged["donor"]]
        distances.append((donors - given.images).flatten(1).norm(dim=1))
    assert (distances[0] < distances[1]).all()


def test_batches_do_not_matter():
    given = batch()
    attack = LevelSetTraversal(steps=30, donors=2)
    whole, _, _ = run(attack, given)
    parts = [run(attack, given[torch.tensor([k, k + 1])])[0] for k in range(0, N, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"donors": 0},
        {"rate": 0},
        {"rate": 2},
        {"push": 0},
        {"drop": 1.5},
        {"donor": "best"},
    ],
)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(BadParameter):
        LevelSetTraversal(**bad)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 255.0)])
def test_the_range_of_the_inputs_changes_nothing_but_the_scale(low, high):
    given, unit = batch(), linear_classifier(8.0)

    class Scaled:
        num_classes, bounds, dtype = 2, (low, high), torch.float32

        def __call__(self, images):
            return unit((images - low) / (high - low))

    wide = low + (high - low) * given.images
    pool = InputPool(given.ids, lambda rows: (wide[rows], given.labels[rows]))
    expected, _, _ = run(LevelSetTraversal(push=0.01), given, unit)
    found, _, _ = run(
        LevelSetTraversal(push=0.01), replace(given, images=wide, pool=pool), Scaled()
    )
    torch.testing.assert_close((found - low) / (high - low), expected, rtol=0, atol=1e-4)
