"""Classifiers of the adversarial spheres that need no training."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import Output, flatten

__all__ = ["NormThresholdClassifier", "SpheresData", "max_margin", "misaligned"]


class SpheresData(Protocol):
    """Spheres as the classifiers use them: dimensions, radii and training points."""

    d: int
    n: int
    r1: float
    r2: float

    def training(self, count: int) -> tuple[Tensor, Tensor]:
        """Return points (count, d) and labels (count,) that do not belong to the data set."""
        ...


@dataclass(frozen=True)
class NormThresholdClassifier:
    """D(x) = sign(‖x_1..d−n‖₂ − b): class 0 (inner) below the bias b, class 1 (outer) above.

    The logits are ∓(‖x_1..d−n‖₂ − b), in float64.

    Args:
        unused_dimensions: n, number of last coordinates that the classifier does not use.
        bias: b.
        radii: R1 < R2, radii of the two spheres.
    """

    unused_dimensions: int
    bias: float
    radii: tuple[float, float]
    num_classes: ClassVar[int] = 2
    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def bounds(self) -> tuple[float, float]:
        """−R2 and R2, the range of coordinates on the spheres."""
        return -self.radii[1], self.radii[1]

    def __call__(self, images: Tensor) -> Output:
        points = flatten(images)
        used = points[:, : points.shape[1] - self.unused_dimensions]
        beyond = torch.linalg.vector_norm(used, dim=1) - self.bias
        return Output(torch.stack([-beyond, beyond], 1))


def max_margin(dataset: SpheresData) -> NormThresholdClassifier:
    """Return the optimal classifier, sign(‖x‖₂ − (R1 + R2)/2).

    References:
        Behrmann, thesis, example 6.5.
    """
    return NormThresholdClassifier(0, (dataset.r1 + dataset.r2) / 2, (dataset.r1, dataset.r2))


def misaligned(dataset: SpheresData, points: int = 10_000) -> NormThresholdClassifier:
    """Return the max-margin classifier of training points without their last n dimensions.

    Args:
        dataset: its ``n`` is the number of unused dimensions.
        points: number N of training points.

    Raises:
        BadParameter: if the training points are not separable in the other dimensions.

    References:
        Behrmann, thesis, example 6.6: l = max over the inner sphere and u = min over the outer one of
        ‖x_1..d−n‖₂, b = l + (u − l)/2.
    """
    images, labels = dataset.training(points)
    used = torch.linalg.vector_norm(images[:, : dataset.d - dataset.n], dim=1)
    lower, upper = used[labels == 0].max().item(), used[labels == 1].min().item()
    if lower > upper:
        raise BadParameter(
            "the spheres are not separable in the dimensions that the classifier uses",
            got=f"n={dataset.n}",
            expected="fewer unused dimensions or radii further apart",
        )
    return NormThresholdClassifier(dataset.n, lower + (upper - lower) / 2, (dataset.r1, dataset.r2))
