"""Adversarial spheres: a generated data set of two concentric spheres with an exact oracle."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustbench_inv.data.arrays import Ids, checked_ids, digest_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, norm

__all__ = ["Spheres"]

_BLOCK = 1000
"""Points generated at a time: 1,000 points in 500 dimensions need less than 100 MB."""

_PARTS = 10**6
"""The share of a sphere is counted in integer millionths, so that no class depends on rounding."""


@dataclass(frozen=True)
class Spheres:
    """Points distributed uniformly on two spheres, an inner one (class 0) and an outer one (class 1).

    A point depends on the seed, its id, the dimension and the share, but not on the size of the data set. Points are
    generated in float64 and scaled to their radius. With equal shares, the classes alternate.

    Args:
        d: dimension.
        n: number of last coordinates that the mis-aligned classifier does not use, less than ``d``.
        r1: radius of the inner sphere.
        r2: radius of the outer sphere, at least 0.1 % larger.
        seed: seed of the points.
        size: number of points.
        inner: share of the points on the inner sphere, spread evenly over the ids. With unequal shares, robust accuracy
            depends on which class an attack breaks. A balanced selection of samples has equal shares again; all samples
            or the first N do not.

    Raises:
        BadParameter: if a parameter is out of range.

    References:
        Gilmer et al., Adversarial spheres, 2018; Behrmann, thesis, examples 6.5 and 6.6, and section 6.2.1 for
        uneven samples.
    """

    d: int = 500
    n: int = 10
    r1: float = 1.0
    r2: float = 1.3
    seed: int = 0
    size: int = 1000
    inner: float = 0.5

    num_classes = 2
    oracle_source = "exact"

    def __post_init__(self) -> None:
        _check("d", self.d, self.d >= 2, "at least 2")
        _check("n", self.n, 0 <= self.n < self.d, f"0 to {self.d - 1}, less than d")
        _check("r1", self.r1, 0 < self.r1 < math.inf, "a positive finite radius")
        _check("r2", self.r2, 1.001 * self.r1 <= self.r2 < math.inf, "at least 1.001 * r1, finite")
        _check("seed", self.seed, self.seed >= 0, "at least 0")
        _check("size", self.size, 1 <= self.size < 2**32, "1 to 2**32 - 1")
        _check("inner", self.inner, 0 < self.inner < 1, "a share between 0 and 1")

    @property
    def name(self) -> str:
        """Reference with the geometry, and with seed, size and share if they differ from their defaults."""
        text = f"spheres:d={self.d},n={self.n},r1={_short(self.r1)},r2={_short(self.r2)}"
        text += f",seed={self.seed}" if self.seed != Spheres.seed else ""
        text += f",size={self.size}" if self.size != Spheres.size else ""
        return text + (f",inner={_short(self.inner)}" if self.inner != Spheres.inner else "")

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,)."""
        return (self.d,)

    @property
    def bounds(self) -> tuple[float, float]:
        """−r2 and r2, the range of coordinates."""
        return (-self.r2, self.r2)

    @property
    def budgets(self) -> tuple[str, ...]:
        """``spheres-l2``, which is relative to the gap between the default radii; none for other radii."""
        usual = (self.r1, self.r2) == (Spheres.r1, Spheres.r2)
        return ("spheres-l2",) if usual else ()

    @cached_property
    def labels(self) -> Tensor:
        """(size,) int64: 0, 1, 0, 1, … for equal shares."""
        return self._classes(torch.arange(self.size))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all points, 64 hexadecimal digits."""
        return digest_samples(
            (points for points, _ in self._points(torch.arange(self.size), "spheres")),
            self.labels,
            self.bounds,
        )

    def __len__(self) -> int:
        return self.size

    def batch(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Return points (n, d) float64 and labels (n,) int64.

        Raises:
            BadParameter: if an id is out of range.
        """
        return self._all(checked_ids(ids, self.size), "spheres")

    def training(self, count: int) -> tuple[Tensor, Tensor]:
        """Return points (count, d) and labels (count,) of the same spheres that are not in the data set.

        Raises:
            BadParameter: if ``count`` is less than 2.
        """
        _check("number of training points", count, 2 <= count < 2**32, "at least 2")
        return self._all(torch.arange(count), "spheres-training")

    def classify(self, images: Tensor) -> Tensor:
        """Return the class of the sphere that each point lies on, −1 for points on neither sphere.

        Args:
            images: (n, d); the relative tolerance of the radius is 1e-9 in float64 and 1e-5 otherwise.

        Returns:
            (n,) int64.
        """
        length = norm(images, "l2")
        tolerance = 1e-9 if images.dtype == torch.float64 else 1e-5
        classes = torch.full((len(images),), -1, dtype=torch.int64, device=images.device)
        for label, radius in enumerate((self.r1, self.r2)):
            classes[(length - radius).abs() <= tolerance * radius] = label
        return classes

    def _classes(self, ids: Tensor) -> Tensor:
        """Return 1 for the ids at which the rounded number of outer points increases, (n,) int64."""
        outer = round((1 - self.inner) * _PARTS)
        return (ids + 1) * outer // _PARTS - ids * outer // _PARTS

    def _all(self, ids: Tensor, stream: str) -> tuple[Tensor, Tensor]:
        points, labels = zip(*self._points(ids, stream), strict=True)
        return torch.cat(points), torch.cat(labels)

    def _points(self, ids: Tensor, stream: str) -> Iterator[tuple[Tensor, Tensor]]:
        radii = torch.tensor([self.r1, self.r2], dtype=torch.float64)
        for block in torch.split(ids, _BLOCK):
            labels = self._classes(block)
            directions = SampleRNG(self.seed, block, stream).normal((self.d,), dtype=torch.float64)
            scale = radii[labels] / norm(directions, "l2")
            yield directions * broadcast(scale, directions), labels


def _check(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise BadParameter(f"invalid {name} of spheres", got=value, expected=expected)


def _short(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
