"""Fully invertible RevNets: inverse, log-determinant, logits as the first part of the code."""

import pytest
import torch
from safetensors.torch import load, save
from torch.func import jacrev

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.firevnet import (
    GreyLevelCentres,
    convolutional,
    fully_connected,
    one_coupling,
)
from robustbench_inv.models.layers.linear import ActNorm
from robustbench_inv.models.protocol import Classifier, Invertible, SplitsCode
from robustbench_inv.models.wrapping import SplitCodeClassifier, wrap_module

TINY = {"blocks": 2, "width": 6}


NETWORKS = {
    "fc": ((7,), lambda: fully_connected(7, 3, blocks=2, width=9)),
    "padded": ((1, 32, 32), lambda: convolutional((1, 32, 32), **TINY)),
    "native": (
        (1, 28, 28),
        lambda: convolutional((1, 28, 28), stages=2, factor_out=False, **TINY),
    ),
    "small": (
        (1, 8, 8),
        lambda: convolutional(
            (1, 8, 8), 3, stages=2, coupling=["additive", "affine"], read_out="first", **TINY
        ),
    ),
    "whole": (
        (1, 12, 12),
        lambda: convolutional((1, 12, 12), 3, stages=3, last_squeeze=3, coupling="affine", **TINY),
    ),
    "colour": (
        (3, 16, 16),
        lambda: convolutional(
            (3, 16, 16), stages=2, input_squeezes=2, factor_out=False, norm=False, **TINY
        ),
    ),
}


def network(name, seed=0):
    """A network in float64 with initialised actnorms and random couplings."""
    shape, build = NETWORKS[name]
    torch.manual_seed(seed)
    model = build().double()
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize("name", NETWORKS)
def test_decoding_undoes_encoding(name):
    model, x = network(name)
    with torch.no_grad():
        code = model.encode(x)
        assert code.shape == (5, x[0].numel())
        assert (model.decode(code) - x).abs().max() <= 1e-8


@pytest.mark.parametrize("name", ["fc", "small", "whole"])
def test_log_det_is_that_of_the_jacobian(name):
    model, x = network(name)
    _, claimed = model.transform(x)
    for i in range(2):
        jacobian = jacrev(lambda v: model.encode(v.reshape(1, *x.shape[1:])).flatten())(
            x[i].flatten()
        )
        truth = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(claimed[i], truth, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_semantic_part_of_the_code(name):
    model, x = network(name)
    with torch.no_grad():
        code = model.encode(x)
        semantic, nuisance = model.split(code)
        assert torch.equal(model(x), semantic)
    assert semantic.shape == (5, model.num_classes)
    assert torch.equal(model.join(semantic, nuisance), code)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_is_the_same_function_also_in_training(name):
    model, x = network(name)
    torch.manual_seed(99)
    fresh = NETWORKS[name][1]().double()
    fresh.load_state_dict(load(save(model.state_dict())))
    with torch.no_grad():
        assert torch.equal(fresh.eval().encode(x), model.encode(x))
        before = {k: v.clone() for k, v in fresh.state_dict().items() if "shift" in k}
        fresh.train()(x * 2 - 1)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in before.items())


def test_metamer_has_the_logits_of_one_image_and_the_nuisances_of_another():
    model, x = network("native")
    with torch.no_grad():
        semantic, nuisance = model.split(model.encode(x))
        metamer = model.decode(model.join(semantic, nuisance.roll(1, 0)))
        again = model.split(model.encode(metamer))
    torch.testing.assert_close(again[0], semantic, rtol=0, atol=1e-8)
    torch.testing.assert_close(again[1], nuisance.roll(1, 0), rtol=0, atol=1e-8)
    assert (metamer - x).abs().max() > 1e-2


def test_dct_reads_logits_from_means_and_every_pixel_moves_them():
    model, x = network("native")
    pixel = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixel)[0, 0], pixel)
    assert (gradient != 0).all()


