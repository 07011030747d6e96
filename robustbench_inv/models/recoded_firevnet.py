"""A fiRevNet small enough for two cores: the logits are written first, then the nuisances are coded anew."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_inv.models.firevnet import FiRevNet
from robustbench_inv.models.layers.bijection import Bijection, Chain
from robustbench_inv.models.layers.by_class import GaussianiseByClass, WhitenByClass
from robustbench_inv.models.layers.conditioner import bottleneck
from robustbench_inv.models.layers.coupling import Affine, Coupling
from robustbench_inv.models.layers.given_decision import GivenDecision
from robustbench_inv.models.layers.logit_coupling import LogitCoupling
from robustbench_inv.models.layers.mixing import Permutation

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
    couplings: int = 6,
    coupling_width: int = 512,
    recode: bool = True,
) -> FiRevNet:
    """Return a fiRevNet of one logit coupling, after which the nuisances are coded given the decision.

    Args:
        shape: (c, h, w).
        num_classes: C.
        widths: channels of the classifier inside the logit coupling, five numbers.
        couplings: affine couplings that follow the layers fitted in closed form.
        coupling_width: of their networks.
        recode: False leaves the recoding out; cross-entropy never reaches it.
    """
    c, h, w = shape
    write = LogitCoupling(_classifier(c, num_classes, widths), (c, h, w), num_classes)
    recoding = None
    if recode:
        flow = _recoding(c * h * w - num_classes, num_classes, couplings, coupling_width)
        recoding = GivenDecision(flow, num_classes)
    return FiRevNet(Chain(GreyLevels(), write), shape, num_classes, recoding=recoding)


def _recoding(features: int, classes: int, couplings: int, width: int) -> Chain:
    steps: list[Bijection] = [
        GaussianiseByClass(features, classes),
        WhitenByClass(features, classes),
    ]
    passive, active = features // 2, features - features // 2
    for number in range(couplings):
        order = torch.randperm(features, generator=torch.Generator().manual_seed(number))
        network = bottleneck(passive + classes, 2 * active, width)
        steps += [Permutation(order), Coupling(network, Affine())]
    return Chain(*steps)


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
