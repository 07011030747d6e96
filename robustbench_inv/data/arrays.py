"""A data set in memory, such as MNIST or your own arrays, and the check of sample ids."""

import copy
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.data.protocol import beyond_classes_remedy
from robustbench_inv.errors import BadData, BadParameter
from robustbench_inv.identity import canonical_json, digest_bytes

__all__ = ["Array", "ArrayDataset", "Ids", "checked_bounds", "checked_ids", "digest_samples"]


Ids = Tensor | Sequence[int]
"""Sample ids in any order: a tensor, list, tuple or range of integers."""


def checked_ids(ids: Ids, size: int) -> Tensor:
    """Return sample ids as a tensor.

    Args:
        ids: sample ids in 0 … size − 1; repeats are allowed.
        size: number of samples of the data set.

    Returns:
        (n,) int64, on the CPU.

    Raises:
        BadParameter: if the ids are not integers in one dimension, or one is out of range.

    Example:
        >>> checked_ids(range(2, 4), 10)
        tensor([2, 3])
    """
    given = _ids_as_tensor(ids)
    if given.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if given.ndim != 1 or given.dtype == torch.bool or given.is_floating_point():
        raise BadParameter(
            "sample ids are not a list of integers",
            got=f"{given.dtype} of shape {tuple(given.shape)}",
            expected="one dimension of integers",
        )
    result = given.detach().to("cpu", torch.int64)
    outside = result[(result < 0) | (result >= size)]
    if len(outside):
        raise BadParameter(
            "sample id out of range", got=outside[0].item(), expected=f"0 to {size - 1}"
        )
    return result


def _ids_as_tensor(ids: Ids) -> Tensor:
    try:
        return torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadParameter(
            "sample ids are not a list of integers", got=repr(ids)[:60], expected="integers"
        ) from error


Array = Tensor | NDArray[np.generic]

_IMAGE_DTYPES = (torch.uint8, torch.float32, torch.float64)
_LABEL_DTYPES = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


