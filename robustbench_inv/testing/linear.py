"""A linear classifier, the one model of which the nearest adversarial input of every norm is known."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import Output, flatten

__all__ = ["LinearClassifier", "linear_problem"]

DUAL = {"l1": float("inf"), "l2": 2.0, "linf": 1.0}
"""Order of the dual norm of each norm."""


@dataclass(frozen=True)
class LinearClassifier:
    """Logits W x + b of the flattened input.

    Args:
        weights: W, (classes, d).
        biases: b, (classes,).
        bounds: least and largest value of an input element.
    """

    weights: Tensor
    biases: Tensor
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def num_classes(self) -> int:
        return len(self.biases)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def __call__(self, images: Tensor) -> Output:
        return Output(flatten(images) @ self.weights.T + self.biases)

    def distance(self, images: Tensor, labels: Tensor, norm: str) -> Tensor:
        """Return the distance (n,) of each input to the nearest one of another decision.

        It is min_{j≠y} (z_y − z_j) / ‖w_y − w_j‖ in the dual norm, 0 if the decision is wrong already. It
        does not know of the bounds: the inputs must be further from them than from the decision boundary.

        Args:
            images: (n, …).
            labels: (n,) decisions to leave.
            norm: ``l1``, ``l2`` or ``linf``; for another the distances are not known, and NaN.
        """
        if norm not in DUAL:
            return torch.full_like(images.flatten(1)[:, 0], float("nan"))
        logits = self(images).logits
        gaps = logits.gather(1, labels[:, None]) - logits
        slopes = self.weights[labels][:, None] - self.weights
        lengths = torch.linalg.vector_norm(slopes, ord=DUAL[norm], dim=2)
        distances = (gaps / lengths).scatter(1, labels[:, None], float("inf"))
        nearest: Tensor = distances.min(1).values.clamp_min(0)
        return nearest


def linear_problem(
    samples: int = 8,
    classes: int = 3,
    shape: tuple[int, ...] = (1, 6, 6),
    dtype: torch.dtype = torch.float64,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[LinearClassifier, Tensor, Tensor]:
    """Return a linear classifier, inputs near the middle of its bounds, and its decisions on them as labels.

    Every input is nearer to the decision boundary than to the bounds, at l2 distances of 0.02 to 0.1 of
    their width: the analytic distances hold.

    Args:
        samples: number of inputs.
        classes: number of classes, >= 2.
        shape: of one input.
        dtype: of classifier and inputs.
        bounds: of the classifier.

    Example:
        >>> model, images, labels = linear_problem(samples=5)
        >>> bool((model(images).decision == labels).all())
        True
    """
    drawn = Noise(0, torch.arange(max(samples, classes)), "linear")
    weights = drawn.normal((math.prod(shape),), dtype=torch.float64)[:classes]
    middle = (bounds[0] + bounds[1]) / 2
    model = LinearClassifier(weights, -weights.sum(1) * middle, bounds)
    towards = (weights - weights.mean(0))[torch.arange(samples) % classes]
    towards = (
        towards + 0.3 * drawn.normal((math.prod(shape),), step=1, dtype=torch.float64)[:samples]
    )
    places = drawn.uniform((), step=2, dtype=torch.float64)[:samples]
    images = _at_distance(model, middle + towards.reshape(samples, *shape), places)
    labels = model(images).decision
    return (
        replace(model, weights=weights.to(dtype), biases=model.biases.to(dtype)),
        images.to(dtype),
        labels,
    )


def _at_distance(model: LinearClassifier, images: Tensor, places: Tensor) -> Tensor:
    """Scale the inputs about the middle, where all logits are equal, to distances of 0.02 to 0.1 widths."""
    low, high = model.bounds
    middle, labels = (low + high) / 2, model(images).decision
    wanted = (0.02 + 0.08 * places) * (high - low)
    factor = wanted / model.distance(images, labels, "l2")
    return middle + (images - middle) * factor.reshape(-1, *[1] * (images.ndim - 1))
