"""Information elimination: what a hypothesis net knows of x, given the guess, should not tell whether the guess is right."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.label_hypothesis import LabelHypothesisNet
from robustbench_inv.training.objectives import (
    ConvexConjugate,
    DonskerVaradhan,
    EnergyBased,
    ScoreObjective,
    TrainingBatch,
)

__all__ = ["BOUND_OBJECTIVES", "InformationElimination", "hypothesis_mmd2", "mmd2"]

BOUND_OBJECTIVES: dict[str, ScoreObjective] = {
    "donsker-varadhan": DonskerVaradhan(),
    "energy": EnergyBased(),
    "js": ConvexConjugate("js"),
    "kl": ConvexConjugate("kl"),
}
"""The bounds of mutual information that a hypothesis net can be trained on, by name."""

RAMP = 0.2
"""Share of the training over which the coefficient rises to its value. At once, it is met before anything is
learnt, by a layer of which less than 1 % is awake after 20 steps and that never wakes up."""

MEDIAN_STRIDE = 5
"""Of a batch's samples every fifth is enough for a median distance."""


@dataclass(frozen=True)
class InformationElimination:
    """A bound plus coefficient × Σ_k MMD²(h(x, k) for y = k, h(x, k) for y ≠ k), h the second fully connected layer.

    The gradient of the MMD term reaches the first and the second fully connected layer alone, as in the
    paper: what the convolutions see of x stays as informative as the bound wants it.

    Args:
        bound: a name of BOUND_OBJECTIVES.
        coefficient: weight of the MMD term, >= 0.
        width: σ of the kernel exp(−‖a − b‖² / 2σ²), > 0; None for the median distance of the layer's outputs in
            the batch, under each hypothesis. Against a fixed width the layer shrinks instead of forgetting.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, section 2.3, equation 7, Algorithm 1 and Appendix F.
    """

    bound: str
    coefficient: float
    width: float | None = None

    def __post_init__(self) -> None:
        if self.bound not in BOUND_OBJECTIVES:
            expected = "one of " + ", ".join(BOUND_OBJECTIVES)
            raise BadParameter("unknown bound", got=self.bound, expected=expected)
        if not (self.coefficient >= 0 and (self.width is None or self.width > 0)):
            got = f"coefficient {self.coefficient}, width {self.width}"
            raise BadParameter("unusable regulariser", got=got, expected=">= 0 and > 0")

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, LabelHypothesisNet)
        features = model.features(batch.images)
        scores = model.judge(model.hidden_of(features))[..., 0].float()
        loss = BOUND_OBJECTIVES[self.bound].score_loss(scores, batch.labels)
        coefficient = self.coefficient * min(1.0, batch.progress / RAMP)
        if coefficient > 0:
            hidden = model.hidden_of(features.detach())
            loss = loss + coefficient * hypothesis_mmd2(hidden, batch.labels, self.width).sum()
        return loss, scores


def hypothesis_mmd2(hidden: Tensor, labels: Tensor, width: float | None) -> Tensor:
    """Return MMD² between right and wrong guesses for each hypothesis, (C,).

    With P_k the samples of class k and Q_k all others, and weights w = 1/|P_k| on the ones and −1/|Q_k| on the
    others, equation 7 is the quadratic form wᵀ K w. It is 0 for a class that the batch lacks.

    Args:
        hidden: (n, C, d) a layer's outputs under every hypothesis.
        labels: (n,) classes.
        width: σ of the Gaussian kernel; None for the median distance under each hypothesis.
    """
    right = one_hot(labels, hidden.shape[1]).T.to(torch.float32)
    counts = right.sum(1, keepdim=True)
    weights = right / counts.clamp_min(1) - (1 - right) / (len(labels) - counts).clamp_min(1)
    weights = weights * ((counts > 0) & (counts < len(labels)))
    kernel = _gaussian_kernel(hidden.transpose(0, 1).float(), width)
    return torch.einsum("ki,kij,kj->k", weights, kernel, weights)


def mmd2(first: Tensor, second: Tensor, width: float) -> Tensor:
    """Return MMD² of two samples under a Gaussian kernel: mean k(x, x') + mean k(y, y') − 2 mean k(x, y).

    Every mean is over all pairs, a sample with itself included: the squared distance of the two mean
    embeddings, never negative, and above 0 for two finite draws of one distribution.

    Args:
        first: (m, d).
        second: (n, d).
        width: σ of the kernel.

    References:
        Gretton et al., A kernel two-sample test, JMLR 13, 2012, equation 5; Guess First, equation 7.
    """
    labels = torch.arange(2, device=first.device).repeat_interleave(
        torch.tensor([len(first), len(second)], device=first.device)
    )
    both = torch.cat([first, second])[:, None].expand(-1, 2, -1)
    return hypothesis_mmd2(both, labels, width)[0]


def _gaussian_kernel(vectors: Tensor, width: float | None) -> Tensor:
    """Return (b, n, n) of vectors (b, n, d), in full precision whatever surrounds it."""
    with torch.autocast(vectors.device.type, enabled=False):
        squares = (vectors**2).sum(-1)
        products = vectors @ vectors.transpose(1, 2)
        distances = (squares[:, :, None] + squares[:, None] - 2 * products).clamp_min(0)
        variance = _median(distances) if width is None else torch.as_tensor(width**2)
        return torch.exp(-distances / (2 * variance))


def _median(distances: Tensor) -> Tensor:
    """Return (b, 1, 1), the median of (b, n, n) squared distances over every fifth row and column, no graph."""
    some = distances.detach()[:, ::MEDIAN_STRIDE, ::MEDIAN_STRIDE].flatten(1)
    return some.median(1).values.clamp_min(torch.finfo(distances.dtype).eps)[:, None, None]
