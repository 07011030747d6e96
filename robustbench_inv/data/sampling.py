"""Selection of samples: a fixed class-balanced subset, the same for every model and attack."""

from functools import lru_cache

import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG

__all__ = ["balanced_subset", "check_selection", "select_samples", "smallest_selection"]


def select_samples(labels: Tensor, spec: int | str | None = None) -> tuple[int, ...]:
    """Return the ids of the samples to evaluate.

    The subset of size N is contained in that of any larger size. Its class counts differ by at most one, unless a class
    has too few samples.

    Args:
        labels: (size,) int64, labels of the whole data set.
        spec: N or ``"N"`` for the class-balanced subset, ``"first:N"`` for the first N samples, None for all.

    Returns:
        Ascending ids.

    Raises:
        BadParameter: if the specification cannot be read, or N is not in 1 … size.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> [sum(int(labels[i]) == k for i in select_samples(labels, 4)) for k in (0, 1)]
        [2, 2]
        >>> select_samples(labels, "first:3")
        (0, 1, 2)
    """
    if spec is None:
        return tuple(range(len(labels)))
    first, count = _parse(spec)
    if not 1 <= count <= len(labels):
        raise BadParameter(
            "number of samples out of range",
            got=spec,
            expected=f"1 to {len(labels)}, the size of the data set",
        )
    if first:
        return tuple(range(count))
    return _balanced(tuple(labels.tolist()), count)


def smallest_selection(*specs: int | str | None) -> int | str | None:
    """Return the smallest of several selections, None if all are None.

    One ``"first:N"`` makes the result one: the first and the balanced samples have few in common, and attacks that are
    compared need the same.

    Raises:
        BadParameter: if a specification cannot be read.

    Example:
        >>> smallest_selection(100, 30), smallest_selection(200, "first:1000"), smallest_selection(None, 5)
        (30, 'first:200', 5)
    """
    found = [_parse(spec) for spec in specs if spec is not None]
    if not found:
        return None
    count = min(number for _, number in found)
    return f"first:{count}" if any(first for first, _ in found) else count


def check_selection(spec: int | str | None) -> None:
    """Check a selection of samples without the data set, whose size limits it as well.

    Raises:
        BadParameter: if the specification cannot be read, or N is less than 1.
    """
    if spec is not None and _parse(spec)[1] < 1:
        raise BadParameter("number of samples out of range", got=spec, expected=">= 1")


def balanced_subset(labels: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return at most ``count`` of the ids (n,), balanced over the classes.

    Args:
        labels: (size,) int64, labels of the whole data set.
        ids: (n,) candidates.
        count: number of ids to return, or more for all.
    """
    return ids[torch.tensor(select_samples(labels[ids], min(count, len(ids))))]


def _parse(spec: int | str) -> tuple[bool, int]:
    """Return whether the first samples are requested, and their number."""
    text = spec.strip() if isinstance(spec, str) else spec
    first = isinstance(text, str) and text.startswith("first:")
    number = text.removeprefix("first:") if isinstance(text, str) else text
    if isinstance(number, str) and number.isascii() and number.isdecimal():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise BadParameter("invalid number of samples", got=spec, expected="N or first:N")
    return first, number


@lru_cache(maxsize=8)  # every cell of a plan has the same selection
def _balanced(labels: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(sorted(_balanced_order(torch.tensor(labels))[:count].tolist()))


def _balanced_order(labels: Tensor) -> Tensor:
    """Return all ids in the order of selection: one of each class, then another of each class, …."""
    shuffled = (
        SampleRNG(0, torch.arange(len(labels)), "samples").integers(2**31).argsort(stable=True)
    )
    rank = torch.empty_like(shuffled)
    for label in torch.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = torch.arange(len(members))
    return shuffled[rank[shuffled].argsort(stable=True)]
