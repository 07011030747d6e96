"""Shared by decision-based attacks: the decision oracle, its binary search, and starting points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, flatten, norm, where_rows
from robustbench_inv.threat.goals import Goal

__all__ = ["DecisionOracle", "find_starting_points"]


@dataclass(frozen=True)
class DecisionOracle:
    """The only access of a decision-based attack to a model: whether an input reaches the goal.

    Args:
        model: the queried model.
        batch: the n samples.
        goal: defines success.
    """

    model: Queries
    batch: Batch
    goal: Goal

    def reached(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return whether images (m, …) of the samples at positions (m,) reach the goal, (m,)."""
        return self.goal.margin(self.model(images, rows), self.batch.labels[rows]) > 0

    def binary_search(
        self, images: Tensor, rows: Tensor, halvings: int, norm_name: str = "l2"
    ) -> Tensor:
        """Return the closest adversarial examples (m, …) of a binary search between clean inputs and given ones.

        Args:
            images: (m, …) adversarial examples.
            rows: (m,) positions of their samples.
            halvings: queries per sample, >= 0.
            norm_name: with ``linf`` the images are clipped to shrinking boxes around the clean inputs; with any
                other norm the search is along the line.
        """
        clean, nearest = self.batch.images[rows], images
        low = torch.zeros_like(flatten(clean)[:, 0])
        high = torch.ones_like(low)
        for _ in range(halvings if len(rows) else 0):
            middle = (low + high) / 2
            candidates = _interpolate(clean, images, middle, norm_name)
            hit = self.reached(candidates, rows)
            nearest = where_rows(hit, candidates, nearest)
            low, high = low.where(hit, middle), middle.where(hit, high)
        return nearest


def _interpolate(clean: Tensor, images: Tensor, shares: Tensor, norm_name: str) -> Tensor:
    """Return images (m, …) at a share (m,) of the distance from the clean inputs."""
    if norm_name != "linf":
        return torch.lerp(clean, images, broadcast(shares, clean).expand_as(clean))
    radii = broadcast(shares * norm(images - clean, "linf"), clean)
    return images.maximum(clean - radii).minimum(clean + radii)


MAX_DRAWS = 200
"""Maximal number of inputs tried for each sample. Foolbox tries 1,000 noise images, which fails for the class that the
model predicts for noise; of other kinds of input a few suffice."""

POOL_INTERVAL = 5
"""Every fifth draw is another input of the data set, if there is a pool: a model with a reject option accepts it, and it
can have a target class."""

BISECTION_STEPS = 10
"""Steps of the binary search along the line from the clean input, as fine as Foolbox's 1,000 steps."""


def find_starting_points(
    model: Queries, batch: Batch, goal: Goal, rng: SampleRNG, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return an adversarial starting point for each sample, moved toward its clean input by binary search.

    Args:
        model: the queried model.
        batch: n samples.
        goal: goal that a starting point must reach.
        rng: the samples' random numbers.
        rows: (m,) positions of the samples that need one, all by default.

    Returns:
        (n, …) starting points, the clean input where none was found, and (n,) whether one was found.
    """
    decisions = DecisionOracle(model, batch, goal)
    starts, found = batch.images.clone(), torch.zeros_like(batch.labels, dtype=torch.bool)
    if rows is None:
        rows = torch.arange(len(batch), device=batch.labels.device)
    for draw in range(MAX_DRAWS):
        if not len(rows):
            break
        if batch.pool is not None and draw % POOL_INTERVAL == POOL_INTERVAL - 1:
            images = _draw_from_pool(batch[rows], rng.rows(rows), draw)
        else:
            images = _draw_candidate(batch.images[rows], model.bounds, rng.rows(rows), draw)
        hit = decisions.reached(images, rows)
        starts[rows[hit]] = images[hit]
        found[rows[hit]] = True
        rows = rows[~hit]
    rows = found.nonzero()[:, 0]
    starts[rows] = decisions.binary_search(starts[rows], rows, BISECTION_STEPS)
    return starts, found


def _draw_candidate(
    clean: Tensor, bounds: tuple[float, float], rng: SampleRNG, draw: int
) -> Tensor:
    """Return (m, …) inputs, in turn uniform noise, one grey level, the negative, salt-and-pepper noise."""
    low, high = bounds
    shape, dtype = tuple(clean.shape[1:]), clean.dtype
    uniform = rng.named("starts").uniform(shape, step=draw, dtype=dtype)
    if draw % 4 == 0:
        return low + (high - low) * uniform
    if draw % 4 == 1:
        level = rng.named("levels").uniform((), step=draw, dtype=dtype)
        return low + (high - low) * broadcast(level, clean).expand_as(clean)
    if draw % 4 == 2:
        return (
            low
            + high
            - (clean + (uniform - 0.5) * (high - low) * draw / MAX_DRAWS).clamp(low, high)
        )
    changed = uniform < (draw + 1) / MAX_DRAWS
    salted = torch.where(rng.named("salt").uniform(shape, step=draw) < 0.5, low, high).to(dtype)
    return torch.where(changed, salted, clean)


def _draw_from_pool(batch: Batch, rng: SampleRNG, draw: int) -> Tensor:
    """Return a random input of the pool for each sample, (m, …), never its own."""
    assert batch.pool is not None
    size = len(batch.pool.ids)
    places = rng.named("others").integers(size, step=draw)
    own = batch.pool.ids.to(places.device)[places] == batch.ids
    places = (places + own.long()) % size
    return batch.pool.images[places.to(batch.pool.ids.device)].to(batch.images)
