"""Networks whose codes are known: the image itself, with its first pixels as logits."""

import torch
from torch import Tensor, nn

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


class Watermark(nn.Module):
    """Reads the planted pixel of each class, and nothing else."""

    bounds, num_classes = (0.0, 1.0), 10

    def forward(self, x: Tensor) -> Tensor:
        columns = ((torch.arange(10) + 0.5) * 28 / 10).long()
        return x[:, 0, 1, columns]
