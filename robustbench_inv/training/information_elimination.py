"""Information elimination: hidden features of a hypothesis should not reveal whether the hypothesis is correct."""

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
"""Bounds of mutual information for training label-hypothesis networks, by name."""

RAMP = 0.2
"""Fraction of the training over which the coefficient rises to its value. With the full coefficient from the start,
less than 1 % of the layer's units are active after 20 steps, and they stay inactive."""

MEDIAN_STRIDE = 5
"""The median distance is computed from every fifth sample of a batch."""


@dataclass(frozen=True)
class InformationElimination:
    """A bound plus coefficient × Σ_k MMD²(h(x, k) for y = k, h(x, k) for y ≠ k), h the second fully connected layer.

    As in the paper, the MMD term has a gradient only for the first and second fully connected layer, not for the
    convolutions.

    Args:
        bound: a name of BOUND_OBJECTIVES.
        coefficient: weight of the MMD term, >= 0.
        width: σ of the kernel exp(−‖a − b‖² / 2σ²), > 0. None uses the median distance of the layer's outputs in
            the batch, for each hypothesis; with a fixed width the layer can lower the term by shrinking its outputs.

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
            expected = "coefficient >= 0 and width > 0"
            raise BadParameter("invalid regulariser", got=got, expected=expected)

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
    """Return MMD² between correct and incorrect hypotheses, for each hypothesis, (C,).

    P_k are the samples of class k, Q_k all others, with weights w = 1/|P_k| on P_k and −1/|Q_k| on Q_k. Then
    equation 7 is the quadratic form wᵀ K w. It is 0 for a class without samples.

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

    The means are over all pairs, including each point with itself. The result is the squared distance of the mean
    embeddings: never negative, and positive even for two finite samples of one distribution.

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
    """Return the kernel matrices (b, n, n) of vectors (b, n, d), in full precision even under autocast."""
    with torch.autocast(vectors.device.type, enabled=False):
        squares = (vectors**2).sum(-1)
        products = vectors @ vectors.transpose(1, 2)
        distances = (squares[:, :, None] + squares[:, None] - 2 * products).clamp_min(0)
        variance = _median(distances) if width is None else torch.as_tensor(width**2)
        return torch.exp(-distances / (2 * variance))


def _median(distances: Tensor) -> Tensor:
    """Return the median (b, 1, 1) of squared distances (b, n, n) over every fifth row and column, without gradient."""
    some = distances.detach()[:, ::MEDIAN_STRIDE, ::MEDIAN_STRIDE].flatten(1)
    return some.median(1).values.clamp_min(torch.finfo(distances.dtype).eps)[:, None, None]
