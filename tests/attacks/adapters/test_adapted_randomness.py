"""Code of other libraries draws per-sample random numbers, and the global generators are restored."""

import contextlib
import random

import numpy as np
import pytest
import torch

from robustbench_inv.attacks.adapters.adapted_randomness import adapted_randomness, adapted_seed
from robustbench_inv.randomness import SampleRNG

SHAPE = (2, 3)

DRAWS = {
    "rand": lambda x: torch.rand(x.shape),
    "rand with sizes": lambda x: torch.rand(len(x), 2, 3, dtype=torch.float64),
    "randn": lambda x: torch.randn(tuple(x.shape), device="cpu"),
    "rand_like": lambda x: torch.rand_like(x),
    "randn_like": lambda x: torch.randn_like(x),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-2, 3),
    "normal_": lambda x: torch.empty_like(x).normal_(mean=1.0, std=0.1),
    "after a shared draw": lambda x: (torch.rand(1), torch.rand_like(x))[1],
}
"""Ways in which the libraries draw."""


def drawn(draw, ids, times=1):
    images = torch.zeros(len(ids), *SHAPE)
    with adapted_randomness(SampleRNG(0, torch.tensor(ids))):
        return [draw(images) for _ in range(times)][-1]


@pytest.mark.parametrize("name", DRAWS)
def test_a_sample_draws_the_same_in_every_batch(name):
    whole = drawn(DRAWS[name], [3, 5, 9, 11])
    assert torch.equal(whole[2:3], drawn(DRAWS[name], [9]))
    assert torch.equal(whole[1:], drawn(DRAWS[name], [5, 9, 11]))


@pytest.mark.parametrize("name", DRAWS)
def test_samples_and_calls_differ(name):
    first, second = drawn(DRAWS[name], [3, 5]), drawn(DRAWS[name], [3, 5], times=2)
    assert (first[0] != first[1]).all()
    assert (first != second).all()


def test_an_unused_draw_costs_no_numbers_and_leaves_later_ones_the_same(monkeypatch):
    ids = torch.tensor([3, 5])
    with adapted_randomness(SampleRNG(0, ids)) as draws:
        with draws.unused():
            monkeypatch.setattr(SampleRNG, "normal", None)
            assert torch.equal(torch.randn(2, 3), torch.zeros(2, 3))
            monkeypatch.undo()
        later = torch.randn(2, 3)
    assert torch.equal(later, drawn(lambda _: torch.randn(2, 3), [3, 5], times=2))


def test_in_place_draws_keep_their_distribution():
    ids = list(range(2000))
    uniform, normal = drawn(DRAWS["uniform_"], ids), drawn(DRAWS["normal_"], ids)
    assert uniform.min() > -2
    assert uniform.max() < 3
    assert uniform.mean() == pytest.approx(0.5, abs=0.05)
    assert normal.mean() == pytest.approx(1, abs=0.005)
    assert normal.std() == pytest.approx(0.1, rel=0.05)


def test_draws_that_belong_to_no_sample_are_the_same_for_every_batch():
    def draw(_):
        return torch.rand(4), torch.randn(6, 1), np.random.rand(), random.random()  # noqa: NPY002

    for one, other in zip(drawn(draw, [1]), drawn(draw, [2, 3, 4, 5, 6, 7]), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_sample_attacked_alone_has_a_seed_of_its_own():
    seeds = {adapted_seed(SampleRNG(0, torch.tensor([i])), one_by_one=True) for i in range(50)}
    assert len(seeds) == 50
    assert len({adapted_seed(SampleRNG(0, torch.tensor([i]))) for i in range(50)}) == 1
    assert adapted_seed(SampleRNG(0, torch.tensor([1]))) != adapted_seed(
        SampleRNG(1, torch.tensor([1]))
    )


def draw_and_fail():
    with adapted_randomness(SampleRNG(0, torch.arange(3))):
        _ = torch.rand(3, 2), torch.rand(5), np.random.rand(), random.random()  # noqa: NPY002
        raise ZeroDivisionError


def test_the_global_generators_are_restored_even_after_an_error():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_torch_is_what_it_was_afterwards():
    def functions():
        inherited = {"uniform_", "normal_"} & vars(torch.Tensor).keys()
        return torch.rand, torch.randn, torch.rand_like, torch.randn_like, inherited

    before = functions()
    with contextlib.suppress(KeyError), adapted_randomness(SampleRNG(0, torch.tensor([1]))):
        inside = functions()
        raise KeyError
    assert functions() == before != inside
