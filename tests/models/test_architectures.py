"""Networks of the catalogue against their papers and against naive implementations; wrapping of networks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.label_hypothesis import HypothesisLinear, LabelHypothesisNet
from robustbench_inv.models.plain_networks import GuessFirstCNN
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.models.stochastic import StochasticClassifier
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.models.wrapping import ModuleClassifier, wrap_module
from robustbench_inv.tensors import Output

IMAGES = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_cnn_has_the_layers_of_appendix_f():
    convolutional = (16 + 1) * 32 + (16 * 32 + 1) * 64 + 2 * 32 + 2 * 64
    connected = 1601 * 512 + 513 * 256 + 257 * 128 + 129 * 10
    assert parameters(GuessFirstCNN()) == convolutional + connected
    assert GuessFirstCNN()(IMAGES).shape == (6, 10)


def test_hypothesis_net_differs_from_the_cnn_by_ten_label_columns_and_a_scalar_output():
    difference = parameters(LabelHypothesisNet()) - parameters(GuessFirstCNN())
    assert difference == 10 * 512 + 129 * 1 - 129 * 10


def test_hypothesis_layer_equals_concatenated_one_hots():
    layer = HypothesisLinear(7, 4, 5).double()
    vectors = torch.randn(3, 7, dtype=torch.float64)
    joint = torch.cat([layer.weight, layer.label.T], 1)
    for k, code in enumerate(torch.eye(4, dtype=torch.float64)):
        naive = torch.cat([vectors, code.expand(3, 4)], 1) @ joint.T + layer.bias
        torch.testing.assert_close(layer(vectors)[:, k], naive, rtol=1e-12, atol=1e-12)


def test_sigmoid_scores_are_those_of_t():
    plain = LabelHypothesisNet().eval()
    published = LabelHypothesisNet(sigmoid=True).eval()
    published.load_state_dict(plain.state_dict())
    torch.testing.assert_close(published(IMAGES), plain(IMAGES).sigmoid())


def test_vib_returns_the_log_of_the_mean_softmax_over_draws():
    net = BottleneckCNN().eval()
    model = StochasticClassifier(net, draws=4, fixed_noise=False)
    latent = torch.randn(4, 6, 256, generator=torch.Generator().manual_seed(1))
    mean, deviation = net.encode(IMAGES)
    each = torch.stack([net.decoder(mean + deviation * z).softmax(1) for z in latent])
    torch.testing.assert_close(model.respond(IMAGES, latent).logits.exp(), each.mean(0))
    assert isinstance(model, Stochastic)
    assert isinstance(model, Classifier)
    assert (deviation > 0).all()


def test_wrapping_reads_bounds_and_classes():
    module = nn.Sequential(nn.Flatten(), nn.Linear(784, 7))
    module.bounds = (0, 1)
    model = wrap_module(module, "mine")
    assert (model.bounds, model.num_classes, model.dtype) == ((0.0, 1.0), 7, torch.float32)
    assert model(IMAGES).logits.shape == (6, 7)
    assert isinstance(model, Classifier)
    assert not isinstance(model, Stochastic)


@pytest.mark.parametrize("bounds", [None, (1, 0), (0, 0), "ab", (0,), (float("nan"), 1)])
def test_invalid_bounds_raise_an_error_with_a_remedy(bounds):
    module = nn.Linear(2, 3)
    module.bounds = bounds
    with pytest.raises(BadModel, match="bounds"):
        wrap_module(module, "mine")


def test_unknown_number_of_classes_is_refused():
    module = nn.Identity()
    module.bounds = (0, 1)
    with pytest.raises(BadModel, match="num_classes"):
        wrap_module(module, "mine")


def test_not_a_module_is_refused():
    with pytest.raises(BadModel, match="got 'int'"):
        wrap_module(3, "mine")


@pytest.mark.parametrize("answer", [lambda x: x[:, 0], lambda x: (x, x), lambda x: x[:1]])
def test_an_output_that_is_not_logits_is_refused(answer):
    class Wrong(nn.Module):
        def forward(self, images):
            return answer(images.flatten(1)[:, :10])

    with pytest.raises(BadModel, match="logits"):
        ModuleClassifier(Wrong(), (0.0, 1.0), 10)(IMAGES)


def test_an_output_passes_through():
    class Rejecting(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :10]
            return Output(logits, logits.amax(1), logits.amax(1) > 0.5)

    output = ModuleClassifier(Rejecting(), (0.0, 1.0), 10)(IMAGES)
    assert output.accepted.shape == (6,)


def test_dtype_follows_the_weights():
    assert ModuleClassifier(nn.Linear(2, 3).double(), (0, 1), 3).dtype == torch.float64
    assert ModuleClassifier(nn.Flatten(), (0, 1), 3).dtype == torch.float32


def test_a_stochastic_network_is_not_hidden_in_a_wrapper():
    model = StochasticClassifier(BottleneckCNN(), 3, fixed_noise=True).train()
    assert wrap_module(model, "mine") is model
    assert not model.training


@pytest.mark.parametrize(("key", "value"), [("draws", 0), ("draws", True), ("noise", "")])
def test_a_falsy_value_does_not_mean_the_default(key, value, build_card):
    with pytest.raises(BadParameter, match=key):
        build_card(_card("robustbench_inv.models.vib:BottleneckCNN"), {key: value})


def test_parameter_errors_are_one_line(build_card):
    card = _card("robustbench_inv.models.plain_networks:GuessFirstCNN")
    assert build_card(card, {"dtype": "float64"}).dtype == torch.float64
    for wrong in ({"dtype": "float8"}, {"noise": "fixed"}, {"width": 3}):
        with pytest.raises(BadParameter) as caught:
            build_card(card, wrong)
        assert "\n" not in str(caught.value)


def _card(implementation):
    return SimpleNamespace(
        name="toy",
        implementation=implementation,
        parameters={},
        weights_sha256=None,
        fits_dataset=False,
    )
