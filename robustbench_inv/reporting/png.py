"""A small image as a PNG inside a page: grey or colour, eight bits, without loss."""

import base64
import struct
import zlib

import numpy as np

from robustbench_inv.results.seen import Seen

__all__ = ["png_uri"]

_GREY, _COLOUR = 0, 2


def png_uri(image: Seen) -> str:
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
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + base64.b64encode(file).decode()


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
