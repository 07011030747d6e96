"""ReLU preimages of small networks, known by hand, and of random ones, whose activations must stay."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.nn import functional

from robustbench_inv.attacks.invariance.relu_preimage import (
    AffinePiece,
    ReluPreimage,
    _nullspace_dimension,
    pieces_at,
    relu_inputs,
)
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.plain_networks import MLP
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

CLEAN, DONOR = (0.3, 0.2), (0.9, 0.8)


class Layers(nn.Module):
    """Linear layers with a ReLU after each, then two logits."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList()
        for rows, offsets in layers:
            linear = nn.Linear(len(rows[0]), len(rows), dtype=torch.float64)
            linear.weight.data = torch.tensor(rows, dtype=torch.float64)
            linear.bias.data = torch.tensor(offsets, dtype=torch.float64)
            self.layers.append(linear)

    def forward(self, images):
        hidden = images
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return torch.stack([hidden.sum(1), -hidden.sum(1)], 1)


def batch_of(images, labels):
    ids = torch.arange(len(images))
    pool = InputPool(ids, lambda rows: (images[rows], labels[rows]))
    return Batch(images, labels, ids, pool=pool)


def run(attack, module, budget=None, batch=None):
    """Return the results and the queries; by default of two points, each the other's donor."""
    points = torch.tensor([CLEAN, DONOR], dtype=torch.float64)
    batch = batch or batch_of(points, torch.tensor([0, 1]))
    threat = ThreatModel(budget or Unbounded("l1"), KeepDecision())
    model, rng = load_model(module).classifier, SampleRNG(0, batch.ids)
    meter = CountingModel(model, batch, threat, rng, keep_best=False)
    return attack.run(meter, batch, threat, rng), meter


BLIND = Layers(([[1.0, 0.0]], [0.0]))
"""Sees the first coordinate alone."""

STOPPED = Layers(([[1.0, 0.0]], [-0.5]))
"""Its unit is stopped below 0.5 of the first coordinate."""


@pytest.mark.parametrize(
    ("module", "nearest", "dimension"),
    [
        (BLIND, (0.3, 0.8), 1),
        (STOPPED, (0.5, 0.8), 2),
        (Layers(([[1.0, 1.0]], [-3.0])), DONOR, 2),
        (Layers(([[1.0, 0.0], [0.0, 1.0]], [0.0, -0.6])), (0.3, 0.6), 1),
    ],
    ids=["blind", "stopped", "never active", "one each"],
)
def test_the_point_next_to_the_donor(module, nearest, dimension):
    adversarial, meter = run(ReluPreimage(), module)
    assert adversarial[0].tolist() == pytest.approx(nearest, abs=1e-9)
    assert meter.logged["dimension"][0] == dimension
    assert meter.logged["solver_status"].tolist() == [0, 0]
    assert meter.logged["changed_units"].tolist() == [0, 0]
    assert float(meter.logged["activation_error"].max()) < 1e-12
    way = 1 - (abs(0.9 - nearest[0]) + abs(0.8 - nearest[1])) / 1.2
    assert float(meter.logged["distance_share"][0]) == pytest.approx(way)


def test_a_layer_that_determines_its_input_is_marked():
    everything = Layers(([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [0.0, 0.0, 0.0]))
    adversarial, meter = run(ReluPreimage(), everything)
    assert torch.equal(adversarial, meter.batch.images)
    assert meter.failures == {0: "no_start", 1: "no_start"}
    assert meter.logged["dimension"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        (LpBall("linf", 0.1), (0.4, 0.3)),
        (LpBall("l2", 0.1), (0.3 + 0.2 * 0.1 / 0.4**0.5, 0.2 + 0.6 * 0.1 / 0.4**0.5)),
        (LpBall("l1", 0.4), (0.4, 0.5)),
        (LpBall("l2", 5.0), (0.5, 0.8)),
    ],
    ids=str,
)
def test_budgets(budget, nearest):
    adversarial, meter = run(ReluPreimage(), STOPPED, budget)
    assert adversarial[0].tolist() == pytest.approx(nearest, abs=1e-9)
    assert budget.contains(meter.batch.images, adversarial).all()


