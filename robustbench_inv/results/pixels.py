"""Images as 8-bit pixels, distances of kept images, and the digest that identifies an image in a file of human labels."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.identity import canonical_json, digest_bytes

__all__ = ["Pixels", "differing_samples", "is_image_shape", "pixel_digest", "png_uri", "to_pixels"]


Pixels = NDArray[np.uint8]

DISTANCE_TOLERANCE = 1e-3
"""Largest relative difference between a distance in a record and that of its images."""


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Is an input of this shape an image, grey or colour: (channels, height, width)?"""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_pixels(images: NDArray[np.floating], bounds: tuple[float, float]) -> Pixels:
    """Return inputs rounded to 256 levels between the bounds; values outside are clipped.

    Args:
        images: (n, channels, height, width).
        bounds: the values of black and of white.

    Example:
        >>> to_pixels(np.array([-0.1, 0.5, 1.0]), (0.0, 1.0)).tolist()
        [0, 128, 255]
    """
    low, high = bounds
    levels = (images.astype(np.float64) - low) * (255 / (high - low))
    pixels: Pixels = np.rint(levels.clip(0, 255)).astype(np.uint8)
    return pixels


def pixel_digest(image: Pixels) -> str:
    """Return the digest of an image: 32 hexadecimal digits over its shape and bytes."""
    shape = canonical_json(list(image.shape)).encode()
    return digest_bytes(shape + np.ascontiguousarray(image).tobytes())[:32]


_GREY, _COLOUR = 0, 2


def png_uri(image: Pixels) -> str:
    """Return a data URI of an image.

    Args:
        image: (1 or 3, height, width) of 0 to 255.

    References:
        Portable Network Graphics (PNG) Specification, W3C, 2003, sections 5, 9.2 (filter type 0) and 11.2.
    """
    channels, height, width = image.shape
    kind = _GREY if channels == 1 else _COLOUR
    rows = np.ascontiguousarray(image.transpose(1, 2, 0)).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + base64.b64encode(file).decode()


def _png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def differing_samples(images: Mapping[str, NDArray[Any]], known: NDArray[np.float64]) -> list[int]:
    """Return the samples whose images have another distance than ``known`` (n, 5): sample ids, ascending, and distances."""
    samples = images["samples"]
    rows = np.searchsorted(known[:, 0], samples)
    has = np.flatnonzero(np.isin(samples, known[:, 0]))
    if not len(has):
        return []
    found = _distances(images["clean"][has], images["adversarial"][has])
    stored = known[rows[has], 1:]
    close = np.abs(found - stored) <= DISTANCE_TOLERANCE * np.maximum(1.0, np.abs(stored))
    different: list[int] = samples[has[~close.all(1)]].tolist()
    return different


def _distances(clean: NDArray[np.generic], adversarial: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the distances of images (n, …) in the order of ``Distances``: (n, 4)."""
    delta = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
    delta = delta.reshape(len(delta), -1)
    norms = (delta != 0).sum(1), delta.sum(1), np.sqrt((delta**2).sum(1)), delta.max(1, initial=0)
    return np.stack(norms, 1).astype(np.float64)
