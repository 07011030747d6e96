"""Supervised Deep InfoMax: a Gaussian for each class on the code of a residual network, whose densities are the logits."""

from math import log, pi

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.resnet import ResNetEncoder

__all__ = ["COVARIANCES", "LOG_SIGMA_RATE", "SCALES", "SDIM", "ClassConditionals"]

COVARIANCES = ("isotropic", "diagonal")
SCALES = ("sum", "mean")

LOG_SIGMA_RATE = 10.0
"""log σ is this times its parameter, so that it moves so much faster than other weights under Adam.

Class means begin about √2 apart in each dimension. With σ = 1 a code keeps the margin of 10 nats only by going far
beyond its own mean, where wrong decisions are as likely as right ones; with σ < 0.3 at its mean. The published
densities mean σ of about 1e-4, after 500 epochs; in 10 epochs at a rate of 1e-3, log σ falls by 2 at most. After 120 steps on
5,000 digits the loss is 31.7 at a pace of 1 and 9.2 at 10, the accuracy 96.4 % and 97.3 %. Beginning with
a small σ instead costs accuracy (94.9 % with 0.2).
"""


class ClassConditionals(nn.Module):
    """log N(z; μ_y, Σ_y) of a code z for every class y, means and variances learned.

    Args:
        num_classes: C.
        dimensions: d.
        covariance: ``isotropic`` for one variance of each class; ``diagonal`` for d of them.

    References:
        Supervised Deep Infomax, section 3.1, which calls them isotropic; section 5, where a class has 2d numbers,
        as a diagonal covariance would.
    """

    def __init__(self, num_classes: int, dimensions: int, covariance: str = "isotropic") -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            expected = " or ".join(COVARIANCES)
            raise BadParameter("unknown covariance", got=covariance, expected=expected)
        self.mean = nn.Parameter(torch.randn(num_classes, dimensions))
        variances = 1 if covariance == "isotropic" else dimensions
        self.paced = nn.Parameter(torch.zeros(num_classes, variances))

    @property
    def log_deviation(self) -> Tensor:
        """Log σ of each class, (C, 1) or (C, d)."""
        return LOG_SIGMA_RATE * self.paced

    def forward(self, code: Tensor) -> Tensor:
        """Map (n, d) to the log-likelihoods in nats, (n, C)."""
        spread = self.log_deviation
        squares = ((code[:, None] - self.mean) / spread.exp()) ** 2
        return -(squares / 2 + spread + log(2 * pi) / 2).sum(-1)


class SDIM(nn.Module):
    """Generative classifier: encoder z = E(x) and class conditionals; the logits are log p(z|y).

    Maps (n, channels, h, w) in [0, 1] to (n, C). The network that judges mutual information is the objective's
    (``training.infomax``), not the model's.

    Args:
        num_classes: C.
        blocks: n of the encoder's 8n + 2 layers: 1 on digits and clothes, 3 on natural images.
        channels: of the images.
        dimensions: d of the code.
        covariance: of the class conditionals, ``isotropic`` or ``diagonal``.
        scale: ``sum`` answers log p(z|y) in nats, as the published tables do; ``mean`` answers log p(z|y) / d, on which
            training puts its margin of K = 10. Decisions and rejections are the same. But a margin that
            training calls kept is dK = 640 nats of the sum, where softmax is exact and the gradient of
            cross-entropy exactly zero in float32 (check C7): attacked so, a model looks robust. For the mean,
            cross-entropy keeps e^-10 of its gradient. Attacks on the margin see no difference.

    References:
        Reject Illegal Inputs: Scaling Generative Classifiers with Supervised Deep Infomax, ICLR 2020 submission,
        sections 3 and 5; appendix D.1 on vanishing gradients.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        num_classes: int = 10,
        blocks: int = 1,
        channels: int = 1,
        dimensions: int = 64,
        covariance: str = "isotropic",
        scale: str = "sum",
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise BadParameter("unknown scale", got=scale, expected=" or ".join(SCALES))
        self.num_classes, self.dimensions = num_classes, dimensions
        self.divisor = dimensions if scale == "mean" else 1
        self.encoder = ResNetEncoder(blocks, channels, dimensions)
        self.conditionals = ClassConditionals(num_classes, dimensions, covariance)

    def forward(self, images: Tensor) -> Tensor:
        likelihoods: Tensor = self.conditionals(self.encoder(images)[1])
        return likelihoods / self.divisor
