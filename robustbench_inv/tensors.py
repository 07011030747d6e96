"""Small per-sample tensor functions that every layer shares, and the output of a classifier."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "NORMS",
    "SAME_ANSWER_TOLERANCE",
    "Output",
    "acceptance_margin",
    "accepted_margin",
    "blocks",
    "broadcast",
    "class_margins",
    "flatten",
    "margin",
    "mask_true_class",
    "norm",
    "per_sample_gradient",
    "relative_difference",
    "top_other_classes",
    "where_rows",
]

NORMS = ("l0", "l1", "l2", "linf")

SAME_ANSWER_TOLERANCE = 1e-4
"""Disagreement up to which answers to the same inputs count as the same: rounding in another order (check C11)."""


@dataclass(frozen=True)
class Output:
    """The answer of a classifier to a batch.

    Args:
        logits: (n, classes) unnormalised class scores.
        score: (n,) higher means more in-distribution, or None.
        accepted: (n,) booleans, or None for a model that never rejects.
        clearance: (n, classes) how far the score of each class, if it were the decision, lies above its
            threshold: what an adaptive attack climbs. None where the model does not say, or never rejects.
    """

    logits: Tensor
    score: Tensor | None = None
    accepted: Tensor | None = None
    clearance: Tensor | None = None

    @property
    def decision(self) -> Tensor:
        """(n,) int64: the class of the largest logit, even when the input is rejected."""
        return self.logits.argmax(1)

    def __getitem__(self, rows: Tensor) -> "Output":
        """Return the output of a subset of the batch."""
        return Output(
            self.logits[rows],
            None if self.score is None else self.score[rows],
            None if self.accepted is None else self.accepted[rows],
            None if self.clearance is None else self.clearance[rows],
        )

    def detach(self) -> "Output":
        """Return the same output without its graph."""
        score = None if self.score is None else self.score.detach()
        clearance = None if self.clearance is None else self.clearance.detach()
        return Output(self.logits.detach(), score, self.accepted, clearance)


def blocks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return consecutive parts of a tensor along its first dimension, each of at most ``size`` rows.

    Example:
        >>> [block.tolist() for block in blocks(torch.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    parts: tuple[Tensor, ...] = rows.split(size)  # type: ignore[no-untyped-call]
    return parts


def flatten(images: Tensor) -> Tensor:
    """Return (n, d) from (n, …); n may be 0."""
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))


def broadcast(values: Tensor, images: Tensor) -> Tensor:
    """Return per-sample values (n,) shaped (n, 1, …) so that they multiply images (n, …)."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def norm(perturbation: Tensor, name: str) -> Tensor:
    """Return the norm of each sample's perturbation over all its elements.

    Args:
        perturbation: (n, …).
        name: one of ``l0`` (number of non-zero elements), ``l1``, ``l2``, ``linf``.

    Returns:
        (n,), in the dtype of the perturbation.
    """
    flat = flatten(perturbation)
    if name == "l0":
        return (flat != 0).sum(1).to(flat.dtype)
    if name == "linf":  # vector_norm takes twelve times as long
        return flat.abs().amax(1)
    result: Tensor = torch.linalg.vector_norm(flat, ord={"l1": 1.0, "l2": 2.0}[name], dim=1)
    return result


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return (n, …) with the rows of ``new`` where the mask (n,) holds, else those of ``old``."""
    return torch.where(broadcast(mask, old), new, old)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{j≠y} z_j − z_y for each sample, (n,): positive when misclassified.

    The true class is masked with −inf, so that all-negative and huge logits are right (check C9).
    """
    true = logits.gather(1, labels[:, None])
    return mask_true_class(logits, labels).max(1).values - true[:, 0]


def mask_true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (n, classes) with −inf for the true class of each sample (check C9)."""
    return logits.scatter(1, labels[:, None], float("-inf"))


def top_other_classes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the classes besides the true one with the largest logits, (n, at most count), the largest first."""
    most = min(count, logits.shape[1] - 1)
    return mask_true_class(logits, labels).topk(most, dim=1).indices


def class_margins(logits: Tensor) -> Tensor:
    """Return by how much each class is ahead of the best other one, (n, classes): positive for the decision alone.

    Example:
        >>> class_margins(torch.tensor([[1.0, 4.0, 2.0]])).tolist()
        [[-3.0, 2.0, -2.0]]
    """
    best = logits.topk(2).values
    first, second = best[:, :1], best[:, 1:]
    return (logits - first).scatter(1, logits.argmax(1, keepdim=True), first - second)


def accepted_margin(output: Output, labels: Tensor) -> Tensor:
    """Return the best of the other classes j by min(lead of j, clearance of j), (n,).

    It is positive exactly when the decision is wrong and accepted: only the decision has a positive lead.
    A model that rejects without saying how far it is from its threshold has a margin of 0 at most where it rejects.
    """
    if output.clearance is None:
        wrong = margin(output.logits, labels)
        return (
            wrong if output.accepted is None else wrong.clamp_max(0).where(~output.accepted, wrong)
        )
    worth = torch.minimum(class_margins(output.logits), output.clearance)
    return worth.scatter(1, labels[:, None], float("-inf")).max(1).values


def acceptance_margin(output: Output) -> Tensor:
    """Return the best of all classes j by min(lead of j, clearance of j), (n,): positive exactly when accepted.

    Of a model that does not say how far it is from its threshold it is the lead of the decision, negative where rejected.
    """
    lead = class_margins(output.logits)
    if output.clearance is not None:
        return torch.minimum(lead, output.clearance).max(1).values
    ahead = lead.max(1).values
    return ahead if output.accepted is None else (-ahead).where(~output.accepted, ahead)


def relative_difference(logits: Tensor, again: Tensor) -> float:
    """Return the largest difference between two answers to the same inputs, as a share of the largest logit.

    Example:
        >>> relative_difference(torch.tensor([[0.0, -4.0]]), torch.tensor([[0.0, -3.0]]))
        0.25
    """
    apart, size = float((logits - again).abs().max()), float(logits.abs().max())
    if apart == 0:
        return 0.0
    return apart / size if size else math.inf


def per_sample_gradient(values: Tensor, images: Tensor, *, again: bool = False) -> Tensor:
    """Return the gradient of each sample's value, (n, …), zero where no graph leads back to the images (check C6).

    Args:
        values: (n,), each of its own image alone.
        images: (n, …) that require a gradient.
        again: keep the graph for another call.
    """
    if not values.requires_grad:
        return torch.zeros_like(images)
    (gradients,) = torch.autograd.grad(
        values.sum(), images, retain_graph=again, allow_unused=True, materialize_grads=True
    )
    return gradients
