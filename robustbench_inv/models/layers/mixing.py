"""Invertible mixing of channels: a learned 1×1 convolution, or a fixed permutation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["Mixing", "Permutation"]


class Mixing(Bijection):
    """y = W x at every position, W = P L (U + diag(±exp s)) of channels × channels: a 1×1 convolution.

    P and the signs are fixed at the start, when W is a random rotation; L is unit lower triangular and U
    strictly upper triangular (they share one square), so W stays invertible and log |det W| = Σ s. Vectors have one position.

    Args:
        channels: size of dimension 1.

    References:
        Kingma and Dhariwal, Glow, NeurIPS 2018, equations 9 to 11.
    """

    order: Tensor
    signs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = nn.init.orthogonal_(torch.empty(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(start)
        default = torch.get_default_dtype()
        self.triangles = nn.Parameter((lower.tril(-1) + upper.triu(1)).to(default))
        self.log_scale = nn.Parameter(upper.diagonal().abs().log().to(default))
        self.register_buffer("signs", upper.diagonal().sign().to(default))
        self.register_buffer("order", permutation.argmax(1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self._factors()
            weight = (lower @ upper)[self.order]
            y = torch.matmul(weight, _columns(x)).reshape(x.shape)
        return y, (self.log_scale.sum() * _columns(x).shape[2]).expand(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        lower, upper = self._factors()
        unsorted = _columns(y)[:, self.order.argsort()]
        middle = torch.linalg.solve_triangular(lower, unsorted, upper=False, unitriangular=True)
        columns: Tensor = torch.linalg.solve_triangular(upper, middle, upper=True)
        return columns.reshape(y.shape)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower, upper = self.triangles.tril(-1), self.triangles.triu(1)
        unit = torch.diag(torch.ones_like(self.log_scale))
        return lower + unit, upper + torch.diag(self.signs * self.log_scale.exp())


class Permutation(Bijection):
    """The channels in another, fixed order; log-determinant 0.

    Args:
        order: y_i = x_{order[i]}.
    """

    order: Tensor

    def __init__(self, order: Sequence[int] | Tensor) -> None:
        super().__init__()
        self.register_buffer("order", torch.as_tensor(order, dtype=torch.int64))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return y[:, self.order.argsort()]


def _columns(x: Tensor) -> Tensor:
    """(n, c, positions)."""
    return x.reshape(len(x), x.shape[1], math.prod(x.shape[2:]))
