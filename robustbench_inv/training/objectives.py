"""Training objectives: protocols, cross-entropy, f-divergence bounds, adversarial training and likelihoods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate, softplus

from robustbench_inv.attacks.budget_geometry import GRADIENT_NORMS, Ball
from robustbench_inv.attacks.parameters import check_least, check_positive
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.deep_bayes import GBZ
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall

__all__ = [
    "F_DIVERGENCES",
    "AdversarialCrossEntropy",
    "AugmentedCrossEntropy",
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
    "TrainingBatch",
    "TrainingData",
]


@dataclass(frozen=True)
class TrainingBatch:
    """One batch of training samples.

    Args:
        images: (n, …) inputs.
        labels: (n,) classes.
        rng: random numbers of the n samples in this epoch.
        progress: completed fraction of the training, 0 to 1, for terms that grow over the training.
    """

    images: Tensor
    labels: Tensor
    rng: SampleRNG
    progress: float = 1.0


class Objective(Protocol):
    """A training loss."""

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the logits (n, C) from which the training accuracy is computed.

        Args:
            model: the network in training mode.
            batch: the samples.
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
    """An objective that prepares the network, or has a state of its own."""

    def begin(self, model: nn.Module, data: TrainingData) -> None:
        """Prepare the network and the objective, before the optimiser is created.

        Args:
            model: the initialised network.
            data: the training samples.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the objective's tensors for a checkpoint, by name."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors that ``state`` returned."""
        ...


@runtime_checkable
class TrainableObjective(Protocol):
    """An objective with weights of its own, which the network's optimiser trains as well."""

    def parameters(self) -> Iterable[nn.Parameter]: ...


class ScoreObjective(ABC):
    """An objective that depends on the network only through its outputs (n, C)."""

    @abstractmethod
    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of scores (n, C) and classes (n,)."""

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        scores = model(
            batch.images
        ).float()  # the loss subtracts similar numbers: bfloat16 is too coarse
        return self.score_loss(scores, batch.labels), scores


@dataclass(frozen=True)
class CrossEntropy(ScoreObjective):
    """−log softmax(z)_y, averaged over the batch."""

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(scores, labels)


@dataclass(frozen=True)
class EnergyBased(ScoreObjective):
    """−(E_J[T] − E_{p(x)} log E_{p(y)} exp T) with equally likely labels.

    It equals the cross-entropy of the logits T minus log C.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equations 5 and 6.
    """

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        joint = scores.gather(1, labels[:, None]).mean()
        return (scores.logsumexp(1) - log(scores.shape[1])).mean() - joint


@dataclass(frozen=True)
class DonskerVaradhan(ScoreObjective):
    """−(E_J[T] − log E_M[exp T]) (C-DV), where M pairs all samples of the batch with all labels.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, equation 4.
    """

    def score_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        joint = scores.gather(1, labels[:, None]).mean()
        marginal = scores.flatten().logsumexp(0) - log(scores.numel())
        return marginal - joint


F_DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # name: (g, f* ∘ g), where g maps the network's output T into the domain of the conjugate f*
    "js": (lambda t: log(2) - softplus(-t), lambda t: softplus(t) - log(2)),
    "kl": (lambda t: t, lambda t: torch.exp(t - 1)),
    "reverse-kl": (lambda t: -torch.exp(-t), lambda t: t - 1),
    "pearson": (lambda t: t, lambda t: t**2 / 4 + t),
}
"""f-divergences by name (Nowozin, Cseke and Tomioka, f-GAN, NeurIPS 2016, tables 2 and 6)."""


@dataclass(frozen=True)
class ConvexConjugate(ScoreObjective):
    """−(E_J[g(T)] − E_M[f*(g(T))]), where M pairs all samples of the batch with all labels; ``js`` is C-JS.

    For ``js`` it equals −(E_J[log σ(T)] + E_M[log(1 − σ(T))]) − 2 log 2.

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
    """CE(q(y|z), y) + β KL(p(z|x) ‖ N(0, I)) in nats, with one draw of z per sample.

    Args:
        beta: β, weight of the rate KL.

    References:
        Alemi et al., Deep variational information bottleneck, ICLR 2017, equation 17.
    """

    beta: float = 1e-3

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, BottleneckCNN)
        mean, deviation = model.encode(batch.images)
        latent = batch.rng.normal((model.code,), dtype=mean.dtype)
        logits = model.decoder(mean + deviation * latent).float()
        rate = (mean**2 + deviation**2 - 1) / 2 - torch.log(deviation)
        return cross_entropy(logits, batch.labels) + self.beta * rate.sum(1).mean(), logits


