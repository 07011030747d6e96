"""Supervised Deep InfoMax (SDIM): the logits are class-conditional Gaussian densities of a residual network's code."""

from math import inf, log, pi

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.resnet import ResNetEncoder

__all__ = ["COVARIANCES", "LOG_SIGMA_RATE", "SCALES", "SDIM", "ClassConditionals"]

COVARIANCES = ("isotropic", "diagonal")
SCALES = ("sum", "mean")

LOG_SIGMA_RATE = 10.0
"""By default log σ is this factor times its parameter, so that Adam changes it by this factor faster than other weights.

The initial class means are about √2 apart in each dimension. A margin of 10 nats at the class mean then requires
σ < 0.3; with σ = 1 only codes far beyond their own mean have it. The published densities correspond to σ of about 1e-4
after 500 epochs. In 10 epochs at a learning rate of 1e-3, log σ falls by at most 2 without this factor. After 120 steps on
5,000 digits the loss is 31.7 with a factor of 1 and 9.2 with 10, the accuracy 96.4 % and 97.3 %. A small initial σ
instead reduces the accuracy (94.9 % with 0.2).
"""


class ClassConditionals(nn.Module):
    """log N(z; μ_y, Σ_y) of a code z for every class y, means and variances learned.

    Args:
        num_classes: C.
        dimensions: d.
        covariance: ``isotropic`` for one variance per class, ``diagonal`` for d variances per class.
        log_sigma_rate: log σ per unit of its parameter, > 0; 1 in the paper.

    References:
        Supervised Deep Infomax, section 3.1 (isotropic covariances) and section 5 (2d numbers per class, as for a
        diagonal covariance).
    """

    def __init__(
        self,
        num_classes: int,
        dimensions: int,
        covariance: str = "isotropic",
        log_sigma_rate: float = LOG_SIGMA_RATE,
    ) -> None:
        super().__init__()
        if not 0 < log_sigma_rate < inf:
            raise BadParameter("invalid log_sigma_rate", got=log_sigma_rate, expected="> 0")
        self.log_sigma_rate = log_sigma_rate
        if covariance not in COVARIANCES:
            expected = " or ".join(COVARIANCES)
            raise BadParameter("unknown covariance", got=covariance, expected=expected)
        self.mean = nn.Parameter(torch.randn(num_classes, dimensions))
        variances = 1 if covariance == "isotropic" else dimensions
        self.paced = nn.Parameter(torch.zeros(num_classes, variances))

    @property
    def log_deviation(self) -> Tensor:
        """Log σ of each class, (C, 1) or (C, d)."""
        return self.log_sigma_rate * self.paced

    def forward(self, code: Tensor) -> Tensor:
        """Map (n, d) to the log-likelihoods in nats, (n, C)."""
        spread = self.log_deviation
        squares = ((code[:, None] - self.mean) / spread.exp()) ** 2
        return -(squares / 2 + spread + log(2 * pi) / 2).sum(-1)


class SDIM(nn.Module):
    """Generative classifier: encoder z = E(x) and class conditionals; the logits are log p(z|y).

    Maps (n, channels, h, w) in [0, 1] to (n, C). The critic of mutual information belongs to the objective
    (``training.infomax``), not to the model.

    Args:
        num_classes: C.
        blocks: n of the encoder's 8n + 2 layers: 1 for MNIST and Fashion-MNIST, 3 for natural images.
        channels: channels of the images.
        dimensions: d, dimension of the code.
        covariance: covariance of the class conditionals, ``isotropic`` or ``diagonal``.
        scale: ``sum`` returns log p(z|y) in nats, as in the published tables; ``mean`` returns log p(z|y) / d, on which
            the training margin K = 10 is defined. Predictions and rejections are the same. The training margin
            corresponds to dK = 640 nats of the sum, where softmax saturates and the gradient of cross-entropy is
            exactly zero in float32 (check C7), so that the model looks robust. With ``mean``, cross-entropy keeps e^-10 of
            its gradient. Attacks on the margin are not affected.
        log_sigma_rate: how fast training changes log σ; 1 in the paper, which trains 500 epochs.
        resize: resize smaller images to 32×32, as in the paper, and do not pad them.

    References:
        Reject Illegal Inputs: Scaling Generative Classifiers with Supervised Deep Infomax, ICLR 2020 submission,
        sections 3 and 5; appendix D.1 on vanishing gradients.
    """

    bounds = (0.0, 1.0)

    def __init__(  # noqa: PLR0913 - a card's parameters, each of which it may leave out
        self,
        num_classes: int = 10,
        blocks: int = 1,
        channels: int = 1,
        dimensions: int = 64,
        *,
        covariance: str = "isotropic",
        scale: str = "sum",
        log_sigma_rate: float = LOG_SIGMA_RATE,
        resize: bool = False,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise BadParameter("unknown scale", got=scale, expected=" or ".join(SCALES))
        self.num_classes, self.dimensions = num_classes, dimensions
        self.divisor = dimensions if scale == "mean" else 1
        self.encoder = ResNetEncoder(blocks, channels, dimensions, resize=resize)
        self.conditionals = ClassConditionals(num_classes, dimensions, covariance, log_sigma_rate)

    def forward(self, images: Tensor) -> Tensor:
        likelihoods: Tensor = self.conditionals(self.encoder(images)[1])
        return likelihoods / self.divisor
