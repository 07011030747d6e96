"""Deep Bayes: a generative classifier whose latent variable gives rise to image and label (GBZ)."""

from dataclasses import dataclass
from math import log, pi, prod

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.label_hypothesis import HypothesisLinear
from robustbench_inv.models.plain_networks import NUM_FEATURES, convolutions
from robustbench_inv.models.stochastic import LatentSamplingNetwork
from robustbench_inv.tensors import flatten

__all__ = ["GBZ", "Posterior"]


@dataclass(frozen=True)
class Posterior:
    """q(z|x, y), a Gaussian for each of n images and L classes: mean and log-deviation, each (n, L, dimensions)."""

    mean: Tensor
    log_deviation: Tensor

    def of(self, labels: Tensor) -> "Posterior":
        """Return that of one class for each image, (n,); L = 1."""
        rows = torch.arange(len(labels), device=labels.device)
        return Posterior(
            self.mean[rows, labels][:, None], self.log_deviation[rows, labels][:, None]
        )


class GBZ(LatentSamplingNetwork):
    """p(x, y, z) = p(z) p(x|z) p(y|z): the logits are estimates of log p(x, y) in nats for every class y.

    z ~ N(0, I); p(x|z) is a Gaussian around a decoded image, p(y|z) a softmax. With
    z_1 … z_K drawn from a learned q(z|x, y),

        log p(x, y) ≈ log 1/K Σ_k p(z_k) p(x|z_k) p(y|z_k) / q(z_k|x, y),

    which lies below log p(x, y) in the mean and comes to it as K grows. The classes share their standard normal draws,
    so that they differ by what they are and not by luck. Called on images alone it takes the mean of q for z.

    Maps (n, 1, 28, 28) in [0, 1] to (n, C).

    Args:
        num_classes: C.
        dimensions: of z.
        variance: of each pixel under p(x|z).
        hidden: units of the hidden layers: one in q behind the convolutions, two each in p(x|z) and p(y|z).

    References:
        Li, Bradshaw and Sharma, Are generative classifiers more robust to adversarial attacks?, ICML 2019; their
        code, deepgenerativeclassifier/DeepBayes, says that GBZ is p(z) p(x|z) p(y|z), and judges images by −‖x − μ‖².
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016, equation 8.
    """

    default_draws = 10
    shape = (1, 28, 28)

    def __init__(
        self,
        num_classes: int = 10,
        dimensions: int = 64,
        hidden: int = 256,
        variance: float = 0.5,
    ) -> None:
        super().__init__()
        if not variance > 0:
            raise BadParameter("unusable variance", got=variance, expected="> 0")
        self.variance = variance
        self.num_classes, self.latent_shape = num_classes, (dimensions,)
        self.features = convolutions()
        self.guess = HypothesisLinear(NUM_FEATURES, num_classes, hidden)
        self.infer = nn.Sequential(nn.ReLU(), nn.Linear(hidden, 2 * dimensions))
        self.draw = nn.Sequential(_perceptron(dimensions, hidden, prod(self.shape)), nn.Sigmoid())
        self.judge = _perceptron(dimensions, hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        posterior = self.posterior(images)
        return self.log_weights(images, posterior, torch.zeros_like(posterior.mean))

    def averaged_logits(self, images: Tensor, latent: Tensor) -> Tensor:
        posterior = self.posterior(images)
        # draw by draw: all decoded images at once are too large for the processor's caches
        each = [self.log_weights(images, posterior, draws[:, None]) for draws in latent]
        return torch.stack(each).logsumexp(0) - log(len(latent))

    def posterior(self, images: Tensor) -> Posterior:
        """Return q(z|x, y) of (n, 1, 28, 28) images for every class y."""
        mean, log_deviation = self.infer(self.guess(self.features(images))).chunk(2, -1)
        return Posterior(mean.to(images.dtype), log_deviation.to(images.dtype))

    def log_weights(
        self,
        images: Tensor,
        posterior: Posterior,
        draws: Tensor,
        labels: Tensor | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """Return log p(z) p(x|z) p(y|z) / q(z|x, y) at z = mean + deviation · draw, (n, L).

        Args:
            images: (n, 1, 28, 28) x.
            posterior: q for L classes y.
            draws: standard normal, (n, L, dimensions) or (n, 1, dimensions).
            labels: (n, L) the classes y; None for all in order.
            rate: weight of log p(z) / q(z|x, y), other than 1 in training only.
        """
        code = posterior.mean + posterior.log_deviation.exp() * draws
        # what p(z) and q have in common, (2π)^(−dimensions/2), is left out of both
        prior = -code.square().sum(-1) / 2
        proposal = -draws.square().sum(-1) / 2 - posterior.log_deviation.sum(-1)
        evidence = self._of_image(images, code) + self._of_label(code, labels)
        return evidence + rate * (prior - proposal)

    def _of_image(self, images: Tensor, code: Tensor) -> Tensor:
        """Return log p(x|z), (n, L)."""
        decoded: Tensor = self.draw(code).to(images.dtype)
        squares = (flatten(images)[:, None] - decoded).square().sum(-1)
        return -squares / (2 * self.variance) - prod(self.shape) * log(2 * pi * self.variance) / 2

    def _of_label(self, code: Tensor, labels: Tensor | None) -> Tensor:
        """Return log p(y|z), (n, L)."""
        told: Tensor = self.judge(code).to(code.dtype).log_softmax(-1)
        if labels is None:
            labels = torch.arange(self.num_classes, device=code.device).expand(told.shape[:2])
        return told.gather(2, labels[..., None])[..., 0]


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return three linear layers with ReLU between, which keep the scale of their input.

    Torch's own initialisation shrinks it tenfold: decoded images all look alike, and z is not used for long.
    """
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