def test_a_deeper_layer_keeps_the_sides_of_those_before_it():
    split = ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [-0.1, -0.1, -1.0])
    deep = Layers(split, ([[1.0, 1.0, 5.0]], [0.0]))
    adversarial, meter = run(ReluPreimage(layer=2), deep)
    x, y = adversarial[0].tolist()
    assert x + y == pytest.approx(0.5)
    assert min(x, y) >= 0.1 - 1e-9
    assert meter.logged["dimension"][0] == 1
    assert meter.logged["changed_units"][0] == 0


@pytest.mark.parametrize("layer", [1, 2])
def test_random_networks_have_equal_outputs(layer):
    torch.manual_seed(layer)
    module = MLP((12, 9), (1, 6, 6), 3).double()
    images = SampleRNG(0, torch.arange(12), "test").uniform((1, 6, 6), dtype=torch.float64)
    batch = batch_of(images, module(images).argmax(1) * 0 + torch.arange(12) % 3)
    adversarial, meter = run(ReluPreimage(layer), module, batch=batch)
    measured = meter.logged
    assert torch.allclose(module(adversarial), module(images), atol=1e-7)
    for before, after in zip(
        relu_inputs(module, images, layer)[-1:],
        relu_inputs(module, adversarial, layer)[-1:],
        strict=True,
    ):
        assert torch.allclose(before.relu(), after.relu(), atol=1e-7)
    assert (measured["dimension"] >= 36 - 12).all()
    assert (measured["distance_share"] > 0.1).all()
    assert ((adversarial >= 0) & (adversarial <= 1)).all()
    # the result of a sample does not depend on its batch
    alone = batch_of(images, batch.labels)[torch.tensor([7])]
    assert torch.equal(run(ReluPreimage(layer), module, batch=alone)[0][0], adversarial[7])


def test_a_piece_is_the_network_around_its_input():
    torch.manual_seed(0)
    module = MLP((7, 5), (1, 3, 3), 3).double()
    image = torch.rand((1, 1, 3, 3), dtype=torch.float64)
    near = image + 1e-6 * torch.randn_like(image)
    for piece, inputs in zip(
        pieces_at(module, image, 2), relu_inputs(module, near, 2), strict=True
    ):
        found = piece.jacobian @ near.flatten().numpy() + piece.offsets
        assert found == pytest.approx(inputs[0].detach().numpy(), abs=1e-12)


RELUS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "functional": lambda x: functional.relu(x),
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_compute_a_relu_is_recorded(name):
    relu = RELUS[name]
    inputs = relu_inputs(lambda x: relu(relu(x * 2 - 1) - 0.2), torch.tensor([[0.1, 0.9]]), 5)
    assert torch.allclose(torch.cat(inputs), torch.tensor([[-0.8, 0.8], [-0.2, 0.6]]))


