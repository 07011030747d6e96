"""Strided convolutions with a folded gradient: outputs and derivatives equal torch's."""

import pytest
import torch
from torch import nn

from robustbench_inv.evaluation.prepare import FoldedGradientConv

SUITED = [
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": (3, 4), "stride": (2, 3), "padding": (1, 0)},
    {"kernel_size": 2, "stride": 2, "padding": 2, "bias": False},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1},
]

UNSUITED = [
    {"kernel_size": 4},
    {"kernel_size": 7, "stride": 2},
    {"kernel_size": 4, "stride": (2, 1)},
    {"kernel_size": 4, "stride": 2, "groups": 2},
    {"kernel_size": 4, "stride": 2, "padding_mode": "circular", "padding": 1},
    {"kernel_size": 1, "padding": "same"},
]


def layer(channels=2, **parameters):
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 6, **parameters).double()
    return convolution.requires_grad_(False)


def images(rows=3):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(rows, 2, 11, 12, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_()


@pytest.mark.parametrize("parameters", SUITED, ids=str)
def test_output_and_gradient_equal_torch(parameters):
    theirs, shown = layer(**parameters), images()
    assert FoldedGradientConv.supports(theirs)
    ours = FoldedGradientConv(theirs)
    assert torch.equal(ours(shown), theirs(shown))
    slopes = [torch.autograd.grad(net(shown).square().sum(), shown)[0] for net in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    ours = FoldedGradientConv(layer(kernel_size=4, stride=2))
    assert torch.autograd.gradcheck(ours, images(1))
    assert torch.autograd.gradgradcheck(ours, images(1))


@pytest.mark.parametrize("parameters", UNSUITED, ids=str)
def test_unsupported_convolutions_are_unchanged(parameters):
    assert not FoldedGradientConv.supports(layer(**parameters))


def test_convolutions_of_many_channels_are_unchanged():
    assert not FoldedGradientConv.supports(layer(channels=5, kernel_size=4, stride=2))
    assert not FoldedGradientConv.supports(nn.ConvTranspose2d(2, 6, 4, 2))
