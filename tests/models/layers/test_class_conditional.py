"""Class-conditional layers: exact inverses, log-determinants, and equal distributions of all classes."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.class_conditional import (
    DecisionConditional,
    GaussianiseByClass,
    WhitenByClass,
)

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
def test_fitted_layers_are_invertible_with_correct_log_determinants(kind):
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
def test_a_layer_is_the_identity_before_fitting_and_can_be_saved(kind):
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


def test_whitening_uses_the_current_weights():
    layer, vectors, labels = fitted(WhitenByClass)
    given = one_hot(labels, CLASSES).double()
    before = layer(vectors, given)[1][0].item()
    layer.weight.mul_(2)
    codes, log_det = layer(vectors, given)
    assert log_det[0].item() == pytest.approx(before + FEATURES * math.log(2))
    torch.testing.assert_close(layer.inverse(codes, given), vectors, rtol=1e-9, atol=1e-9)


def test_a_recoding_is_inverted_with_the_same_predicted_class():
    layer, vectors, labels = fitted(GaussianiseByClass)
    recoding = DecisionConditional(layer, CLASSES).double()
    logits = torch.randn(len(labels), CLASSES, dtype=torch.float64)
    code = torch.cat([logits, vectors], 1)
    out, _ = recoding(code)
    expected, _ = layer(vectors, one_hot(logits.argmax(1), CLASSES).double())
    assert torch.equal(out[:, :CLASSES], logits)
    torch.testing.assert_close(out[:, CLASSES:], expected)
    torch.testing.assert_close(recoding.inverse(out), code, rtol=1e-9, atol=1e-9)


def test_a_layer_without_condition_raises():
    layer, vectors, _ = fitted(WhitenByClass)
    with pytest.raises(BadParameter, match="needs a condition"):
        layer(vectors)


def test_a_state_holds_each_symmetric_matrix_once_and_older_states_load():
    layer, *_ = fitted(WhitenByClass)
    state = layer.state_dict()
    features = layer.mean.shape[1]
    assert state["weight"].shape == (layer.num_classes, features * (features + 1) // 2)
    for stored in (state, {**state, "weight": layer.weight.clone()}):
        again = WhitenByClass(features, layer.num_classes).double()
        again.load_state_dict(stored)
        assert torch.equal(again.weight, layer.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        WhitenByClass(features + 1, layer.num_classes).load_state_dict(state)
