"""Readers of the file formats IDX and .npy."""

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadData

__all__ = [
    "Bytes",
    "parse_array",
    "parse_images",
    "parse_labels",
    "read_images",
    "read_labels",
    "unpacked",
]


Bytes = NDArray[np.uint8]

_GZIP = b"\x1f\x8b"
_IMAGES = 0x00000803
_LABELS = 0x00000801
_FETCH_AGAIN = "delete it and fetch it again"


def read_images(path: Path) -> Bytes:
    """Read all images of a file.

    Args:
        path: an IDX file, plain or gzip, detected by its first bytes.

    Returns:
        (N, rows, columns) uint8.

    Raises:
        BadData: if the file cannot be read, is no IDX file of images, or has another length than in its header.
    """
    return parse_images(unpacked(path), str(path))


def read_labels(path: Path, num_classes: int = 10) -> Bytes:
    """Read all labels of a file.

    Args:
        path: an IDX file, plain or gzip.
        num_classes: labels must be in 0 … num_classes − 1.

    Returns:
        (N,) uint8.

    Raises:
        BadData: as ``read_images``, or for a label out of range.
    """
    return parse_labels(unpacked(path), str(path), num_classes)


LARGEST = 1 << 32
"""Bytes of the largest file whose size is not known beforehand."""


def unpacked(path: Path, size: int | None = None) -> bytes:
    """Return the content of a file, decompressed if it is a gzip file.

    Args:
        path: the file.
        size: bytes of the right content, of which one more is read; None for the size in its IDX header, or LARGEST.

    Raises:
        BadData: if the file cannot be read, is a damaged or truncated gzip file, or holds more bytes than that.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if packed else file
            start = b"" if size is not None else stream.read(_LONGEST_HEADER)
            limit = _declared_size(start) if size is None else size
            data = start + stream.read(max(0, limit + 1 - len(start)))
    except EOFError as error:
        raise BadData(
            f"{path} is truncated",
            got=f"{path.stat().st_size} bytes that end inside the gzip stream",
            expected="a complete gzip file",
            remedy=_FETCH_AGAIN,
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadData(
            f"{path} is damaged", got=str(error), expected="a gzip file", remedy=_FETCH_AGAIN
        ) from error
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "not enough memory"
        raise BadData(f"cannot read {path}", got=reason) from error
    if len(data) > limit and size is not None:  # else the reader of the header raises
        raise BadData(
            f"{path} is longer than the right file",
            got=f"more than {size} bytes",
            expected=f"{size} bytes",
            remedy=_FETCH_AGAIN,
        )
    return data


_LONGEST_HEADER = 4 + 4 * 3


def _declared_size(start: bytes) -> int:
    """Return the size that the header of an IDX file declares; LARGEST for other files."""
    if int.from_bytes(start[:4], "big") not in (_IMAGES, _LABELS) or len(start) < _LONGEST_HEADER:
        return LARGEST
    end = 4 + 4 * start[3]
    shape = [int.from_bytes(start[at : at + 4], "big") for at in range(4, end, 4)]
    return min(end + math.prod(shape), LARGEST)


def parse_images(data: bytes, name: str) -> Bytes:
    """Return the images (N, rows, columns) in an IDX file's content; ``name`` is used in error messages."""
    return _parse(data, name, _IMAGES)


def parse_labels(data: bytes, name: str, num_classes: int = 10) -> Bytes:
    """Return the labels (N,) in an IDX file's content; ``name`` is used in error messages."""
    labels = _parse(data, name, _LABELS)
    if len(labels) and labels.max() >= num_classes:
        first = int(np.argmax(labels >= num_classes))
        raise BadData(
            f"{name} has a label out of range at position {first}",
            got=int(labels[first]),
            expected=f"0 to {num_classes - 1}",
            remedy=_FETCH_AGAIN,
        )
    return labels


def _parse(data: bytes, name: str, magic: int) -> Bytes:
    _check_magic(data, name, magic)
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise BadData(
            f"{name} is truncated",
            got=f"{len(data)} bytes",
            expected=f"a header of {start} bytes",
            remedy=_FETCH_AGAIN,
        )
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    _check_length(len(data) - start, shape, name)
    # A bytearray, because PyTorch warns of read-only memory.
    return np.frombuffer(bytearray(data[start:]), dtype=np.uint8).reshape(shape)


def _check_magic(data: bytes, name: str, magic: int) -> None:
    if int.from_bytes(data[:4], "big") == magic and len(data) >= 4:
        return
    expected = f"an IDX file that starts with 0x{magic:08x}"
    if data.lstrip()[:1] == b"<":
        start = data.lstrip()[:24].decode("ascii", "replace")
        raise BadData(f"{name} is a web page", got=start, expected=expected, remedy=_FETCH_AGAIN)
    found = f"0x{data[:4].hex()}" if data else "an empty file"
    raise BadData(f"{name} has the wrong start", got=found, expected=expected, remedy=_FETCH_AGAIN)


def _check_length(length: int, shape: list[int], name: str) -> None:
    expected = math.prod(shape)
    if length == expected and expected > 0:
        return
    size = " x ".join(map(str, shape))
    raise BadData(
        f"{name} is {'truncated' if length < expected else 'not as long as its header specifies'}",
        got=f"{length} bytes of data",
        expected=f"{size} = {expected}" if expected else "at least one element",
        remedy=_FETCH_AGAIN,
    )


Numbers = NDArray[Any]


def parse_array(data: bytes, name: str) -> Numbers:
    """Return the array in an .npy file's content.

    Args:
        data: content of the file.
        name: name of the file in error messages.

    Raises:
        BadData: if it is no .npy file, is truncated, or contains objects instead of numbers.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for a damaged header
        raise BadData(
            f"{name} is no .npy file of numbers",
            got=(str(error).splitlines() or [type(error).__name__])[0][:80],
            expected="an array without pickled objects",
            remedy=_FETCH_AGAIN,
        ) from error
    if not isinstance(array, np.ndarray):
        raise BadData(f"{name} is an archive", expected="one array", remedy="fetch it again")
    if array.dtype.kind not in "biuf":
        raise BadData(f"{name} holds no numbers", got=str(array.dtype), remedy=_FETCH_AGAIN)
    return array
