"""Images as 8-bit pixels, and the digest that identifies an image in a file of human labels."""

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.identity import canonical_json, digest_bytes

__all__ = ["Pixels", "is_image_shape", "pixel_digest", "to_pixels"]


Pixels = NDArray[np.uint8]


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
