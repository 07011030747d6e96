"""The envelope of smallest known distances: merging, files, and AttackBench's optimality by its own equations."""

import json
from math import inf, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.errors import BadResults
from robustbench_inv.results.envelope import (
    Envelope,
    hash_image,
    local_optimality,
    read_envelope,
)
from robustbench_inv.testing.toy_cells import toy_cell


def minimum_norm(attack, distances, **about):
    settings = {"epsilons": (), "attack": {"kind": "minimum-norm"}, "threat": {"norm": "linf"}}
    return toy_cell(attack, distances, **{**settings, **about})


def names(cell):
    return {sample: f"image {sample}" for sample in cell.sample_ids}


def area(distances, end, clean):
    """Return the area under robust accuracy from 0 to ``end``, AttackBench's equation 4, by its rectangles."""
    inner = sorted(d for d in distances if d <= end)
    n = len(distances)
    edges = [0.0, *inner, end]
    heights = [clean * n / n - k / n for k in range(len(inner) + 1)]
    return sum(h * (b - a) for h, a, b in zip(heights, edges, edges[1:], strict=False))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 3)), min_size=2, max_size=12))
def test_optimality_is_equation_5_of_attackbench(pairs):
    best = [b for b, _ in pairs]
    found = [b + extra for b, extra in pairs]
    end = max(best)
    whole = end - area(best, end, 1.0)
    if whole < 1e-6:
        return
    expected = (end - area(found, end, 1.0)) / whole
    assert local_optimality(found, best) == pytest.approx(expected, abs=1e-9)


def test_robust_samples_lower_the_optimality_and_equal_distances_have_none():
    assert local_optimality([inf, 3.0], [1.0, 3.0]) == 0.0
    assert local_optimality([1.0, inf], [1.0, inf]) != local_optimality([1.0, 3.0], [1.0, 3.0])
    assert isnan(local_optimality([1.0, 1.0], [1.0, 1.0]))
    assert isnan(local_optimality([inf], [inf]))


def test_the_smallest_distance_of_any_attack_is_kept_with_its_name():
    known = Envelope()
    first, second = minimum_norm("fmn", [0.3, 0.2, None]), minimum_norm("ddn", [0.1, 0.4, 0.5])
    assert known.add([first], names) > 0
    known.add([second], names)
    found = known.best[first.model.key, "linf"]
    assert found == {
        "image 0": (pytest.approx(0.1), "ddn"),
        "image 1": (pytest.approx(0.2), "fmn"),
        "image 2": (pytest.approx(0.5), "ddn"),
    }
    assert known.distances(first) == pytest.approx([0.1, 0.2, 0.5])
    assert known.optimality(second) == pytest.approx((0.4 + 0.1) / (0.4 + 0.3))
    assert known.add([first], names) == 0


def test_examples_with_another_goal_do_not_count():
    known = Envelope()
    targeted = minimum_norm("fmn", [0.1], threat={"norm": "linf", "goal": "target"})
    given_inputs = toy_cell("noise", [0.1], epsilons=(), attack={"kind": "fixed-input"})
    assert known.add([targeted, given_inputs], names) == 0
    assert isnan(known.optimality(targeted))


def test_a_file_holds_everything_and_merges_by_the_image(tmp_path):
    known, path = Envelope(), tmp_path / "envelope.json"
    known.add([minimum_norm("fmn", [0.3, 0.2])], names)
    known.write(path)
    again = read_envelope(path)
    filled = {place: found for place, found in known.best.items() if found}
    assert {place: found for place, found in again.best.items() if found} == filled
    assert (again.images, again.models) == (known.images, known.models)
    other = Envelope()
    cell = minimum_norm("ddn", [0.1, 0.9], dataset={"digest": "1" * 64})
    other.add([cell], lambda _: {0: "image 1", 1: "image 0"})  # the same images in another order
    other.merge(again)
    assert other.best[cell.model.key, "linf"]["image 1"] == (pytest.approx(0.1), "ddn")
    assert other.best[cell.model.key, "linf"]["image 0"] == (pytest.approx(0.3), "fmn")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(version=2),
        lambda value: value.pop("images"),
        lambda value: next(iter(value["models"].values())).update(l2=[None]),
        lambda value: next(iter(value["models"].values())).update(linf=[[-1.0, 0], None]),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, change):
    known, path = Envelope(), tmp_path / "envelope.json"
    known.add([minimum_norm("fmn", [0.3, 0.2])], names)
    known.write(path)
    value = json.loads(path.read_text())
    value.pop("digest", None)
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(BadResults) as caught:
        read_envelope(path)
    assert "\n" not in str(caught.value)


def test_the_hash_is_that_of_shape_and_values():
    image = np.linspace(0, 1, 12).reshape(1, 3, 4)
    assert hash_image(image) == hash_image(image.astype(np.float32))
    assert hash_image(image) != hash_image(image.reshape(1, 4, 3))
    assert hash_image(image) != hash_image(image + 1e-3)
