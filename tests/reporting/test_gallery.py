"""The gallery: which samples are in the page, their order, and their facts."""

from dataclasses import replace

import numpy as np

from robustbench_inv.reporting.gallery import collect_gallery
from robustbench_inv.testing.toy_cells import toy_cell


def with_images(cell, seed=0):
    n = len(cell.records)
    clean = np.random.default_rng(0).random((n, 1, 4, 4), np.float32)
    moved = clean + 0.1 * np.random.default_rng(seed + 1).random((n, 1, 4, 4), np.float32)
    images = {"samples": np.arange(n), "clean": clean, "adversarial": moved.clip(0, 1)}
    return replace(cell, read_images=lambda: images)


def cells(*attacks):
    about = {"dataset": {"shape": [1, 4, 4]}}
    return [
        with_images(toy_cell(name, broken, **about), i) for i, (name, broken) in enumerate(attacks)
    ]


def test_broken_samples_come_first_and_cells_take_turns():
    gallery = collect_gallery(cells(("a", [None, 0.1, 0.0]), ("b", [0.2, None, None])))
    order = [(each["attack"], each["sample"]) for each in gallery.entries]
    assert order == [("a", 1), ("b", 0), ("a", 0), ("b", 1), ("a", 2), ("b", 2)]
    outcomes = {(each["attack"], each["sample"]): each["outcome"] for each in gallery.entries}
    assert outcomes["a", 1] == "attack succeeded"
    assert outcomes["a", 2] == "misclassified before"
    assert outcomes["a", 0] == "attack failed"


def test_a_clean_image_is_stored_once():
    gallery = collect_gallery(cells(("a", [0.1, 0.1]), ("b", [0.1, 0.1])))
    assert len(gallery.images) == 2 + 4
    numbers = {each["sample"]: set() for each in gallery.entries}
    for each in gallery.entries:
        numbers[each["sample"]].add(each["images"][0])
    assert all(len(each) == 1 for each in numbers.values())


def test_images_beyond_the_limit_are_left_out_and_counted():
    gallery = collect_gallery(cells(("a", [0.1] * 50)), largest=3000)
    assert 0 < len(gallery.entries) < 50
    assert gallery.total == 50
    assert sum(map(len, gallery.images)) <= 3000


def test_cells_without_images_have_no_gallery():
    assert collect_gallery([toy_cell("a", [0.1])]).entries == ()
