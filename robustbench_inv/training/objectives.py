"""What a training minimises: one class for each objective, its fields its coefficients."""

from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.randomness import Noise

__all__ = ["CrossEntropy", "DonskerVaradhan", "InformationBottleneck", "Objective"]


class Objective(Protocol):
    """A loss of one training batch."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the logits (n, C) that the training accuracy is read from.

        Args:
            model: the network in training mode.
            images: (n, …) inputs.
            labels: (n,) classes.
            noise: the samples' random numbers of this epoch.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """−log softmax(z)_y, the mean over the batch."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return cross_entropy(logits, labels), logits


@dataclass(frozen=True)
class DonskerVaradhan:
    """−(E_J[T] − log E_M[exp T]), M being all samples of the batch with all labels (C-DV).

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equation 4.
    """

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        values = model(images)
        joint = values.gather(1, labels[:, None]).mean()
        marginal = values.flatten().logsumexp(0) - log(values.numel())
        return marginal - joint, values


@dataclass(frozen=True)
class InformationBottleneck:
    """CE(q(y|z), y) + β KL(p(z|x) ‖ N(0, I)) in nats, with one draw of z for each sample.

    Args:
        beta: weight of the rate, in nats for each nat.

    References:
        Alemi et al., Deep variational information bottleneck, ICLR 2017, equation 17.
    """

    beta: float = 1e-3

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(model, BottleneckCNN)
        mean, deviation = model.encode(images)
        latent = noise.normal((model.code,), dtype=mean.dtype)
        logits = model.decoder(mean + deviation * latent)
        rate = (mean**2 + deviation**2 - 1) / 2 - torch.log(deviation)
        return cross_entropy(logits, labels) + self.beta * rate.sum(1).mean(), logits