def test_the_units_of_label_hypotheses_do_not_depend_on_the_batch():
    """Every unit counts, also one that is inactive for all images, and a batch of 130 is split by the network."""
    model, data = load_model("mnist-c-dv").classifier, load_dataset("mnist5k")
    images, labels = data.batch(torch.arange(0, 5000, 5000 // 130)[:130])
    widths = {n: [each.shape for each in relu_inputs(model, images[:n], 6)] for n in (1, 2, 130)}
    for n, shapes in widths.items():
        assert shapes == [(n, units) for units in (5408, 1600, 5120, 2560, 1280)]
    network = model.module
    third = network.guess(network.features(images)).flatten(1)
    torch.testing.assert_close(relu_inputs(model, images, 3)[2], third, rtol=1e-5, atol=1e-5)

    batch, threat = batch_of(images, labels), ThreatModel(Unbounded(), KeepDecision())
    meter = CountingModel(model, batch, threat, SampleRNG(0, batch.ids), keep_best=False)
    moved = (images + 0.1 * images.roll(1, 0)).clamp(0, 1)
    ReluPreimage(layer=3)._measure(meter, images, moved, images.roll(1, 0))
    changed = meter.logged["changed_units"]
    assert len(changed) == 130
    ReluPreimage(layer=3)._measure(
        few := CountingModel(model, batch[:3], threat, SampleRNG(0, batch.ids[:3])),
        images[:3],
        moved[:3],
        images.roll(1, 0)[:3],
    )
    assert torch.equal(few.logged["changed_units"], changed[:3])


def test_a_model_that_changes_its_input_leaves_the_images_as_they_are():
    images = torch.rand(3, 4)
    before = images.clone()
    assert relu_inputs(lambda x: torch.relu(x.sub_(0.5)), images, 1)[0].shape == (3, 4)
    assert torch.equal(images, before)


def test_a_convolution_is_a_layer_as_any():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    module.bounds, module.num_classes = (0.0, 1.0), 2
    images = torch.rand((4, 1, 5, 5))
    batch = batch_of(images, torch.tensor([0, 1, 0, 1]))
    adversarial, meter = run(ReluPreimage(), module, batch=batch)
    assert float(meter.logged["activation_error"].max()) < 1e-5
    assert (meter.logged["distance_share"] > 0.05).all()
    assert torch.allclose(module(adversarial), module(images), atol=1e-5)


def test_where_the_solver_fails_without_its_presolver_it_is_used(monkeypatch):
    solve, presolved = scipy.optimize.linprog, []

    def fails_without(*args, options, **more):
        presolved.append(options["presolve"])
        found = solve(*args, options=options, **more)
        if not options["presolve"]:
            found.status, found.x = 4, None
        return found

    monkeypatch.setattr("scipy.optimize.linprog", fails_without)
    adversarial, meter = run(ReluPreimage(), BLIND)
    assert meter.logged["solver_status"].tolist() == [0, 0]
    assert presolved == [False, True] * 2
    assert adversarial[1].tolist() == pytest.approx((0.9, 0.2))


def test_the_dimension_is_that_of_the_null_space_for_narrow_and_wide_layers():
    for units, elements, rank in ((3, 8, 2), (9, 4, 3), (4, 4, 4), (0, 5, 0)):
        jacobian = np.random.default_rng(0).normal(size=(units, elements))
        if units > 1 and rank < min(units, elements):
            jacobian[rank:] = jacobian[:rank].sum(0)
        piece = AffinePiece(jacobian, np.zeros(units), np.ones(units))
        assert _nullspace_dimension(piece) == elements - rank


def test_a_solver_that_fails_spoils_one_sample(monkeypatch):
    solve, states = scipy.optimize.linprog, iter((4, 4, 0))

    def fails_first(*args, **options):
        found = solve(*args, **options)
        found.status = next(states)
        found.x = None if found.status else found.x
        return found

    monkeypatch.setattr("scipy.optimize.linprog", fails_first)
    adversarial, meter = run(ReluPreimage(), BLIND)
    assert meter.failures == {0: "numerics"}
    assert meter.logged["solver_status"].tolist() == [4, 0]
    assert torch.equal(adversarial[0], meter.batch.images[0])
    assert adversarial[1].tolist() == pytest.approx((0.9, 0.2))


def test_unusable_models_are_rejected(digits_like):
    with pytest.raises(BadParameter, match="layer"):
        ReluPreimage(layer=0)
    with pytest.raises(BadParameter, match="donors"):
        ReluPreimage(donor="nobody")
    model = load_model(BLIND).classifier
    with pytest.raises(CapabilityMismatch, match="no ReLU number 2"):
        ReluPreimage(2).check_requirements(
            model, ThreatModel(Unbounded(), KeepDecision()), digits_like
        )


@pytest.fixture
def digits_like():
    from robustbench_inv.data.arrays import ArrayDataset

    points = torch.tensor([CLEAN, DONOR], dtype=torch.float64)
    return ArrayDataset(points, torch.tensor([0, 1]), "two")
