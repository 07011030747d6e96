"""Metamers of a layer: its activations are matched, what it ignores stays, and random inputs match worse."""

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.invariance.layer_metamer import LayerMetamer
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

N, WIDTH = 12, 10


def network():
    """The first layer sees the first half of the pixels alone; the second has two logits."""
    torch.manual_seed(0)
    first, last = nn.Linear(WIDTH, 8), nn.Linear(8, 2)
    first.weight.data[:, WIDTH // 2 :] = 0
    layers = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    return ModuleClassifier(layers, (0.0, 1.0), 2)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(40, 1, 2, WIDTH // 2, generator=generator)
    labels, ids = torch.arange(40) % 2, torch.arange(40)
    pool = InputPool(ids, lambda rows: (images[rows], labels[rows]))
    return Batch(images[:N], labels[:N], ids[:N], pool=pool)


def run(attack, given=None, model=None, budget=None):
    given, model = given or batch(), model or network()
    threat = ThreatModel(budget or Unbounded(), KeepDecision())
    rng = SampleRNG(0, given.ids)
    meter = CountingModel(model, given, threat, rng, keep_best=False)
    return attack.run(meter, given, threat, rng), meter, model


@pytest.mark.parametrize("layer", ["", "1", "module.2"])
def test_activations_are_those_of_the_source_and_the_rest_is_the_donors(layer):
    given = batch()
    found, meter, model = run(LayerMetamer(layer, steps=300), given)
    matched = meter.logged["match_error"] < meter.logged["null_error"]
    assert matched.float().mean() > 0.8
    before, after = (model(images).logits for images in (given.images, found))
    assert (after - before).abs()[matched].max() < 0.1
    donors = given.pool.images[meter.logged["donor"]]
    assert torch.equal(found[matched, :, 1], donors[matched, :, 1])
    assert torch.equal(found[~matched], given.images[~matched])


def test_the_null_error_is_that_of_the_closest_other_input():
    given = batch()
    _, meter, model = run(LayerMetamer("1", steps=1), given)
    hidden = model.module[1](given.pool.images.flatten(1)).detach()
    errors = torch.cdist(hidden[:N], hidden) / hidden[:N].norm(dim=1, keepdim=True)
    errors[torch.arange(N), torch.arange(N)] = torch.inf
    torch.testing.assert_close(meter.logged["null_error"], errors.amin(1))


def test_noise_needs_no_donor_and_is_the_same_in_every_batch():
    given, attack = batch(), LayerMetamer(start="noise", steps=20)
    whole, meter, _ = run(attack, given)
    assert "donor" not in meter.logged
    parts = [run(attack, given[torch.tensor([k, k + 1])])[0] for k in range(0, N, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert meter.backward_passes.tolist() == [20] * N


def test_a_budget_contains_the_search():
    given, ball = batch(), LpBall("linf", 0.2)
    found, _, _ = run(LayerMetamer(steps=30), given, budget=ball)
    assert ball.contains(given.images, found).all()


def test_a_layer_that_tells_all_inputs_apart_has_no_metamer_far_from_the_source():
    identity = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(WIDTH, 2))
    given = batch()
    found, _, _ = run(LayerMetamer(steps=300), given, ModuleClassifier(identity, (0.0, 1.0), 2))
    assert (found - given.images).abs().max() < 0.2


def test_a_layer_used_twice_counts_with_both_outputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(WIDTH // 2, 3), nn.Linear(6, 2)

        def forward(self, images):
            return self.last(torch.cat([self.inner(images[:, 0, k]) for k in (0, 1)], 1))

    torch.manual_seed(0)
    given, model = batch(), ModuleClassifier(Twice(), (0.0, 1.0), 2)
    _, meter, _ = run(LayerMetamer("inner", steps=1), given, model)
    rows = given.pool.images[:, 0]
    hidden = torch.cat([model.module.inner(rows[:, k]) for k in (0, 1)], 1).detach()
    errors = torch.cdist(hidden[:N], hidden) / hidden[:N].norm(dim=1, keepdim=True)
    errors[torch.arange(N), torch.arange(N)] = torch.inf
    torch.testing.assert_close(meter.logged["null_error"], errors.amin(1))


def test_an_unknown_layer_is_refused_with_the_known_ones():
    with pytest.raises(BadParameter, match=r"no layer 5.*one of 0, 1, 2, 3"):
        run(LayerMetamer("5"))


def test_a_model_that_is_no_module_and_a_layer_that_is_not_called_are_refused():
    class Plain:
        num_classes, bounds, dtype = 2, (0.0, 1.0), torch.float32

        def __call__(self, images):
            raise AssertionError

    with pytest.raises(CapabilityMismatch, match="layers of a network"):
        run(LayerMetamer(), model=Plain())
    unused = network()
    unused.module.add_module("tail", nn.Identity())
    unused.module.forward = lambda images: unused.module[3](torch.rand(len(images), 8))
    with pytest.raises(CapabilityMismatch, match="no activations were recorded"):
        run(LayerMetamer("1"), model=unused)


@pytest.mark.parametrize(
    ("text", "name"), [("0", "0"), ("1.2", "1.2"), ("module.1.10", "module.1.10")]
)
def test_a_layer_with_a_number_as_name_can_be_typed(text, name):
    assert load_attack(f"layer-metamer:layer={text}").attack.layer_name == name


@pytest.mark.parametrize("bad", [{"steps": 0}, {"rate": 0}, {"start": "best"}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(BadParameter):
        LayerMetamer(**bad)
