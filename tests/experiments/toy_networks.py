"""Networks with known codes: the image itself, with its first pixels as logits."""

import torch
from torch import Tensor, nn

from robustbench_inv.models.sdim import SDIM

COPIES = 30.0
"""How much larger logits are than pixels."""


class Reader(nn.Module):
    """The code is the image; its first ten pixels are the logits, the rest the nuisances."""

    bounds, num_classes = (0.0, 1.0), 10

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(COPIES))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)[:, :10]

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return (z / self.scale).reshape(-1, 1, 28, 28)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, :10], z[:, 10:]

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
        return torch.cat([semantic, nuisance], 1)


def reader() -> Reader:
    """Return the network, whose metamers differ from their donors in ten pixels of the upper edge."""
    return Reader().requires_grad_(False)


class Difference(Reader):
    """The logits are the differences of two rows of pixels, so that metamers leave the bounds where these differ."""

    upper, lower = slice(285, 295), slice(397, 407)

    def encode(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        rest = torch.cat([flat[:, :285], flat[:, 295:]], 1)
        return torch.cat([flat[:, self.upper] - flat[:, self.lower], rest], 1) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        semantic, rest = self.split(z / self.scale)
        upper = semantic + rest[:, 387:397]  # the lower row, without the upper one before it
        return torch.cat([rest[:, :285], upper, rest[:, 285:]], 1).reshape(-1, 1, 28, 28)


def difference() -> Difference:
    """Return the network, whose metamers change when they are clipped."""
    return Difference().requires_grad_(False)


class Watermark(nn.Module):
    """Reads the planted pixel of each class, and nothing else."""

    bounds, num_classes = (0.0, 1.0), 10

    def forward(self, x: Tensor) -> Tensor:
        columns = ((torch.arange(10) + 0.5) * 28 / 10).long()
        return x[:, 0, 1, columns]


class Level(nn.Module):
    """Two classes of grey levels: the score of each is how near its mean, 0.3 or 0.7, an image is."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([0.3, 0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1).mean(1, keepdim=True) - self.means).abs()


def level() -> Level:
    """Return the network of grey levels."""
    return Level().requires_grad_(False)


def small_sdim() -> nn.Module:
    """Return an SDIM that is not trained, for images of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SDIM().eval()
