"""Sample ids as a user may give them, checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter

__all__ = ["Ids", "checked_ids"]

Ids = Tensor | Sequence[int]
"""Sample ids in any order: a tensor, list, tuple or range of integers."""


def checked_ids(ids: Ids, size: int) -> Tensor:
    """Return sample ids as a tensor.

    Args:
        ids: each at least 0 and less than ``size``; repeats are allowed.
        size: number of samples of the data set.

    Returns:
        (n,) int64, on the CPU.

    Raises:
        BadParameter: if they are not whole numbers in one dimension, or one is out of range.

    Example:
        >>> checked_ids(range(2, 4), 10)
        tensor([2, 3])
    """
    given = _as_tensor(ids)
    if given.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if given.ndim != 1 or given.dtype == torch.bool or given.is_floating_point():
        raise BadParameter(
            "sample ids are not a list of whole numbers",
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


def _as_tensor(ids: Ids) -> Tensor:
    try:
        return torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadParameter(
            "sample ids are not a list of whole numbers", got=repr(ids)[:60], expected="integers"
        ) from error