@dataclass(frozen=True)
class AdversarialCrossEntropy:
    """max over ‖x′ − x‖ ≤ eps of −log softmax(z(x′))_y, where projected gradient descent finds the maximum.

    The attack uses the network in evaluation mode, so that batch statistics are those of the training inputs.

    Args:
        eps: radius of the ball, in input units, > 0.
        norm: ``l2`` or ``linf``.
        steps: gradient steps of the attack, >= 1, from a random point of the ball.
        rel_step: step size relative to eps, > 0.
        ramp: fraction of the training over which eps grows from 0, in [0, 1). A network that is trained on the
            whole ball from the start may keep predicting one class.

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

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        reached = min(batch.progress / self.ramp, 1) if self.ramp else 1
        bounds: tuple[float, float] = model.bounds  # type: ignore[assignment]
        ball = Ball(batch.images, LpBall(self.norm, reached * self.eps), bounds)
        attacked = self._attack(model.eval(), ball, batch.labels, batch.rng)
        return CrossEntropy()(model.train(), replace(batch, images=attacked))

    def _attack(self, model: nn.Module, ball: Ball, labels: Tensor, rng: SampleRNG) -> Tensor:
        def gradient(images: Tensor) -> Tensor:
            shown = images.detach().requires_grad_()
            loss = cross_entropy(model(shown).float(), labels, reduction="sum")
            return torch.autograd.grad(loss, shown)[0]

        start = ball.draw(rng.named(f"{rng.stream}/adversary"), 0)
        return ball.ascend(start, gradient, self.steps, self.rel_step)


@dataclass(frozen=True)
class AugmentedCrossEntropy:
    """Cross-entropy on images (n, 1, h, w) in [0, 1] of deformed, faded and noisy strokes.

    The changes keep the class for people, and are drawn again for each sample in each epoch.

    Args:
        deform: strength of a random affine map and of a smooth displacement; 1 rotates by at most 15 degrees.
        fade: largest loss of grey level; where strokes fade is a smooth random field.
        dots: largest share of pixels that get a random grey level.
        noise: largest amplitude of uniform noise.
        hole: side in pixels of a square that is set to 0.

    References:
        Simard, Steinkraus and Platt, Best practices for convolutional neural networks applied to visual document
        analysis, ICDAR 2003, for the displacements; DeVries and Taylor, arXiv 1708.04552, for the squares.
    """

    deform: float = 1.0
    fade: float = 0.0
    dots: float = 0.0
    noise: float = 0.0
    hole: int = 0

    def __post_init__(self) -> None:
        check_least(self, deform=0, fade=0, dots=0, noise=0, hole=0)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        images = self.augment(batch.images, batch.rng)
        return CrossEntropy()(model, replace(batch, images=images))

    def augment(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Return changed versions of images (n, 1, h, w); each change applies to a random half of them or more."""
        size, of = images.shape[1:], rng.named(f"{rng.stream}/augment")
        draw = of.uniform((16,), dtype=images.dtype)[..., None, None, None]
        if self.deform:
            images = self._deformed(images, draw[:, :7].flatten(1) * 2 - 1, of)
        if self.fade:
            field = _smooth(of.uniform((1, 5, 5), step=2, dtype=images.dtype), size)
            tone = (4 * field - 1.5).clamp(0, 1)
            images = images * (1 - self.fade * draw[:, 7] * (1 - tone))
        if self.dots:
            values = of.uniform((2, *size), step=3, dtype=images.dtype)
            images = values[:, 1].where(values[:, 0] < self.dots * draw[:, 8] ** 2, images)
        if self.noise:
            signs = of.uniform(tuple(size), step=4, dtype=images.dtype) * 2 - 1
            images = (images + self.noise * (2 * draw[:, 9] - 1).clamp_min(0) * signs).clamp(0, 1)
        return self._erased(images, draw[:, 10:12]) if self.hole else images

    def _deformed(self, images: Tensor, draw: Tensor, rng: SampleRNG) -> Tensor:
        angle, shear = 0.26 * self.deform * draw[:, 0], 0.2 * self.deform * draw[:, 1]
        wide, high = 1 + 0.15 * self.deform * draw[:, 2], 1 + 0.15 * self.deform * draw[:, 3]
        ratio = images.shape[2] / images.shape[3]  # the grid's sides have length 2 each
        x, y = (0.12 * self.deform * draw[:, k] for k in (4, 5))
        across = torch.stack([angle.cos() * wide, (shear - angle.sin() * high) * ratio, x], 1)
        down = torch.stack([angle.sin() * wide / ratio, angle.cos() * high, y], 1)
        grid = affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
        moves = _smooth(rng.normal((2, 5, 5), step=1, dtype=images.dtype), images.shape[1:])
        grid = grid + 0.05 * self.deform * moves.permute(0, 2, 3, 1)
        return grid_sample(images, grid, align_corners=False)

    def _erased(self, images: Tensor, corner: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        top, left = (corner[:, 0] * height).floor(), (corner[:, 1] * width).floor()
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < top + self.hole) & (columns >= left)
        return images.masked_fill(inside & (columns < left + self.hole), 0)


