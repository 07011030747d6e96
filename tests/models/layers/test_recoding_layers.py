"""Layers that write the logits and code the nuisances anew: exactly invertible, volumes counted, nothing seen too early."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.autoregressive import Autoregressive
from robustbench_inv.models.layers.given_decision import GivenDecision
from robustbench_inv.models.layers.logit_coupling import LogitCoupling
from robustbench_inv.models.recoded_firevnet import GreyLevels, recoded

CLASSES, FEATURES = 3, 12


def edges():
    return torch.tensor([0, 1 / 256, 0.25, 0.5, 0.9, 1.0]).expand(FEATURES, -1).contiguous()


def flow(spread=0.3):
    torch.manual_seed(0)
    layer = Autoregressive(edges(), CLASSES, hidden=20).double()
    for parameter in layer.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    return layer


def vectors(count=60):
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(count, FEATURES, generator=generator, dtype=torch.float64)
    points[:, ::3] /= 256  # background
    points[0] += 1  # beyond the edges
    points[1] -= 0.5
    return points, one_hot(torch.arange(count) % CLASSES, CLASSES).double()


def jacobian(function, point):
    found = torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), point)
    return found.reshape(point.numel(), point.numel())


def jacobian_log_det(function, point):
    return torch.linalg.slogdet(jacobian(function, point)).logabsdet.item()


def test_the_flow_is_invertible_counts_its_volume_and_looks_back_only():
    layer, (points, given) = flow(), vectors()
    codes, log_det = layer(points, given)
    assert (layer.inverse(codes, given) - points).abs().max() < 1e-8
    for row in range(4):
        found = jacobian(lambda x, one=given[row : row + 1]: layer(x, one)[0], points[row])
        assert log_det[row].item() == pytest.approx(
            torch.linalg.slogdet(found).logabsdet.item(), abs=1e-8
        )
        assert not found.triu(1).any()
        assert found.tril(-1).any()


def test_the_flow_depends_on_its_condition():
    layer, (points, given) = flow(), vectors()
    assert (layer(points, given)[0] != layer(points, given.roll(1, 1))[0]).any(1).all()
    with pytest.raises(BadParameter, match="without its condition"):
        layer(points)


def test_the_flow_of_a_uniform_distribution_is_normal_from_the_start():
    layer = Autoregressive(edges(), CLASSES, hidden=20).double()
    points = torch.rand(
        20_000, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    codes, log_det = layer(
        points, one_hot(torch.zeros(20_000, dtype=torch.int64), CLASSES).double()
    )
    assert codes.mean(0).abs().max() < 0.03
    assert (codes.std(0) - 1).abs().max() < 0.03
    # a uniform density is 1: what the normal density gives away, the volume returns
    normal = -(codes**2 / 2 + math.log(2 * math.pi) / 2).sum(1)
    assert (normal + log_det).abs().max() < 0.01


@pytest.mark.parametrize("bad", [torch.zeros(3, 4), torch.zeros(1, 4).cumsum(1), torch.ones(3, 1)])
def test_unusable_edges_are_refused(bad):
    with pytest.raises(BadParameter, match="unusable edges"):
        Autoregressive(bad, 2, 4)


def test_a_recoding_is_undone_by_the_decision_that_it_left_alone():
    layer, (points, _) = flow(), vectors()
    recoding = GivenDecision(layer, CLASSES).double()
    logits = torch.randn(len(points), CLASSES, dtype=torch.float64)
    code = torch.cat([logits, points], 1)
    out, _ = recoding(code)
    assert torch.equal(out[:, :CLASSES], logits)
    expected, _ = layer(points, one_hot(logits.argmax(1), CLASSES).double())
    torch.testing.assert_close(out[:, CLASSES:], expected)
    assert (recoding.inverse(out) - code).abs().max() < 1e-8


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
    with pytest.raises(BadParameter, match="unusable pixels"):
        LogitCoupling(nn.Identity(), (1, 12, 12), 3, pixels=pixels)


def test_grey_levels_are_the_middles_of_their_cells():
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    cells, log_det = GreyLevels()(levels)
    torch.testing.assert_close(cells[:, 0], (torch.arange(256).double() + 0.5) / 256)
    assert log_det[0].item() == pytest.approx(torch.tensor(255 / 256).log().item())


def test_the_network_is_invertible_and_counts_its_volume():
    torch.manual_seed(0)
    model = recoded((1, 12, 12), 3, widths=(4, 4, 4, 4, 4), hidden=16).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    images = torch.rand(4, 1, 12, 12, dtype=torch.float64)
    code, log_det = model.transform(images)
    assert (model.decode(code) - images).abs().max() < 1e-8
    assert torch.equal(model.split(code)[0], model(images))
    expected = jacobian_log_det(model.encode, images[0])
    assert log_det[0].item() == pytest.approx(expected, abs=1e-6)
