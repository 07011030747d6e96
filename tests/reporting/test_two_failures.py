"""Sensitivity against invariance: the distances and rates of models that were attacked in both ways."""

from dataclasses import replace
from math import inf

import pytest
from matplotlib.figure import Figure

from robustbench_inv.reporting.headlines import build_headlines
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.reporting.two_failures import (
    draw_two_failures,
    label_points,
    two_failures_tables,
)
from robustbench_inv.testing.toy_cells import toy_cell

N = 12


def far(record):
    """Return the record with an adversarial example that is far in l2."""
    return replace(record, distance=replace(record.distance, l2=9.0))


def cells(name, changed=1.0, missed=2.0, robust=6):
    """Minimum-norm attacks in l2, one fixed-budget attack in linf, and a search for missed changes of the class."""
    model = {"model": {"name": name}}
    near = {"norm": "l2", "epsilons": [], "goal": "misclassify"}
    keep = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    found = [
        toy_cell(
            attack,
            [factor * changed / 2] * N,
            epsilons=(),
            threat=near,
            attack={"kind": "minimum-norm"},
            **model,
        )
        for attack, factor in (("weak", 2.0), ("strong", 1.0))
    ]
    standard = toy_cell(
        "standard", [None if k < robust else 0.3 for k in range(N)], epsilons=[0.3], **model
    )
    found.append(replace(standard, records=tuple(map(far, standard.records))))
    lst = toy_cell(
        "suite", [missed / 2] * N, epsilons=(), threat=keep, attack={"kind": "invariance"}, **model
    )
    values = {"smallest_distance_linf": [0.2 if k < 3 else 0.6 for k in range(N)]}
    event = {"event": "sample_values", "samples": list(range(N)), "values": values}
    return [*found, replace(lst, events=(event,))]


def table(*found):
    (made,) = two_failures_tables([cell for each in found for cell in each], wilson)
    return made, {row[0].text: dict(zip(made.columns, row, strict=True)) for row in made.rows}


def test_medians_and_rates_of_each_model():
    made, rows = table(cells("a"), cells("b", changed=3.0, missed=0.5))
    row = rows["a"]
    assert (row["Changed ℓ2"].text, row["Missed ℓ2"].text, row["Missed ℓ∞"].text) == (
        "1",
        "2",
        "0.6",
    )
    assert row["Changed ℓ∞"].text == "—"
    assert row["Robust ℓ∞ ≤ 0.3"].text == "50.0"
    assert row["Missed ℓ∞ ≤ 0.3"].text == "25.0"
    assert row["Missed, any distance"].text == "100.0"
    assert [each[0].text for each in made.rows] == ["a", "b"]  # b fails at 0.5 at the latest
    fact = made.frame.set_index("model").loc["b"]
    assert (fact.changed_l2_median, fact.missed_l2_median, fact.missed_linf) == (3.0, 0.5, 1.0)


def test_an_example_of_another_attack_counts_where_the_minimum_norm_attacks_miss_it():
    *near, standard, suite = cells("a", changed=3.0, robust=0)
    lost = [replace(c, records=tuple(map(unbroken, c.records))) for c in near]
    _, rows = table([*lost, standard, suite])
    assert rows["a"]["Changed ℓ2"].text == "9", "not infinite: standard broke every sample"
    assert standard.digest[:8] in rows["a"]["Samples and cells"].text
    closer = replace(standard, records=tuple(map(at_one, standard.records)))
    _, rows = table([*near, closer, suite])
    assert rows["a"]["Changed ℓ2"].text == "1"


def test_the_first_screen_and_the_figures_name_the_distance_of_the_table():
    *near, standard, suite = cells("a", changed=3.0)
    closer = replace(standard, records=tuple(map(at_one, standard.records)))
    found = [*near, closer, suite]
    _, rows = table(found)
    first, *_ = (h for h in build_headlines(found, wilson) if h.group.norm == "l2")
    assert first.rows[0].result.text == rows["a"]["Changed ℓ2"].text == "2"
    assert first.caption.endswith("worst case over 3 attacks")
    lost = [replace(c, records=tuple(map(unbroken, c.records))) for c in near]
    first, *_ = (h for h in build_headlines([*lost, closer], wilson) if h.group.norm == "l2")
    assert "50.0" in first.rows[0].result.text, "standard broke 6 of 12 samples"


def unbroken(record):
    return replace(record, broken_at=None)


def at_one(record):
    return replace(record, distance=replace(record.distance, l2=1.0))


def test_each_row_states_its_samples_and_cells():
    found = cells("a")
    made, rows = table(found)
    weak, strong, standard, suite = (cell.digest[:8] for cell in found)
    assert rows["a"]["Samples and cells"].text == (
        f"changed l2: 12 samples, {weak}, {strong}; robust linf: 12 samples, {standard}; "
        f"missed: 12 samples, {suite}"
    )
    fact = made.frame.loc[0]
    assert (fact.changed_l2_samples, fact.missed_cells) == (12, found[3].digest)


def test_a_model_attacked_in_one_way_has_no_row():
    _, rows = table(cells("a"), cells("b")[:3], cells("c")[3:])
    assert list(rows) == ["a"]
    assert not list(two_failures_tables(cells("b")[:3], wilson))


def test_samples_without_a_failure_are_infinitely_far():
    few = cells("a")
    missed = [None if k < 7 else 1.0 for k in range(N)]
    keep = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    few[3] = toy_cell(
        "suite",
        missed,
        epsilons=(),
        threat=keep,
        attack={"kind": "invariance"},
        model={"name": "a"},
    )
    _, rows = table(few)
    assert rows["a"]["Missed ℓ2"].text == "∞"
    assert rows["a"]["Missed, any distance"].text == "41.7"
    (picture,) = draw_two_failures(few)
    assert "∞" in picture.alt


def test_the_figure_has_a_panel_for_each_norm_and_budget_and_every_name():
    (picture,) = draw_two_failures([*cells("first"), *cells("second", changed=1.1)])
    for text in (
        "first",
        "second",
        "median ℓ2 distance to a changed prediction",
        "robust accuracy within ℓ∞ 0.3, %",
    ):
        assert text in picture.svg
    assert "first: ℓ2 1 to a changed prediction, 2 to a missed class" in picture.alt


@pytest.mark.parametrize("count", [1, 6, 20])
def test_labels_cover_neither_each_other_nor_points(count):
    axes = Figure(figsize=(5, 5)).subplots()
    points = {f"network-{k}": (1 + 0.01 * (k % 4), 2 + 0.3 * (k // 4)) for k in range(count)}
    axes.set_xlim(0, 2)
    axes.set_ylim(0, 4)
    label_points(axes, points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == count
    overlapping = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert overlapping == 0


def test_no_samples_are_within_an_unreachable_distance():
    found = cells("a")
    (made,) = two_failures_tables(found, wilson)
    assert made.frame.loc[0, "eps_linf"] == 0.3
    assert inf not in made.frame.select_dtypes("number").to_numpy()


def test_a_name_without_room_takes_no_room_from_others():
    figure = Figure(figsize=(3, 3), dpi=100)
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    crowd = {f"a network with a name {i}": (1.0, 5.0) for i in range(30)}
    label_points(axes, {**crowd, "apart": (9.0, 1.0)})
    names = [text.get_text() for text in axes.texts]
    assert len(names) < 31
    assert "apart" in names
