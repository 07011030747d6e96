"""Models and data with known solutions: closest adversarial examples, metamers and classes follow from a formula."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, Output, flatten
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "AllRowsClassifier",
    "BodyMaxClassifier",
    "BodyMeanClassifier",
    "FirstRowClassifier",
    "LinearClassifier",
    "RotationClassifier",
    "ShiftBodyAttack",
    "column_images",
    "hidden_counterexample",
    "linear_problem",
    "rotation_classifier",
]


DUAL_ORDER = {"l1": float("inf"), "l2": 2.0, "linf": 1.0}
"""Order of the dual norm of each norm."""


@dataclass(frozen=True)
class LinearClassifier:
    """Logits W x + b of the flattened input.

    Args:
        weights: W, (classes, d).
        biases: b, (classes,).
        bounds: smallest and largest value of an input element.
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
        ignores the bounds: the inputs must be further from them than from the decision boundary.

        Args:
            images: (n, …).
            labels: (n,) decisions to leave.
            norm: ``l1``, ``l2`` or ``linf``; for another the distances are not known, and NaN.
        """
        if norm not in DUAL_ORDER:
            return torch.full_like(images.flatten(1)[:, 0], float("nan"))
        logits = self(images).logits
        gaps = logits.gather(1, labels[:, None]) - logits
        weight_differences = self.weights[labels][:, None] - self.weights
        lengths = torch.linalg.vector_norm(weight_differences, ord=DUAL_ORDER[norm], dim=2)
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

    Every input is closer to the decision boundary than to the bounds, at l2 distances of 0.02 to 0.1 of their
    width, so that the analytic distances are exact.

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
    drawn = SampleRNG(0, torch.arange(max(samples, classes)), "linear")
    weights = drawn.normal((math.prod(shape),), dtype=torch.float64)[:classes]
    middle = (bounds[0] + bounds[1]) / 2
    model = LinearClassifier(weights, -weights.sum(1) * middle, bounds)
    towards = (weights - weights.mean(0))[torch.arange(samples) % classes]
    towards = (
        towards + 0.3 * drawn.normal((math.prod(shape),), step=1, dtype=torch.float64)[:samples]
    )
    places = drawn.uniform((), step=2, dtype=torch.float64)[:samples]
    images = _scale_to_distance(model, middle + towards.reshape(samples, *shape), places)
    labels = model(images).decision
    return (
        replace(model, weights=weights.to(dtype), biases=model.biases.to(dtype)),
        images.to(dtype),
        labels,
    )


def _scale_to_distance(model: LinearClassifier, images: Tensor, places: Tensor) -> Tensor:
    """Scale the inputs about the middle, where all logits are equal, to distances of 0.02 to 0.1 widths."""
    low, high = model.bounds
    middle, labels = (low + high) / 2, model(images).decision
    wanted = (0.02 + 0.08 * places) * (high - low)
    factor = wanted / model.distance(images, labels, "l2")
    return middle + (images - middle) * factor.reshape(-1, *[1] * (images.ndim - 1))


@dataclass(frozen=True)
class RotationClassifier:
    """z = Q (x − c) with Q orthogonal and c the middle of the bounds; the first elements of z are the logits.

    Args:
        rotation: Q, (d, d).
        shape: of one input, d elements.
        num_classes: number of logits, below d.
        bounds: smallest and largest value of an input element.
        inverse_error: the inverse is wrong by this much in every element (check C32).
    """

    rotation: Tensor
    shape: tuple[int, ...]
    num_classes: int
    bounds: tuple[float, float] = (0.0, 1.0)
    inverse_error: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return self.rotation.dtype

    @property
    def centre(self) -> float:
        return (self.bounds[0] + self.bounds[1]) / 2

    def __call__(self, images: Tensor) -> Output:
        return Output(self.split(self.encode(images))[0])

    def encode(self, images: Tensor) -> Tensor:
        """Return codes (n, d)."""
        return (flatten(images) - self.centre) @ self.rotation.T

    def decode(self, code: Tensor) -> Tensor:
        """Return inputs (n, *shape)."""
        points = code @ self.rotation + self.centre + self.inverse_error
        return points.reshape(len(code), *self.shape)

    def split(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and nuisances."""
        return code[:, : self.num_classes], code[:, self.num_classes :]

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
        """Return the code of both."""
        return torch.cat([semantic, nuisance], 1)


