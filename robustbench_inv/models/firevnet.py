"""Fully invertible RevNets (fiRevNets): classifiers whose logits are the first part of an invertible code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection, Chain, FactorOut, Squeeze
from robustbench_inv.models.layers.coupling import (
    Additive,
    Coupling,
    LogitCoupling,
    linear_conditioner,
    transform_named,
)
from robustbench_inv.models.layers.coupling import convolutional as conditioner
from robustbench_inv.models.layers.linear import (
    ActNorm,
    CosineTransform,
    Flatten,
    Mixing,
    centre_first,
    low_pass_first,
)

__all__ = [
    "IMAGENET",
    "Architecture",
    "FiRevNet",
    "GreyLevelCentres",
    "convolutional",
    "fully_connected",
    "one_coupling",
]


Shape = tuple[int, int, int]

IMAGENET: Mapping[str, Any] = {
    "stages": 4,
    "blocks": 4,
    "width": (24, 48, 96, 384),
    "coupling": ("additive", "additive", "additive", "affine"),
    "input_squeezes": 2,
    "factor_out": False,
}
"""The paper's architecture for (3, 224, 224) and 1,000 classes with 48 convolutions (appendix B.3). The paper specifies
neither widths (ours are a quarter of the passive half in the last two stages) nor 1×1 convolutions."""


class FiRevNet(nn.Module):
    """z = F(x) with F a bijection onto flat codes (n, d); z_1..C are the logits, the rest are nuisances.

    Args:
        flow: F, maps (n, *shape) to (n, d).
        shape: shape of one input.
        num_classes: C.
        bounds: smallest and largest value of an input element.

    References:
        Jacobsen et al., Excessive invariance causes adversarial vulnerability, ICLR 2019, section 2.2.
    """

    def __init__(
        self,
        flow: Bijection,
        shape: Sequence[int],
        num_classes: int,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        _check_architecture(
            "num_classes", num_classes, 2 <= num_classes < prod(shape), "2 to d - 1"
        )
        self.flow, self.shape, self.num_classes = flow, tuple(shape), num_classes
        self.bounds = (float(bounds[0]), float(bounds[1]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, C) of (n, *shape) images."""
        return self.flow(images)[0][:, : self.num_classes]

    def transform(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (n, d) and log |det ∂F/∂x| (n,), for likelihoods."""
        return self.flow(images)

    def encode(self, images: Tensor) -> Tensor:
        """Return codes (n, d)."""
        return self.transform(images)[0]

    def decode(self, code: Tensor) -> Tensor:
        """Return the inputs (n, *shape) of codes (n, d), which may lie outside the bounds."""
        return self.flow.inverse(code)

    def split(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_s (n, C), the logits, and z_n (n, d − C)."""
        return code[:, : self.num_classes], code[:, self.num_classes :]

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
        """Return the code (n, d) of both parts."""
        return torch.cat([semantic, nuisance], 1)


def fully_connected(
    d: int = 100,
    num_classes: int = 2,
    blocks: int = 4,
    width: int = 100,
    bounds: tuple[float, float] = (-10.0, 10.0),
) -> FiRevNet:
    """Return a fiRevNet of vectors: each block is one additive coupling with a ReLU bottleneck, on alternating halves.

    The last block transforms the half that contains the logits. The paper's fiRevNet48 for ImageNet implies one
    coupling per block: it has four stages of four blocks of three layers.

    Args:
        d: dimension.
        num_classes: C.
        blocks: number of blocks.
        width: width of the bottlenecks.
        bounds: smallest and largest value of an input element.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.1, which does not specify the width.
    """
    _check_architecture("d", d, d >= 2, "at least 2")
    _check_architecture("blocks", blocks, blocks >= 1, "at least 1")
    first, second = d // 2, d - d // 2
    steps = []
    for block in range(blocks):
        swap = (blocks - block) % 2 == 1
        passive, active = (second, first) if swap else (first, second)
        network = linear_conditioner(passive, active, width, zeroed=False)
        steps.append(Coupling(network, Additive(), swap=swap))
    return FiRevNet(Chain(*steps), (d,), num_classes, bounds)


@dataclass(frozen=True)
class Architecture:
    """Architecture of a convolutional fiRevNet; the defaults are the paper's for MNIST.

    Args:
        stages: number of stages; each halves the height and width of its feature maps.
        blocks: blocks per stage: actnorm, invertible 1×1 convolution, coupling.
        width: filters inside the couplings' networks, one number or one per stage.
        coupling: ``additive`` or ``affine``, one for all stages or one per stage.
        input_squeezes: squeezes before the first stage.
        last_squeeze: factor of the squeeze before the last stage; 7 turns a 7×7 map into one position.
        factor_out: factor out half of the channels after each stage except the last.
        norm: use batch norm in the couplings' networks.
        read_out: ``dct`` reads the logits from the low frequencies of the last feature maps (with at least C
            channels, from their means); ``first`` reads them from the central positions.
    """

    stages: int = 3
    blocks: int = 16
    width: int | Sequence[int] = 128
    coupling: str | Sequence[str] = "additive"
    input_squeezes: int = 1
    last_squeeze: int = 2
    factor_out: bool = True
    norm: bool = True
    read_out: str = "dct"

    def __post_init__(self) -> None:
        _check_architecture("stages", self.stages, self.stages >= 1, "at least 1")
        _check_architecture("blocks", self.blocks, self.blocks >= 1, "at least 1")
        _check_architecture(
            "input_squeezes", self.input_squeezes, self.input_squeezes >= 0, "at least 0"
        )
        _check_architecture(
            "read_out", self.read_out, self.read_out in ("dct", "first"), "dct or first"
        )
        for value in (self.width, self.coupling):
            fits = isinstance(value, int | str) or len(value) == self.stages
            _check_architecture(
                "width or coupling",
                value,
                fits,
                f"one value, or {self.stages} (one for each stage)",
            )

    def squeeze_before(self, stage: int) -> int:
        """Return the factor of the squeeze before a stage after the first."""
        return self.last_squeeze if stage == self.stages - 1 else 2


def convolutional(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    **architecture: Any,  # noqa: ANN401 - the fields of Architecture, which declares their types
) -> FiRevNet:
    """Return a convolutional fiRevNet of images in [0, 1].

    Args:
        shape: (c, h, w), h and w divisible by two for every squeeze.
        num_classes: C.
        architecture: fields of ``Architecture``.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendices B.2 (MNIST) and B.3 (ImageNet).
    """
    plan = Architecture(**architecture)
    divisor = 2**plan.input_squeezes
    for stage in range(1, plan.stages):
        divisor *= plan.squeeze_before(stage)
    fits = len(shape) == 3 and all(side % divisor == 0 for side in shape[1:])
    _check_architecture(
        "shape", tuple(shape), fits, f"(c, h, w) with h and w divisible by {divisor}"
    )
    c, h, w = shape
    start = [Squeeze() for _ in range(plan.input_squeezes)]
    factor = 2**plan.input_squeezes
    inside = (c * factor**2, h // factor, w // factor)
    _check_architecture(
        "shape", tuple(shape), inside[0] >= 2, "two channels or more, or a squeeze of the input"
    )
    return FiRevNet(Chain(*start, _from_stage(plan, 0, inside)), shape, num_classes)


def _from_stage(plan: Architecture, stage: int, shape: Shape) -> Bijection:
    """Return the network from this stage to the end, which maps (n, *shape) to flat codes."""
    steps = _stage(plan, stage, shape)
    if stage == plan.stages - 1:
        return Chain(*steps, *_read_out(plan.read_out, shape))
    c, h, w = shape
    kept = c - c // 2 if plan.factor_out else c
    factor = plan.squeeze_before(stage + 1)
    inside = (factor**2 * kept, h // factor, w // factor)
    rest = Chain(Squeeze(factor), _from_stage(plan, stage + 1, inside))
    return Chain(*steps, FactorOut(rest, shape) if plan.factor_out else rest)


def _stage(plan: Architecture, stage: int, shape: Shape) -> list[Bijection]:
    channels, h, w = shape
    width = plan.width if isinstance(plan.width, int) else plan.width[stage]
    name = plan.coupling if isinstance(plan.coupling, str) else plan.coupling[stage]
    transform = transform_named(name)
    passive = channels // 2
    outputs = (channels - passive) * transform.parameters
    steps: list[Bijection] = []
    for _ in range(plan.blocks):
        kernel = 1 if h == w == 1 else 3
        network = conditioner(passive, outputs, width, norm=plan.norm, kernel=kernel)
        steps += [ActNorm(channels), Mixing(channels), Coupling(network, transform)]
    return steps


def _read_out(name: str, shape: Shape) -> list[Bijection]:
    _, h, w = shape
    if name == "dct":
        return [CosineTransform(h, w), Flatten(shape, low_pass_first(h, w))]
    return [Flatten(shape, centre_first(h, w))]


def _check_architecture(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise BadParameter(f"invalid {name} of a fiRevNet", got=value, expected=expected)


class GreyLevelCentres(Bijection):
    """x ↦ (255 x + ½) / 256: maps grey level k of 0 … 255 to the centre of its cell in [0, 1].

    Dequantised inputs x + (u − ½)/255, u uniform on (0, 1), fill the cells.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = torch.tensor(255 / 256, dtype=x.dtype).log()
        return (255 * x + 0.5) / 256, (log_scale * x[0].numel()).to(x).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return (256 * y - 0.5) / 255


def one_coupling(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    widths: Sequence[int] = (16, 32, 32, 64, 64),
) -> FiRevNet:
    """Return a fiRevNet of one logit coupling: a convolutional classifier shifts some pixels by its logits.

    Args:
        shape: (c, h, w).
        num_classes: C.
        widths: channels of the classifier inside the logit coupling, five numbers.
    """
    c, h, w = shape
    write = LogitCoupling(_classifier(c, num_classes, widths), (c, h, w), num_classes)
    return FiRevNet(Chain(GreyLevelCentres(), write), shape, num_classes)


def _classifier(channels: int, classes: int, widths: Sequence[int]) -> nn.Sequential:
    """Return five 3×3 convolutions with batch norm, the second and fourth with stride 2, pooling and a linear layer."""
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        stride = 2 if number % 2 else 1
        layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )
