"""Invertible down-sampling: every 2×2 block of pixels becomes four channels."""

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["Squeeze"]


class Squeeze(Bijection):
    """(n, c, h, w) ↦ (n, 4c, h/2, w/2) for even h and w; log-determinant 0.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, section 3.6.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return pixel_shuffle(y, 2)
