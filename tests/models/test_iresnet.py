"""Invertible residual networks: classifier with padding, bijection with a split code."""

import math

import pytest
import torch
from safetensors.torch import load, save

import robustbench_inv as rbi
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.iresnet import (
    Standardised,
    bijective,
    classifier,
    residual_blocks,
    residual_flow,
)
from robustbench_inv.models.protocol import Classifier, Invertible, SplitsCode
from robustbench_inv.models.wrapping import InvertibleClassifier, SplitCodeClassifier, wrap_module

SMALL = {"shape": (1, 8, 8), "num_classes": 3, "blocks": (2, 1), "width": 6}


def trained(build, **parameters):
    """A network after a few steps on noise."""
    torch.manual_seed(0)
    model = build(**{**SMALL, **parameters}).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images = torch.rand(16, *SMALL["shape"])
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(16) % 3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False), images


@pytest.mark.parametrize("build", [classifier, bijective])
@pytest.mark.parametrize("coefficient", [0.9, 0.5])
def test_decoding_undoes_encoding(build, coefficient):
    padding = {"padding": 3, "mean": 0.1, "deviation": 0.3} if build is classifier else {}
    model, images = trained(build, coefficient=coefficient, **padding)
    assert (model.decode(model.encode(images)) - images).abs().max() <= 1e-5


@pytest.mark.parametrize("boundary", ["zeros", "circular"])
def test_no_convolution_exceeds_the_coefficient(boundary):
    model, _ = trained(classifier, padding=2, coefficient=0.7, boundary=boundary)
    norms = [layer.operator_norm() for block in residual_blocks(model) for layer in block.layers()]
    assert len(norms) == 9
    assert max(norms) <= 0.7 * (1 + 1e-3)
    assert max(norms) > 0.6


