"""Factoring out: half of the channels is finished here, the rest goes on; both meet in one flat code."""

import math

import torch
from torch import Tensor

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["FactorOut"]


class FactorOut(Bijection):
    """(a, b) ↦ (r(a), b) as a flat code, where r is what follows and b the second half of the channels.

    Args:
        rest: maps (n, c − c//2, h, w) to a flat code.
        shape: (c, h, w) of what comes in.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, section 3.6.
    """

    def __init__(self, rest: Bijection, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.rest = rest
        self.finished = (shape[0] // 2, *shape[1:])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept = x.shape[1] - self.finished[0]
        code, log_det = self.rest(x[:, :kept], condition)
        return torch.cat([code, x[:, kept:].flatten(1)], 1), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        going_on = y.shape[1] - math.prod(self.finished)
        kept = self.rest.inverse(y[:, :going_on], condition)
        return torch.cat([kept, y[:, going_on:].reshape(-1, *self.finished)], 1)
