"""Metamers of a layer: its activations are matched, what it ignores stays, and random inputs match worse."""

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.invariance.layer_metamer import LayerMetamer
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.stochastic import LatentSamplingNetwork, StochasticClassifier
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


class Overwritten(nn.Module):
    """Operations in place change the output of ``inner``, and the input of ``last`` after its call."""

    def __init__(self):
        super().__init__()
        self.inner, self.relu = nn.Linear(WIDTH, 8), nn.ReLU(inplace=True)
        self.last = nn.Linear(8, 2).requires_grad_(False)

    def forward(self, images):
        hidden = 2 * self.relu(self.inner(images.flatten(1)))
        logits = self.last(hidden)
        hidden += 7  # no gradient needs it
        return logits


@pytest.mark.parametrize("layer", ["inner", ""])
def test_what_is_changed_in_place_after_the_layer_is_matched_as_it_was(layer):
    torch.manual_seed(0)
    given, model = batch(), ModuleClassifier(Overwritten(), (0.0, 1.0), 2)
    found, meter, _ = run(LayerMetamer(layer, steps=200), given, model)
    inner = model.module.inner

    def activations(images):
        hidden = inner(images.flatten(1)).detach()
        return hidden if layer else 2 * hidden.relu()

    known = activations(given.pool.images)
    sizes = known[:N].norm(dim=1)
    errors = torch.cdist(known[:N], known) / sizes[:, None]
    errors[torch.arange(N), torch.arange(N)] = torch.inf
    torch.testing.assert_close(meter.logged["null_error"], errors.amin(1))
    moved = (found != given.images).flatten(1).any(1)
    assert moved.float().mean() > 0.8
    errors = (activations(found) - known[:N]).norm(dim=1) / sizes
    torch.testing.assert_close(errors[moved], meter.logged["match_error"][moved])


class InParts(nn.Module):
    """Splits a batch into parts of at most five, and uses one layer twice in each."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(WIDTH // 2, 3), nn.Linear(6, 2)

    def forward(self, images):
        return torch.cat([self.part(part) for part in images.split(5)])

    def part(self, images):
        return self.last(torch.cat([self.inner(images[:, 0, k]) for k in (0, 1)], 1))


@pytest.mark.parametrize("layer", ["", "inner"])
def test_a_network_may_split_its_batch(layer):
    torch.manual_seed(0)
    given, model = batch(), ModuleClassifier(InParts(), (0.0, 1.0), 2)
    whole, meter, _ = run(LayerMetamer(layer, steps=20), given, model)
    rows = torch.arange(N).split(4)
    parts = [run(LayerMetamer(layer, steps=20), given[some], model) for some in rows]
    torch.testing.assert_close(torch.cat([each for each, _, _ in parts]), whole)
    for name, values in meter.logged.items():
        torch.testing.assert_close(torch.cat([m.logged[name] for _, m, _ in parts]), values)


def test_label_hypotheses_have_metamers_in_a_batch_that_the_network_splits():
    model, data = load_model("mnist-c-dv").classifier, load_dataset("mnist5k")
    images, labels = data.batch(torch.arange(0, 5000, 38)[:130])
    pool = InputPool(torch.arange(130), lambda rows: (images[rows], labels[rows]))
    given = Batch(images, labels, torch.arange(130), pool=pool)
    some = torch.tensor([0, 60, 125, 129])
    whole, few = (run(LayerMetamer(steps=3), each, model)[1] for each in (given, given[some]))
    for name in ("match_error", "null_error"):
        torch.testing.assert_close(whole.logged[name][some], few.logged[name], rtol=1e-3, atol=1e-5)


class Draws(LatentSamplingNetwork):
    """The last layer sees all draws at once."""

    default_draws, latent_shape, num_classes = 5, (4,), 2

    def __init__(self):
        super().__init__()
        self.inner, self.code, self.last = nn.Linear(WIDTH, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, images):
        return self.averaged_logits(images, torch.zeros(1, len(images), 4))

    def averaged_logits(self, images, latent):
        return self.last(self.code(self.inner(images.flatten(1)).sigmoid()) + latent).mean(0)


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_the_matched_layer_does_not_depend_on_the_batch(draws):
    """A batch of as many samples as there are draws is no other than the rest."""
    torch.manual_seed(0)
    given, model = batch(), StochasticClassifier(Draws(), draws, fixed_noise=True)
    hidden = model.module.inner(given.pool.images.flatten(1)).sigmoid().detach()
    errors = torch.cdist(hidden[:N], hidden) / hidden[:N].norm(dim=1, keepdim=True)
    errors[torch.arange(N), torch.arange(N)] = torch.inf
    for size in (1, 2, 4, 5, 6):
        _, meter, _ = run(LayerMetamer(steps=1), given[torch.arange(size)], model)
        torch.testing.assert_close(meter.logged["null_error"], errors[:size].amin(1))
    threat, data = (
        ThreatModel(Unbounded(), KeepDecision()),
        ArrayDataset(given.images, given.labels, "a"),
    )
    with pytest.raises(CapabilityMismatch, match="no activations were recorded"):
        LayerMetamer("last").check_requirements(model, threat, data)


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
