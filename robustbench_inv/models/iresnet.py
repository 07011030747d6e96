"""Invertible residual networks (i-ResNets): classifiers with a Lipschitz bound, bijections and flows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.conditional_flow import ConditionalFlow
from robustbench_inv.models.firevnet import FiRevNet, GreyLevelCentres
from robustbench_inv.models.layers.bijection import Bijection, Chain, LogitTransform, Squeeze
from robustbench_inv.models.layers.coupling import Affine, ConditionalTransform
from robustbench_inv.models.layers.linear import ActNorm, Flatten, Mixing
from robustbench_inv.models.layers.residual import (
    LogDeterminant,
    ResidualBlock,
    convolutional_residual,
)

__all__ = [
    "InvertibleResNet",
    "LinearReadOut",
    "ResidualArchitecture",
    "Standardised",
    "bijective",
    "classifier",
    "residual_blocks",
    "residual_flow",
    "safe_radii",
]

Shape = tuple[int, int, int]


class Standardised(Bijection):
    """x ↦ (x − mean) / deviation.

    Args:
        mean: of all elements of the inputs.
        deviation: of all elements, > 0.
    """

    def __init__(self, mean: float = 0.5, deviation: float = 1.0) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_determinant = -x[0].numel() * math.log(self.deviation)
        return (x - self.mean) / self.deviation, x.new_full((len(x),), log_determinant)

    def inverse(self, y: Tensor) -> Tensor:
        return y * self.deviation + self.mean


class LinearReadOut(Bijection):
    """(s, r) ↦ (s + V r + b, r) for the first C elements s of a vector and the others r; log-determinant 0.

    Args:
        features: elements of the vector.
        num_classes: C.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.linear = nn.Linear(features - num_classes, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, rest = x[:, : self.num_classes], x[:, self.num_classes :]
        return torch.cat([first + self.linear(rest), rest], 1), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        first, rest = y[:, : self.num_classes], y[:, self.num_classes :]
        return torch.cat([first - self.linear(rest), rest], 1)


@dataclass(frozen=True)
class ResidualArchitecture:
    """Stages of residual blocks with a squeeze between the stages, and ActNorm between the blocks.

    Args:
        blocks: blocks per stage.
        width: hidden channels of the blocks, one number or one per stage.
        coefficient: c, largest spectral norm of each convolution, in (0, 1); None for a vanilla network.
        input_squeezes: squeezes before the first stage.
        padding: channels of zeros that are added to the input of the first stage.
        boundary: ``circular`` or ``zeros``; norms of circular convolutions are exact.
        mean, deviation: constants by which inputs are standardised. ELU is almost linear for small inputs, so that blocks with a
            small coefficient learn little from inputs that are not.
    """

    blocks: Sequence[int] = (4, 4)
    width: int | Sequence[int] = 32
    coefficient: float | None = 0.9
    input_squeezes: int = 1
    padding: int = 0
    boundary: str = "circular"
    mean: float = 0.5
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise BadParameter(
                "invalid blocks", got=self.blocks, expected="one number per stage, >= 1"
            )
        if not isinstance(self.width, int) and len(self.width) != len(self.blocks):
            raise BadParameter(
                "invalid width", got=self.width, expected="one number, or one per stage"
            )
        if min(self.input_squeezes, self.padding) < 0:
            raise BadParameter("invalid architecture", got=self, expected="numbers >= 0")
        if not self.deviation > 0:
            raise BadParameter("invalid deviation", got=self.deviation, expected="a number > 0")

    def start(self) -> Chain:
        """Return what precedes the first stage, without padding."""
        squeezes = [Squeeze() for _ in range(self.input_squeezes)]
        return Chain(Standardised(self.mean, self.deviation), *squeezes)

    def inside(self, shape: Sequence[int]) -> Shape:
        """Return the shape of the first stage's maps, for inputs of this shape.

        Raises:
            BadParameter: for inputs that cannot be squeezed.
        """
        squeezes = self.input_squeezes + len(self.blocks) - 1
        if len(shape) != 3 or any(side % 2**squeezes for side in shape[1:]):
            expected = f"(c, h, w) with h and w divisible by {2**squeezes}"
            raise BadParameter("invalid shape of an i-ResNet", got=tuple(shape), expected=expected)
        factor = 2**self.input_squeezes
        return shape[0] * factor**2 + self.padding, shape[1] // factor, shape[2] // factor

    def outside(self, shape: Sequence[int]) -> Shape:
        """Return the shape of the last stage's maps."""
        c, h, w = self.inside(shape)
        factor = 2 ** (len(self.blocks) - 1)
        return c * factor**2, h // factor, w // factor


def residual_stages(
    plan: ResidualArchitecture, inside: Shape, log_determinant: LogDeterminant | None = None
) -> Chain:
    """Return the stages as a bijection of maps (n, *inside).

    Args:
        plan: the architecture.
        inside: shape of the first stage's maps.
        log_determinant: estimator of each block.
    """
    (c, h, w), steps = inside, list[Bijection]()
    for stage, blocks in enumerate(plan.blocks):
        if stage:
            steps.append(Squeeze())
            c, h, w = 4 * c, h // 2, w // 2
        width = plan.width if isinstance(plan.width, int) else plan.width[stage]
        for block in range(blocks):
            residual = convolutional_residual(
                c,
                width,
                (h, w),
                plan.coefficient,
                activate_first=stage + block > 0,
                boundary=plan.boundary,
            )
            # none before the first block, where it would scale channels of zeros by 1,000
            steps += [ActNorm(c)] if stage + block else []
            steps.append(ResidualBlock(residual, log_determinant, seed=len(steps)))
    return Chain(*steps)


class InvertibleResNet(nn.Module):
    """logits = head(F(x, 0)): F is a bijection of the input with added channels of zeros, so x ↦ F(x, 0) is injective.

    The head has batch norm, ELU, the mean over positions (with ``pool``) and a linear layer. ``decode`` inverts F and drops the added
    channels; it is exact for codes of inputs.

    Args:
        plan: the architecture.
        shape: (c, h, w) of one input.
        num_classes: C.
        pool: take the mean over positions, as in the paper; else the linear layer has weights for each position.
        bounds: smallest and largest value of an input element.

    References:
        Behrmann, thesis, chapter 4 and appendix A.1.
    """

    def __init__(
        self,
        plan: ResidualArchitecture,
        shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        *,
        pool: bool = True,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.pool = pool
        self.padding, self.shape, self.num_classes = plan.padding, tuple(shape), num_classes
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.start = plan.start()
        self.stages = residual_stages(plan, plan.inside(shape))
        self.outside = plan.outside(shape)
        self.norm = nn.BatchNorm1d(self.outside[0])
        self.linear = nn.Linear(self.outside[0] if pool else math.prod(self.outside), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, C) of (n, *shape) images."""
        features = nn.functional.elu(self.norm(self._maps(images).flatten(2)))
        logits: Tensor = self.linear(features.mean(2) if self.pool else features.flatten(1))
        return logits

    def encode(self, images: Tensor) -> Tensor:
        """Return codes (n, d) with d >= the elements of an input."""
        return self._maps(images).flatten(1)

    def decode(self, code: Tensor) -> Tensor:
        """Return the inputs (n, *shape) of codes (n, d), which may lie outside the bounds."""
        maps = self.stages.inverse(code.reshape(-1, *self.outside))
        return self.start.inverse(maps[:, : maps.shape[1] - self.padding])

    def decode_after(self, code: Tensor, iterations: int) -> Tensor:
        """Return the inputs of codes, with a number of fixed-point iterations for each block."""
        maps = code.reshape(-1, *self.outside)
        for step in reversed(list(self.stages)):
            if isinstance(step, ResidualBlock):
                maps = step.iterate(maps, iterations)
            else:
                maps = step.inverse(maps)
        return self.start.inverse(maps[:, : maps.shape[1] - self.padding])

    def _maps(self, images: Tensor) -> Tensor:
        maps = nn.functional.pad(self.start(images)[0], (0, 0, 0, 0, 0, self.padding))
        return self.stages(maps)[0]

    def lipschitz(self) -> float:
        """Return a Lipschitz constant in l2 of the logits as a function of the input.

        It is the product of those of standardisation, ActNorms, residual layers (1 + L) and head. The mean over p positions has norm
        1/√p, as a map of all positions.
        """
        weight = self.linear.weight.detach()
        return self._feature_bound() * float(torch.linalg.matrix_norm(weight, 2))

    @torch.no_grad()
    def certified_radii(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return for each image an l2 radius within which the prediction is the label, (n,); 0 if it is misclassified.

        min over j ≠ y of (z_y − z_j) / (L ‖w_y − w_j‖), with the rows w of the linear layer and L of what precedes it.

        Args:
            images: (n, *shape).
            labels: y, (n,).
        """
        logits, weight = self(images), self.linear.weight
        gaps = logits.gather(1, labels[:, None]) - logits
        distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
        scales = self._feature_bound() * distances[labels]
        alike = torch.where(gaps > 0, torch.inf, 0.0)  # equal rows: the gap is constant
        radii = torch.where(scales > 0, gaps / scales.clamp_min(1e-12), alike)
        others = radii.scatter(1, labels[:, None], torch.inf)
        return others.min(1).values.clamp_min(0)

    @torch.no_grad()
    def _feature_bound(self) -> float:
        """Return a Lipschitz constant of the input of the linear layer."""
        assert self.norm.running_var is not None
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        positions = math.prod(self.outside[1:]) if self.pool else 1
        body = chain_lipschitz(self.start) * chain_lipschitz(self.stages)
        return body * float(scale.abs().max()) / math.sqrt(positions)


def safe_radii(radii: Tensor) -> Tensor:
    """Return certified radii (n,) in float64 less 1e-5 and a thousandth, for rounding errors of float32 logits."""
    return ((radii.double() - 1e-5) * (1 - 1e-3)).clamp_min(0).nan_to_num(0, 0, 0)


def residual_blocks(network: nn.Module) -> Iterator[ResidualBlock]:
    """Yield the residual blocks of a network."""
    return (part for part in network.modules() if isinstance(part, ResidualBlock))


def chain_lipschitz(chain: Chain) -> float:
    """Return the product of the Lipschitz constants of a chain's steps.

    Those that are not standardisations, ActNorms or residual blocks must have 1.

    References:
        Behrmann, thesis, lemma 4.6.
    """
    total = 1.0
    for step in chain:
        if isinstance(step, Standardised):
            total /= step.deviation
        if isinstance(step, ActNorm):
            total *= float(step.log_scale.max().exp())
        if isinstance(step, ResidualBlock):
            total *= 1 + step.lipschitz()
    return total


def classifier(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    *,
    pool: bool = True,
    **architecture: Any,  # noqa: ANN401 - the fields of ResidualArchitecture, which declares their types
) -> InvertibleResNet:
    """Return an i-ResNet with injective padding and a linear classifier of its last maps.

    Args:
        shape: (c, h, w), h and w divisible by two for every squeeze.
        num_classes: C.
        pool: classify the mean over positions.
        architecture: fields of ``ResidualArchitecture``; a ``coefficient`` of 0 stands for None.
    """
    return InvertibleResNet(_plan(architecture), shape, num_classes, pool=pool)


def bijective(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    **architecture: Any,  # noqa: ANN401 - the fields of ResidualArchitecture, which declares their types
) -> FiRevNet:
    """Return an i-ResNet followed by a ``LinearReadOut``: a bijection with a split code, whose logits are linear in F(x).

    Args:
        shape: (c, h, w), h and w divisible by two for every squeeze.
        num_classes: C.
        architecture: fields of ``ResidualArchitecture`` without padding; a ``coefficient`` of 0 stands for None.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, section 2.2, for the read-out.
    """
    plan = _plan(architecture)
    if plan.padding:
        raise BadParameter("a bijection has no padding", got=plan.padding, expected="0")
    outside = plan.outside(shape)
    positions = torch.arange(math.prod(outside[1:]))
    end = [ActNorm(outside[0]), Flatten(outside, positions)]
    end.append(LinearReadOut(math.prod(outside), num_classes))
    return FiRevNet(
        Chain(*plan.start(), *residual_stages(plan, plan.inside(shape)), *end), shape, num_classes
    )


def residual_flow(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    mixing: bool = True,
    log_determinant: dict[str, Any] | None = None,
    **architecture: Any,  # noqa: ANN401 - the fields of ResidualArchitecture, which declares their types
) -> ConditionalFlow:
    """Return an i-ResNet flow of the log-odds of grey levels, with a Gaussian prior per class.

    A linear layer of the whole code precedes the prior: residual blocks of a small network hardly remove correlations
    of distant pixels.

    Args:
        shape: (c, h, w), h and w divisible by two for every squeeze.
        num_classes: C.
        mixing: use the linear layer of the whole code.
        log_determinant: fields of ``LogDeterminant``.
        architecture: fields of ``ResidualArchitecture`` without padding.

    References:
        Behrmann, thesis, section 5.4 and appendix A.2, which has a standard normal prior.
    """
    plan = _plan(architecture)
    if plan.padding:
        raise BadParameter("a bijection has no padding", got=plan.padding, expected="0")
    outside = plan.outside(shape)
    start = [GreyLevelCentres(), LogitTransform(), *[Squeeze()] * plan.input_squeezes]
    start.append(ActNorm(plan.inside(shape)[0]))
    stages = residual_stages(plan, plan.inside(shape), LogDeterminant(**(log_determinant or {})))
    d = math.prod(outside)
    end = [ActNorm(outside[0]), Flatten(outside, torch.arange(math.prod(outside[1:]))), ActNorm(d)]
    end += [Mixing(d, rotated=False)] if mixing else []
    prior = ConditionalTransform(d, num_classes, Affine())
    return ConditionalFlow(Chain(*start, *stages, *end), prior, num_classes)


def _plan(architecture: dict[str, Any]) -> ResidualArchitecture:
    """Return the architecture; TOML has no None, so that a coefficient of 0 stands for it."""
    coefficient = architecture.get("coefficient", ResidualArchitecture.coefficient)
    return ResidualArchitecture(**{**architecture, "coefficient": coefficient or None})
