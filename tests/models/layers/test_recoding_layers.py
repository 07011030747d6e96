"""Layers that write the logits and code the nuisances anew: exactly invertible, volumes counted, classes made alike."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.firevnet import GreyLevelCentres, recoded
from robustbench_inv.models.layers.class_conditional import (
    DecisionConditional,
    GaussianiseByClass,
    WhitenByClass,
)
from robustbench_inv.models.layers.coupling import LogitCoupling

CLASSES, FEATURES = 3, 12


def samples(count=1500):
    """Classes that differ in mean, in spread and in the share of an element's mass on one narrow cell."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    wide = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    wide = (wide @ torch.randn(FEATURES, FEATURES, generator=generator, dtype=torch.float64)).exp()
    dark = torch.rand(count, FEATURES, generator=generator, dtype=torch.float64)
    hidden = dark < 0.2 * (labels[:, None] + 1)
    return torch.where(hidden, dark / 256, wide * (labels[:, None] + 1)), labels


def fitted(kind):
    vectors, labels = samples()
    layer = kind(FEATURES, CLASSES).double()
    layer.fit(vectors, labels)
    return layer, vectors, labels


def jacobian_log_det(function, point):
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), point)
    return torch.linalg.slogdet(jacobian.reshape(point.numel(), point.numel())).logabsdet.item()


@pytest.mark.parametrize("kind", [GaussianiseByClass, WhitenByClass])
def test_fitted_layers_are_invertible_and_count_their_volume(kind):
    layer, vectors, labels = fitted(kind)
    fresh, given = (
        vectors * 1.3 - 0.2,
        one_hot(labels, CLASSES).double(),
    )  # beyond the knots as well
    codes, log_det = layer(fresh, given)
    torch.testing.assert_close(layer.inverse(codes, given), fresh, rtol=1e-9, atol=1e-9)
    for row in range(CLASSES):
        one = given[row : row + 1]
        expected = jacobian_log_det(lambda x, one=one: layer(x, one)[0], fresh[row])
        assert log_det[row].item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("kind", [GaussianiseByClass, WhitenByClass])
def test_a_layer_is_the_identity_until_it_is_fitted_and_stays_as_it_was_saved(kind):
    layer, vectors, labels = fitted(kind)
    given = one_hot(labels, CLASSES).double()
    fresh = kind(FEATURES, CLASSES).double()
    codes, log_det = fresh(vectors, given)
    assert torch.equal(codes, vectors)
    assert not log_det.any()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(vectors, given)[0], layer(vectors, given)[0])


def test_gaussianising_gives_every_element_of_every_class_the_same_distribution():
    layer, vectors, labels = fitted(GaussianiseByClass)
    codes, _ = layer(vectors, one_hot(labels, CLASSES).double())
    quantiles = torch.tensor([0.125, 0.5, 0.875], dtype=torch.float64)  # knots
    expected = torch.tensor([-1.1503, 0.0, 1.1503], dtype=torch.float64)
    for label in range(CLASSES):
        got = torch.quantile(codes[labels == label], quantiles, dim=0)
        torch.testing.assert_close(got, expected[:, None].expand(3, FEATURES), atol=0.03, rtol=0)


def test_whitening_gives_every_class_mean_zero_and_unit_covariance():
    layer, vectors, labels = fitted(WhitenByClass)
    codes, _ = layer(vectors, one_hot(labels, CLASSES).double())
    for label in range(CLASSES):
        ours = codes[labels == label]
        torch.testing.assert_close(ours.mean(0), torch.zeros(FEATURES).double(), atol=1e-8, rtol=0)
        torch.testing.assert_close(
            torch.cov(ours.T), torch.eye(FEATURES).double(), atol=1e-6, rtol=0
        )


def test_whitening_follows_weights_that_change():
    layer, vectors, labels = fitted(WhitenByClass)
    given = one_hot(labels, CLASSES).double()
    before = layer(vectors, given)[1][0].item()
    layer.weight.mul_(2)
    codes, log_det = layer(vectors, given)
    assert log_det[0].item() == pytest.approx(before + FEATURES * math.log(2))
    torch.testing.assert_close(layer.inverse(codes, given), vectors, rtol=1e-9, atol=1e-9)


def test_a_recoding_is_undone_by_the_decision_that_it_left_alone():
    layer, vectors, labels = fitted(GaussianiseByClass)
    recoding = DecisionConditional(layer, CLASSES).double()
    logits = torch.randn(len(labels), CLASSES, dtype=torch.float64)
    code = torch.cat([logits, vectors], 1)
    out, _ = recoding(code)
    expected, _ = layer(vectors, one_hot(logits.argmax(1), CLASSES).double())
    assert torch.equal(out[:, :CLASSES], logits)
    torch.testing.assert_close(out[:, CLASSES:], expected)
    torch.testing.assert_close(recoding.inverse(out), code, rtol=1e-9, atol=1e-9)


def test_a_layer_without_its_condition_says_so():
    layer, vectors, _ = fitted(WhitenByClass)
    with pytest.raises(BadParameter, match="needs a condition"):
        layer(vectors)


def test_a_logit_moves_a_few_pixels_and_nothing_else():
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    layer = LogitCoupling(network, (1, 12, 12), 3, pixels=4, gain=10.0).double()
    images = torch.rand(5, 1, 12, 12, dtype=torch.float64)
    code, log_det = layer(images)
    assert log_det[0].item() == pytest.approx(3 * torch.tensor(10.0).log().item(), abs=1e-6)
    assert log_det[0].item() == pytest.approx(
        jacobian_log_det(lambda x: layer(x)[0], images[0]), abs=1e-6
    )
    torch.testing.assert_close(layer.inverse(code), images, rtol=0, atol=1e-12)
    code[:, 1] += 5.0
    changed = (layer.inverse(code) - images).flatten(1)
    assert (changed.abs() > 1e-12).sum(1).tolist() == [4] * 5
    assert changed.norm(dim=1).tolist() == pytest.approx([0.5] * 5)  # 5 logits at a gain of 10
    assert changed.sum(1).abs().max() < 1e-12  # half of the pixels up, half down


@pytest.mark.parametrize("pixels", [0, 3, 48])
def test_unusable_pixels_are_refused(pixels):
    with pytest.raises(BadParameter, match="invalid pixels"):
        LogitCoupling(nn.Identity(), (1, 12, 12), 3, pixels=pixels)


def test_grey_levels_are_the_middles_of_their_cells():
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    cells, log_det = GreyLevelCentres()(levels)
    torch.testing.assert_close(cells[:, 0], (torch.arange(256).double() + 0.5) / 256)
    assert log_det[0].item() == pytest.approx(torch.tensor(255 / 256).log().item())


def test_the_network_is_invertible_and_counts_its_volume():
    torch.manual_seed(0)
    model = (
        recoded((1, 12, 12), 3, widths=(4, 4, 4, 4, 4), couplings=2, coupling_width=8)
        .double()
        .eval()
    )
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    images = torch.rand(4, 1, 12, 12, dtype=torch.float64)
    code, log_det = model.transform(images)
    assert (model.decode(code) - images).abs().max() < 1e-8
    assert torch.equal(model.split(code)[0], model(images))
    expected = jacobian_log_det(model.encode, images[0])
    assert log_det[0].item() == pytest.approx(expected, abs=1e-6)
