"""The first screen: each model with both ways to fail, what broke it, and the picture of both."""

from robustbench_inv.checks.audit_verdict import conclude
from robustbench_inv.reporting.glance import draw_both_failures, take_glance
from robustbench_inv.reporting.headlines import build_headlines
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.testing.toy_cells import toy_cell

KEEPS = {
    "threat": {"norm": "l2", "epsilons": [], "goal": "keep-decision"},
    "attack": {"kind": "invariance"},
}


def both(name, robust, blind):
    """Return a cell of small changes and one of class changes on ten samples each."""
    model = {"model": {"name": name}}
    changed = [1.0 if i < blind else None for i in range(10)]
    return [
        toy_cell("pgd", [0.1 if i >= robust else None for i in range(10)], epsilons=[0.1], **model),
        toy_cell("weak", [0.1 if i > robust else None for i in range(10)], epsilons=[0.1], **model),
        toy_cell("collision", changed, epsilons=(), **model, **KEEPS),
    ]


def glance_of(cells):
    return take_glance(build_headlines(cells, wilson), conclude(cells, []))


def test_a_row_has_both_failures_and_the_attack_that_broke_most():
    glance = glance_of([*both("a", 7, 2), *both("b", 1, 9)])
    assert [column.title for column in glance.columns] == [
        "Robustness to small changes",
        "Blindness to class changes",
    ]
    texts = {
        row.model: [(cell.text, attack) for cell, attack in row.results] for row in glance.rows
    }
    assert texts == {
        "a": [("70.0", "strongest: pgd"), ("20.0", "by collision")],
        "b": [("10.0", "strongest: pgd"), ("90.0", "by collision")],
    }
    assert all(row.conclusion is not None for row in glance.rows)


def test_what_was_not_measured_is_blank():
    glance = glance_of([*both("a", 7, 2), *both("b", 1, 9)[:1]])
    assert glance.rows[1].results[1][0].text == "—"


def test_the_picture_has_a_point_for_each_model_attacked_in_both_ways():
    colours = dict.fromkeys("abc", "#0072B2")
    glance = glance_of([*both("a", 7, 2), *both("b", 1, 9), *both("c", 5, 5)[:1]])
    picture = draw_both_failures(glance, colours)
    assert picture.alt == "a: 70.0 % robust, 20.0 % blind; b: 10.0 % robust, 90.0 % blind"
    assert draw_both_failures(glance_of(both("a", 7, 2)[:2]), colours) is None
