"""Digests of values: equal values have equal digests, on every machine and in every version."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["IDENTITY_VERSION", "canonical_json", "digest_bytes", "digest_file", "digest_value"]

IDENTITY_VERSION = 2
"""Raised whenever the meaning of digests changes; a test freezes the digests of each version."""


def canonical_json(value: object) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, tuples as lists, floats by ``repr``.

    Args:
        value: nested mappings, lists, tuples, strings, finite numbers, booleans and None.

    Raises:
        TypeError: for any other type.
        ValueError: for a number that is not finite.

    Example:
        >>> canonical_json({"b": (1, 2.5), "a": None})
        '{"a":null,"b":[1,2.5]}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def digest_value(value: Mapping[str, object]) -> str:
    """Return the SHA-256 of a value's canonical JSON, 64 hexadecimal digits."""
    return digest_bytes(canonical_json(value).encode())


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