@pytest.mark.parametrize("deviation", [1.0, 0.3])
def test_the_logits_keep_their_lipschitz_bound(deviation):
    model, images = trained(classifier, padding=2, deviation=deviation)
    model = model.double()
    generator = torch.Generator().manual_seed(3)
    bound = model.lipschitz()
    for x in images[:4].double():
        jacobian = torch.func.jacrev(lambda v: model(v[None])[0])(x).flatten(1)
        assert torch.linalg.matrix_norm(jacobian, 2) <= bound
    moved = images.double() + 0.1 * torch.randn(images.shape, generator=generator).double()
    change = (model(moved) - model(images.double())).norm(dim=1)
    assert (change <= bound * (moved - images).flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("pool", [True, False])
def test_no_attack_changes_the_prediction_within_the_certified_radius(pool):
    model, images = trained(classifier, padding=2, coefficient=0.5, pool=pool)
    model, images = model.double(), images.double()
    labels = model(images).argmax(1)
    radii = model.certified_radii(images, labels)
    assert (radii > 0).all()
    assert (model.certified_radii(images, (labels + 1) % 3) == 0).all()
    moved = images.clone()
    for _ in range(20):
        moved.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(moved), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        step = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        moved = (images + radii[:, None, None, None] * step).detach()
        assert (model(moved).argmax(1) == labels).all()
    far = images + 50 * radii.max() * step
    assert not (model(far).argmax(1) == labels).all()


def test_classes_with_equal_rows_are_certified_only_where_their_gap_is_positive():
    model, images = trained(classifier, padding=2, coefficient=0.5)
    torch.nn.init.zeros_(model.linear.weight)
    with torch.no_grad():
        model.linear.bias.copy_(torch.tensor([2.0, 1.0, 0.0]))
    radii = [model.certified_radii(images[:1], torch.tensor([y])).item() for y in range(3)]
    assert radii == [float("inf"), 0, 0]


def test_radii_of_many_similar_classes_are_those_of_exact_distances():
    """Beyond 25 rows, distances come from matrix products by default, which round those of similar rows to 0."""
    model = classifier((1, 4, 4), 40, blocks=(1, 1), width=4, padding=2).eval()
    with torch.no_grad():
        shape = model.linear.weight.shape
        model.linear.weight.copy_(
            1 + 1e-5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        )
    images = torch.rand(4, 1, 4, 4)
    labels = model(images).argmax(1)
    torch.testing.assert_close(
        model.certified_radii(images, labels).double(),
        model.double().certified_radii(images.double(), labels),
        rtol=0.2,
        atol=1e-6,
    )


def test_standardised_inputs():
    step, x = Standardised(0.2, 0.5), torch.rand(2, 1, 3, 3)
    y, log_determinant = step(x)
    torch.testing.assert_close(y, (x - 0.2) * 2)
    torch.testing.assert_close(step.inverse(y), x)
    torch.testing.assert_close(log_determinant, torch.full((2,), 9 * math.log(2)))
    narrow, _ = trained(classifier, deviation=0.5)
    wide, _ = trained(classifier, deviation=0.5)
    next(iter(wide.start)).deviation = 1.0
    assert narrow.lipschitz() == pytest.approx(2 * wide.lipschitz())


def test_a_vanilla_network_is_not_inverted():
    model, images = trained(classifier, coefficient=0)
    assert max(block.lipschitz() for block in residual_blocks(model)) > 1
    assert not bool((model.decode(model.encode(images)) - images).abs().max() < 1e-3)


def test_logits_of_a_bijection_are_the_first_part_of_its_code():
    model, images = trained(bijective)
    code = model.encode(images)
    assert code.shape == (16, 64)
    semantic, nuisance = model.split(code)
    torch.testing.assert_close(semantic, model(images))
    again = model.encode(model.decode(model.join(semantic, nuisance.flip(0))))
    assert (model.split(again)[0] - semantic).abs().max() <= 1e-4


def test_the_wrapped_networks_have_their_capabilities():
    padded = wrap_module(trained(classifier, padding=3)[0], "padded")
    assert type(padded) is InvertibleClassifier
    assert isinstance(padded, Classifier)
    assert isinstance(padded, Invertible)
    assert not isinstance(padded, SplitsCode)
    assert type(wrap_module(trained(bijective)[0], "bijective")) is SplitCodeClassifier


def test_loaded_weights_give_the_same_logits_and_inverse():
    model, images = trained(classifier, padding=3)
    other = classifier(**SMALL, padding=3).eval()
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(other(images), model(images))
    assert torch.equal(other.decode(model.encode(images)), model.decode(model.encode(images)))


def test_bad_architectures_are_refused():
    with pytest.raises(BadParameter, match="divisible by 4"):
        classifier((1, 6, 6), blocks=(1, 1))
    with pytest.raises(BadParameter, match="padding"):
        bijective(padding=1)
    with pytest.raises(BadParameter, match="width"):
        classifier(blocks=(1, 1), width=(2, 3, 4))
    with pytest.raises(BadParameter, match="blocks"):
        classifier(blocks=())


@pytest.mark.parametrize("attack", ["metamer", "invariance-standard"])
def test_invariance_attacks_run_on_a_bijection(attack, tmp_path):
    torch.manual_seed(0)
    model = bijective(blocks=(1, 1), width=4).eval()
    run = rbi.evaluate(
        model, attack=attack, dataset="mnist5k", samples=10, out=tmp_path, checks=False
    )
    assert not run.failures
    assert {record.status for record in run.records()} <= {"ok", "already_wrong"}


def flow(**plan):
    """A flow of 4×4 images in float64, with weights away from their start."""
    torch.manual_seed(0)
    fields = {"terms": 3, **plan}
    model = residual_flow((1, 4, 4), 3, blocks=(1, 1), width=4, log_determinant=fields).double()
    images = torch.rand(32, 1, 4, 4).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.train()(images)
    return model.eval().requires_grad_(False), images


def test_the_density_of_a_flow_is_that_of_its_exact_jacobian():
    model, images = flow(evaluation_probes=3000, evaluation_tolerance=1e-6)
    found = model(images[:2])
    for x, densities in zip(images[:2], found, strict=True):
        jacobian = torch.func.jacrev(lambda v: silent(model)(v[None])[0][0])(x).flatten(1)
        code = silent(model)(x[None])[0]
        classes = torch.eye(3).double()
        normal, scale = model.prior(code.expand(3, -1), classes)
        log_normal = -(normal.square().sum(1) + 16 * torch.log(torch.tensor(2 * torch.pi))) / 2
        truth = log_normal + scale + torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(densities, truth, rtol=0, atol=0.3)


def silent(model):
    """The flow without estimates of log-determinants, which cannot be traced."""
    for block in residual_blocks(model):
        block.log_determinant = None
    return model.flow


def test_samples_of_a_flow_are_coded_as_the_draws_they_come_from():
    model, _ = flow()
    labels = torch.tensor([0, 2, 1])
    samples = model.sample(labels, torch.Generator().manual_seed(1))
    assert samples.shape == (3, 1, 4, 4)
    normal = model.prior(model.flow(samples)[0], torch.eye(3)[labels].double())[0]
    drawn = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(normal, drawn, rtol=0, atol=1e-6)


def test_the_marginal_density_mixes_the_classes():
    model, images = flow()
    expected = model(images[:4]).exp().mean(1).log()
    torch.testing.assert_close(model.marginal(images[:4]), expected)


def test_every_weight_of_a_flow_gets_a_gradient():
    model, images = flow(estimator="roulette")
    model.train().requires_grad_(True)
    model.marginal(images).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
