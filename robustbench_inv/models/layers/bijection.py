"""The interface of invertible layers, their composition, and bijections without parameters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, softplus

from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import flatten

__all__ = ["Bijection", "Chain", "FactorOut", "LogitTransform", "Squeeze"]


class Bijection(nn.Module, ABC):
    """An invertible map of each sample."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (n, …) and log |det ∂y/∂x| (n,) of x (n, …)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """Return the x (n, …) that is mapped to y."""

    if TYPE_CHECKING:  # torch annotates nn.Module.__call__ as Any

        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Chain(Bijection):
    """The composition of bijections."""

    def __init__(self, *steps: Bijection) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.steps)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for step in self:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for step in reversed(list(self)):
            y = step.inverse(y)
        return y


class Squeeze(Bijection):
    """(n, c, h, w) ↦ (n, c f², h/f, w/f) for h and w divisible by f; log-determinant 0.

    Args:
        factor: f.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, section 3.6.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return pixel_unshuffle(x, self.factor), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return pixel_shuffle(y, self.factor)


class FactorOut(Bijection):
    """(a, b) ↦ (r(a), b) as a flat code, where r is the rest of the network and b the second half of the channels.

    Args:
        rest: r, maps (n, c − c//2, h, w) to a flat code.
        shape: (c, h, w), shape of the input.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, section 3.6.
    """

    def __init__(self, rest: Bijection, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.rest = rest
        self.finished = (shape[0] // 2, *shape[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x.shape[1] - self.finished[0]
        code, log_det = self.rest(x[:, :kept])
        return torch.cat([code, x[:, kept:].flatten(1)], 1), log_det

    def inverse(self, y: Tensor) -> Tensor:
        num_kept = y.shape[1] - math.prod(self.finished)
        kept = self.rest.inverse(y[:, :num_kept])
        return torch.cat([kept, y[:, num_kept:].reshape(-1, *self.finished)], 1)


class LogitTransform(Bijection):
    """y = log p/(1 − p) with p = α + (1 − 2α) x, for each element x of [0, 1].

    Args:
        alpha: α, distance of the transformed interval's ends from 0 and 1.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, section 4.1.
    """

    def __init__(self, alpha: float = 1e-4) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise BadParameter("invalid alpha", got=alpha, expected="between 0 and 1/2")
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # 1 − p is computed from 1 − x: near x = 1 the difference 1 − p would lose digits
        p, rest = (self.alpha + (1 - 2 * self.alpha) * side for side in (x, 1 - x))
        y = p.log() - rest.log()
        log_derivatives = softplus(y) + softplus(-y) + log(1 - 2 * self.alpha)
        return y, flatten(log_derivatives).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)
