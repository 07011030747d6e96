"""IDX files, MNIST's format: read as plain or gzip files, and distrusted until they have been checked."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadData

__all__ = ["Bytes", "parse_images", "parse_labels", "read_images", "read_labels", "unpacked"]

Bytes = NDArray[np.uint8]

_GZIP = b"\x1f\x8b"
_IMAGES = 0x00000803
_LABELS = 0x00000801
_AGAIN = "delete it and fetch it again"


def read_images(path: Path) -> Bytes:
    """Read a file of images, whole.

    Args:
        path: an IDX file, plain or gzip; which of the two is told by its first bytes.

    Returns:
        (N, rows, columns) uint8.

    Raises:
        BadData: if the file cannot be read, is no such file, or is not as long as its header says.
    """
    return parse_images(unpacked(path), str(path))


def read_labels(path: Path, num_classes: int = 10) -> Bytes:
    """Read a file of labels, whole.

    Args:
        path: an IDX file, plain or gzip.
        num_classes: a label is at least 0 and less than this.

    Returns:
        (N,) uint8.

    Raises:
        BadData: as ``read_images``, or for a label out of range.
    """
    return parse_labels(unpacked(path), str(path), num_classes)


def unpacked(path: Path) -> bytes:
    """Return the content of a file, decompressed if it is a gzip file.

    Raises:
        BadData: if the file cannot be read, or is a damaged or truncated gzip file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadData(f"cannot read {path}", got=error.strerror) from error
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise BadData(
            f"{path} is truncated",
            got=f"{len(data)} bytes that end inside the gzip stream",
            expected="a whole gzip file",
            remedy=_AGAIN,
        ) from error
    except (OSError, zlib.error) as error:
        raise BadData(
            f"{path} is damaged", got=str(error), expected="a gzip file", remedy=_AGAIN
        ) from error


def parse_images(data: bytes, name: str) -> Bytes:
    """Return the images (N, rows, columns) in the bytes of an IDX file; ``name`` is for error messages."""
    return _parse(data, name, _IMAGES)


def parse_labels(data: bytes, name: str, num_classes: int = 10) -> Bytes:
    """Return the labels (N,) in the bytes of an IDX file; ``name`` is for error messages."""
    labels = _parse(data, name, _LABELS)
    if len(labels) and labels.max() >= num_classes:
        first = int(np.argmax(labels >= num_classes))
        raise BadData(
            f"{name} has a label out of range at position {first}",
            got=int(labels[first]),
            expected=f"0 to {num_classes - 1}",
            remedy=_AGAIN,
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
            remedy=_AGAIN,
        )
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    _check_length(len(data) - start, shape, name)
    # A bytearray, because PyTorch warns of memory that may not be written to.
    return np.frombuffer(bytearray(data[start:]), dtype=np.uint8).reshape(shape)


def _check_magic(data: bytes, name: str, magic: int) -> None:
    if int.from_bytes(data[:4], "big") == magic and len(data) >= 4:
        return
    expected = f"an IDX file that starts with 0x{magic:08x}"
    if data.lstrip()[:1] == b"<":
        start = data.lstrip()[:24].decode("ascii", "replace")
        raise BadData(f"{name} is a web page", got=start, expected=expected, remedy=_AGAIN)
    found = f"0x{data[:4].hex()}" if data else "an empty file"
    raise BadData(f"{name} has the wrong start", got=found, expected=expected, remedy=_AGAIN)


def _check_length(length: int, shape: list[int], name: str) -> None:
    expected = math.prod(shape)
    if length == expected and expected > 0:
        return
    size = " x ".join(map(str, shape))
    raise BadData(
        f"{name} is {'truncated' if length < expected else 'not as long as its header says'}",
        got=f"{length} bytes of data",
        expected=f"{size} = {expected}" if expected else "at least one element",
        remedy=_AGAIN,
    )
