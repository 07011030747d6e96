"""Small per-sample tensor functions that every layer shares, and the output of a classifier."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NORMS", "Output", "broadcast", "flatten", "margin", "norm", "slopes_of", "where_rows"]

NORMS = ("l0", "l1", "l2", "linf")


@dataclass(frozen=True)
class Output:
    """The answer of a classifier to a batch.

    Args:
        logits: (n, classes) unnormalised class scores.
        score: (n,) higher means more in-distribution, or None.
        accepted: (n,) booleans, or None for a model that never rejects.
    """

    logits: Tensor
    score: Tensor | None = None
    accepted: Tensor | None = None

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
        )

    def detach(self) -> "Output":
        """Return the same output without its graph."""
        score = None if self.score is None else self.score.detach()
        return Output(self.logits.detach(), score, self.accepted)


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
    order = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}[name]
    result: Tensor = torch.linalg.vector_norm(flat, ord=order, dim=1)
    return result


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return (n, …) with the rows of ``new`` where the mask (n,) holds, else those of ``old``."""
    return torch.where(broadcast(mask, old), new, old)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{j≠y} z_j − z_y for each sample, (n,): positive when misclassified.

    The true class is masked with −inf, so that all-negative and huge logits are right (check C9).
    """
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.max(1).values - true[:, 0]


def slopes_of(values: Tensor, images: Tensor, *, again: bool = False) -> Tensor:
    """Return the gradient of each sample's value, (n, …), zero where no graph leads back to the images (check C6).

    Args:
        values: (n,), each of its own image alone.
        images: (n, …) that require a gradient.
        again: keep the graph for another call.
    """
    if not values.requires_grad:
        return torch.zeros_like(images)
    (slopes,) = torch.autograd.grad(
        values.sum(), images, retain_graph=again, allow_unused=True, materialize_grads=True
    )
    return slopes