def test_a_last_squeeze_over_the_whole_map_leaves_one_position_without_spatial_kernels():
    model, _ = network("whole")
    shapes = {m.kernel_size for m in model.modules() if isinstance(m, torch.nn.Conv2d)}
    assert shapes == {(1, 1), (3, 3)}
    last = [m for m in model.modules() if isinstance(m, ActNorm)][-1]
    # 1 · 4 channels, half kept, · 4, half kept, · 9 positions
    assert len(last.shift) == 36


def test_fully_connected_network_preserves_volume():
    model, x = network("fc")
    assert (model.transform(x)[1] == 0).all()


def test_every_block_of_the_fully_connected_network_learns_from_its_logits():
    model = fully_connected(6, 2, blocks=4, width=8)
    model(torch.randn(5, 6, generator=torch.Generator().manual_seed(0))).sum().backward()
    last = [p.grad.abs().sum() for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(last) == 12
    assert all(gradient > 0 for gradient in last)


def test_paper_sized_mnist_network_has_sixteen_blocks_in_three_stages():
    model = convolutional((1, 32, 32))
    assert sum(isinstance(part, ActNorm) for part in model.modules()) == 48
    channels = [4] * 16 + [8] * 16 + [16] * 16
    couplings = (
        9 * c // 2 * 128 + 128 * 128 + 9 * 128 * c // 2 + c // 2 + 4 * 128 for c in channels
    )
    actnorm_and_mixing = (2 * c + c * c + c for c in channels)
    expected = sum(couplings) + sum(actnorm_and_mixing)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_wrapped_networks_keep_their_capabilities():
    classifier = wrap_module(network("small")[0], "small")
    assert isinstance(classifier, SplitCodeClassifier)
    assert isinstance(classifier, Classifier)
    assert isinstance(classifier, Invertible)
    assert isinstance(classifier, SplitsCode)
    x = network("small")[1]
    with torch.no_grad():
        code = classifier.encode(x)
        assert torch.equal(classifier(x).logits, classifier.split(code)[0])
        assert (classifier.decode(classifier.join(*classifier.split(code))) - x).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("shape", "parameters", "message"),
    [
        ((1, 28, 28), {}, "divisible by 8"),
        ((1, 28, 28), {"read_out": "last", "stages": 2}, "dct or first"),
        ((1, 32, 32), {"width": [8, 8]}, "one for each stage"),
        ((1, 32, 32), {"coupling": "spline"}, "additive or affine"),
        ((1, 32, 32), {"input_squeezes": 0, "stages": 1}, "two channels"),
        ((28, 28), {"stages": 2}, "c, h, w"),
    ],
)
def test_invalid_architectures_raise(shape, parameters, message):
    with pytest.raises(BadParameter, match=message):
        convolutional(shape, **parameters)


def test_an_unknown_parameter_is_a_type_error():
    with pytest.raises(TypeError, match="depth"):
        convolutional((1, 32, 32), depth=3)


def jacobian_log_det(function, point):
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), point)
    return torch.linalg.slogdet(jacobian.reshape(point.numel(), point.numel())).logabsdet.item()


def test_grey_levels_are_mapped_to_cell_centres():
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    cells, log_det = GreyLevelCentres()(levels)
    torch.testing.assert_close(cells[:, 0], (torch.arange(256).double() + 0.5) / 256)
    assert log_det[0].item() == pytest.approx(torch.tensor(255 / 256).log().item())


def test_the_network_of_one_coupling_is_invertible_with_correct_log_determinant():
    torch.manual_seed(0)
    model = one_coupling((1, 12, 12), 3, widths=(4, 4, 4, 4, 4)).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    images = torch.rand(4, 1, 12, 12, dtype=torch.float64)
    code, log_det = model.transform(images)
    assert (model.decode(code) - images).abs().max() < 1e-8
    assert torch.equal(model.split(code)[0], model(images))
    expected = jacobian_log_det(model.encode, images[0])
    assert log_det[0].item() == pytest.approx(expected, abs=1e-6)
