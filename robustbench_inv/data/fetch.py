"""Fetching and verifying the files of a data set: a file enters the cache whole and checked, or not at all."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from robustbench_inv.data.registry import entry
from robustbench_inv.data.sources import Source, locate, source, verified
from robustbench_inv.errors import BadData

__all__ = ["MIRROR", "FileCheck", "fetch_dataset", "fetch_file", "verify_dataset"]

MIRROR = "INVBENCH_MIRROR"
"""Environment variable: address below which ``<dataset>/<file>`` lie (IDX files with ``.gz``), asked instead of
the public ones."""


class FileCheck(NamedTuple):
    """The verdict on one file of a data set."""

    file: Path
    ok: bool
    message: str


def fetch_dataset(name: str, root: Path | None = None) -> list[Path]:
    """Fetch the files of a data set that are not there yet.

    Args:
        name: a data set that consists of files; of others nothing needs fetching.
        root: data root to fetch into; None for the user's cache.

    Returns:
        The paths of all its files, each verified.

    Raises:
        BadData: if no mirror has a file, or a file that is in the way is damaged.
    """
    origin = _origin(name)
    return [] if origin is None else [_present(origin, file, root) for file in origin.sha256]


def verify_dataset(name: str, root: Path | None = None) -> list[FileCheck]:
    """Compare each file of a data set with its checksum; a data set without files has none to compare."""
    origin = _origin(name)
    return [] if origin is None else [_check(origin, file, root) for file in origin.sha256]


def fetch_file(
    origin: Source, file: str, folder: Path, mirrors: Sequence[str] | None = None
) -> Path:
    """Download one file from the first mirror that has it.

    It is written to a temporary folder, decompressed if need be and compared with its checksum there; only then is it
    renamed to its place. What fails leaves nothing behind.

    Args:
        origin: the data set.
        file: name without ``.gz``.
        folder: where the file goes, IDX files as ``<file>.gz``; made if it does not exist.
        mirrors: addresses of folders that hold it as it is stored; None for ``INVBENCH_MIRROR`` or else the
            source's own addresses.

    Returns:
        The path of the file.

    Raises:
        BadData: if no mirror gives the right file; the message lists what each of them said.
    """
    said, stored = [], origin.stored(file)
    for address in _addresses(origin, file, mirrors):
        try:
            return _download(address, origin.sha256[file], folder / stored)
        except BadData as error:
            said.append(f"{address}: {error}")
    raise BadData(
        f"cannot fetch {stored} of {origin.name} ({'; '.join(said)})",
        remedy=f"try again, or put the file into DIR/{origin.folders[0]} and give --data-root DIR",
    )


def _origin(name: str) -> Source | None:
    return source(name) if entry(name).has_files else None


def _present(origin: Source, file: str, root: Path | None) -> Path:
    folder = origin.target(root) if origin.folders else None
    found = locate(origin, file, root)
    if found is not None:
        try:
            verified(found, origin.sha256[file])
        except BadData:
            if found.parent != folder:
                raise
        else:
            return found
    assert folder is not None, "embedded files are always found"
    return fetch_file(origin, file, folder)


def _check(origin: Source, file: str, root: Path | None) -> FileCheck:
    found = locate(origin, file, root)
    if found is None:
        missing = origin.target(root) / origin.stored(file)
        return FileCheck(missing, False, f"missing; run invbench data fetch {origin.name}")
    try:
        verified(found, origin.sha256[file])
    except BadData as error:
        return FileCheck(found, False, str(error))
    return FileCheck(found, True, "ok")


def _addresses(origin: Source, file: str, mirrors: Sequence[str] | None) -> list[str]:
    named = os.environ.get(MIRROR)
    if mirrors is None and named:
        mirrors = [f"{named.rstrip('/')}/{origin.name}"]
    if mirrors is None:
        return origin.addresses(file)
    return [f"{mirror.rstrip('/')}/{origin.stored(file)}" for mirror in mirrors]


def _download(address: str, sha256: str, target: Path) -> Path:
    """Bring a verified file to its place; BadData says in a few words what went wrong."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic within one file system only.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            part = Path(folder) / target.name
            _request(address, part)
            _judge(part, sha256)
            part.replace(target)
    except OSError as error:
        raise BadData(f"cannot write {target}", got=error.strerror or str(error)) from error
    return target


def _request(address: str, part: Path) -> None:
    import pooch

    try:
        pooch.HTTPDownloader(chunk_size=1 << 16, timeout=30)(address, str(part), None)
    except (OSError, ValueError) as error:
        # The client's own text repeats the address, and may go on about its connection pool.
        reason = str(error).partition(" for url")[0]
        raise BadData(reason if len(reason) < 60 else type(error).__name__) from error


def _judge(part: Path, sha256: str) -> None:
    try:
        verified(part, sha256)
    except BadData as error:
        problem = error.problem.replace(f"{part} ", "it ")
        raise BadData(problem, got=error.got, expected=error.expected) from error
