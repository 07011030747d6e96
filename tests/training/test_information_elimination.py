"""MMD against closed forms and naive sums, and the parameters with a gradient."""

from math import exp, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.label_hypothesis import LabelHypothesisNet
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.training.information_elimination import (
    BOUND_OBJECTIVES,
    InformationElimination,
    hypothesis_mmd2,
    mmd2,
)
from robustbench_inv.training.objectives import TrainingBatch

NOISE = SampleRNG(0, torch.arange(12))


def test_two_points_have_the_closed_form():
    """One point each, 3 apart: 1 + 1 − 2 exp(−9 / 2σ²)."""
    found = mmd2(torch.tensor([[0.0]]), torch.tensor([[3.0]]), 2.0)
    assert found.item() == pytest.approx(2 - 2 * exp(-9 / 8), abs=1e-6)


def test_two_normal_distributions_approach_the_closed_form():
    """E k = σ / √(σ² + 2 s²) exp(−δ² / 2(σ² + 2 s²)) for normals of deviation s whose means are δ apart."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1000, 1, generator=generator) + shift for shift in (0.0, 1.5))
    spread = sqrt(2.0**2 + 2)
    exact = 2 * 2.0 / spread * (1 - exp(-(1.5**2) / (2 * spread**2)))
    assert mmd2(first, second, 2.0).item() == pytest.approx(exact, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000), st.floats(0.3, 5.0))
def test_agrees_with_the_sums_of_equation_7(m, n, seed, width):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, 3, generator=generator)
    y = torch.randn(n, 3, generator=generator)

    def mean(a, b):
        return sum(exp(-((p - q) ** 2).sum().item() / (2 * width**2)) for p in a for q in b) / (
            len(a) * len(b)
        )

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert mmd2(x, y, width).item() == pytest.approx(expected, abs=2e-5)


def test_equal_samples_have_zero_mmd_and_order_does_not_matter():
    x, y = torch.randn(5, 4), torch.randn(7, 4)
    assert mmd2(x, x.flip(0), 1.0).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(mmd2(x, y, 1.0), mmd2(y, x, 1.0))


def test_each_hypothesis_compares_its_class_with_the_rest():
    hidden, labels = torch.randn(9, 3, 4), torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1])
    found = hypothesis_mmd2(hidden, labels, 1.3)
    for k in (0, 1):
        expected = mmd2(hidden[labels == k, k], hidden[labels != k, k], 1.3)
        torch.testing.assert_close(found[k], expected)
    assert found[2] == 0  # a class that the batch lacks


@pytest.mark.parametrize("bound", BOUND_OBJECTIVES)
def test_the_regulariser_has_gradients_only_for_two_fully_connected_layers(bound):
    torch.manual_seed(0)
    model = LabelHypothesisNet().train()
    images, labels = torch.rand(12, 1, 28, 28), torch.arange(12) % 10
    gradients = []
    for coefficient in (0.0, 3.0):
        model.zero_grad()
        loss, scores = InformationElimination(bound, coefficient, 2.0)(
            model, TrainingBatch(images, labels, NOISE)
        )
        loss.backward()
        assert scores.shape == (12, 10)
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    reached = {
        name.split(".")[0]
        for name in gradients[0]
        if not torch.equal(gradients[0][name], gradients[1][name])
    }
    assert reached == {"guess", "second"}


def test_the_median_width_is_scale_invariant():
    hidden, labels = torch.randn(40, 3, 8), torch.arange(40) % 3
    found = hypothesis_mmd2(hidden, labels, None)
    torch.testing.assert_close(
        hypothesis_mmd2(100 * hidden, labels, None), found, rtol=1e-4, atol=1e-5
    )
    fixed = hypothesis_mmd2(0.01 * hidden, labels, 1.0)
    assert (fixed < 0.01 * found).all()


def test_the_median_width_is_the_median_distance():
    """Of 0, 3 and 7, every fifth of the batch, the nine distances have the median 3."""
    hidden = torch.zeros(15, 2, 1)
    hidden[::5] = torch.tensor([0.0, 3.0, 7.0])[:, None, None]
    labels = torch.tensor([0, 1] * 7 + [0])
    torch.testing.assert_close(
        hypothesis_mmd2(hidden, labels, None), hypothesis_mmd2(hidden, labels, 3.0)
    )


def test_identical_outputs_do_not_divide_by_zero():
    assert hypothesis_mmd2(torch.ones(6, 2, 3), torch.arange(6) % 2, None).tolist() == [0, 0]


def test_without_the_regulariser_the_loss_is_the_bound():
    torch.manual_seed(0)
    model = LabelHypothesisNet().eval()
    images, labels = torch.rand(12, 1, 28, 28), torch.arange(12) % 10
    plain, _ = BOUND_OBJECTIVES["js"](model, TrainingBatch(images, labels, NOISE))
    wrapped, _ = InformationElimination("js", 0.0, 1.0)(model, TrainingBatch(images, labels, NOISE))
    torch.testing.assert_close(wrapped, plain)


@pytest.mark.parametrize(
    "wrong",
    [("hellinger", 1.0, 1.0), ("js", -1.0, 1.0), ("js", 1.0, 0.0), ("js", float("nan"), 1.0)],
)
def test_invalid_parameters_raise(wrong):
    with pytest.raises(BadParameter):
        InformationElimination(*wrong)
