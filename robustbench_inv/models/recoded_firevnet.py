"""A fiRevNet small enough for two cores: the logits are written first, then the nuisances are coded anew."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_inv.models.firevnet import FiRevNet
from robustbench_inv.models.layers.autoregressive import Autoregressive
from robustbench_inv.models.layers.bijection import Bijection, Chain
from robustbench_inv.models.layers.given_decision import GivenDecision
from robustbench_inv.models.layers.logit_coupling import LogitCoupling

__all__ = ["GreyLevels", "recoded"]


class GreyLevels(Bijection):
    """x ↦ (255 x + ½) / 256: grey level k of 0 … 255 to the middle of its cell in [0, 1].

    Dequantised inputs x + (u − ½)/255 with u uniform on (0, 1) fill the cells.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = torch.tensor(255 / 256, dtype=x.dtype).log()
        return (255 * x + 0.5) / 256, (log_scale * x[0].numel()).to(x).expand(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return (256 * y - 0.5) / 255


def recoded(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    widths: Sequence[int] = (16, 32, 32, 64, 64),
    hidden: int = 512,
    recode: bool = True,
) -> FiRevNet:
    """Return a fiRevNet of one logit coupling, after which the nuisances are coded given the decision.

    Args:
        shape: (c, h, w).
        num_classes: C.
        widths: channels of the classifier inside the logit coupling, five numbers.
        hidden: units of each layer of the network that recodes.
        recode: False leaves the recoding out; cross-entropy never reaches it.
    """
    c, h, w = shape
    write = LogitCoupling(_classifier(c, num_classes, widths), (c, h, w), num_classes)
    recoding = None
    if recode:
        flow = Autoregressive(_edges(write.border, len(write.others)), num_classes, hidden)
        recoding = GivenDecision(flow, num_classes)
    return FiRevNet(Chain(GreyLevels(), write), shape, num_classes, recoding=recoding)


LEVELS = (0, 1, 8, 26, 64, 128, 192, 230, 248, 254, 256)
"""Edges of a pixel's pieces, in cells of a grey level: the background alone, and more of them towards black and white."""


def _edges(border: int, pixels: int) -> Tensor:
    """Return the edges (border + pixels, B + 1) of what a logit coupling leaves of an image.

    Args:
        border: coordinates of the corner pixels beside the logits, differences of dequantised background.
        pixels: all others.
    """
    corner = torch.linspace(-3, 4, len(LEVELS)) / 256
    grey = torch.tensor(LEVELS) / 256
    return torch.cat([corner.expand(border, -1), grey.expand(pixels, -1)])


def _classifier(channels: int, classes: int, widths: Sequence[int]) -> nn.Sequential:
    """Return five 3×3 convolutions with batch norm, the second and the fourth in steps of two, and a mean."""
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        stride = 2 if number % 2 else 1
        layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )
