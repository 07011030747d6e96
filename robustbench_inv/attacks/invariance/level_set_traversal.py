"""Level set traversal: a walk from an input to an image of another class, along which the prediction stays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.invariance.ball import Alignment, closest_of
from robustbench_inv.attacks.invariance.donors import check_rule, choose_donors, required_pool
from robustbench_inv.attacks.parameters import check_least, check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import (
    NORMS,
    Output,
    broadcast,
    flatten,
    mask_true_class,
    norm,
    where_rows,
)
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["LevelSetTraversal"]

ALIGNED = "aligned"
"""Rule for donors: images of the closest other classes, rotated and shifted (``ball.Alignment``)."""


@dataclass(frozen=True)
class LevelSetTraversal:
    """Walks from x toward a donor orthogonally to the gradient of the loss, while the confidence stays.

    Each step moves by ``rate`` of the way to the donor, without its component along the gradient g of the
    cross-entropy of x's prediction. A second component, the running sum of −``push`` · g clipped to ±``push`` in each
    element, keeps the confidence; lengths and gradients in it are those of inputs scaled to a box of width 1. A step is made if the softmax probability of the prediction stays within ``drop``
    of that of x, the prediction stays, and a model with a reject option still accepts the input.

    Logged for each sample: ``donor`` and ``donor_label`` of the returned walk, and ``remaining_distance``, the l2
    distance of its end from the donor, relative to that of x.

    Args:
        donor: rule for donors: one of ``donors.RULES``, or ``aligned``.
        donors: number of donors tried for each sample, >= 1; the walk that ends closest to its donor is returned.
        steps: m, number of steps, >= 1.
        rate: η, share of the remaining way of each step, above 0, at most 1.
        push: ε, bound of the component that keeps the confidence, relative to the width of the bounds, > 0.
        drop: δ, largest drop of the confidence, above 0, at most 1.

    References:
        Balasubramanian, Sriramanan, Sadasivan and Feizi, Exploring geometry of blind spots in vision models, NeurIPS
        2023, algorithm 1. The defaults are those of the published code.
    """

    donor: str = "other-class"
    donors: int = 1
    steps: int = 100
    rate: float = 0.05
    push: float = 1 / 255
    drop: float = 0.05

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        if self.donor != ALIGNED:
            check_rule(self.donor)
        check_least(self, donors=1, steps=1)
        check_positive(self, "rate", "push", "drop")
        for name in ("rate", "drop"):
            if getattr(self, name) > 1:
                raise BadParameter(
                    f"unusable {name}", got=getattr(self, name), expected="at most 1"
                )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        best, least = (
            batch.images.clone(),
            torch.full_like(batch.labels, torch.inf, dtype=model.dtype),
        )
        chosen = torch.full((2, len(batch)), -1, dtype=torch.int64, device=batch.ids.device)
        for donors, about, images in self._walks(model, batch, threat, rng):
            remaining = _relative_distance(images, batch.images, donors)
            closer = (about[1] >= 0) & (remaining < least)
            best, least = where_rows(closer, images, best), remaining.where(closer, least)
            chosen = about.where(closer, chosen)
        model.report_failure((chosen[1] < 0).nonzero()[:, 0], "no_start")
        model.log("donor", chosen[0])
        model.log("donor_label", chosen[1])
        model.log("remaining_distance", least)
        return best

    def proposals(
        self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG
    ) -> Iterator[Tensor]:
        """Yield the end (n, …) of the walk to each donor, the clean input where there is none."""
        for _, about, images in self._walks(model, batch, threat, rng):
            yield where_rows(about[1] >= 0, images, batch.images)

    def _walks(
        self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield donors (n, …), their ids and labels (2, n), −1 where there is none, and the ends of the walks."""
        clean = model(batch.images)
        for donors, about in self._donors(batch, model.bounds[0], rng):
            yield donors, about, self.walk(model, batch, donors, clean, threat)

    def _donors(self, batch: Batch, low: float, rng: SampleRNG) -> Iterator[tuple[Tensor, Tensor]]:
        if self.donor == ALIGNED:  # an aligned image is no sample of the pool
            for images, labels in closest_of(*Alignment().targets(batch, low), self.donors):
                yield images, torch.stack([torch.full_like(labels, -1), labels])
            return
        pool = required_pool(batch)
        for number in range(self.donors):
            places, found = choose_donors(batch, self.donor, rng, number)
            about = torch.stack([pool.ids[places], pool.labels[places]])
            yield pool.images[places], about.where(found, -1)

    def walk(
        self, model: Queries, batch: Batch, donors: Tensor, clean: Output, threat: ThreatModel
    ) -> Tensor:
        """Return the last allowed point (n, …) of each walk to a donor; a refused step leaves the point where it is.

        The gradient at a point is computed when the step to it is tried, so each step costs one forward and one
        backward pass.

        Args:
            model: the queried model.
            batch: n samples.
            donors: (n, …) inputs to walk to.
            clean: the model's output for the clean inputs.
            threat: its budget contains the walk.
        """
        images, push = batch.images.clone(), torch.zeros_like(batch.images)
        width = model.bounds[1] - model.bounds[0]
        bound = self.push * width
        output, gradients = _log_odds(model, images, clean.decision)
        doubt, initial = _doubt(output, clean.decision), _doubt(clean, clean.decision)
        for _ in range(self.steps):
            pull = bound * width * broadcast(doubt, images) * gradients
            push = (push - pull).clamp(-bound, bound)
            step = self.rate * _orthogonal(donors - images, gradients) + push
            tried = threat.budget.project(batch.images, images + step).clamp(*model.bounds)
            output, found = _log_odds(model, tried, clean.decision)
            risen = _doubt(output, clean.decision)
            allowed = self._allowed(output, clean, risen - initial)
            images = where_rows(allowed, tried, images)
            gradients = where_rows(allowed, found, gradients)
            doubt = risen.where(allowed, doubt)
        return images

    def _allowed(self, output: Output, clean: Output, more_doubt: Tensor) -> Tensor:
        """Return (n,): do prediction and acceptance stay, and does the confidence drop by at most δ?"""
        allowed = (output.decision == clean.decision) & (more_doubt <= self.drop)
        if output.accepted is None or clean.accepted is None:
            return allowed
        return allowed & (output.accepted | ~clean.accepted)


