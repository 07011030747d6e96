"""Training objectives: the protocols, cross-entropy and f-divergence bounds, adversarial training, likelihood and information-bottleneck losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from robustbench_inv.attacks.budget_geometry import GRADIENT_NORMS, Ball, steepest_direction
from robustbench_inv.attacks.parameters import check_positive
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.deep_bayes import GBZ
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall

__all__ = [
    "F_DIVERGENCES",
    "AdversarialCrossEntropy",
    "ClassLikelihood",
    "ConvexConjugate",
    "CrossEntropy",
    "DonskerVaradhan",
    "EnergyBased",
    "EvidenceLowerBound",
    "InformationBottleneck",
    "Objective",
    "ScoreObjective",
    "StatefulObjective",
    "TrainableObjective",
    "TrainingData",
]


class Objective(Protocol):
    """A loss of one training batch."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the logits (n, C) that the training accuracy is read from.

        Args:
            model: the network in training mode.
            images: (n, …) inputs.
            labels: (n,) classes.
            rng: the samples' random numbers of this epoch.
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
class StatefulObjective(Protocol):
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
class TrainableObjective(Protocol):
    """An objective with weights of its own that are minimised along with the network's, by the same optimiser."""

    def parameters(self) -> Iterable[nn.Parameter]: ...


class ScoreObjective(ABC):
    """An objective that looks at the network's outputs (n, C) alone, so that others can build on it."""

    @abstractmethod
    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of scores (n, C) and classes (n,)."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        scores = model(images).float()  # a loss is a difference of near numbers: bfloat16 loses it
        return self.score_loss(scores, labels), scores


@dataclass(frozen=True)
class CrossEntropy(ScoreObjective):
    """−log softmax(z)_y, the mean over the batch."""

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(scores, labels)


@dataclass(frozen=True)
class EnergyBased(ScoreObjective):
    """−(E_J[T] − E_{p(x)} log E_{p(y)} exp T), every label with the same probability.

    Up to log C it is the cross-entropy of the logits T.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equations 5 and 6.
    """

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        joint = scores.gather(1, labels[:, None]).mean()
        return (scores.logsumexp(1) - log(scores.shape[1])).mean() - joint


@dataclass(frozen=True)
class DonskerVaradhan(ScoreObjective):
    """−(E_J[T] − log E_M[exp T]), M being all samples of the batch with all labels (C-DV).

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equation 4.
    """

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        joint = scores.gather(1, labels[:, None]).mean()
        marginal = scores.flatten().logsumexp(0) - log(scores.numel())
        return marginal - joint


F_DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # name: (g, f* ∘ g), g mapping the network's output T into the domain of the conjugate f*
    "js": (lambda t: log(2) - softplus(-t), lambda t: softplus(t) - log(2)),
    "kl": (lambda t: t, lambda t: torch.exp(t - 1)),
    "reverse-kl": (lambda t: -torch.exp(-t), lambda t: t - 1),
    "pearson": (lambda t: t, lambda t: t**2 / 4 + t),
}
"""f-divergences by name (Nowozin, Cseke and Tomioka, f-GAN, NeurIPS 2016, tables 2 and 6)."""


@dataclass(frozen=True)
class ConvexConjugate(ScoreObjective):
    """−(E_J[g(T)] − E_M[f*(g(T))]), M being all samples of the batch with all labels (C-JS with ``js``).

    For ``js`` it is, up to 2 log 2, −(E_J[log σ(T)] + E_M[log(1 − σ(T))]).

    Args:
        divergence: a name of F_DIVERGENCES.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equations 1 and 2.
    """

    divergence: str = "js"

    def __post_init__(self) -> None:
        if self.divergence not in F_DIVERGENCES:
            expected = "one of " + ", ".join(F_DIVERGENCES)
            raise BadParameter("unknown divergence", got=self.divergence, expected=expected)

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        inside, conjugate = F_DIVERGENCES[self.divergence]
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
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(model, BottleneckCNN)
        mean, deviation = model.encode(images)
        latent = rng.normal((model.code,), dtype=mean.dtype)
        logits = model.decoder(mean + deviation * latent).float()
        rate = (mean**2 + deviation**2 - 1) / 2 - torch.log(deviation)
        return cross_entropy(logits, labels) + self.beta * rate.sum(1).mean(), logits


@dataclass(frozen=True)
class AdversarialCrossEntropy:
    """max over ‖x′ − x‖ ≤ eps of −log softmax(z(x′))_y, the maximum being what projected gradient descent finds.

    The search sees the network as it decides (evaluation mode), so that batch statistics are those of the inputs
    it is trained on.

    Args:
        eps: radius of the ball, in input units, > 0.
        norm: ``l2`` or ``linf``.
        steps: gradient steps of the search, >= 1, from a start uniform in the ball.
        rel_step: length of a step relative to eps, > 0.
        ramp: share of the training over which eps grows from 0, in [0, 1): a network that meets the whole ball
            at once may never leave the constant decision.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018, equation 2.1.
    """

    eps: float
    norm: str = "linf"
    steps: int = 7
    rel_step: float = 0.25
    ramp: float = 0.25

    def __post_init__(self) -> None:
        check_positive(self, "eps", "steps", "rel_step")
        if self.norm not in GRADIENT_NORMS:
            raise BadParameter(
                "unusable norm",
                got=self.norm,
                expected="one of " + ", ".join(sorted(GRADIENT_NORMS)),
            )
        if not 0 <= self.ramp < 1:
            raise BadParameter("unusable ramp", got=self.ramp, expected=">= 0 and < 1")

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        reached = min(progress / self.ramp, 1) if self.ramp else 1
        bounds: tuple[float, float] = model.bounds  # type: ignore[assignment]
        ball = Ball(images, LpBall(self.norm, reached * self.eps), bounds)
        worst = self._attack(model.eval(), ball, labels, rng)
        return CrossEntropy()(model.train(), worst, labels, rng)

    def _attack(self, model: nn.Module, ball: Ball, labels: Tensor, rng: SampleRNG) -> Tensor:
        images = ball.draw(rng.named(f"{rng.stream}/adversary"), 0)
        for _ in range(self.steps):
            images.requires_grad_()
            loss = cross_entropy(model(images).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images)
            step = self.rel_step * ball.eps * steepest_direction(gradient, ball.norm)
            images = ball.project(images.detach() + step)
        return images


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
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        likelihoods = model(images).float()
        negative_log_likelihood = -likelihoods.gather(1, labels[:, None]).mean() / images[0].numel()
        return negative_log_likelihood + self.classification * cross_entropy(
            likelihoods, labels
        ), likelihoods


@dataclass(frozen=True)
class EvidenceLowerBound:
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
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(model, GBZ)
        posterior = model.posterior(images)
        draws = rng.normal(model.latent_shape, dtype=images.dtype)[:, None]
        rate = min(1.0, progress / self.warm_up) if self.warm_up else 1.0
        bound = model.log_weights(images, posterior.of(labels), draws, labels[:, None], rate)
        with torch.no_grad():
            every = model.log_weights(images, posterior, torch.zeros_like(posterior.mean))
        return -bound.mean(), every
