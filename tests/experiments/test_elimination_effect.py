"""Statistics of the regularised layer: kernel widths, MMD² by chance, planes and plain values."""

from itertools import permutations

import pytest
import torch

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import BadModel, BadParameter, UnknownName
from robustbench_inv.experiments.elimination_effect import (
    HeldOutSamples,
    chance_mmd2,
    compare_layers,
    draw_samples,
    layer_statistics,
    median_distance,
    principal_plane,
)
from robustbench_inv.models.label_hypothesis import LabelHypothesisNet
from robustbench_inv.models.plain_networks import GuessFirstCNN
from robustbench_inv.training.information_elimination import hypothesis_mmd2


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_median_distance_is_that_of_all_pairs():
    hidden = torch.tensor([0.0, 1.0, 10.0])[:, None, None].expand(3, 2, 1)
    assert median_distance(hidden) == 9.0
    assert median_distance(3 * drawn(20, 4, 5)) == pytest.approx(
        3 * median_distance(drawn(20, 4, 5))
    )


def test_chance_is_the_mean_over_all_permutations_of_the_labels():
    hidden, labels = drawn(6, 3, 2), torch.tensor([0, 0, 1, 1, 1, 2])
    every = [hypothesis_mmd2(hidden, labels[list(p)], 1.5) for p in permutations(range(6))]
    torch.testing.assert_close(chance_mmd2(hidden, labels, 1.5), torch.stack(every).mean(0))


def test_chance_is_zero_for_a_missing_class():
    found = chance_mmd2(drawn(4, 3, 2), torch.tensor([0, 0, 1, 1]), 1.0)
    assert found[2] == 0
    assert (found[:2] > 0).all()


def test_identical_outputs_have_zero_mmd():
    hidden, labels = torch.ones(4, 2, 3), torch.tensor([0, 1, 0, 1])
    width = median_distance(hidden)
    assert (hypothesis_mmd2(hidden, labels, width) == 0).all()
    assert (chance_mmd2(hidden, labels, width) == 0).all()
    assert not principal_plane(hidden, labels)[1].any()


def test_mmd_with_the_median_width_is_scale_invariant():
    hidden, labels = drawn(30, 2, 4), torch.arange(30) % 2
    hidden[labels == 0] += 1
    small, large = (
        hypothesis_mmd2(scale * hidden, labels, median_distance(scale * hidden))
        for scale in (0.01, 100)
    )
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)


def test_principal_planes_preserve_planar_data():
    flat = drawn(20, 3, 2, seed=1) * torch.tensor([5.0, 1.0])
    turn, _ = torch.linalg.qr(drawn(7, 7, seed=2))
    hidden = flat @ turn[:2] + 4  # two dimensions, turned and moved within seven
    labels = torch.arange(20) % 3
    plane, explained = principal_plane(hidden, labels)
    torch.testing.assert_close(explained.sum(1), torch.ones(3, dtype=torch.float64))
    assert (explained[:, 0] > explained[:, 1]).all()
    for k in range(3):
        expected = torch.pdist(flat[:, k])
        torch.testing.assert_close(torch.pdist(plane[k]).float(), expected, rtol=1e-4, atol=1e-4)
        assert (plane[k][labels == k].mean(0) >= 0).all()
    torch.testing.assert_close(
        plane.mean(1), torch.zeros(3, 2, dtype=torch.float64), atol=1e-5, rtol=0
    )


def build_net():
    torch.manual_seed(0)
    return LabelHypothesisNet()


def build_cnn():
    return GuessFirstCNN()


@pytest.fixture
def samples():
    return HeldOutSamples("noise", torch.rand(30, 1, 28, 28), torch.arange(30) % 10)


def test_statistics_are_those_of_the_second_layer(samples):
    net = load_model(f"{__file__}:build_net").classifier.module
    view = layer_statistics(f"{__file__}:build_net", samples, 3.0)
    hidden = net.hidden(samples.images).detach()
    assert view.widths == {"median": median_distance(hidden), "training": 3.0}
    torch.testing.assert_close(view.mmd2["training"], hypothesis_mmd2(hidden, samples.labels, 3.0))
    expected = (net(samples.images).argmax(1) == samples.labels).double().mean().item()
    assert view.accuracy == pytest.approx(expected)
    assert view.plane.shape == (10, 30, 2)


def test_plain_values_are_rounded(samples):
    name = f"{__file__}:build_net"
    before, after = (
        view.to_json() for view in compare_layers({"twice": (name, name)}, samples)["twice"]
    )
    assert before == after
    assert list(before["widths"]) == ["median"]  # a user's network has no recipe
    assert all(value == float(f"{value:.4g}") for value in before["mmd2"]["median"])
    assert len(before["plane"]) == 10


def test_a_network_without_hypotheses_raises(samples):
    with pytest.raises(BadModel, match="has no hypotheses"):
        layer_statistics(f"{__file__}:build_cnn", samples)
    with pytest.raises(UnknownName):
        layer_statistics("mnist-c-vd", samples)


def test_samples_are_balanced():
    found = draw_samples("mnist5k", 20)
    assert torch.bincount(found.labels).tolist() == [2] * 10
    with pytest.raises(BadParameter):
        draw_samples("mnist5k", 6000)


def test_a_trained_network_has_mmd_far_above_chance():
    view = layer_statistics("mnist-c-dv", draw_samples("mnist5k", 200))
    assert (view.mmd2["median"] > 10 * view.chance["median"]).all()
    assert view.accuracy > 0.95
    assert (view.mmd2["median"] < 2).all()
