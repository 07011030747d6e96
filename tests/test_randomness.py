"""The random numbers: the published generator, addressed by sample, spread as they should be."""

import pytest
import torch
from scipy import stats

from robustbench_inv.randomness import SampleRNG, philox

IDS = torch.arange(256)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_published_test_vectors_of_philox4x32_10(counter, key, words):
    def read(text):
        return [int(word, 16) for word in text.split()]

    low, high = read(key)
    both = philox(torch.tensor([read(counter), [1, 2, 3, 4]]), (low, high))
    assert both[0].tolist() == read(words)


DRAWS = {
    "uniform": lambda rng, **at: rng.uniform((3, 5), **at),
    "normal": lambda rng, **at: rng.normal((3, 5), **at),
    "integers": lambda rng, **at: rng.integers(10**6, (3, 5), **at),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("size", [1, 7, 256])
def test_a_sample_draws_the_same_in_every_batch(draw, size):
    whole = draw(SampleRNG(5, IDS), restart=2, step=9)
    parts = [draw(SampleRNG(5, ids), restart=2, step=9) for ids in IDS.split(size)]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(SampleRNG(5, IDS[order]), restart=2, step=9), whole[order])
    assert torch.equal(
        draw(SampleRNG(5, IDS).rows(order[:size]), restart=2, step=9), whole[order[:size]]
    )
    assert torch.equal(draw(SampleRNG(5, IDS).rows(IDS % 2 == 1), restart=2, step=9), whole[1::2])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_part_of_the_address_counts(draw):
    rng = SampleRNG(0, IDS[:4])
    drawn = [
        draw(rng),
        draw(rng, step=1),
        draw(rng, restart=1),
        draw(SampleRNG(1, IDS[:4])),
        draw(rng.named("verdict")),
        draw(SampleRNG(0, IDS[4:8])),
        draw(rng, step=2**31 + 1),
        draw(rng, restart=2**31 + 1),
        draw(SampleRNG(0, IDS[:4] + 2**31)),
        draw(SampleRNG(2**40, IDS[:4])),
    ]
    flat = torch.stack(drawn).reshape(len(drawn) * 4, -1)
    assert len(flat.unique(dim=0)) == len(flat)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_sample_may_be_at_its_own_step(draw):
    steps = torch.tensor([4, 0, 7])
    together = draw(SampleRNG(0, IDS[:3]), step=steps)
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(together[row], draw(SampleRNG(0, IDS[:3]), step=step)[row])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_no_samples_no_draws(draw):
    assert draw(SampleRNG(0, IDS[:0])).shape == (0, 3, 5)


def test_the_global_generator_is_not_used():
    before = torch.random.get_rng_state()
    SampleRNG(0, IDS).normal((3,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_uniform_is_uniform():
    numbers = SampleRNG(0, IDS).uniform((1000,), dtype=torch.float64).flatten()
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert numbers.unique().numel() > 0.999 * numbers.numel()


def test_normal_is_normal():
    numbers = SampleRNG(0, IDS).normal((1000,), dtype=torch.float64)
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 1e-3
    n = numbers.numel()
    assert abs(numbers.mean().item()) < 4 / n**0.5
    assert abs(numbers.pow(2).mean().item() - 1) < 4 * (2 / n) ** 0.5
    assert abs(numbers.pow(3).mean().item()) < 4 * (15 / n) ** 0.5
    assert abs(numbers.pow(4).mean().item() - 3) < 4 * (96 / n) ** 0.5


def test_neighbours_are_not_correlated():
    numbers = SampleRNG(0, IDS).normal((64,), dtype=torch.float64)
    after = SampleRNG(0, IDS).normal((64,), step=1, dtype=torch.float64)
    limit = 4 / numbers.numel() ** 0.5
    assert abs((numbers * after).mean().item()) < limit
    assert abs((numbers[1:] * numbers[:-1]).mean().item()) < limit
    assert abs((numbers[:, 1:] * numbers[:, :-1]).mean().item()) < limit
    # Box and Muller compute both halves of a draw from the same radii; a wrong angle would change the squares.
    assert abs(((numbers[:, :32] ** 2 - 1) * (numbers[:, 32:] ** 2 - 1)).mean().item()) < 4 * limit


def test_integers_are_uniform():
    counts = SampleRNG(0, IDS).integers(10, (1000,)).flatten().bincount(minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert SampleRNG(0, IDS).integers(1).unique().tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_uniform_reaches_neither_end(monkeypatch, dtype, word):
    monkeypatch.setattr(
        SampleRNG, "_words", lambda self, count, *_: torch.full((len(self.ids), count), word)
    )
    numbers = SampleRNG(0, IDS[:2]).uniform((3,), dtype=dtype)
    assert ((numbers > 0) & (numbers < 1)).all()
    assert SampleRNG(0, IDS[:2]).normal((3,), dtype=dtype).isfinite().all()


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (5,), (2, 3)])
def test_shapes_and_types(shape):
    rng = SampleRNG(0, IDS[:2])
    for dtype in (torch.float32, torch.float64):
        for numbers in (rng.uniform(shape, dtype=dtype), rng.normal(shape, dtype=dtype)):
            assert (numbers.shape, numbers.dtype) == ((2, *shape), dtype)
    assert rng.integers(7, shape).shape == (2, *shape)
