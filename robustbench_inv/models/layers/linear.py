"""Linear invertible layers: activation normalisation, channel mixing, cosine transform, flattening."""

import math

import torch
from torch import Tensor, nn

from robustbench_inv.models.layers.bijection import Bijection

__all__ = [
    "ActNorm",
    "CosineTransform",
    "Flatten",
    "Mixing",
    "centre_first",
    "corner_first",
    "dct_matrix",
    "low_pass_first",
]


_MIN_DEVIATION = 1e-3
"""Lower limit of a channel's deviation in the first batch, which limits its scale."""


class ActNorm(Bijection):
    """y = (x + b) · exp s for each channel, initialised so that the first training batch is standardised.

    The flag ``initialised`` is a buffer, so that loaded weights are not initialised again. Before the first training
    batch, the layer is the identity.

    Args:
        channels: size of dimension 1.

    References:
        Kingma and Dhariwal, Glow, NeurIPS 2018, section 3.1.
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not self.initialised:
            self._initialise(x)
        y = (x + _along_channels(self.shift, x)) * _along_channels(self.log_scale.exp(), x)
        return y, (self.log_scale.sum() * x[0, 0].numel()).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        scaled = y * _along_channels((-self.log_scale).exp(), y)
        return scaled - _along_channels(self.shift, y)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        values = x.transpose(0, 1).flatten(1)
        self.shift.copy_(-values.mean(1))
        deviation = values.std(1, correction=0)
        self.log_scale.copy_(-deviation.clamp(min=_MIN_DEVIATION).log())
        self.initialised.fill_(True)


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 2))


class Mixing(Bijection):
    """A 1×1 convolution: y = W x at every position, W = P L (U + diag(±exp s)) of channels × channels.

    W starts as a random rotation or the identity. P and the signs are constants. L is unit lower triangular and U strictly upper
    triangular, so that W stays invertible and log |det W| = Σ s. One parameter matrix stores both L and U. A vector
    counts as one position.

    Args:
        channels: size of dimension 1.
        rotated: start with the rotation; False for the identity.

    References:
        Kingma and Dhariwal, Glow, NeurIPS 2018, equations 9 to 11.
    """

    order: Tensor
    signs: Tensor

    def __init__(self, channels: int, *, rotated: bool = True) -> None:
        super().__init__()
        start = torch.eye(channels, dtype=torch.float64)
        start = nn.init.orthogonal_(start) if rotated else start
        permutation, lower, upper = torch.linalg.lu(start)
        default = torch.get_default_dtype()
        self.triangles = nn.Parameter((lower.tril(-1) + upper.triu(1)).to(default))
        self.log_scale = nn.Parameter(upper.diagonal().abs().log().to(default))
        self.register_buffer("signs", upper.diagonal().sign().to(default))
        self.register_buffer("order", permutation.argmax(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self._factors()
            columns = _as_columns(x)
            if self.training and columns[:, 0].numel() < columns.shape[1]:
                # few vectors: two products with them are cheaper than that of the two triangles
                y = torch.matmul(lower, torch.matmul(upper, columns))[:, self.order]
            else:
                y = torch.matmul((lower @ upper)[self.order], columns)
            y = y.reshape(x.shape)
        return y, (self.log_scale.sum() * _as_columns(x).shape[2]).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        lower, upper = self._factors()
        unsorted = _as_columns(y)[:, self.order.argsort()]
        middle = torch.linalg.solve_triangular(lower, unsorted, upper=False, unitriangular=True)
        columns: Tensor = torch.linalg.solve_triangular(upper, middle, upper=True)
        return columns.reshape(y.shape)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower, upper = self.triangles.tril(-1), self.triangles.triu(1)
        unit = torch.diag(torch.ones_like(self.log_scale))
        return lower + unit, upper + torch.diag(self.signs * self.log_scale.exp())


def _as_columns(x: Tensor) -> Tensor:
    """(n, c, positions)."""
    return x.reshape(len(x), x.shape[1], math.prod(x.shape[2:]))


def dct_matrix(size: int) -> Tensor:
    """Return the orthogonal DCT-II matrix, (size, size) float64, whose row k is the k-th cosine.

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
    """DCT-II of each feature map of (n, c, h, w); log-determinant 0.

    The component of frequency (0, 0) is the mean of the map times √(h w).

    Args:
        height, width: h and w.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.3.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # no buffers: casting the network to float32 and back would destroy their orthogonality
        self._rows, self._columns = dct_matrix(height), dct_matrix(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            y = self._rows.to(x) @ x @ self._columns.to(x).T
        return y, x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            return self._rows.to(y).T @ y @ self._columns.to(y)


class Flatten(Bijection):
    """(n, c, h, w) ↦ (n, c h w), with all channels of one position before those of the next.

    Args:
        shape: (c, h, w).
        positions: (h w,) row-major indices of the positions in the order of the output.
    """

    def __init__(self, shape: tuple[int, int, int], positions: Tensor) -> None:
        super().__init__()
        self.shape, self._positions = shape, positions

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        columns = x.flatten(2)[:, :, self._positions]
        return columns.transpose(1, 2).flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        columns = y.reshape(len(y), -1, self.shape[0]).transpose(1, 2)
        return columns[:, :, self._positions.argsort()].reshape(-1, *self.shape)


def low_pass_first(height: int, width: int) -> Tensor:
    """Return the frequencies (u, v) as u · width + v, sorted by u + v and then by u; (height · width,).

    Example:
        >>> low_pass_first(2, 3).tolist()
        [0, 1, 3, 2, 4, 5]
    """
    row, column = _coordinates(height, width)
    return torch.argsort((row + column) * height + row)


def centre_first(height: int, width: int) -> Tensor:
    """Return the positions sorted by distance to the centre of the map, (height · width,).

    Example:
        >>> centre_first(3, 3).tolist()
        [4, 1, 3, 5, 7, 0, 2, 6, 8]
    """
    row, column = _coordinates(height, width)
    distance = (2 * row - height + 1) ** 2 + (2 * column - width + 1) ** 2
    return torch.argsort(distance, stable=True)


def corner_first(height: int, width: int) -> Tensor:
    """Return the positions sorted by city-block distance to the nearest corner, (height · width,).

    Example:
        >>> corner_first(3, 3).tolist()
        [0, 2, 6, 8, 1, 3, 5, 7, 4]
    """
    row, column = _coordinates(height, width)
    distance = torch.minimum(row, height - 1 - row) + torch.minimum(column, width - 1 - column)
    return torch.argsort(distance, stable=True)


def _coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    return (
        torch.arange(height).repeat_interleave(width),
        torch.arange(width).repeat(height),
    )
