"""Invertible residual networks: classifier with padding, bijection with a split code."""

import pytest
import torch
from safetensors.torch import load, save

import robustbench_inv as rbi
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.iresnet import bijective, classifier, residual_blocks
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
    padding = {"padding": 3} if build is classifier else {}
    model, images = trained(build, coefficient=coefficient, **padding)
    assert (model.decode(model.encode(images)) - images).abs().max() <= 1e-5


@pytest.mark.parametrize("boundary", ["zeros", "circular"])
def test_no_convolution_exceeds_the_coefficient(boundary):
    model, _ = trained(classifier, padding=2, coefficient=0.7, boundary=boundary)
    norms = [layer.operator_norm() for block in residual_blocks(model) for layer in block.layers()]
    assert len(norms) == 9
    assert max(norms) <= 0.7 * (1 + 1e-3)
    assert max(norms) > 0.6


def test_the_logits_keep_their_lipschitz_bound():
    model, images = trained(classifier, padding=2)
    model = model.double()
    generator = torch.Generator().manual_seed(3)
    bound = model.lipschitz()
    for x in images[:4].double():
        jacobian = torch.func.jacrev(lambda v: model(v[None])[0])(x).flatten(1)
        assert torch.linalg.matrix_norm(jacobian, 2) <= bound
    moved = images.double() + 0.1 * torch.randn(images.shape, generator=generator).double()
    change = (model(moved) - model(images.double())).norm(dim=1)
    assert (change <= bound * (moved - images).flatten(1).norm(dim=1)).all()


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
