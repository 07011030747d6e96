"""Collisions on a linear model: the donor keeps its looks, and takes the decision where the ball lets it."""

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.invariance.collision import Collision
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.reject_option import reject
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

N = 30


def mean_classifier():
    """Class 1 if the mean of 16 pixels is above 0.5: a donor collides if its mean is within the radius of 0.5."""
    linear = nn.Linear(16, 2)
    linear.weight.data = torch.stack([-torch.ones(16), torch.ones(16)])
    linear.bias.data = torch.tensor([8.0, -8.0])
    return ModuleClassifier(nn.Sequential(nn.Flatten(), linear), (0.0, 1.0), 2)


def batch():
    generator = torch.Generator().manual_seed(0)
    labels, ids = torch.arange(N) % 2, torch.arange(N)
    offset = torch.rand(N, generator=generator) * 0.2 + 0.02
    level = 0.5 + offset * (2 * labels - 1)
    images = level[:, None, None, None] + 0.2 * (torch.arange(16).reshape(1, 1, 4, 4) % 2 - 0.5)
    return Batch(
        images, labels, ids, pool=InputPool(ids, lambda rows: (images[rows], labels[rows]))
    )


def run(attack, given, model=None):
    model, threat = model or mean_classifier(), ThreatModel(Unbounded(), KeepDecision())
    meter = CountingModel(model, given, threat, SampleRNG(0, given.ids), keep_best=False)
    return attack.run(meter, given, threat, SampleRNG(0, given.ids)), meter, model


@pytest.mark.parametrize("donor", ["other-class", "random", "nearest"])
def test_donors_take_the_decision_exactly_where_the_ball_reaches_it(donor):
    given = batch()
    adversarial, meter, model = run(Collision(donor, radius=0.1), given)
    donors = given.images[meter.logged["donor"]]
    assert (adversarial - donors).abs().max() <= 0.1 + 1e-6
    reach = (donors.flatten(1).mean(1) - 0.5).abs() < 0.1
    same_class = given.labels[meter.logged["donor"]] == given.labels
    assert reach.any()
    assert donor == "nearest" or not reach.all()
    kept = model(adversarial).decision == model(given.images).decision
    assert torch.equal(kept, reach | same_class)


def test_of_a_model_that_rejects_the_collision_must_be_accepted():
    """It stopped at the first input of the wanted class, rejected or not."""
    given = batch()
    plain = mean_classifier()
    model = reject(plain, "margin", torch.tensor([4.0, 4.0]))
    adversarial, _, _ = run(Collision("random", radius=0.5), given, model)
    wanted = plain(given.images).decision
    assert model(adversarial).predicts(wanted).all()
    oblivious, _, _ = run(Collision("random", radius=0.5), given, plain)
    assert not model(oblivious).predicts(wanted).all()


def test_a_sample_stops_once_it_collides():
    given = batch()
    _, meter, _ = run(Collision(radius=0.5, steps=40), given)
    assert meter.backward_passes.max() <= 3


def test_batches_do_not_matter():
    given = batch()
    whole, _, _ = run(Collision(), given)
    parts = [run(Collision(), given[torch.tensor([k, k + 1])])[0] for k in range(0, N, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("bad", [{"radius": 0}, {"steps": 0}, {"donor": "best"}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(BadParameter):
        Collision(**bad)
