"""Moves a minimum-norm proposal past the decision boundary of a stochastic model, as far as it takes to be sure."""

import torch
from torch import Tensor

from robustbench_inv.evaluation.metering import Meter
from robustbench_inv.tensors import flatten

__all__ = ["FACTORS", "move_beyond"]

FACTORS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)
"""Lengths that are tried, relative to the proposal's distance from the clean input."""

ANSWERS = 10
"""Answers, each with draws of its own, that must all be successes: what passes at one of several factors by luck
would else be taken for broken (with 3, 71 % of the successes on a toy of one draw held, with 10, 92 %)."""


def move_beyond(meter: Meter, proposals: Tensor) -> Tensor:
    """Return the proposals of a search that ended on the boundary, lengthened until the model is sure.

    On the boundary of a stochastic model every other verdict is a failure, and the attack would look weaker
    than it is. Each proposal is lengthened by the smallest factor at which fresh answers agree; the verdict,
    on draws that neither search nor these answers have seen, stays the engine's. A proposal that no factor
    makes sure is left as it is.

    Args:
        meter: answers about the batch, and counts the passes.
        proposals: (n, …).
    """
    clean, labels = meter.batch.images, meter.batch.labels
    shown, way = proposals.clone(), proposals - clean
    moved = flatten(way).abs().amax(1)
    rows = (moved.isfinite() & (moved > 0)).nonzero()[:, 0]
    for factor in FACTORS:
        if not len(rows):
            break
        images = (clean[rows] + factor * way[rows]).clamp(*meter.bounds)
        margins = [
            meter.threat.goal.margin(meter(images, rows), labels[rows]) for _ in range(ANSWERS)
        ]
        sure = (torch.stack(margins) > 0).all(0)
        shown[rows[sure]] = images[sure]
        rows = rows[~sure]
    return shown
