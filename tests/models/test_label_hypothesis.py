"""All hypotheses in one pass: the same outputs and gradients as the naive form, with and without inactive units."""

from copy import deepcopy

import pytest
import torch

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.label_hypothesis import (
    MAX_BATCH,
    HypothesisLinear,
    LabelHypothesisNet,
)
from robustbench_inv.models.protocol import all_units

SHIPPED = ("mnist-c-dv", "mnist-c-js")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist5k").batch(torch.arange(0, 5000, 5000 // (MAX_BATCH + 10)))[0]


def shipped(name):
    return load_model(name).classifier.module.requires_grad_(False)


def naive(net, images):
    """The naive form: append a one-hot label to the convolutions' output, and run the other layers once per label."""
    features, answers = net.features(images), []
    joint = torch.cat([net.guess.weight, net.guess.label.T], 1)
    for code in torch.eye(net.num_classes, dtype=images.dtype):
        both = torch.cat([features, code.expand(len(images), -1)], 1)
        first = torch.nn.functional.linear(both, joint, net.guess.bias)
        answers.append(net.judge(net.second(first))[:, 0])
    return torch.stack(answers, 1)


def gradients(form, images):
    shown = images.clone().requires_grad_()
    values = form(shown)
    weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view_as(values)
    return torch.autograd.grad((values * weights).sum(), shown)[0]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_trained_net_equals_the_naive_form(name, digits):
    net = shipped(name)
    assert 0 < len(net.guess.active_units(net.guess.shared(net.features(digits)))) < 450
    torch.testing.assert_close(net(digits), naive(net, digits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_its_gradients_equal_the_naive_ones(name, digits):
    net, images = shipped(name).double(), digits[:8].double()
    found, expected = (gradients(form, images) for form in (net, lambda x: naive(net, x)))
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_weight_gradients_equal_those_of_the_separate_layers():
    torch.manual_seed(0)
    net = LabelHypothesisNet().double().train()
    net.guess.bias.data[::3] = -100  # a third of the units is inactive
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    twin = deepcopy(net)
    net(images).square().sum().backward()
    twin.judge(twin.second(twin.guess(twin.features(images)))).square().sum().backward()
    for found, expected in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9)
    assert (net.guess.weight.grad[::3] == 0).all()


def test_active_units_are_positive_for_some_row():
    layer = HypothesisLinear(3, 2, 4)
    layer.label.data = torch.tensor([[0.0, 1.0, -1.0, 0.0], [0.0, 0.0, -2.0, 3.0]])
    shared = torch.tensor([[-1.0, -0.5, 1.0, -4.0], [0.0, -2.0, 0.5, -3.0]])
    assert layer.active_units(shared).tolist() == [1]
    positive = shared[:, None] + layer.label > 0
    assert positive.any(0).any(0).nonzero()[:, 0].tolist() == [1]


def test_a_network_without_active_units_returns_its_bias():
    net = LabelHypothesisNet().eval()
    net.guess.bias.data.fill_(-100)
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(net(images), naive(net, images))
    assert (gradients(net, images) == 0).all()


def test_a_nan_propagates_to_its_own_sample_only(digits):
    net, images = shipped("mnist-c-dv"), digits[:4].clone()
    before = net(images)
    images[1, 0, 14, 14] = float("nan")
    after = net(images)
    assert after[1].isnan().all()
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, MAX_BATCH, MAX_BATCH + 1])
def test_blocks_change_nothing(count, digits):
    net, images = shipped("mnist-c-dv"), digits[:count]
    assert net(images).shape == (count, 10)
    whole = net.judge(net.second(net.guess(net.features(images))))[..., 0]
    torch.testing.assert_close(net(images), whole, rtol=1e-5, atol=1e-5)


def test_hidden_is_the_second_layer_under_every_hypothesis(digits):
    net = shipped("mnist-c-dv")
    expected = net.second(net.guess(net.features(digits[:5])))
    assert expected.shape == (5, 10, 256)
    torch.testing.assert_close(net.hidden(digits[:5]), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(net.hidden_of(net.features(digits[:5])), net.hidden(digits[:5]))


def test_all_units_are_computed_where_they_are_recorded(digits):
    net, widths = shipped("mnist-c-dv"), []
    hook = net.guess.register_forward_hook(lambda *call: widths.append(call[2].shape[1:]))
    pruned = net(digits)
    assert widths == []
    with all_units():
        whole = net(digits)
        net(digits[:1])
    assert widths == [(10, 512)] * 3  # the batch is split once
    torch.testing.assert_close(whole, pruned, rtol=1e-5, atol=1e-5)
    net(digits[:1])
    hook.remove()
    assert len(widths) == 3


def test_the_prepared_copy_agrees(digits):
    classifier = load_model("mnist-c-dv").classifier
    copy = prepare(classifier, digits[:4], fold=True)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in copy.modules())
    expected = classifier(digits[:20]).logits
    torch.testing.assert_close(copy(digits[:20]).logits, expected, rtol=1e-4, atol=1e-4)


def test_clipped_probabilities_have_no_gradient_where_they_saturate(digits):
    images, labels = digits[:60], load_model("mnist-c-js").classifier(digits[:60]).logits.argmax(1)
    clipped = load_model("mnist-c-js:clip=1e-7").classifier.module.requires_grad_(False)

    def gradient(net):
        shown = images.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(net(shown), labels, reduction="sum")
        return torch.autograd.grad(loss, shown)[0].flatten(1)

    plain = shipped("mnist-c-js")
    saturated = plain(images).softmax(1).amax(1) > 1 - 1e-7
    assert 0 < saturated.sum() < 60
    assert torch.equal((gradient(clipped) == 0).all(1), saturated)
    assert (gradient(plain) != 0).any(1).all()
    expected = plain(images).softmax(1).clamp(1e-7, 1 - 1e-7)
    torch.testing.assert_close(clipped(images).exp(), expected)


@pytest.mark.parametrize("wrong", [{"clip": -1e-7}, {"clip": 0.5}, {"sigmoid": True, "clip": 1e-7}])
def test_an_unusable_clip_is_refused(wrong):
    with pytest.raises(BadParameter, match="clip"):
        LabelHypothesisNet(**wrong)
