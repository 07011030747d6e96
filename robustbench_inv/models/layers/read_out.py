"""From feature maps to a flat code that begins with what a classifier reads."""

import torch
from torch import Tensor

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["Flatten", "centre_first", "corner_first", "low_pass_first"]


class Flatten(Bijection):
    """(n, c, h, w) ↦ (n, c h w), all channels of one position before those of the next.

    Args:
        shape: (c, h, w).
        positions: (h w,) the positions, row by row, in the order wanted.
    """

    def __init__(self, shape: tuple[int, int, int], positions: Tensor) -> None:
        super().__init__()
        self.shape, self._positions = shape, positions

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        columns = x.flatten(2)[:, :, self._positions]
        return columns.transpose(1, 2).flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        columns = y.reshape(len(y), -1, self.shape[0]).transpose(1, 2)
        return columns[:, :, self._positions.argsort()].reshape(-1, *self.shape)


def low_pass_first(height: int, width: int) -> Tensor:
    """Return the frequencies (u, v), as u · width + v, by u + v and then by u; (height · width,).

    Example:
        >>> low_pass_first(2, 3).tolist()
        [0, 1, 3, 2, 4, 5]
    """
    row, column = _grid(height, width)
    return torch.argsort((row + column) * height + row)


def centre_first(height: int, width: int) -> Tensor:
    """Return the positions by their distance to the middle of the map, (height · width,).

    Example:
        >>> centre_first(3, 3).tolist()
        [4, 1, 3, 5, 7, 0, 2, 6, 8]
    """
    row, column = _grid(height, width)
    distance = (2 * row - height + 1) ** 2 + (2 * column - width + 1) ** 2
    return torch.argsort(distance, stable=True)


def corner_first(height: int, width: int) -> Tensor:
    """Return the positions by their city-block distance to the nearest corner, (height · width,).

    Example:
        >>> corner_first(3, 3).tolist()
        [0, 2, 6, 8, 1, 3, 5, 7, 4]
    """
    row, column = _grid(height, width)
    distance = torch.minimum(row, height - 1 - row) + torch.minimum(column, width - 1 - column)
    return torch.argsort(distance, stable=True)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    return (
        torch.arange(height).repeat_interleave(width),
        torch.arange(width).repeat(height),
    )
