"""The fixed selection of samples: balanced, nested and frozen."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.data.sampling import balanced_subset, select_samples
from robustbench_inv.errors import BadParameter

LABELS = torch.arange(10).repeat_interleave(50)
labelings = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(torch.tensor)


@given(labelings, st.data())
@settings(max_examples=60, deadline=None)
def test_balanced_if_the_classes_are_large_enough(labels, data):
    count = data.draw(st.integers(1, len(labels)))
    ids = select_samples(labels, count)
    assert list(ids) == sorted(set(ids))
    assert len(ids) == count
    there, drawn = labels.bincount(minlength=5), labels[list(ids)].bincount(minlength=5)
    unexhausted = drawn[drawn < there]
    # A class that still has samples is at most one behind any other.
    assert not len(unexhausted) or drawn.max() <= unexhausted.min() + 1


@given(labelings)
@settings(max_examples=30, deadline=None)
def test_nested(labels):
    draws = [set(select_samples(labels, count)) for count in range(1, len(labels) + 1)]
    assert all(small < large for small, large in itertools.pairwise(draws))
    assert draws[-1] == set(range(len(labels)))


def test_the_selection_is_frozen():
    assert select_samples(LABELS, 12) == (2, 80, 136, 168, 234, 279, 303, 309, 388, 413, 485, 499)


def test_the_selection_is_spread_over_each_class():
    ids = torch.tensor(select_samples(LABELS, 100))
    places = ids % 50
    assert places.unique().numel() > 35
    assert 20 < places.double().mean() < 30


def test_other_specifications():
    assert select_samples(LABELS, None) == tuple(range(500))
    assert select_samples(LABELS) == tuple(range(500))
    assert select_samples(LABELS, "first:7") == tuple(range(7))
    assert select_samples(LABELS, " 25 ") == select_samples(LABELS, 25)
    assert select_samples(LABELS, 500) == tuple(range(500))
    assert all(type(sample) is int for sample in select_samples(LABELS, 3))


@pytest.mark.parametrize("spec", [0, -1, 501, "0", "501", "first:0", "first:501"])
def test_out_of_range_raises(spec):
    with pytest.raises(BadParameter, match="expected 1 to 500"):
        select_samples(LABELS, spec)


@pytest.mark.parametrize(
    "spec", ["", "ten", "first:", "first", "last:3", "-1", "1.5", 1.5, True, "first:-2", "²", [3]]
)
def test_invalid_specifications_raise(spec):
    with pytest.raises(BadParameter, match="expected N or first:N"):
        select_samples(LABELS, spec)


def test_a_subset_of_candidates_is_balanced():
    labels, candidates = torch.arange(300) % 10, torch.arange(100, 250)
    subset = balanced_subset(labels, candidates, 10)
    assert sorted(labels[subset].tolist()) == list(range(10))
    assert set(subset.tolist()) <= set(candidates.tolist())
    assert len(balanced_subset(labels, candidates, 1000)) == 150
