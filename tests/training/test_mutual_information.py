"""Bounds of mutual information on Gaussians, where it is known: −½ log(1 − ρ²) nats."""

import math

import pytest
import torch

from robustbench_inv.training.infomax import (
    MI_BOUNDS,
    donsker_varadhan,
    info_nce,
    jensen_shannon,
)

COUNT = 20_000
CORRELATIONS = (0.1, 0.3, 0.5, 0.7)


def information(correlation):
    return -math.log(1 - correlation**2) / 2


def log_ratio(x, y, correlation):
    """log p(x, y) / p(x) p(y): the critic for which DV and infoNCE are tight."""
    rest = 1 - correlation**2
    quadratic = correlation**2 * (x**2 + y**2) - 2 * correlation * x * y
    return -quadratic / (2 * rest) - math.log(rest) / 2


def values(correlation, negatives, critic=None, seed=0):
    """Critic on joint pairs (n,) and on shuffled pairs (k, n); the best one by default."""
    generator = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, COUNT, generator=generator, dtype=torch.float64)
    y = correlation * x + math.sqrt(1 - correlation**2) * e
    judge = critic or (lambda a, b: log_ratio(a, b, correlation))
    return judge(x, y), torch.stack([judge(x.roll(-i), y) for i in range(1, negatives + 1)])


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_donsker_varadhan_is_tight_for_the_log_ratio(correlation):
    bound = donsker_varadhan(*values(correlation, 3))
    assert bound == pytest.approx(information(correlation), abs=0.02)


@pytest.mark.parametrize("name", ["donsker-varadhan", "infonce"])
@pytest.mark.parametrize("critic", [torch.mul, lambda x, y: -((x - y) ** 2), lambda x, y: x + y])
def test_no_critic_gets_above_the_information(name, critic):
    for correlation in CORRELATIONS:
        bound = MI_BOUNDS[name](*values(correlation, 3, critic))
        assert bound <= information(correlation) + 0.02


@pytest.mark.parametrize("negatives", [1, 7])
def test_infonce_is_at_most_the_logarithm_of_the_pairs_and_reaches_it_where_all_are_told_apart(
    negatives,
):
    joint, product = (
        torch.full((50,), 1e3, dtype=torch.float64),
        torch.zeros(negatives, 50, dtype=torch.float64),
    )
    assert info_nce(joint, product) == pytest.approx(math.log(negatives + 1))
    assert info_nce(*values(0.9999, negatives)) <= math.log(negatives + 1)


def test_infonce_tightens_with_the_number_of_pairs():
    few, many = (info_nce(*values(0.9, k)) for k in (1, 63))
    assert few < many <= information(0.9) + 0.02


def test_jensen_shannon_grows_with_the_information_between_0_and_2_log_2():
    bounds = [jensen_shannon(*values(c, 3)).item() for c in (0.0, *CORRELATIONS, 0.99)]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(0, abs=1e-12)
    assert bounds[-1] < 2 * math.log(2)
    sure = jensen_shannon(torch.full((5,), 1e3), torch.full((1, 5), -1e3))
    assert sure == pytest.approx(2 * math.log(2))


def test_jensen_shannon_is_twice_the_divergence_for_the_log_ratio():
    joint, product = values(0.7, 3)
    # JSD = ½ E_J log 2/(1 + 1/r) + ½ E_M log 2/(1 + r), r the ratio of densities
    half = (math.log(2) - torch.log1p(torch.exp(-joint))).mean()
    other = (math.log(2) - torch.log1p(torch.exp(product))).mean()
    assert jensen_shannon(joint, product) == pytest.approx((half + other).item())


@pytest.mark.parametrize("name", sorted(MI_BOUNDS))
def test_positions_are_bounded_each_by_itself(name):
    generator = torch.Generator().manual_seed(2)
    joint, product = (
        torch.randn(6, 4, generator=generator),
        torch.randn(2, 6, 4, generator=generator),
    )
    both = MI_BOUNDS[name](joint, product)
    assert both.shape == (4,)
    for i in range(4):
        torch.testing.assert_close(both[i], MI_BOUNDS[name](joint[:, i], product[:, :, i]))
