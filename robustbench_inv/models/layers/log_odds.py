"""From the unit interval to the whole line, so that a Gaussian can be the density of pixels."""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection
from robustbench_inv.tensors import flatten

__all__ = ["LogOdds"]


class LogOdds(Bijection):
    """y = log p/(1 − p) with p = α + (1 − 2α) x, for each element x of [0, 1].

    Args:
        alpha: α, how far inside the interval its ends are taken.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, section 4.1.
    """

    def __init__(self, alpha: float = 1e-4) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise BadParameter("unusable alpha", got=alpha, expected="between 0 and 1/2")
        self.alpha = alpha

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # 1 − p from 1 − x: near x = 1 a difference from p would have few digits left
        p, rest = (self.alpha + (1 - 2 * self.alpha) * side for side in (x, 1 - x))
        y = p.log() - rest.log()
        slopes = softplus(y) + softplus(-y) + log(1 - 2 * self.alpha)
        return y, flatten(slopes).sum(1)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)
