"""Square attack: a random search over square-shaped changes, from scores alone."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import BestSoFar
from robustbench_inv.attacks.budget_geometry import BALL_NORMS, Ball
from robustbench_inv.attacks.parameters import check_below, check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import image_shape
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["SquareAttack", "square_share", "two_bumps", "window"]

SHARE_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, out of 10,000, after which the share of pixels that a square covers is halved."""

QUERIES_PER_DRAW = 64
"""Queries whose random numbers are drawn at once; one draw takes half a millisecond, as long as a small network's pass."""

TILES_PER_SIDE = 5
"""Tiles per side of the first perturbation in l1 and l2."""

MIN_SIDE = 3
"""Side of the smallest square in l1 and l2, in pixels; its pattern needs a centre. Sides are odd, as in the authors' code."""


@dataclass(frozen=True)
class SquareAttack:
    """Square attack in linf, l2 or l1: accepts a random change of a square window if it increases the goal's margin.

    Inputs of two dimensions are images of one channel; those of one dimension have one row as well.

    Args:
        queries: maximal number of queries per sample, >= 1.
        share: share of the pixels that the first square covers, between 0 and 1.

    References:
        Andriushchenko, Croce, Flammarion and Hein, Square Attack: a query-efficient black-box adversarial attack via
        random search, ECCV 2020, algorithms 1 to 3; for l1 Croce and Hein, Mind the box, ICML 2021, appendix C, and
        the authors' code (github.com/fra31/auto-attack).
    """

    queries: int = 5000
    share: float = 0.8

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = BALL_NORMS

    def __post_init__(self) -> None:
        check_least(self, queries=1)
        check_below(self, share=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        shape = image_shape(batch.images.shape[1:])
        ball = Ball.of(threat, batch.images.reshape(-1, *shape), model.bounds, BALL_NORMS)
        proposal = (
            _LinfProposals()
            if threat.norm == "linf"
            else _LpProposals(1 if threat.norm == "l1" else 2)
        )
        best = BestSoFar(batch, threat.goal, model.success_is_final)
        rows, drawn = best.active, rng.uniform((1,))
        for query in range(self.queries):
            if query % QUERIES_PER_DRAW == 0:
                numbers = proposal.numbers(shape[0])
                drawn = rng.rows(rows).uniform(
                    (QUERIES_PER_DRAW, numbers), step=1 + query // QUERIES_PER_DRAW
                )
            if query == 0:
                candidates = proposal.first(ball, rng)
            else:
                known = best.images[rows].reshape(-1, *shape)
                size = window(square_share(self.share, query / self.queries), shape)
                candidates = proposal.next(ball, known, size, drawn[:, query % QUERIES_PER_DRAW])
            candidates = ball.project(candidates).reshape(-1, *batch.images.shape[1:])
            active = best.update(candidates, model(candidates, rows), rows)
            if not active.all():
                rows, drawn, ball = rows[active], drawn[active], ball[active]
            if not len(rows):
                break
        return best.images


@dataclass(frozen=True)
class _LinfProposals:
    """Proposals in linf: ±eps in one window, with one sign per channel."""

    def numbers(self, channels: int) -> int:
        """Return the number of random numbers per proposal."""
        return 2 + channels

    def first(self, ball: Ball, rng: SampleRNG) -> Tensor:
        """Return vertical stripes of ±eps, (m, c, h, w)."""
        c, _, w = ball.clean.shape[1:]
        return ball.clean + ball.eps * _signs(rng.uniform((c, 1, w))).to(ball.clean)

    def next(self, ball: Ball, known: Tensor, size: tuple[int, int], drawn: Tensor) -> Tensor:
        """Return (m, c, h, w) the best images so far, changed in a window."""
        end = ball.clean + ball.eps * _signs(drawn[:, 2:, None, None]).to(known)
        return torch.where(_window_mask(known, size, drawn), end, known)


@dataclass(frozen=True)
class _LpProposals:
    """Proposals in l1 and l2: moves the budget of one window to another, as two bumps of opposite signs.

    Args:
        order: of the norm, 1 or 2.
    """

    order: int

    def numbers(self, channels: int) -> int:
        """Return the number of random numbers per proposal."""
        return 5 + channels

    def first(self, ball: Ball, rng: SampleRNG) -> Tensor:
        """Return a centred grid of bumps, (m, c, h, w): in l2 at distance eps, in l1 to be projected onto the ball."""
        c, h, w = ball.clean.shape[1:]
        tile = max(h // TILES_PER_SIDE, 1), max(w // TILES_PER_SIDE, 1)
        top, left = (
            max(whole - TILES_PER_SIDE * side, 0) // 2
            for whole, side in zip((h, w), tile, strict=True)
        )
        down, across = (h - top) // tile[0], (w - left) // tile[1]
        drawn = rng.uniform((c + 1, down, across)).to(ball.clean)
        turned, signs = _enlarge(drawn[:, c:], tile) < 0.5, _enlarge(_signs(drawn[:, :c]), tile)
        bumps = self._bumps(tile).to(signs).repeat(1, down, across)
        grid = torch.zeros_like(ball.clean)
        place = grid[:, :, top : top + down * tile[0], left : left + across * tile[1]]
        place.copy_(signs * torch.where(turned, bumps[1], bumps[0]))
        if self.order == 1:
            return ball.clean + (ball.bounds[1] - ball.bounds[0]) * grid
        return ball.clean + grid * (ball.eps / self._length(grid.flatten(1)))[..., None, None]

    def next(self, ball: Ball, known: Tensor, size: tuple[int, int], drawn: Tensor) -> Tensor:
        """Return (m, c, h, w) the best images so far, with the norm of two windows moved to the first of them."""
        c, height, width = known.shape[1:]
        # odd, where an odd side fits
        sides = min(max(size[0], MIN_SIDE) | 1, height), min(max(size[1], MIN_SIDE) | 1, width)
        delta = (known - ball.clean).flatten(2)
        here = _window_indices(known, sides, drawn)
        there = _window_indices(known, sides, drawn[:, 2:])
        spare = (ball.eps**self.order - self._power(delta.flatten(1))).clamp_min(0) / c
        old = delta.gather(2, here)
        emptied = delta.scatter(2, here, 0.0).scatter(2, there, 0.0)
        freed = self._power(delta) - self._power(emptied) + spare[..., None]
        turned = (drawn[:, 4] < 0.5)[:, None, None]
        bumps = self._bumps(sides).to(known).flatten(1)
        new = _signs(drawn[:, 5:, None]).to(known) * torch.where(turned, bumps[1], bumps[0])
        new = new + old / self._length(old).clamp_min(torch.finfo(old.dtype).tiny)
        length = self._length(new).clamp_min(torch.finfo(old.dtype).tiny)
        new = new * freed.clamp_min(0)[..., None] ** (1 / self.order) / length
        if self.order == 1:  # as in the authors' code; the projection shortens it
            new = c * new
        return ball.clean + emptied.scatter(2, here, new).reshape(known.shape)

    def _bumps(self, size: tuple[int, int]) -> Tensor:
        """Return two bumps of a size, (2, height, width), one above the other and side by side."""
        beside = two_bumps(*reversed(size), order=self.order).T
        return torch.stack([two_bumps(*size, order=self.order), beside])

    def _power(self, values: Tensor) -> Tensor:
        return (values.abs() ** self.order).sum(-1)

    def _length(self, values: Tensor) -> Tensor:
        return self._power(values)[..., None] ** (1 / self.order)


def square_share(first: float, done: float) -> float:
    """Return the share of the pixels that a square covers, which is halved nine times during an attack.

    Args:
        first: share at the start.
        done: share of the queries that are used, 0 to 1.

    Example:
        >>> square_share(0.8, 0.0), square_share(0.8, 0.01)
        (0.8, 0.2)
    """
    return first / 2.0 ** sum(done * 10_000 > place for place in SHARE_HALVED_AT)


def window(share: float, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of a window that covers a share of an image (c, h, w); a square where one fits."""
    _, h, w = shape
    side = max(round(math.sqrt(share * h * w)), 1)
    if side <= min(h, w):
        return side, side
    if h < w:
        return h, min(max(round(share * w), 1), w)
    return min(max(round(share * h), 1), h), w


@lru_cache(maxsize=64)
def two_bumps(height: int, width: int, *, order: int = 2) -> Tensor:
    """Return (height, width): a positive bump in the upper half and a negative one in the lower half, of norm one.

    A bump of a half of h × w pixels is Σ 1/m² over m from 1 + the distance to its centre in linf to ⌊max(h, w)/2⌋ + 1,
    divided by its norm. In l1 it is Σ 1/m⁴.

    Args:
        height: of both halves; the lower one has the middle row of an odd height.
        width: of both halves.
        order: of the norm, 1 or 2.

    References:
        Andriushchenko et al., 2020, equation 2; norms of the halves and l1: the authors' code
        (github.com/fra31/auto-attack, ``autoattack/square.py``).
    """
    upper = height // 2 or height
    above, below = (_bump(part, width, order) for part in (upper, height - upper))
    bumps = torch.cat([above, -below])
    length: Tensor = torch.linalg.vector_norm(bumps, order)
    return bumps / length


def _bump(height: int, width: int, order: int) -> Tensor:
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    far = torch.maximum(down[:, None], across[None])
    exponent = 2 if order == 2 else 4
    shares = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** -exponent
    bump = shares.flip(0).cumsum(0).flip(0)[far]
    length: Tensor = torch.linalg.vector_norm(bump, order)
    return bump / length if height else bump


def _enlarge(values: Tensor, tile: tuple[int, int]) -> Tensor:
    """Return values (m, k, rows, columns), each repeated for all pixels of a tile."""
    return values.repeat_interleave(tile[0], 2).repeat_interleave(tile[1], 3)


def _signs(uniform: Tensor) -> Tensor:
    return 2.0 * (uniform < 0.5) - 1


def _corner(images: Tensor, size: tuple[int, int], drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return (m,) top row and left column of a window inside the image."""
    free = (images.shape[2] - size[0] + 1, images.shape[3] - size[1] + 1)
    return (drawn[:, 0] * free[0]).long(), (drawn[:, 1] * free[1]).long()


def _window_mask(images: Tensor, size: tuple[int, int], drawn: Tensor) -> Tensor:
    """Return (m, 1, h, w): whether a pixel is in the window."""
    (top, left), (height, width) = _corner(images, size, drawn), images.shape[2:]
    rows = _intervals(size[0], height).to(top.device)[top]
    columns = _intervals(size[1], width).to(left.device)[left]
    return (rows[:, :, None] & columns[:, None])[:, None]


@lru_cache(maxsize=64)
def _intervals(side: int, whole: int) -> Tensor:
    """Return (places, whole): whether an element is in the interval of a length that begins at each place."""
    shift = torch.arange(whole) - torch.arange(whole - side + 1)[:, None]
    return (shift >= 0) & (shift < side)


def _window_indices(images: Tensor, size: tuple[int, int], drawn: Tensor) -> Tensor:
    """Return (m, c, pixels) the indices of the window's pixels in each flattened channel."""
    top, left = _corner(images, size, drawn)
    down, across = (torch.arange(side, device=images.device) for side in size)
    rows, columns = top[:, None] + down, left[:, None] + across
    places = (rows[:, :, None] * images.shape[3] + columns[:, None]).flatten(1)
    return places[:, None].expand(-1, images.shape[1], -1)
