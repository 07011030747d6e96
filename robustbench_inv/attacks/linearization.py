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
    subtract,
    top_other_classes,
    where_rows,
)
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Linearization", "distance_scaled_loss", "linear_distance", "linearize", "max_distance"]


DUAL = {"l1": "linf", "l2": "l2", "linf": "l1"}


@dataclass(frozen=True)
class Linearization:
    """Linear approximations of the boundaries between the true class and other classes, at m images.

    For a target class there is one boundary, between it and all other classes.

    Args:
        output: the model's output.
        classes: (m, k) the other classes; (m, 0) for a target class.
        gaps: (m, k) by how much the logit of each other class is below that of the true class.
        distances: (m, k) of the boundaries, 0 or less where they are behind.
        gradient: (m, …) gradient with which the gap to the nearest boundary closes.
    """

    output: Output
    classes: Tensor
    gaps: Tensor
    distances: Tensor
    gradient: Tensor

    @property
    def rates(self) -> Tensor:
        """(m, classes): rate at which each logit's gap closes with the distance from the image.

        Classes without a linearized boundary get the mean rate of the others.
        """
        if not self.classes.shape[1]:
            return torch.ones_like(self.output.logits)
        rates = self.gaps / self.distances
        known = (rates > 0) & rates.isfinite()
        usual = rates.where(known, torch.nan).nanmean(1, keepdim=True).nan_to_num(1.0)
        rates = rates.where(known, usual)
        return usual.expand_as(self.output.logits).scatter(1, self.classes, rates)


def distance_scaled_loss(loss: Loss, rates: Tensor) -> Loss:
    """Return the loss of logit gaps divided by their rates, so that gaps are distances to boundaries.

    A loss that pushes the class of the largest logit then pushes the class of the nearest boundary.

    Args:
        loss: a loss of logits.
        rates: (m, classes), ``Linearization.rates`` of the m samples that the loss is evaluated on.
    """

    def of_distances(output: Output, labels: Tensor) -> Tensor:
        true = output.logits.gather(1, labels[:, None])
        clearance = None if output.clearance is None else output.clearance / rates
        gaps = subtract(output.logits, true) / rates
        return loss(Output(gaps, output.score, output.accepted, clearance), labels)

    return of_distances


def linearize(
    model: Queries,
    threat: ThreatModel,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    classes: Tensor | int,
) -> Linearization:
    """Return the linearized boundaries at some images: one forward pass, and one backward pass per other class.

    Args:
        model: the queried model.
        threat: its goal defines the boundaries, its norm the distances.
        images: (m, …).
        labels: (m,) true classes.
        rows: (m,) positions of the samples.
        classes: (m, k) classes, or the number of classes with the largest logits.

    References:
        Moosavi-Dezfooli, Fawzi and Frossard, DeepFool, CVPR 2016, algorithm 2 and section 3.3 (other norms).
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        output = model.differentiable(images, rows)
        classes, margins = _margins(output, labels, threat, classes)
        gaps, name, width = -margins.detach(), threat.norm, model.bounds[1] - model.bounds[0]
        distances, nearest = torch.full_like(gaps, torch.inf), torch.zeros_like(images)
        for column in range(gaps.shape[1]):
            gradient = per_sample_gradient(margins[:, column], images, retain_graph=True)
            distance = linear_distance(gaps[:, column], gradient, name, width)
            nearer = distance < distances.amin(1)
            nearest = where_rows(nearer, gradient, nearest)
            distances[:, column] = distance
    return Linearization(output.detach(), classes, gaps, distances, nearest.detach())


def linear_distance(gaps: Tensor, gradients: Tensor, name: str, width: float = 1.0) -> Tensor:
    """Return the distance at which linear functions increase by given gaps, (n,).

    In l1, l2 and linf it is gap / ‖gradient‖ in the dual norm. In l0 it is the number of elements that must change
    by the width of the box, those of the largest gradients first. For a zero gradient it is infinite, in l0 the
    number of elements.

    Args:
        gaps: (n,) by how much the functions must increase; inf for a class that is ruled out, −inf if the true class is.
        gradients: (n, …); elements that are not finite count as zero.
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
        distances = counts.clamp_max(gradients.shape[1]).to(gaps.dtype)
    else:
        distances = gaps / norm(gradients, DUAL[name])
    return torch.where(gaps.isinf(), gaps.clamp_min(0), distances)


def max_distance(images: Tensor, bounds: tuple[float, float], name: str) -> Tensor:
    """Return the distance of each image to the furthest corner of the box, (n,), an upper bound on all distances."""
    low, high = bounds
    return norm(torch.maximum(images - low, high - images), name)


def _margins(
    output: Output, labels: Tensor, threat: ThreatModel, classes: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Return classes (m, k), and their margins over the true class (m, k), of which one must become positive."""
    (target_margin,) = losses_for("margin", threat.goal)  # raises for invariance goals
    if isinstance(threat.goal, Target):
        return labels.new_empty((len(labels), 0)), target_margin(output, labels)[:, None]
    if isinstance(classes, int):
        classes = top_other_classes(output.logits.detach(), labels, classes)
    true = output.logits.gather(1, labels[:, None])
    return classes, subtract(output.logits.gather(1, classes), true)
