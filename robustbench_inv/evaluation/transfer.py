"""Proposals that were found on a substitute: what becomes of them before the model judges."""

import torch
from torch import Tensor

from robustbench_inv.evaluation.metering import Meter
from robustbench_inv.tensors import broadcast, flatten, norm
from robustbench_inv.threat.budgets import LpBall

__all__ = ["lead_off", "lengthen"]


def lengthen(clean: Tensor, way: Tensor, ball: LpBall, bounds: tuple[float, float]) -> Tensor:
    """Return the inputs that lie as far along a way from the clean ones as a budget allows.

    A minimum-norm attack ends on the substitute's decision boundary, which is seldom that of another model:
    from there the attacker takes the direction, and the length from what the budget allows. Cutting with the
    box may leave an input nearer than eps. In l0 there is nothing to lengthen: the largest changes are kept.

    Args:
        clean: (n, …).
        way: (n, …) directions of any length; where one is zero, the clean input stays.
        ball: the budget.
        bounds: least and largest value of an element.
    """
    if ball.norm == "l0":
        return ball.project(clean, clean + way).clamp(*bounds)
    # the largest element becomes 1: the square of a tiny gradient would be 0, its inverse infinite
    way = way / broadcast(norm(way, "linf").clamp_min(torch.finfo(way.dtype).tiny), way)
    way = way * broadcast(ball.eps / norm(way, ball.norm).clamp_min(1), way)
    return ball.project(clean, clean + way).clamp(*bounds)


def lead_off(meter: Meter, proposals: Tensor) -> Tensor:
    """Move the samples that an attack left alone because the substitute fails on them to begin with.

    The model may be right about them, so they are no successes yet. Their way is the substitute's gradient.

    Args:
        meter: asks the substitute, and counts the passes.
        proposals: (n, …).
    """
    clean, budget = meter.batch.images, meter.threat.budget
    rows = (flatten(proposals - clean).abs().amax(1) == 0).nonzero()[:, 0]
    if not isinstance(budget, LpBall) or not len(rows):
        return proposals
    goal, labels = meter.threat.goal, meter.batch.labels
    rows = rows[goal.margin(meter(clean[rows], rows), labels[rows]) > 0]
    if not len(rows):
        return proposals
    _, slope = meter.gradient(clean[rows], goal.margin, rows)
    way = slope.sign() if budget.norm == "linf" else slope
    moved = proposals.clone()
    moved[rows] = lengthen(clean[rows], way.nan_to_num(0, 0, 0), budget, meter.bounds)
    return moved
