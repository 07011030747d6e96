"""A coupling that writes the logits into a few pixels which no digit ever reaches."""

from math import sqrt

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection
from robustbench_inv.models.layers.read_out import corner_first

__all__ = ["LogitCoupling"]


class LogitCoupling(Bijection):
    """(n, c, h, w) ↦ (z_s, r), with z_s = gain · V x + g(r) and r the rest of the image: an additive coupling.

    The C rows of V are orthonormal. Each has its own pixels, those nearest to the corners of the first
    channel, with weights of both signs, so that a logit can be moved either way inside the box. r are the
    coordinates orthogonal to them: all other pixels unchanged, and those of each row after a reflection that
    takes the row to the first of them.

    Args:
        network: g, from (n, c, h, w) images with V x = 0 to (n, C).
        shape: (c, h, w).
        num_classes: C.
        pixels: of each row of V, an even number.
        gain: what a unit of V x is worth in logits.
    """

    carriers: Tensor
    others: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        pixels: int = 8,
        gain: float = 128.0,
    ) -> None:
        super().__init__()
        size, taken = shape[0] * shape[1] * shape[2], pixels * num_classes
        if pixels < 2 or pixels % 2 or taken >= shape[1] * shape[2]:
            expected = f"an even number, less than {shape[1] * shape[2]} for all classes together"
            raise BadParameter("unusable pixels of a logit coupling", got=pixels, expected=expected)
        self.network, self.shape, self.gain, self.pixels = network, tuple(shape), gain, pixels
        # class k has every C-th of the pixels, so that all classes have some in each corner
        carriers = corner_first(shape[1], shape[2])[:taken].reshape(pixels, num_classes).T
        free = torch.ones(size, dtype=torch.bool)
        free[carriers] = False
        self.register_buffer("carriers", carriers.contiguous(), persistent=False)
        self.register_buffer("others", free.nonzero()[:, 0], persistent=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        reflected = self._reflect(flat[:, self.carriers])
        rest = torch.cat([reflected[:, :, 1:].flatten(1), flat[:, self.others]], 1)
        logits = self.gain * reflected[:, :, 0] + self._predict(rest)
        log_det = x.new_full((len(x),), len(self.carriers)) * torch.tensor(self.gain).log().to(x)
        return torch.cat([logits, rest], 1), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        classes = len(self.carriers)
        logits, rest = y[:, :classes], y[:, classes:]
        return self._image((logits - self._predict(rest)) / self.gain, rest)

    def _predict(self, rest: Tensor) -> Tensor:
        raw: Tensor = self.network(self._image(rest.new_zeros(len(rest), len(self.carriers)), rest))
        return raw.to(rest.dtype)

    def _image(self, first: Tensor, rest: Tensor) -> Tensor:
        """Return the image (n, c, h, w) with V x = first (n, C) and the other coordinates rest."""
        border = self.carriers.numel() - len(self.carriers)
        others = rest[:, :border].reshape(len(rest), len(self.carriers), -1)
        flat = rest.new_empty(len(rest), rest.shape[1] + len(self.carriers))
        flat[:, self.carriers] = self._reflect(torch.cat([first[:, :, None], others], 2))
        flat[:, self.others] = rest[:, border:]
        return flat.reshape(-1, *self.shape)

    def _reflect(self, values: Tensor) -> Tensor:
        """Reflect (n, C, pixels) so that v = (+, −, +, −, …)/√pixels and the first axis change places."""
        normal = -torch.ones(self.pixels, dtype=torch.float64) / sqrt(self.pixels)
        normal[1::2] *= -1
        normal[0] += 1
        normal = (normal / normal.norm()).to(values)
        mirrored: Tensor = values - 2 * (values @ normal)[..., None] * normal
        return mirrored