def _smooth(values: Tensor, size: Sequence[int]) -> Tensor:
    """Return coarse fields (n, c, 5, 5) at the height and width of images of shape (…, h, w)."""
    return interpolate(values, size=tuple(size[-2:]), mode="bicubic", align_corners=True)


@dataclass(frozen=True)
class ClassLikelihood:
    """−log p(x|y) / d − γ log p(y|x) for a network whose logits are log p(x|y), with equally likely classes.

    p(y|x) is the softmax of the logits. Likelihood alone hardly separates the classes: they differ by a few nats
    of thousands.

    Args:
        classification: γ, for likelihoods in nats per input element.

    References:
        Kingma and Dhariwal, Glow, NeurIPS 2018, section 2; Fetaya et al., Understanding the limitations of
        conditional generative models, ICLR 2020, on the accuracy of training by likelihood alone.
    """

    classification: float = 0.0

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        likelihoods = model(batch.images).float()
        true = likelihoods.gather(1, batch.labels[:, None]).mean()
        classification = self.classification * cross_entropy(likelihoods, batch.labels)
        return -true / batch.images[0].numel() + classification, likelihoods


@dataclass(frozen=True)
class EvidenceLowerBound:
    """−E_q[log p(x|z) + log p(y|z) + β log p(z)/q(z|x, y)] of the true class, in nats, with one draw of z per sample.

    β rises from 0 to 1 at the start of training. With β = 1 from the start, q stays at p(z) for 600 steps and more on
    MNIST, because the initial latent code costs more than it explains.

    Args:
        warm_up: fraction of the training over which β rises.

    References:
        Li, Bradshaw and Sharma, Are generative classifiers more robust to adversarial attacks?, ICML 2019;
        Sønderby et al., Ladder variational autoencoders, NIPS 2016, for the warm-up.
    """

    warm_up: float = 0.1

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, GBZ)
        images, labels = batch.images, batch.labels
        posterior = model.posterior(images)
        latent = batch.rng.normal(model.latent_shape, dtype=images.dtype)[:, None]
        beta = min(1.0, batch.progress / self.warm_up) if self.warm_up else 1.0
        bound = model.log_weights(images, posterior.of(labels), latent, labels[:, None], beta)
        with torch.no_grad():
            logits = model.log_weights(images, posterior, torch.zeros_like(posterior.mean))
        return -bound.mean(), logits
