"""Per-sample functions: margins that are right for any logits, norms over the whole sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.tensors import (
    Output,
    broadcast,
    class_margins,
    flatten,
    logit_change,
    margin,
    norm,
    relative_difference,
    top_other_classes,
    where_rows,
)

numbers = st.floats(-1e8, 1e8, width=32)


@settings(deadline=None)
@given(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_margin_is_the_best_other_minus_the_true(rows, data):
    labels = [data.draw(st.integers(0, 3)) for _ in rows]
    found = margin(torch.tensor(rows, dtype=torch.float64), torch.tensor(labels))
    for row, label, value in zip(rows, labels, found.tolist(), strict=True):
        assert value == max(row[:label] + row[label + 1 :]) - row[label]


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        (
            [-5.0, -3.0, -9.0],
            1,
            -2.0,
        ),  # all negative: a multiplied mask would make 0 the best other
        ([-5.0, -3.0, -9.0], 0, 2.0),
        ([2.0, 2.0, 2.0], 1, 0.0),
        ([1e8, -1e8, 0.0], 0, -1e8),
        ([1e8, -1e8, 0.0], 1, 2e8),  # below any finite constant that masks by subtraction
        ([-1e8, -1e8, -1e8 - 8], 2, 8.0),
    ],
)
def test_margin_of_hard_logits(logits, label, expected):
    assert margin(torch.tensor([logits]), torch.tensor([label])).item() == expected


def test_margin_agrees_with_the_decision():
    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 10
    assert torch.equal(margin(logits, labels) > 0, Output(logits).decision != labels)


def test_gradient_of_the_margin():
    logits = torch.tensor([[1.0, 4.0, 2.0]], requires_grad=True)
    margin(logits, torch.tensor([1])).sum().backward()
    assert logits.grad.tolist() == [[0.0, -1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "expected"), [("l0", 3.0), ("l1", 19.0), ("l2", 13.0), ("linf", 12.0)]
)
def test_norm_is_over_the_whole_sample(name, expected):
    image = torch.tensor([[[3.0, 0.0], [-4.0, 12.0]]])
    batch = torch.stack([image, -2 * image, 0 * image])
    assert norm(batch, name).tolist() == [
        expected,
        expected if name == "l0" else 2 * expected,
        0.0,
    ]


def test_norms_of_an_empty_batch():
    for name in ("l0", "l1", "l2", "linf"):
        assert norm(torch.empty(0, 1, 4, 4), name).shape == (0,)
    assert flatten(torch.empty(0, 3, 5)).shape == (0, 15)
    assert flatten(torch.arange(3.0)).shape == (3, 1)


def test_broadcast_and_where_rows():
    images = torch.ones(3, 1, 2, 2)
    scaled = images * broadcast(torch.tensor([1.0, 2.0, 3.0]), images)
    assert scaled[:, 0, 1, 1].tolist() == [1.0, 2.0, 3.0]
    mixed = where_rows(torch.tensor([True, False, True]), scaled, -images)
    assert mixed[:, 0, 0, 0].tolist() == [1.0, -1.0, 3.0]


def test_rows_of_an_output():
    output = Output(torch.eye(3), torch.arange(3.0), torch.tensor([True, False, True]))
    part = output[torch.tensor([2, 0])]
    assert part.decision.tolist() == [2, 0]
    assert part.score.tolist() == [2.0, 0.0]
    assert part.accepted.tolist() == [True, True]
    plain = Output(torch.eye(3))[torch.tensor([False, True, False])]
    assert (plain.decision.tolist(), plain.score, plain.accepted) == ([1], None, None)


def test_detached_output():
    logits = torch.eye(2, requires_grad=True) * 2
    output = Output(logits, logits.sum(1)).detach()
    assert not output.logits.requires_grad
    assert not output.score.requires_grad


INF = math.inf


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([2.0, -INF, 1.0], 0, -1.0),  # as without the second class
        ([2.0, -INF, 1.0], 1, INF),  # a ruled-out class never wins
        ([2.0, -INF, -INF], 0, -INF),  # nothing else can win
        ([2.0, -INF, -INF], 1, INF),
        ([-INF, -INF, -INF], 0, 0.0),
        ([INF, 0.0, INF], 0, 0.0),  # a tie, as of any equal logits
        ([INF, 0.0, 1.0], 0, -INF),
    ],
)
def test_margin_of_infinite_logits(logits, label, expected):
    rows = torch.tensor([logits], requires_grad=True)
    found = margin(rows, torch.tensor([label]))
    found.sum().backward()
    assert found.item() == expected
    assert rows.grad.isfinite().all()


def test_the_true_class_is_never_another_class():
    logits = torch.tensor([[3.0, -INF, 1.0, -INF], [0.0, 1.0, 2.0, -INF], [-INF, 5.0, -INF, -INF]])
    labels = torch.tensor([0, 2, 1])
    found = top_other_classes(logits, labels, 9)
    assert found.tolist() == [[2, 2], [1, 0], [2, 2]]
    assert top_other_classes(logits[:0], labels[:0], 9).shape[0] == 0


def test_of_equal_logits_the_order_does_not_depend_on_the_batch():
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).round()
    logits[1:, 5:] = -INF  # the first sample alone has more than four other classes
    labels = torch.zeros(40, dtype=torch.int64)
    together = top_other_classes(logits, labels, 9)[1:, :4]
    assert torch.equal(together, top_other_classes(logits[1:], labels[1:], 9))


def test_class_margins_of_ruled_out_classes():
    logits = torch.tensor([[1.0, -INF, 4.0, -INF], [-INF, 2.0, -INF, -INF], [INF, INF, 0.0, 1.0]])
    assert class_margins(logits).tolist() == [
        [-3.0, -INF, 3.0, -INF],
        [-INF, INF, -INF, -INF],
        [0.0, 0.0, -INF, -INF],
    ]


def test_an_output_without_a_possible_class_is_not_valid():
    rows = [[0.0, -INF], [-INF, -INF], [math.nan, 0.0], [-INF, math.nan], [INF, 0.0]]
    assert Output(torch.tensor(rows)).valid.tolist() == [True, False, False, False, True]
    score = torch.tensor([0.0, 0.0, 0.0, 0.0, math.nan])
    assert Output(torch.tensor(rows), score).valid.tolist() == [True] + [False] * 4


def test_ruled_out_classes_do_not_hide_or_make_a_difference():
    logits = torch.tensor([[1.0, -INF], [2.0, -4.0]])
    assert relative_difference(logits, logits) == 0
    assert relative_difference(logits, logits + 1) == 0.25
    assert relative_difference(logits, logits.flip(1)) == INF
    assert logit_change(logits, logits + 1).tolist() == [1.0, 1.0]
