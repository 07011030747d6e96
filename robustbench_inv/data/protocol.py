"""Protocols of data sets, and the check that a user's data set fulfils them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.errors import BadData, describe_error

__all__ = [
    "AdaptsClasses",
    "Dataset",
    "HasBudgets",
    "HasClassNames",
    "HasCounterparts",
    "HasNotes",
    "LabelOracle",
    "beyond_classes_remedy",
    "check_dataset",
]

CHECKED_SAMPLES = 64
"""Samples that ``check_dataset`` reads, evenly spaced."""


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


@runtime_checkable
class HasClassNames(Protocol):
    """A data set with names of its classes."""

    @property
    def classes(self) -> Sequence[str]: ...


@runtime_checkable
class HasNotes(Protocol):
    """A data set with messages for the user about how it was read."""

    @property
    def notes(self) -> Sequence[str]: ...


@runtime_checkable
class AdaptsClasses(Protocol):
    """A data set whose number of classes may be that of the model, such as one with samples of some classes only."""

    def with_classes(self, count: int) -> Dataset:
        """Return the data set for a model with that many classes."""
        ...


def check_dataset(data: Dataset) -> None:
    """Check that an object fulfils the protocol ``Dataset``, on some of its samples.

    Images and labels must belong to the ids, in their order, and be the same in every read. Labels that are one-hot or
    differ between the data set and its batches, or random augmentation, would make every number wrong.

    Raises:
        BadData: naming the first violation.
    """
    missing = [each for each in (*_VALUES, "labels", "batch", "__len__") if not _has(data, each)]
    if missing:
        got = f"{type(data).__name__} without {', '.join(missing)}"
        raise BadData("not a data set", got=got, expected="a name, an ArrayDataset or a Dataset")
    for attribute, (is_valid, expected) in _VALUES.items():
        if not is_valid(value := getattr(data, attribute)):
            raise BadData(f"the data set's {attribute} is invalid", got=value, expected=expected)
    _check_labels(data)
    ids = torch.arange(0, len(data), -(-len(data) // CHECKED_SAMPLES))
    images, labels = _read(data, ids)
    if not torch.equal(labels, data.labels.cpu()[ids]):
        raise BadData(f"{data.name}: labels of a batch differ from those of the data set")
    again = _read(data, ids.flip(0))
    if not (torch.equal(images, again[0].flip(0)) and torch.equal(labels, again[1].flip(0))):
        raise BadData(
            f"{data.name}: samples differ if they are read again in reverse order",
            remedy="return them in the order of the ids, without random augmentation",
        )


def beyond_classes_remedy(least: int) -> str:
    """Return the remedy for labels that exceed the number of classes, given the smallest label."""
    return f"labels begin at {least}: subtract {least}" if least > 0 else ""


def _has(data: object, name: str) -> bool:
    """Return whether an object has an attribute; a property of its class is not computed."""
    return hasattr(type(data), name) or hasattr(data, name)


def _is_interval(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(isinstance(end, int | float) for end in value) and value[0] < value[1]


_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and bool(value), "a name"),
    "num_classes": (lambda value: type(value) is int and value >= 2, "an int >= 2"),
    "bounds": (_is_interval, "two numbers, low < high"),
    "shape": (
        lambda value: isinstance(value, tuple | list) and all(type(n) is int for n in value),
        "a tuple of ints",
    ),
    "digest": (lambda value: isinstance(value, str) and bool(value), "a SHA-256 of all samples"),
}
"""What each attribute of a data set must be."""


def _check_labels(data: Dataset) -> None:
    labels = data.labels
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise BadData(
            f"{data.name}: labels of the wrong type or shape",
            got=_kind(labels),
            expected="an int64 tensor of shape (N,)",
            remedy="take labels.argmax(1) of one-hot labels, or labels.long()",
        )
    if len(labels) != len(data) or not len(data):
        expected = str(max(len(data), 1))
        raise BadData(f"{data.name}: wrong number of labels", got=len(labels), expected=expected)
    least, largest = int(labels.min()), int(labels.max())
    if least < 0 or largest >= data.num_classes:
        raise BadData(
            f"{data.name}: label out of range",
            got=least if least < 0 else largest,
            expected=f"0 to {data.num_classes - 1}",
            remedy=beyond_classes_remedy(least),
        )


def _read(data: Dataset, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and labels of some samples, of the right type and shape."""
    try:
        images, labels = data.batch(ids)
    except Exception as error:
        raise BadData(f"{data.name} cannot be read", got=describe_error(error)) from error
    shape, usable = (len(ids), *data.shape), isinstance(images, Tensor)
    if not usable or tuple(images.shape) != shape or not images.is_floating_point():
        problem, expected = "images of a batch are unusable", f"floating point of shape {shape}"
        raise BadData(f"{data.name}: {problem}", got=_kind(images), expected=expected)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != ids.shape:
        problem, expected = "labels of a batch are unusable", f"int64 of shape ({len(ids)},)"
        raise BadData(f"{data.name}: {problem}", got=_kind(labels), expected=expected)
    finite = images.flatten(1).isfinite().all(1).cpu()
    if not finite.all():
        first = int(ids[~finite][0])
        raise BadData(f"{data.name}: image {first} has an element that is not finite")
    return images.cpu(), labels.cpu()


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
