"""The copy that is searched on: frozen, folded, the same answers; the original untouched."""

import threading

import pytest
import torch
from torch import nn

from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.module import wrap_module


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


@pytest.fixture
def probe():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def norms(classifier):
    return [part for part in classifier.modules() if isinstance(part, nn.BatchNorm2d)]


def test_folded_and_the_same(probe):
    original = network()
    copy = prepare(original, probe, fold=True)
    assert len(norms(original)) == 1
    assert norms(copy) == []
    torch.testing.assert_close(copy(probe).logits, original(probe).logits, atol=1e-5, rtol=1e-5)


def test_frozen_and_the_original_is_not(probe):
    original = network()
    copy = prepare(original, probe, fold=False)
    assert len(norms(copy)) == 1
    assert not any(weight.requires_grad for weight in copy.parameters())
    assert all(weight.requires_grad for weight in original.parameters())


def test_a_fold_that_changes_the_answer_is_not_used(probe):
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


def test_a_model_that_cannot_be_copied_is_searched_itself(probe):
    original = network()
    original.module.lock = threading.Lock()
    assert prepare(original, probe, fold=True) is original
