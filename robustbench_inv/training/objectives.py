"""What a training minimises: one class for each objective, its fields its coefficients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.randomness import Noise

__all__ = [
    "CONJUGATES",
    "Adapts",
    "ConvexConjugate",
    "CrossEntropy",
    "DonskerVaradhan",
    "EnergyBased",
    "InformationBottleneck",
    "Learns",
    "Objective",
    "OfScores",
    "TrainingData",
]


class Objective(Protocol):
    """A loss of one training batch."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the logits (n, C) that the training accuracy is read from.

        Args:
            model: the network in training mode.
            images: (n, …) inputs.
            labels: (n,) classes.
            noise: the samples' random numbers of this epoch.
            progress: share of the training that is done, 0 to 1, for what is to set in slowly.
        """
        ...


@dataclass(frozen=True)
class TrainingData:
    """The training samples: ids (N,), images (N, …) inside the model's bounds, labels (N,)."""

    ids: Tensor
    images: Tensor
    labels: Tensor


@runtime_checkable
class Adapts(Protocol):
    """An objective that prepares the network, or learns something of its own while it is minimised."""

    def begin(self, model: nn.Module, data: TrainingData, *, fresh: bool) -> None:
        """Prepare network and objective before the optimiser is made.

        Args:
            model: the network, as initialised.
            data: the training samples.
            fresh: False if a checkpoint will be loaded afterwards.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold besides the network, by name."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned."""
        ...


@runtime_checkable
class Learns(Protocol):
    """An objective with weights of its own that are minimised along with the network's, by the same optimiser."""

    def parameters(self) -> Iterable[nn.Parameter]: ...


class OfScores(ABC):
    """An objective that looks at the network's outputs (n, C) alone, so that others can build on it."""

    @abstractmethod
    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of scores (n, C) and classes (n,)."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        scores = model(images).float()  # a loss is a difference of near numbers: bfloat16 loses it
        return self.of_scores(scores, labels), scores


@dataclass(frozen=True)
class CrossEntropy(OfScores):
    """−log softmax(z)_y, the mean over the batch."""

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(scores, labels)


@dataclass(frozen=True)
class EnergyBased(OfScores):
    """−(E_J[T] − E_{p(x)} log E_{p(y)} exp T), every label with the same probability.

    Up to log C it is the cross-entropy of the logits T.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equations 5 and 6.
    """

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        joint = scores.gather(1, labels[:, None]).mean()
        return (scores.logsumexp(1) - log(scores.shape[1])).mean() - joint


@dataclass(frozen=True)
class DonskerVaradhan(OfScores):
    """−(E_J[T] − log E_M[exp T]), M being all samples of the batch with all labels (C-DV).

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equation 4.
    """

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        joint = scores.gather(1, labels[:, None]).mean()
        marginal = scores.flatten().logsumexp(0) - log(scores.numel())
        return marginal - joint


CONJUGATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # name: (g, f* ∘ g), g mapping the network's output T into the domain of the conjugate f*
    "js": (lambda t: log(2) - softplus(-t), lambda t: softplus(t) - log(2)),
    "kl": (lambda t: t, lambda t: torch.exp(t - 1)),
    "reverse-kl": (lambda t: -torch.exp(-t), lambda t: t - 1),
    "pearson": (lambda t: t, lambda t: t**2 / 4 + t),
}
"""f-divergences by name (Nowozin, Cseke and Tomioka, f-GAN, NeurIPS 2016, tables 2 and 6)."""


@dataclass(frozen=True)
class ConvexConjugate(OfScores):
    """−(E_J[g(T)] − E_M[f*(g(T))]), M being all samples of the batch with all labels (C-JS with ``js``).

    For ``js`` it is, up to 2 log 2, −(E_J[log σ(T)] + E_M[log(1 − σ(T))]).

    Args:
        divergence: a name of CONJUGATES.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equations 1 and 2.
    """

    divergence: str = "js"

    def __post_init__(self) -> None:
        if self.divergence not in CONJUGATES:
            expected = "one of " + ", ".join(CONJUGATES)
            raise BadParameter("unknown divergence", got=self.divergence, expected=expected)

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        inside, conjugate = CONJUGATES[self.divergence]
        joint = inside(scores.gather(1, labels[:, None])).mean()
        return conjugate(scores).mean() - joint


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
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(model, BottleneckCNN)
        mean, deviation = model.encode(images)
        latent = noise.normal((model.code,), dtype=mean.dtype)
        logits = model.decoder(mean + deviation * latent).float()
        rate = (mean**2 + deviation**2 - 1) / 2 - torch.log(deviation)
        return cross_entropy(logits, labels) + self.beta * rate.sum(1).mean(), logits
