"""Protocols of data sets."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Dataset", "HasBudgets", "HasCounterparts", "LabelOracle"]


@runtime_checkable
class Dataset(Protocol):
    """A fixed, ordered set of labelled inputs; a sample's id is its position."""

    @property
    def name(self) -> str:
        """Full reference with parameters, such as ``mnist`` or ``spheres:d=500,n=10,r1=1,r2=1.3``."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over the bytes of all images and labels, 64 hexadecimal digits."""
        ...

    @property
    def num_classes(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value of an input element."""
        ...

    @property
    def labels(self) -> Tensor:
        """(N,) int64, all labels."""
        ...

    def __len__(self) -> int: ...

    def batch(self, ids: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        """Return images (n, *shape), floating point inside the bounds, and labels (n,) int64."""
        ...


@runtime_checkable
class LabelOracle(Protocol):
    """A data set that determines the true class of any input, not only of its own samples."""

    @property
    def oracle_source(self) -> str:
        """``exact``, ``human`` or the name of a proxy."""
        ...

    def classify(self, images: Tensor) -> Tensor:
        """Return the true classes (n,) int64, −1 for inputs without a class."""
        ...


@runtime_checkable
class HasCounterparts(Protocol):
    """A data set with a second version of each input: altered by hand, or from a shifted distribution."""

    def counterparts(self, ids: Tensor | list[int]) -> Tensor:
        """Return the second version of each sample, (n, *shape), inside the bounds."""
        ...


@runtime_checkable
class HasBudgets(Protocol):
    """A data set with customary budgets, for suites and for attacks without a named threat."""

    @property
    def budgets(self) -> Sequence[str]:
        """Threats such as ``linf=0.1`` or ``mnist-linf``, in input units; at most one for each norm."""
        ...
