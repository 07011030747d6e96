"""Activation normalisation: a scale and a shift for each channel, set from the first training batch."""

import torch
from torch import Tensor, nn

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["ActNorm"]

_LEAST_DEVIATION = 1e-3
"""A channel that hardly varies in the first batch is not blown up by more than this makes of it."""


class ActNorm(Bijection):
    """y = (x + b) · exp s for each channel; the first batch in training mode comes out standardised.

    That it has been initialised is a buffer: weights that are loaded stay as they are. Until then it is the
    identity.

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

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self.initialised:
            self._initialise(x)
        y = (x + _along_channels(self.shift, x)) * _along_channels(self.log_scale.exp(), x)
        return y, (self.log_scale.sum() * x[0, 0].numel()).expand(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        scaled = y * _along_channels((-self.log_scale).exp(), y)
        return scaled - _along_channels(self.shift, y)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        values = x.transpose(0, 1).flatten(1)
        self.shift.copy_(-values.mean(1))
        deviation = values.std(1, correction=0)
        self.log_scale.copy_(-deviation.clamp(min=_LEAST_DEVIATION).log())
        self.initialised.fill_(True)


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 2))
