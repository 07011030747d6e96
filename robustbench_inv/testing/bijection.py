"""A classifier that is a rotation of its input: the one whose metamers are known without computing an inverse."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import Output, flatten

__all__ = ["RotationClassifier", "rotation_classifier"]


@dataclass(frozen=True)
class RotationClassifier:
    """z = Q (x − c) with Q orthogonal and c the middle of the bounds; the first elements of z are the logits.

    Args:
        rotation: Q, (d, d).
        shape: of one input, d elements.
        num_classes: number of logits, below d.
        bounds: least and largest value of an input element.
        slip: the inverse is wrong by this much in every element (check C32).
    """

    rotation: Tensor
    shape: tuple[int, ...]
    num_classes: int
    bounds: tuple[float, float] = (0.0, 1.0)
    slip: float = 0.0

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
        points = code @ self.rotation + self.centre + self.slip
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
    slip: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> RotationClassifier:
    """Return a classifier with a fixed random rotation and inputs in [0, 1].

    Args:
        shape: of one input.
        num_classes: number of logits.
        slip: how wrong its inverse is.
        dtype: what it computes in.
    """
    d = torch.Size(shape).numel()
    rows = Noise(0, torch.arange(d), "rotation").normal((d,), dtype=torch.float64)
    rotation = torch.linalg.qr(rows).Q.to(dtype)
    return RotationClassifier(rotation, shape, num_classes, slip=slip)