class ArrayDataset:
    """Labelled inputs in memory, validated once.

    Args:
        images: (N, …) uint8, float32 or float64, N ≥ 1. uint8 images stay uint8 in memory; each batch is converted to
            float32, with 0 mapped to the lower bound and 255 to the upper one.
        labels: (N,) integers in 0 … num_classes − 1.
        name: name of the data set in reports.
        bounds: smallest and largest value of an input element.
        num_classes: number of classes; None for the largest label plus one, at least two. A model may then have more.
        budgets: customary budgets of the data, such as ``("linf=0.1", "l2=1.5")``, used by suites.
        classes: names of the classes; empty if they have none.

    ``notes`` are messages for the user about how the data were read.

    Raises:
        BadData: for a wrong shape, type or range; an element outside the bounds fails check C17.

    Example:
        >>> data = ArrayDataset(torch.tensor([[[0, 255]]], dtype=torch.uint8), [1], "two-pixels")
        >>> data.batch([0])
        (tensor([[[0., 1.]]]), tensor([1]))
    """

    def __init__(  # noqa: PLR0913 - the last four are options
        self,
        images: Array,
        labels: Array | list[int],
        name: str,
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        num_classes: int | None = None,
        budgets: Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> None:
        self.name, self.classes = name, tuple(classes)
        self.notes: tuple[str, ...] = ()
        self._may_lack_classes = num_classes is None
        self._variants: dict[int, ArrayDataset] = {}
        self.budgets = (budgets,) if isinstance(budgets, str) else budgets
        self.bounds = checked_bounds(bounds, name)
        self._images = _checked_images(images, self.bounds, name)
        self.labels = _checked_labels(labels, len(self._images), name)
        self.num_classes = _checked_classes(self.labels, num_classes, name)

    def copied(self) -> "ArrayDataset":
        """Return the same samples in tensors of their own; their digest is computed once for all copies."""
        made = copy.copy(self)
        made._digests = {self._digest_key: self.digest}
        made._images, made.labels, made._variants = self._images.clone(), self.labels.clone(), {}
        return made

    def __repr__(self) -> str:
        return f"ArrayDataset({self.name!r}, {len(self)} x {self.shape})"

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._images.shape[1:])

    def with_classes(self, count: int) -> "ArrayDataset":
        """Return the same samples with a model's number of classes, if the data set was given none and has no more.

        Every call with one number returns the same object.
        """
        if not self._may_lack_classes or count <= self.num_classes:
            return self
        if count not in self._variants:
            variant = copy.copy(self)
            variant.num_classes = count
            note = f"{self.name}: the labels are 0 to {int(self.labels.max())} of the model's {count} classes"
            variant.notes = (*self.notes, note)
            self._variants[count] = variant
        return self._variants[count]

    @property
    def digest(self) -> str:
        """SHA-256 over all samples, 64 hexadecimal digits; it follows labels and bounds that are changed later."""
        key = self._digest_key
        if key not in self._digests:
            self._digests[key] = digest_samples([self._images], self.labels, self.bounds)
        return self._digests[key]

    @property
    def _digest_key(self) -> tuple[str, tuple[float, float]]:
        return digest_bytes(_little_endian(self.labels.long())), self.bounds

    @cached_property
    def _digests(self) -> dict[tuple[str, tuple[float, float]], str]:
        return {}

    def batch(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Return images (n, *shape), floating point inside the bounds, and labels (n,) int64.

        Raises:
            BadParameter: if an id is out of range.
        """
        rows = checked_ids(ids, len(self))
        return _scaled(self._images[rows], self.bounds), self.labels[rows]


def digest_samples(blocks: Iterable[Tensor], labels: Tensor, bounds: tuple[float, float]) -> str:
    """Return the SHA-256 of a data set: the bytes of all images and labels, and a description.

    Elements are little-endian, and labels have 64 bits. The description is the canonical JSON of the images' type and
    shape and of the bounds.

    Args:
        blocks: images (n, …) of consecutive samples; the size of the blocks does not matter.
        labels: (N,) labels of all samples.
        bounds: bounds of the data set.
    """
    digest = hashlib.sha256()
    description: dict[str, object] = {"bounds": bounds}
    for images in blocks:
        shape = [len(labels), *images.shape[1:]]
        description |= {"dtype": str(images.dtype).removeprefix("torch."), "shape": shape}
        digest.update(_little_endian(images))
    digest.update(_little_endian(labels.long()))
    digest.update(canonical_json(description).encode())
    return digest.hexdigest()


def _little_endian(tensor: Tensor) -> memoryview:
    array = tensor.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B")


def checked_bounds(bounds: tuple[float, float], name: str) -> tuple[float, float]:
    """Return the bounds of a data set as floats; raises BadData unless they are finite, and low < high."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise BadData(f"{name}: invalid bounds", got=bounds, expected="two numbers") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise BadData(f"{name}: invalid bounds", got=bounds, expected="finite, low < high")
    return low, high


def _checked_images(given: Array, bounds: tuple[float, float], name: str) -> Tensor:
    images = _as_tensor(given, f"{name}: images")
    if images.ndim < 2 or images.numel() == 0:
        raise BadData(
            f"{name}: images of the wrong shape",
            got=tuple(images.shape),
            expected="(N, …) with at least one image and one element per image",
        )
    if images.dtype not in _IMAGE_DTYPES:
        raise BadData(
            f"{name}: images of the wrong type",
            got=str(images.dtype),
            expected="uint8, float32 or float64",
            remedy="convert them",
        )
    if images.is_floating_point():
        _check_range(images, bounds, name)
    return images


def _check_range(images: Tensor, bounds: tuple[float, float], name: str) -> None:
    low, high = images.amin().item(), images.amax().item()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = (~images.flatten(1).isfinite().all(1)).nonzero()[0].item()
        raise BadData(f"{name}: image {bad} has an element that is not finite")
    if low < bounds[0] or high > bounds[1]:
        raise BadData(
            f"{name}: images outside the declared bounds",
            got=f"[{low:g}, {high:g}]",
            expected=f"[{bounds[0]:g}, {bounds[1]:g}]",
            remedy="rescale the images or declare other bounds",
        )


def _checked_labels(given: Array | list[int], count: int, name: str) -> Tensor:
    labels = _as_tensor(given, f"{name}: labels")
    if tuple(labels.shape) != (count,):
        raise BadData(
            f"{name}: labels of the wrong shape",
            got=tuple(labels.shape),
            expected=f"({count},)",
            remedy="take labels.argmax(1) of one-hot labels" if labels.ndim == 2 else "",
        )
    if labels.dtype not in _LABEL_DTYPES:
        raise BadData(
            f"{name}: labels of the wrong type",
            got=str(labels.dtype),
            expected="integers",
            remedy="convert them: labels.long() in torch, labels.astype(int) in NumPy",
        )
    return labels.long()


def _checked_classes(labels: Tensor, num_classes: int | None, name: str) -> int:
    least, largest = labels.min().item(), labels.max().item()
    classes = max(2, int(largest) + 1) if num_classes is None else num_classes
    if least < 0 or largest >= classes:
        raise BadData(
            f"{name}: label out of range",
            got=least if least < 0 else largest,
            expected=f"0 to {classes - 1}",
            remedy=beyond_classes_remedy(int(least)),
        )
    return classes


def _as_tensor(given: Array | list[int], what: str) -> Tensor:
    try:
        # PyTorch warns of read-only memory, so it is copied.
        array = given if isinstance(given, Tensor) else np.require(given, requirements=["C", "W"])
        tensor = torch.as_tensor(array).detach().cpu().contiguous()
        # the user may change the array later: the data set stays what was validated and digested
        return tensor.clone() if array is given else tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(
            f"{what} cannot be read", got=type(given).__name__, expected="a tensor or numeric array"
        ) from error


def _scaled(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    if images.dtype != torch.uint8:
        return images
    low, high = bounds
    unit = images.to(torch.float32).div_(255)
    if bounds == (0.0, 1.0):
        return unit
    return unit.mul_(high - low).add_(low).clamp_(low, high)
