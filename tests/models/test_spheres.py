"""The two sphere classifiers of the thesis against their definitions."""

import pytest
import torch

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.spheres import NormThresholdClassifier, max_margin, misaligned


class Points:
    """Four points whose used norms are known."""

    d, n, r1, r2 = 3, 1, 1.0, 2.0

    def __init__(self, inner=0.6, outer=1.6):
        self.norms = [inner, inner / 2, outer, outer * 1.1]

    def training(self, count):
        used = torch.tensor(self.norms[:count], dtype=torch.float64)
        images = torch.stack([used * 0.6, used * 0.8, torch.ones(len(used))], 1)
        return images, torch.tensor([0, 0, 1, 1])[:count]


def test_max_margin_bias_is_the_mean_radius():
    model = max_margin(Points())
    assert (model.bias, model.unused_dimensions, model.bounds) == (1.5, 0, (-2.0, 2.0))


def test_misaligned_bias_is_the_middle_of_the_gap():
    assert misaligned(Points(), points=4).bias == pytest.approx((0.6 + 1.6) / 2, abs=1e-12)


def test_misaligned_needs_separable_points():
    with pytest.raises(BadParameter, match="not separable"):
        misaligned(Points(inner=1.7), points=4)


def test_the_classifier_ignores_the_last_dimensions():
    model = NormThresholdClassifier(1, 1.0, (1.0, 2.0))
    points = torch.tensor([[0.6, 0.0, 9.0], [0.6, 0.8001, 0.0]], dtype=torch.float64)
    assert model(points).decision.tolist() == [0, 1]
    torch.testing.assert_close(model(points).logits[0, 0].item(), 0.4)
