"""What networks with a likelihood of the input minimise: minus that of the true class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_inv.models.deep_bayes import GBZ
from robustbench_inv.randomness import Noise

__all__ = ["ClassLikelihood", "EvidenceBound"]


@dataclass(frozen=True)
class ClassLikelihood:
    """−log p(x|y) / d − γ log p(y|x), all classes equally likely beforehand, of a network whose logits are log p(x|y).

    p(y|x) is the softmax of the logits. Likelihood alone hardly cares for it: what tells classes apart is a few
    nats of thousands.

    Args:
        classification: γ, for likelihoods in nats for each of the d elements of an input.

    References:
        Kingma and Dhariwal, Glow, NeurIPS 2018, section 2; Fetaya et al., Understanding the limitations of
        conditional generative models, ICLR 2020, on what likelihood alone leaves of classification.
    """

    classification: float = 0.0

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        likelihoods = model(images).float()
        unlikely = -likelihoods.gather(1, labels[:, None]).mean() / images[0].numel()
        return unlikely + self.classification * cross_entropy(likelihoods, labels), likelihoods


@dataclass(frozen=True)
class EvidenceBound:
    """−E_q[log p(x|z) + log p(y|z) + β log p(z)/q(z|x, y)] of the true class, in nats, with one draw of z for each sample.

    β is 1 but for the beginning, over which it rises from 0: else q is p(z) at first (for 600 steps and more on MNIST),
    because the little that z can say of an image then is worth less than it costs.

    Args:
        warm_up: share of the training over which β rises.

    References:
        Li, Bradshaw and Sharma, Are generative classifiers more robust to adversarial attacks?, ICML 2019;
        Sønderby et al., Ladder variational autoencoders, NIPS 2016, for the warm-up.
    """

    warm_up: float = 0.1

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(model, GBZ)
        posterior = model.posterior(images)
        draws = noise.normal(model.latent_shape, dtype=images.dtype)[:, None]
        rate = min(1.0, progress / self.warm_up) if self.warm_up else 1.0
        bound = model.log_weights(images, posterior.of(labels), draws, labels[:, None], rate)
        with torch.no_grad():
            every = model.log_weights(images, posterior, torch.zeros_like(posterior.mean))
        return -bound.mean(), every