def _odds(output: Output, classes: Tensor) -> Tensor:
    """Return log(q / (1 − q)), (n,), with q the softmax probability of all classes but ``classes`` (n,)."""
    others = mask_true_class(output.logits, classes).logsumexp(1)
    return others - output.logits.gather(1, classes[:, None])[:, 0]


def _doubt(output: Output, classes: Tensor) -> Tensor:
    """Return q, (n,): the confidence in ``classes`` is 1 − q."""
    return _odds(output, classes).sigmoid()


def _log_odds(model: Queries, images: Tensor, classes: Tensor) -> tuple[Output, Tensor]:
    """Return the output for images (n, …), and the gradients of the logarithm of the odds against ``classes``.

    The gradient of the cross-entropy is q times this one, and underflows where the softmax is saturated.
    """
    return model.gradient(images, lambda output, _labels: _odds(output, classes))


def _orthogonal(vectors: Tensor, gradients: Tensor) -> Tensor:
    """Return vectors (n, …) without their components along the gradients; unchanged where a gradient is zero."""
    size = norm(gradients, "linf").clamp_min(torch.finfo(gradients.dtype).tiny)
    unit = gradients / broadcast(size, gradients)
    squares = flatten(unit).square().sum(1).clamp_min(1)
    along = (flatten(unit) * flatten(vectors)).sum(1) / squares
    return vectors - broadcast(along, unit) * unit


def _relative_distance(images: Tensor, clean: Tensor, donors: Tensor) -> Tensor:
    """Return the l2 distance (n,) of images from the donors, relative to that of the clean inputs."""
    whole = norm(donors - clean, "l2")
    return norm(donors - images, "l2") / whole.clamp_min(torch.finfo(whole.dtype).tiny)
