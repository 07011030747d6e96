"""Deep Bayes: GBZ, a generative classifier whose latent variable generates image and label."""

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
    """q(z|x, y), Gaussians for n images and L classes: mean and log-deviation, each (n, L, dimensions)."""

    mean: Tensor
    log_deviation: Tensor

    def of(self, labels: Tensor) -> "Posterior":
        """Return the posterior of one class per image, labels (n,), with L = 1."""
        rows = torch.arange(len(labels), device=labels.device)
        return Posterior(
            self.mean[rows, labels][:, None], self.log_deviation[rows, labels][:, None]
        )


class GBZ(LatentSamplingNetwork):
    """p(x, y, z) = p(z) p(x|z) p(y|z): the logits are estimates of log p(x, y) in nats for every class y.

    z ~ N(0, I); p(x|z) is a Gaussian around a decoded image, p(y|z) a softmax. With
    z_1 … z_K drawn from a learned q(z|x, y),

        log p(x, y) ≈ log 1/K Σ_k p(z_k) p(x|z_k) p(y|z_k) / q(z_k|x, y),

    whose expectation is a lower bound of log p(x, y) that converges to it as K grows. All classes use the same standard
    normal draws, so that differences between classes are not due to sampling. Without draws, z is the mean of q.

    Maps (n, 1, 28, 28) in [0, 1] to (n, C).

    Args:
        num_classes: C.
        dimensions: dimension of z.
        variance: variance of each pixel under p(x|z).
        hidden: units of the hidden layers: one in q after the convolutions, two each in p(x|z) and p(y|z).

    References:
        Li, Bradshaw and Sharma, Are generative classifiers more robust to adversarial attacks?, ICML 2019. In their
        code, deepgenerativeclassifier/DeepBayes, GBZ is p(z) p(x|z) p(y|z), and log p(x|z) is −‖x − μ‖².
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
            raise BadParameter("invalid variance", got=variance, expected="> 0")
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
        # one draw at a time: the decoded images of all draws exceed the processor's caches
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
            draws: standard normal draws, (n, L, dimensions) or (n, 1, dimensions).
            labels: (n, L) the classes y; None for all classes in order.
            rate: weight of log p(z) / q(z|x, y); differs from 1 only in training.
        """
        code = posterior.mean + posterior.log_deviation.exp() * draws
        # p(z) and q have the factor (2π)^(−dimensions/2) in common, which is omitted
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
        log_probs: Tensor = self.judge(code).to(code.dtype).log_softmax(-1)
        if labels is None:
            labels = torch.arange(self.num_classes, device=code.device).expand(log_probs.shape[:2])
        return log_probs.gather(2, labels[..., None])[..., 0]


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return three linear layers with ReLU between, initialised so that they keep the scale of their input.

    Torch's default initialisation reduces the scale tenfold: decoded images are then nearly equal, and training
    ignores z for a long time.
    """
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
