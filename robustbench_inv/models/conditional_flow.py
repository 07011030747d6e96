"""Class-conditional normalizing flow (Glow): a generative classifier whose logits are the densities log p(x|y)."""

from collections.abc import Sequence
from math import log, pi, prod
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_inv.models.firevnet import GreyLevelCentres, convolutional
from robustbench_inv.models.layers.bijection import Bijection, Chain, LogitTransform
from robustbench_inv.models.layers.coupling import Affine, ConditionalTransform

__all__ = ["ConditionalFlow", "bits_per_dimension", "glow"]


class ConditionalFlow(nn.Module):
    """log p(x|y) = log N(T_y(F(x)); 0, I) + log |det ∂T_y/∂z| + log |det ∂F/∂x| for every class y.

    Only T depends on the class, so that all classes share one pass of F. An affine T_y amounts to a Gaussian prior
    per class, with a mean and a deviation for each element of the code.

    Args:
        flow: F, maps (n, *shape) in [0, 1] to flat codes (n, d).
        prior: T, a map of codes under a one-hot condition (n, C).
        num_classes: C.
    """

    bounds = (0.0, 1.0)

    def __init__(self, flow: Bijection, prior: ConditionalTransform, num_classes: int) -> None:
        super().__init__()
        self.flow, self.prior, self.num_classes = flow, prior, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Return log p(x|y) in nats, (n, C), of (n, *shape) images."""
        code, log_det = self.flow(images)
        return self._densities(code) + log_det[:, None]

    def marginal(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (n,), with equally likely classes."""
        densities: Tensor = self(images)
        return densities.logsumexp(1) - log(self.num_classes)

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (n, *shape) drawn from p(x|y), which may lie a little outside [0, 1].

        Args:
            labels: classes y (n,).
            generator: of the draws, on the CPU.
        """
        classes = torch.eye(self.num_classes)[labels.cpu()]
        weight = self.prior.table.weight
        normal = torch.randn(len(labels), self.prior.features, generator=generator).to(weight)
        return self.flow.inverse(self.prior.inverse(normal, classes.to(weight)))

    def _densities(self, code: Tensor) -> Tensor:
        """Return the log-density of codes (n, d) under each class, (n, C)."""
        (n, d), classes = code.shape, self.num_classes
        every = torch.eye(classes, dtype=code.dtype, device=code.device).repeat(n, 1)
        normal, log_det = self.prior(code.repeat_interleave(classes, 0), every)
        densities: Tensor = log_det - normal.square().sum(1) / 2 - d * log(2 * pi) / 2
        return densities.reshape(n, classes)


def glow(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    stages: int = 2,
    blocks: int = 8,
    width: int | Sequence[int] = (64, 96),
    **architecture: Any,  # noqa: ANN401 - other fields of firevnet.Architecture, which declares their types
) -> ConditionalFlow:
    """Return a Glow of the log-odds of grey levels, with a Gaussian prior per class.

    A stage is a squeeze, then several blocks of actnorm, invertible 1×1 convolution and affine coupling; then half of
    the channels is factored out. The last coupling transforms this half conditioned on the other one, which
    corresponds to Glow's learned prior of the factored-out channels. Means and deviations per class are added.

    Args:
        shape: (c, h, w), h and w divisible by 2**stages.
        num_classes: C.
        stages: number of stages.
        blocks: blocks per stage.
        width: filters inside the couplings' networks, one number or one per stage.
        architecture: other fields of ``firevnet.Architecture``.

    References:
        Kingma and Dhariwal, Glow, NeurIPS 2018, section 3 and table 1.
    """
    chosen = {"coupling": "affine", "norm": False, "read_out": "first", **architecture}
    steps = convolutional(shape, num_classes, stages=stages, blocks=blocks, width=width, **chosen)
    prior = ConditionalTransform(prod(shape), num_classes, Affine())
    return ConditionalFlow(
        Chain(GreyLevelCentres(), LogitTransform(), steps.flow), prior, num_classes
    )


def bits_per_dimension(likelihoods: Tensor, dimensions: int, levels: int = 256) -> Tensor:
    """Return the code length of each grey level in bits, under a density of values in [0, 1].

    For dequantised inputs it is an upper bound of the code length under the implied distribution of grey levels.

    Args:
        likelihoods: log-densities in nats, of any shape.
        dimensions: d, number of elements of an input.
        levels: number of grey levels, 1/(levels − 1) apart.

    References:
        Theis, van den Oord and Bethge, A note on the evaluation of generative models, ICLR 2016, section 3.1.

    Example:
        >>> round(float(bits_per_dimension(torch.zeros(()), 784, levels=257)), 3)  # uniform density
        8.0
    """
    return log(levels - 1) / log(2) - likelihoods / (dimensions * log(2))
