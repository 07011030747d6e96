"""Files that survive a crash: they are written whole or not at all; a damaged file gives a one-line error."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults

__all__ = [
    "FORMAT_VERSION",
    "explain_write_errors",
    "read_json",
    "read_versioned",
    "write_all",
    "write_atomically",
    "write_json",
]

FORMAT_VERSION = 2
"""The version of the files that this program writes; it reads version 1 as well."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing into a one-line error.

    Raises:
        BadResults: for a full disk, a read-only folder, a file where a folder should be, and the like.
    """
    try:
        yield
    except OSError as error:
        raise BadResults(
            f"cannot write {path}: {error.strerror or error}",
            remedy="finished samples are kept: mend the folder and run the same command again",
        ) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes to the end in as few calls as the system needs (one, as a rule), and flush them to disk."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that at every moment the old or the new one is there, never a part.

    Raises:
        BadResults: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_write_errors(path):
        try:
            _write_new(temporary, data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


def write_json(path: Path, value: Mapping[str, object] | Sequence[object]) -> None:
    """Replace a JSON file atomically; each entry of the outermost object or list is one line."""
    if isinstance(value, Mapping):
        text = ",\n".join(f" {json.dumps(key)}: {_dump(entry)}" for key, entry in value.items())
        text = f"{{\n{text}\n}}\n"
    else:
        text = "[\n" + ",\n".join(f" {_dump(entry)}" for entry in value) + "\n]\n"
    write_atomically(path, text.encode())


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        BadResults: if it is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadResults(
            f"cannot read {path}: {reason}",
            remedy="restore the file, or evaluate into another folder",
        ) from error


def read_versioned(path: Path) -> dict[str, Any]:
    """Read plan.json or cell.json.

    Raises:
        BadResults: if it cannot be read, is no JSON object, or is of a later version than this program reads.
    """
    value = read_json(path)
    version = value.get("version") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(version, int) or version < 1:
        raise BadResults(f"{path} is not a results file", got=version, expected="a version")
    if version > FORMAT_VERSION:
        raise BadResults(
            f"{path} was written by a newer program",
            got=f"version {version}",
            expected=f"at most {FORMAT_VERSION}",
            remedy="upgrade robustbench-inv",
        )
    return value


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
