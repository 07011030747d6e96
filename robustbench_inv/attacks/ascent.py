"""The way of an APGD run uphill: where each sample is, the best that it has seen, and how long its steps still are."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_inv.attacks.ball import Ball, steepest
from robustbench_inv.tensors import broadcast, flatten, norm, where_rows

__all__ = ["Ascent", "checkpoints"]

MOMENTUM = 0.75
"""α: share of the new step; the rest is the last one's."""

RISING = 0.75
"""ρ: a step is halved if fewer than this share of the steps since the last checkpoint went uphill."""

SPARSER, SHORTER, SHORTEST = 1.5, 1.5, 10.0
"""In l1: a step changes as many elements as the best image differs in, divided by 1.5; its length is divided by 1.5, to a
tenth of eps at the least."""

FIRST_SHARE, SETTLED = 0.2, 0.95
"""In l1: share of the elements that the first steps change, and the share of the elements changed at the last checkpoint
above which the number counts as settled, so that steps become shorter and no longer sparser."""


@dataclass(frozen=True)
class Ascent:
    """Where m samples are.

    Args:
        ball: the inputs allowed.
        images: (m, …) the iterates.
        slopes: (m, …) gradients at the iterates.
        heights: (m,) what the iterates are worth, −inf before the first answer.
        before: (m, …) the iterates before these.
        top: (m, …) the best iterates.
        top_slopes: (m, …) gradients there.
        top_heights: (m,) what they are worth.
        lengths: (m,) of the next step.
        rises: (m,) steps since the last checkpoint that went uphill.
        last_top: (m,) what the best was worth at the last checkpoint.
        cut: (m,) was the step shortened at the last checkpoint?
        widths: (m,) in l1: elements that a step changes.
        last_width: (m,) in l1: elements that the best differed in at the last checkpoint.
    """

    ball: Ball
    images: Tensor
    slopes: Tensor
    heights: Tensor
    before: Tensor
    top: Tensor
    top_slopes: Tensor
    top_heights: Tensor
    lengths: Tensor
    rises: Tensor
    last_top: Tensor
    cut: Tensor
    widths: Tensor
    last_width: Tensor

    @classmethod
    def begin(cls, ball: Ball, images: Tensor) -> "Ascent":
        """Return the start of a run at (m, …) allowed inputs; steps begin as long as the ball is wide, in l1 half as long."""
        none = torch.zeros_like(flatten(images)[:, 0])
        lowest, elements = torch.full_like(none, -torch.inf), flatten(images).shape[1]
        sparse = ball.norm == "l1"
        return cls(
            ball=ball,
            images=images,
            slopes=torch.zeros_like(images),
            heights=lowest,
            before=images,
            top=images,
            top_slopes=torch.zeros_like(images),
            top_heights=lowest,
            lengths=torch.full_like(none, ball.eps if sparse else 2 * ball.eps),
            rises=none,
            last_top=lowest,
            cut=torch.ones_like(none, dtype=torch.bool),
            widths=torch.full_like(none, FIRST_SHARE * elements),
            last_width=torch.full_like(none, elements),
        )

    def __getitem__(self, rows: Tensor) -> "Ascent":
        """Return the way of some of the samples, given positions or a mask (m,)."""
        return Ascent(**{name: value[rows] for name, value in vars(self).items()})

    def visit(self, slopes: Tensor, heights: Tensor) -> "Ascent":
        """Return the state once the model has answered to the iterates.

        Args:
            slopes: (m, …) gradients there.
            heights: (m,) what they are worth.
        """
        higher = heights > self.top_heights
        return replace(
            self,
            slopes=slopes,
            heights=heights,
            top=where_rows(higher, self.images, self.top),
            top_slopes=where_rows(higher, slopes, self.top_slopes),
            top_heights=torch.where(higher, heights, self.top_heights),
            rises=self.rises + ((heights > self.heights) & self.heights.isfinite()),
        )

    def step(self, *, first: bool) -> "Ascent":
        """Return the state after a step, whose images the model has not seen.

        Args:
            first: has there been no step before, whose momentum could be used?
        """
        ahead = self._sparse_step() if self.ball.norm == "l1" else self._step(first)
        return replace(self, images=ahead, before=self.images)

    def adapt(self, since: int) -> "Ascent":
        """Return the state after a checkpoint: where steps lead nowhere they become shorter, and begin at the best.

        Args:
            since: steps since the last checkpoint.
        """
        return self._grow_sparser() if self.ball.norm == "l1" else self._shorten(since)

    def _step(self, first: bool) -> Tensor:
        """Croce and Hein, 2020, equation 3."""
        length = broadcast(self.lengths, self.images)
        ahead = self.ball.project(self.images + length * steepest(self.slopes, self.ball.norm))
        if first:
            return ahead
        pushed = self.images - self.before
        return self.ball.project(
            self.images + MOMENTUM * (ahead - self.images) + (1 - MOMENTUM) * pushed
        )

    def _shorten(self, since: int) -> "Ascent":
        """Croce and Hein, 2020, conditions 1 and 2."""
        cut = (self.rises < RISING * since) | (~self.cut & (self.last_top == self.top_heights))
        return replace(
            self._returned(cut),
            lengths=torch.where(cut, self.lengths / 2, self.lengths),
            rises=torch.zeros_like(self.rises),
            last_top=self.top_heights,
            cut=cut,
        )

    def _sparse_step(self) -> Tensor:
        """Croce and Hein, 2021, algorithm 1: the elements of the steepest slopes, all by the same."""
        flat = torch.nan_to_num(flatten(self.slopes), nan=0.0, posinf=0.0, neginf=0.0)
        kept = self.widths.long().clamp(1, flat.shape[1])
        least = flat.abs().sort(dim=1, descending=True).values.gather(1, kept[:, None] - 1)
        signs = flat.sign() * (flat.abs() >= least)
        step = signs / signs.abs().sum(1, keepdim=True).clamp_min(1) * self.lengths[:, None]
        return self.ball.project(self.images + step.reshape(self.images.shape))

    def _grow_sparser(self) -> "Ascent":
        width = norm(self.top - self.ball.clean, "l0")
        sparser = width < SETTLED * self.last_width
        shorter = (self.lengths / SHORTER).clamp_min(self.ball.eps / SHORTEST)
        return replace(
            self._returned(sparser),
            lengths=shorter.where(~sparser, self.ball.eps),
            widths=width / SPARSER,
            last_width=width,
        )

    def _returned(self, rows: Tensor) -> "Ascent":
        """Return the state with some samples (m,) back where they were best."""
        return replace(
            self,
            images=where_rows(rows, self.top, self.images),
            slopes=where_rows(rows, self.top_slopes, self.slopes),
            heights=torch.where(rows, self.top_heights, self.heights),
        )


def checkpoints(steps: int, name: str) -> list[int]:
    """Return the steps after which a run looks back, ascending.

    They come ever sooner after one another: w_j = ⌈p_j · steps⌉ with p_1 = 0.22 and
    p_{j+1} − p_j = max(p_j − p_{j−1} − 0.03, 0.06); in l1 every 4 % of the steps.

    Args:
        steps: of the run.
        name: of the norm.

    Example:
        >>> checkpoints(100, "linf")[:4]
        [22, 41, 57, 70]
    """
    places, last, gap = [], 0.0, 0.04 if name == "l1" else 0.22
    while last + gap < 1:
        last += gap
        places.append(-int(-round(last * steps, 6) // 1))
        gap = gap if name == "l1" else max(gap - 0.03, 0.06)
    return sorted(set(places))
