"""Starting points of decision attacks: for each sample an input that already reaches the goal."""

import torch
from torch import Tensor

from robustbench_inv.attacks.decisions import Decisions
from robustbench_inv.attacks.protocol import Batch, Queries
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import broadcast
from robustbench_inv.threat.goals import Goal

__all__ = ["find_starts"]

DRAWS = 200
"""How many inputs are tried for each sample. Foolbox tries 1000 uniform ones, and fails for the class that
the model sees in noise; of other kinds of input a few are enough."""

OTHERS = 5
"""Every so many draws another input of the data set is tried, if there is a pool of them: what a model that rejects
noise accepts, and what a certain class looks like."""

HALVINGS = 10
"""Steps of the search along the line from the clean input, as fine as foolbox's 1000 steps."""


def find_starts(model: Queries, batch: Batch, goal: Goal, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return a starting point for each sample, drawn by itself and moved towards its clean input.

    Args:
        model: answers queries.
        batch: n samples.
        goal: what a starting point must reach.
        noise: the samples' random numbers.

    Returns:
        (n, …) starting points, the clean image where none was found, and (n,): was one found?
    """
    decisions = Decisions(model, batch, goal)
    starts, found = batch.images.clone(), torch.zeros_like(batch.labels, dtype=torch.bool)
    for draw in range(DRAWS):
        rows = (~found).nonzero()[:, 0]
        if not len(rows):
            break
        if batch.pool is not None and draw % OTHERS == OTHERS - 1:
            images = _other_inputs(batch[rows], noise.rows(rows), draw)
        else:
            images = _candidate(batch.images[rows], model.bounds, noise.rows(rows), draw)
        hit = decisions.reached(images, rows)
        starts[rows[hit]] = images[hit]
        found[rows[hit]] = True
    rows = found.nonzero()[:, 0]
    starts[rows] = decisions.approach(starts[rows], rows, HALVINGS)
    return starts, found


def _candidate(clean: Tensor, bounds: tuple[float, float], noise: Noise, draw: int) -> Tensor:
    """Return (m, …) inputs, in turn: uniform noise, one level, the negative, salt and pepper."""
    low, high = bounds
    shape, dtype = tuple(clean.shape[1:]), clean.dtype
    uniform = noise.named("starts").uniform(shape, step=draw, dtype=dtype)
    if draw % 4 == 0:
        return low + (high - low) * uniform
    if draw % 4 == 1:
        level = noise.named("levels").uniform((), step=draw, dtype=dtype)
        return low + (high - low) * broadcast(level, clean).expand_as(clean)
    if draw % 4 == 2:
        return low + high - (clean + (uniform - 0.5) * (high - low) * draw / DRAWS).clamp(low, high)
    changed = uniform < (draw + 1) / DRAWS
    salted = torch.where(noise.named("salt").uniform(shape, step=draw) < 0.5, low, high).to(dtype)
    return torch.where(changed, salted, clean)


def _other_inputs(batch: Batch, noise: Noise, draw: int) -> Tensor:
    """Return another input of the pool for each sample, (m, …); its own is replaced by the next."""
    assert batch.pool is not None
    size = len(batch.pool.ids)
    places = noise.named("others").integers(size, step=draw)
    own = batch.pool.ids.to(places.device)[places] == batch.ids
    places = (places + own.long()) % size
    return batch.pool.images[places.to(batch.pool.ids.device)].to(batch.images)
