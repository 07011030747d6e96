"""A class-conditional flow of pixels (Glow): exact densities log p(x|y), which are its logits."""

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

    Only T depends on the class, so that one pass of F serves all classes. An affine T_y is a Gaussian of its own for
    each class, with a mean and a deviation for each element of the code.

    Args:
        flow: F, from (n, *shape) in [0, 1] to flat codes (n, d).
        prior: T, a bijection of codes under a one-hot condition (n, C).
        num_classes: C.
    """

    bounds = (0.0, 1.0)

    def __init__(self, flow: Bijection, prior: Bijection, num_classes: int) -> None:
        super().__init__()
        self.flow, self.prior, self.num_classes = flow, prior, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Return log p(x|y) in nats, (n, C), of (n, *shape) images."""
        code, log_det = self.flow(images)
        return self._densities(code) + log_det[:, None]

    def _densities(self, code: Tensor) -> Tensor:
        """Return the log-density of codes (n, d) under each class, (n, C)."""
        (n, d), classes = code.shape, self.num_classes
        every = torch.eye(classes, dtype=code.dtype, device=code.device).repeat(n, 1)
        normal, log_det = self.prior(code.repeat_interleave(classes, 0), every)
        densities = log_det - normal.square().sum(1) / 2 - d * log(2 * pi) / 2
        return densities.reshape(n, classes)


def glow(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    stages: int = 2,
    blocks: int = 8,
    width: int | Sequence[int] = (64, 96),
    **architecture: Any,  # noqa: ANN401 - other fields of firevnet.Architecture, which declares their types
) -> ConditionalFlow:
    """Return a Glow of log-odds of grey levels, with a Gaussian of each class at every level that is factored out.

    A stage squeezes, then repeats actnorm, invertible 1×1 convolution and affine coupling, then finishes half of its
    channels. The last coupling moves just that half by what the other half says, which is Glow's learned prior of
    what is factored out; means and deviations of each class come on top of it.

    Args:
        shape: (c, h, w), h and w divisible by two as often as there are stages.
        num_classes: C.
        stages: how many.
        blocks: steps of a stage.
        width: filters inside the couplings' networks, one number or one for each stage.
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
    """Return what coding each grey level costs in bits, under a density of values from 0 to 1.

    Of dequantised inputs it is an upper bound of the cost under the distribution of grey levels that the density
    implies.

    Args:
        likelihoods: log-densities in nats, of any shape.
        dimensions: elements d of an input.
        levels: grey levels, 1/(levels − 1) apart.

    References:
        Theis, van den Oord and Bethge, A note on the evaluation of generative models, ICLR 2016, section 3.1.

    Example:
        >>> round(float(bits_per_dimension(torch.zeros(()), 784, levels=257)), 3)  # uniform density
        8.0
    """
    return log(levels - 1) / log(2) - likelihoods / (dimensions * log(2))
