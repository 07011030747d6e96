"""The orthogonal two-dimensional cosine transform of feature maps: an average pooling that can be undone."""

import math

import torch
from torch import Tensor

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["CosineTransform", "dct_matrix"]


def dct_matrix(size: int) -> Tensor:
    """Return the orthogonal DCT-II matrix, (size, size) float64: row k holds the k-th cosine.

    Example:
        >>> m = dct_matrix(7)
        >>> bool((m @ m.T - torch.eye(7, dtype=m.dtype)).abs().max() < 1e-14)
        True
    """
    k = torch.arange(size, dtype=torch.float64)
    cosines = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    cosines[0] /= math.sqrt(2)
    return cosines


class CosineTransform(Bijection):
    """DCT-II over each feature map of (n, c, h, w); log-determinant 0.

    The component of frequency (0, 0) is the map's mean times √(h w).

    Args:
        height, width: h and w.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.3.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # no buffers: a cast of the network to float32 and back would cost their orthogonality
        self._rows, self._columns = dct_matrix(height), dct_matrix(width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            y = self._rows.to(x) @ x @ self._columns.to(x).T
        return y, x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            return self._rows.to(y).T @ y @ self._columns.to(y)
