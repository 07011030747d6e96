"""A model linearized at an image: distances to its decision boundaries, and losses scaled by them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.protocol import Loss, Queries
from robustbench_inv.tensors import (
    Output,
    flatten,
    norm,
    per_sample_gradient,
    top_other_classes,
    where_rows,
)
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Linearization", "distance_scaled_loss", "linear_distance", "linearize", "max_distance"]


DUAL = {"l1": "linf", "l2": "l2", "linf": "l1"}


@dataclass(frozen=True)
class Linearization:
    """The boundaries to the rivals of the true class about m images; if the goal is a certain class, to that.

    Args:
        output: the model's answer.
        classes: (m, k) classes; (m, 0) if the goal is a certain class, whose one boundary is to all others.
        gaps: (m, k) how far the logit of each rival is below that of the true class.
        distances: (m, k) of the boundaries, 0 or less where they are behind.
        gradient: (m, …) gradient with which the gap to the nearest boundary closes.
    """

    output: Output
    classes: Tensor
    gaps: Tensor
    distances: Tensor
    gradient: Tensor

    def nearest(self, count: int) -> Tensor:
        """Return the rivals of the nearest boundaries, (m, at most count)."""
        count = min(count, self.classes.shape[1])
        return self.classes.gather(1, self.distances.topk(count, dim=1, largest=False).indices)

    @property
    def rates(self) -> Tensor:
        """(m, classes): how fast each logit's gap closes with the distance from the image.

        Classes that were not looked at close as fast as the others do on average.
        """
        if not self.classes.shape[1]:
            return torch.ones_like(self.output.logits)
        rates = self.gaps / self.distances
        known = (rates > 0) & rates.isfinite()
        usual = rates.where(known, torch.nan).nanmean(1, keepdim=True).nan_to_num(1.0)
        rates = rates.where(known, usual)
        return usual.expand_as(self.output.logits).scatter(1, self.classes, rates)


def distance_scaled_loss(loss: Loss, rates: Tensor) -> Loss:
    """Return a loss that sees the gaps between logits as distances.

    What climbs towards the largest logit then climbs towards the nearest boundary.

    Args:
        loss: of logits.
        rates: (m, classes), of ``Linearization``, for the m samples that it will be asked about.
    """

    def of_distances(output: Output, labels: Tensor) -> Tensor:
        true = output.logits.gather(1, labels[:, None])
        clearance = None if output.clearance is None else output.clearance / rates
        scaled = Output((output.logits - true) / rates, None, output.accepted, clearance)
        return loss(scaled, labels)

    return of_distances


def linearize(
    model: Queries,
    threat: ThreatModel,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    classes: Tensor | int,
) -> Linearization:
    """Return the boundaries about some images: one pass, and one back for each rival.

    Args:
        model: answers, with its graph.
        threat: its goal says what a rival is, its norm what is near.
        images: (m, …).
        labels: (m,) true classes.
        rows: (m,) positions of the samples.
        classes: (m, k) classes, or how many of those with the largest logits.

    References:
        Moosavi-Dezfooli, Fawzi and Frossard, DeepFool, CVPR 2016, algorithm 2, and what it
        becomes in other norms.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        output = model.differentiable(images, rows)
        classes, margins = _margins(output, labels, threat, classes)
        gaps, name, width = -margins.detach(), threat.norm, model.bounds[1] - model.bounds[0]
        distances, nearest = torch.full_like(gaps, torch.inf), torch.zeros_like(images)
        for column in range(gaps.shape[1]):
            gradient = per_sample_gradient(margins[:, column], images, again=True)
            distance = linear_distance(gaps[:, column], gradient, name, width)
            nearer = distance < distances.amin(1)
            nearest = where_rows(nearer, gradient, nearest)
            distances[:, column] = distance
    return Linearization(output.detach(), classes, gaps, distances, nearest.detach())


def linear_distance(gaps: Tensor, gradients: Tensor, name: str, width: float = 1.0) -> Tensor:
    """Return the distance at which linear functions have closed their gaps, (n,).

    In l1, l2 and linf it is gap / ‖slope‖ in the dual norm, in l0 the number of elements that have to change
    by the width of the box, those of the steepest slopes first. Infinite, or all elements, without a slope.

    Args:
        gaps: (n,) by how much the functions have to rise.
        gradients: (n, …) their gradients; elements that are not finite count as zero.
        name: of the norm.
        width: of the box, for l0.

    Example:
        >>> gradient = torch.tensor([[3.0, 4.0]])
        >>> [linear_distance(torch.tensor([6.0]), gradient, name).item() for name in ("l1", "l2", "l0")]
        [1.5, 1.2000000476837158, 2.0]
    """
    gradients = flatten(torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0))
    if name == "l0":
        gains = width * gradients.abs().sort(dim=1, descending=True).values.cumsum(1)
        counts = (gains < gaps[:, None]).sum(1) + (gaps > 0)
        return counts.clamp_max(gradients.shape[1]).to(gaps.dtype)
    return gaps / norm(gradients, DUAL[name])


def max_distance(images: Tensor, bounds: tuple[float, float], name: str) -> Tensor:
    """Return the distance of each image to the furthest corner of the box, (n,): no attack needs more."""
    low, high = bounds
    return norm(torch.maximum(images - low, high - images), name)


def _margins(
    output: Output, labels: Tensor, threat: ThreatModel, classes: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Return classes (m, k), and what has to rise above zero for one of them to win, (m, k)."""
    (lead,) = losses_for(
        "margin", threat.goal
    )  # refuses goals that are not about the decision changing
    if isinstance(threat.goal, Target):
        return labels.new_empty((len(labels), 0)), lead(output, labels)[:, None]
    if isinstance(classes, int):
        classes = top_other_classes(output.logits.detach(), labels, classes)
    true = output.logits.gather(1, labels[:, None])
    return classes, output.logits.gather(1, classes) - true
