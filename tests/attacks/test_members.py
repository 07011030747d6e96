"""The greedy choice of the members of ``standard``, on tables whose answer is known."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def members(monkeypatch):
    """Return the module, imported as its folder's scripts import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("members")
    for name in ("members", "standard", "peers", "timing"):
        sys.modules.pop(name, None)


def test_members_are_chosen_by_further_samples_per_second_of_those_that_are_left(members):
    broken = {
        "slow and strong": frozenset(range(10)),  # 10 in 20 s: 0.5 a second
        "cheap": frozenset(range(6)),  # 6 in 2 s: 3 a second, so the first
        "included": frozenset(range(5)),  # 2.5 a second, but nothing after the cheap one
        "rare": frozenset({9}),  # 1 in 4 s; 1 in 1.6 s of the four that are left
        "never": frozenset(),
    }
    seconds = {"slow and strong": 20.0, "cheap": 2.0, "included": 2.0, "rare": 4.0, "never": 0.1}
    table = members.Outcomes(10, broken, seconds)
    found = members.choose_members([table])
    assert [(each.name, each.broken) for each in found] == [
        ("cheap", 6),
        ("rare", 1),
        ("slow and strong", 3),
    ]
    assert [each.seconds for each in found] == pytest.approx([2.0, 1.6, 6.0])
    given = members.choose_members([table], ["included", "slow and strong"])
    assert [(each.name, each.broken) for each in given] == [("included", 5), ("slow and strong", 5)]


def test_networks_are_summed_and_a_member_pays_on_each(members):
    one = members.Outcomes(4, {"a": frozenset({0, 1}), "b": frozenset()}, {"a": 1.0, "b": 1.0})
    other = members.Outcomes(4, {"a": frozenset(), "b": frozenset({2})}, {"a": 3.0, "b": 0.2})
    found = members.choose_members([one, other])
    assert [(each.name, each.broken) for each in found] == [("b", 1), ("a", 2)]
    assert [each.seconds for each in found] == pytest.approx([1.2, 1 + 3.0 * 3 / 4])
