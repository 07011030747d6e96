"""Arrays in NumPy's file format, read without pickle and distrusted until they have been checked."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadData

__all__ = ["parse_array"]

Numbers = NDArray[Any]


def parse_array(data: bytes, name: str) -> Numbers:
    """Return the array in the bytes of an .npy file.

    Args:
        data: the whole file.
        name: for error messages.

    Raises:
        BadData: if it is no such file, is truncated, or holds objects instead of numbers.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise BadData(
            f"{name} is no .npy file of numbers",
            got=str(error).splitlines()[0][:80],
            expected="an array that needs no pickle",
            remedy="delete it and fetch it again",
        ) from error
    if not isinstance(array, np.ndarray):
        raise BadData(f"{name} is an archive", expected="one array", remedy="fetch it again")
    return array