def rotation_classifier(
    shape: tuple[int, ...] = (1, 6, 6),
    num_classes: int = 3,
    *,
    inverse_error: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> RotationClassifier:
    """Return a classifier with a fixed random rotation and inputs in [0, 1].

    Args:
        shape: of one input.
        num_classes: number of logits.
        inverse_error: how wrong its inverse is.
        dtype: what it computes in.
    """
    d = torch.Size(shape).numel()
    rows = SampleRNG(0, torch.arange(d), "rotation").normal((d,), dtype=torch.float64)
    rotation = torch.linalg.qr(rows).Q.to(dtype)
    return RotationClassifier(rotation, shape, num_classes, inverse_error=inverse_error)


COLUMN_CLASSES = 3


def column_images(count: int = 12) -> ArrayDataset:
    """Return images (1, 4, 4) of which one column is bright, the class; no two are the same.

    Args:
        count: at most 200.
    """
    labels = torch.arange(count) % COLUMN_CLASSES
    images = torch.full((count, 1, 4, 4), 0.1)
    images[torch.arange(count), 0, :, labels] = 0.9
    images[:, 0, 0, 3] = torch.arange(count) / 255
    return ArrayDataset(images, labels, "column_images")


class _ColumnClassifier(nn.Module):
    """Predicts the brightest column of some rows."""

    bounds = (0.0, 1.0)
    num_classes = COLUMN_CLASSES

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))


class FirstRowClassifier(_ColumnClassifier):
    """Uses the first row alone."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :COLUMN_CLASSES] * self.scale


class BodyMeanClassifier(_ColumnClassifier):
    """Uses the mean of all rows but the first."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 1:, :COLUMN_CLASSES].mean(1) * self.scale


class BodyMaxClassifier(_ColumnClassifier):
    """Uses the largest element of all rows but the first."""

    def __init__(self, scale: float = 3.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 1:, :COLUMN_CLASSES].amax(1) * self.scale


class AllRowsClassifier(_ColumnClassifier):
    """Uses the mean of all rows."""

    def __init__(self, scale: float = 4.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :, :COLUMN_CLASSES].mean(1) * self.scale


@dataclass(frozen=True)
class ShiftBodyAttack:
    """Shifts all rows but the first by one column: a person would label the image as the next class.

    Args:
        first_changed_id: samples below this id are not changed.
    """

    first_changed_id: int = 0

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        moved = batch.images.clone()
        moved[:, :, 1:, :COLUMN_CLASSES] = moved[:, :, 1:, :COLUMN_CLASSES].roll(1, -1)
        return torch.where(
            (batch.ids < self.first_changed_id)[:, None, None, None], batch.images, moved
        )


def hidden_counterexample(place: Tensor, reach: float) -> nn.Sequential:
    """Return a ReLU network that predicts class 0 but within half an l1 distance ``reach`` of one input, where it is 1.

    Gradients vanish outside of the whole distance, so that attacks that follow them do not find that input: a verifier
    that certifies it is unsound. The logits are 1 and 2 relu(1 − ‖x − place‖₁ / reach).

    Args:
        place: (d,) the input.
        reach: of the change.

    References:
        Zhou et al., SoundnessBench: a soundness benchmark for neural network verifiers, arXiv 2412.03154.
    """
    d = len(place)
    sides, bump, logits = nn.Linear(d, 2 * d), nn.Linear(2 * d, 1), nn.Linear(1, 2)
    with torch.no_grad():
        sides.weight.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
        sides.bias.copy_(torch.cat([-place, place]))
        bump.weight.fill_(-1 / reach)
        bump.bias.fill_(1.0)
        logits.weight.copy_(torch.tensor([[0.0], [2.0]]))
        logits.bias.copy_(torch.tensor([1.0, 0.0]))
    network = nn.Sequential(nn.Flatten(), sides, nn.ReLU(), bump, nn.ReLU(), logits)
    network.bounds, network.num_classes = (0.0, 1.0), 2  # type: ignore[assignment]
    return network
