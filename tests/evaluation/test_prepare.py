"""The prepared copy: frozen, folded, with the same outputs; the original is unchanged."""

import threading

import pytest
import torch
from torch import nn

from robustbench_inv.evaluation.prepare import FoldedGradientConv, _Convolve, prepare
from robustbench_inv.models.wrapping import wrap_module


def network(classes=4):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    norm = features[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    net = nn.Sequential(features, nn.Linear(6 * 6 * 6, classes))
    net.bounds = (0.0, 1.0)
    return wrap_module(net, "net")


def test_no_part_of_the_copy_changes_its_mode_in_each_query(probe):
    copy = prepare(network(), probe, fold=True)
    assert not any(part.training for part in copy.modules())


@pytest.fixture
def probe():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def strided(flatten):
    """A network whose first convolution gets a slope of its own, and whose user flattens maps somehow."""

    class Strided(nn.Module):
        bounds, num_classes = (0.0, 1.0), 4

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(1, 4, 4, 2), nn.Conv2d(4, 6, 2)
            self.last = nn.Linear(24, 4)

        def forward(self, images):
            return self.last(flatten(self.second(self.first(images).relu())))

    return wrap_module(Strided(), "strided")


def channels_last(classifier):
    last = torch.channels_last
    convolutions = [part for part in classifier.modules() if isinstance(part, nn.Conv2d)]
    return [part.weight.is_contiguous(memory_format=last) for part in convolutions]


def slopes(classifier, images):
    shown = images.clone().requires_grad_()
    return torch.autograd.grad(classifier(shown).logits.square().sum(), shown)[0]


def norms(classifier):
    return [part for part in classifier.modules() if isinstance(part, nn.BatchNorm2d)]


def test_a_folded_copy_has_the_same_outputs(probe):
    original = network()
    copy = prepare(original, probe, fold=True)
    assert len(norms(original)) == 1
    assert norms(copy) == []
    torch.testing.assert_close(copy(probe).logits, original(probe).logits, atol=1e-5, rtol=1e-5)


def test_the_copy_is_frozen_and_the_original_is_not(probe):
    original = network()
    copy = prepare(original, probe, fold=False)
    assert len(norms(copy)) == 1
    assert not any(weight.requires_grad for weight in copy.parameters())
    assert all(weight.requires_grad for weight in original.parameters())


def test_a_fold_that_changes_outputs_is_discarded(probe):
    original = network()
    features = original.module[0]
    features[0].register_forward_hook(lambda *call: call[2] * 2)
    assert len(norms(prepare(original, probe, fold=True))) == 1


def test_a_shared_convolution_is_not_folded(probe):
    original = network()
    conv = original.module[0][0]

    class Twice(nn.Module):
        bounds, num_classes = (0.0, 1.0), 4

        def __init__(self):
            super().__init__()
            self.path, self.conv = original.module, conv

        def forward(self, images):
            return self.path(images) + self.conv(images).mean((1, 2, 3))[:, None]

    twice = wrap_module(Twice(), "twice")
    copy = prepare(twice, probe, fold=True)
    torch.testing.assert_close(copy(probe).logits, twice(probe).logits, atol=1e-5, rtol=1e-5)


def test_a_model_that_cannot_be_copied_is_used_itself(probe):
    original = network()
    original.module.lock = threading.Lock()
    assert prepare(original, probe, fold=True) is original


def test_strided_convolutions_are_rearranged(probe):
    original = strided(lambda maps: maps.flatten(1))
    copy = prepare(original, probe, fold=True)
    assert isinstance(copy.module.first, FoldedGradientConv)
    assert channels_last(copy) == [True, True]
    assert copy.module.first(probe).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(original)[1] is False
    torch.testing.assert_close(copy(probe).logits, original(probe).logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(slopes(copy, probe), slopes(original, probe), atol=1e-6, rtol=1e-5)


def test_minimum_norm_attacks_get_the_exact_arithmetic(probe):
    original = strided(lambda maps: maps.flatten(1))
    copy = prepare(original, probe, fold=False)
    assert type(copy.module.first) is nn.Conv2d
    assert torch.equal(copy(probe).logits, original(probe).logits)


def test_a_rearrangement_that_raises_is_discarded(probe):
    """``view`` raises on maps whose channels come last; the slope's rearrangement goes well all the same."""
    original = strided(lambda maps: maps.view(len(maps), -1))
    copy = prepare(original, probe, fold=True)
    assert channels_last(copy)[1] is False
    assert isinstance(copy.module.first, FoldedGradientConv)
    assert slopes(copy, probe).shape == probe.shape


class Strict(torch.autograd.Function):
    """Flattens any maps, and takes slopes back to contiguous ones only."""

    @staticmethod
    def forward(ctx, maps):
        ctx.shape, ctx.usual = maps.shape, maps.is_contiguous()
        return maps.flatten(1)

    @staticmethod
    def backward(ctx, slopes):
        if not ctx.usual:
            raise RuntimeError("these maps are not contiguous")
        return slopes.reshape(ctx.shape)


def test_a_rearrangement_whose_gradient_raises_is_discarded(probe):
    copy = prepare(strided(Strict.apply), probe, fold=True)
    assert channels_last(copy)[1] is False
    assert isinstance(copy.module.first, FoldedGradientConv)
    assert slopes(copy, probe).shape == probe.shape


def test_a_rearrangement_that_changes_gradients_is_discarded(probe, monkeypatch):
    def half(ctx, *slopes):
        given = backward(ctx, *slopes)
        return given[0] / 2, None

    backward = _Convolve.backward
    monkeypatch.setattr(_Convolve, "backward", staticmethod(half))
    copy = prepare(strided(lambda maps: maps.flatten(1)), probe, fold=True)
    assert type(copy.module.first) is nn.Conv2d


def test_a_layer_with_a_hook_keeps_it(probe):
    original = strided(lambda maps: maps.flatten(1))
    original.module.first.register_forward_hook(lambda *call: call[2] + 1)
    copy = prepare(original, probe, fold=True)
    assert type(copy.module.first) is nn.Conv2d
    torch.testing.assert_close(copy(probe).logits, original(probe).logits, atol=1e-6, rtol=1e-5)
