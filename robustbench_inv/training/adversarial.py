"""Adversarial training: cross-entropy of the worst input that a few gradient steps find in a ball."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_inv.attacks.ball import NORMS, Ball, steepest
from robustbench_inv.attacks.ranges import check_positive
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import Noise
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.training.objectives import CrossEntropy

__all__ = ["AdversarialCrossEntropy"]


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
        if self.norm not in NORMS:
            raise BadParameter(
                "unusable norm", got=self.norm, expected="one of " + ", ".join(sorted(NORMS))
            )
        if not 0 <= self.ramp < 1:
            raise BadParameter("unusable ramp", got=self.ramp, expected=">= 0 and < 1")

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        reached = min(progress / self.ramp, 1) if self.ramp else 1
        bounds: tuple[float, float] = model.bounds  # type: ignore[assignment]
        ball = Ball(images, LpBall(self.norm, reached * self.eps), bounds)
        worst = self._worst(model.eval(), ball, labels, noise)
        return CrossEntropy()(model.train(), worst, labels, noise)

    def _worst(self, model: nn.Module, ball: Ball, labels: Tensor, noise: Noise) -> Tensor:
        images = ball.draw(noise.named(f"{noise.stream}/adversary"), 0)
        for _ in range(self.steps):
            images.requires_grad_()
            loss = cross_entropy(model(images).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images)
            step = self.rel_step * ball.eps * steepest(gradient, ball.norm)
            images = ball.project(images.detach() + step)
        return images
