"""Finds, downloads and verifies the files of data sets; only complete, verified files enter the cache."""

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_inv.data.formats import parse_array, parse_images, parse_labels, unpacked
from robustbench_inv.errors import BadData, MissingData

__all__ = [
    "EMBEDDED",
    "MIRROR",
    "FileCheck",
    "Source",
    "cache_folder",
    "download",
    "fetch_dataset",
    "fetch_file",
    "find_source",
    "locate",
    "search_folders",
    "verified_content",
    "verify_dataset",
]


EMBEDDED = Path(__file__).parent / "mnist5k"
"""Folder of the digits that are part of the package."""


@dataclass(frozen=True)
class Source:
    """Checksums, folders and mirrors of a data set's files.

    Args:
        name: name of the data set.
        sha256: SHA-256 of each file's uncompressed bytes, 64 hexadecimal digits, by file name without ``.gz``.
        folders: folders below a data root; downloads go to the first one.
        system: folders of an operating system's package.
        mirrors: URLs of folders with the files.
        remote: path below a mirror by file, if it differs from the stored name.
        sizes: bytes of each uncompressed file.
    """

    name: str
    sha256: dict[str, str]
    folders: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    remote: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def content(self, path: Path, file: str) -> bytes:
        """Return the content of a file that was found; see ``verified_content``."""
        return verified_content(path, self.sha256[file], self.sizes.get(file))

    def stored(self, file: str) -> str:
        """Return the name of a stored file; IDX files are compressed."""
        return file if file.endswith(".npy") else f"{file}.gz"

    def addresses(self, file: str) -> list[str]:
        """Return the URLs of a file."""
        path = self.remote.get(file, self.stored(file))
        return [f"{mirror.rstrip('/')}/{path}" for mirror in self.mirrors]

    def target(self, root: Path | None) -> Path:
        """Return the folder for downloads: below the data root if there is one, else the cache."""
        return root / self.folders[0] if root else cache_folder() / self.name


def find_source(name: str) -> Source:
    """Return the source of a data set that consists of files."""
    entry = _sources()[name]
    lists = {key: tuple(entry.get(key, ())) for key in ("folders", "system", "mirrors")}
    remote, sizes = dict(entry.get("remote", {})), dict(entry.get("bytes", {}))
    return Source(name, dict(entry["sha256"]), **lists, remote=remote, sizes=sizes)


def search_folders(origin: Source, root: Path | None) -> Iterator[Path]:
    """Yield the folders to search: below the data root or ``INVBENCH_DATA``, the system's, the cache."""
    roots = [root] if root else []
    if named := os.environ.get("INVBENCH_DATA"):
        roots.append(Path(named))
    for place in roots:
        yield from (place / folder for folder in origin.folders)
    yield from map(Path, origin.system)
    yield cache_folder() / origin.name


def cache_folder() -> Path:
    """Return the user's cache folder of this program, which may not exist yet."""
    import pooch

    return Path(pooch.os_cache("robustbench-inv"))


def locate(origin: Source, file: str, root: Path | None) -> Path | None:
    """Return the first path of the file, as gzip or plain; None if it is missing."""
    if origin.name == EMBEDDED.name:
        return EMBEDDED / f"{file}.gz"
    found = (
        place / name for place in search_folders(origin, root) for name in (f"{file}.gz", file)
    )
    return next((path for path in found if path.is_file()), None)


def verified_content(path: Path, sha256: str, size: int | None = None) -> bytes:
    """Return the uncompressed content of a file after comparing its SHA-256.

    Args:
        path: the file, plain or gzip.
        sha256: of its uncompressed bytes.
        size: their number, beyond which nothing is read; None for the one in its header.

    Raises:
        BadData: if it cannot be read, or its content differs.
    """
    data = unpacked(path, size)
    digest = hashlib.sha256(data).hexdigest()
    if digest == sha256:
        return data
    # A file of another format raises a more helpful error than two checksums.
    _parser(path)(data, str(path))
    raise BadData(
        f"{path} has the wrong checksum",
        got=f"SHA-256 {digest[:16]}… of the uncompressed bytes",
        expected=f"{sha256[:16]}…",
        remedy="delete it and fetch it again",
    )


def _parser(path: Path) -> Callable[[bytes, str], object]:
    if path.suffix == ".npy":
        return parse_array
    return parse_labels if "labels" in path.name else parse_images


@cache
def _sources() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "checksums.toml").read_text("utf-8"))


MIRROR = "INVBENCH_MIRROR"
"""Environment variable with a URL below which ``<dataset>/<file>`` are found (IDX files with ``.gz``); it replaces the
public mirrors."""


class FileCheck(NamedTuple):
    """Result of verifying one file of a data set."""

    file: Path
    ok: bool
    message: str


def fetch_dataset(name: str, root: Path | None = None) -> list[Path]:
    """Fetch the missing files of a data set.

    Args:
        name: name of the data set; for one without files, nothing is fetched.
        root: data root to fetch into; None for the user's cache.

    Returns:
        The paths of all its files, each verified.

    Raises:
        BadData: if no mirror has a file, or an existing file outside the download folder is damaged.
    """
    origin = _source_with_files(name)
    return [] if origin is None else [_ensure_present(origin, file, root) for file in origin.sha256]


def verify_dataset(name: str, root: Path | None = None) -> list[FileCheck]:
    """Compare each file of a data set with its checksum; the list is empty for a data set without files."""
    origin = _source_with_files(name)
    return [] if origin is None else [_check_file(origin, file, root) for file in origin.sha256]


def fetch_file(
    origin: Source, file: str, folder: Path, mirrors: Sequence[str] | None = None
) -> Path:
    """Download one file from the first mirror that has it.

    The file is downloaded to a temporary folder and compared with its checksum; only then is it renamed to its path.
    A failed download leaves no files.

    Args:
        origin: source of the data set.
        file: name without ``.gz``.
        folder: target folder, created if it does not exist; IDX files are stored as ``<file>.gz``.
        mirrors: URLs of folders with the stored file; None for ``INVBENCH_MIRROR``, or else the mirrors of the source.

    Returns:
        The path of the file.

    Raises:
        BadData: if no mirror has the right file; the message contains the error of each mirror.
    """
    failures, stored = [], origin.stored(file)
    for address in _addresses(origin, file, mirrors):
        try:
            return _download(address, origin, file, folder / stored)
        except BadData as error:
            failures.append(f"{address}: {error}")
    raise MissingData(
        f"cannot fetch {stored} of {origin.name} ({'; '.join(failures)})",
        remedy=f"try again, or put the file into DIR/{origin.folders[0]} and give --data-root DIR",
    )


def _source_with_files(name: str) -> Source | None:
    return find_source(name) if name in _sources() else None


def _ensure_present(origin: Source, file: str, root: Path | None) -> Path:
    folder = origin.target(root) if origin.folders else None
    found = locate(origin, file, root)
    if found is not None:
        try:
            origin.content(found, file)
        except BadData:
            if found.parent != folder:
                raise
        else:
            return found
    assert folder is not None, "embedded files are always found"
    return fetch_file(origin, file, folder)


def _check_file(origin: Source, file: str, root: Path | None) -> FileCheck:
    found = locate(origin, file, root)
    if found is None:
        missing = origin.target(root) / origin.stored(file)
        return FileCheck(missing, False, f"missing; run invbench data fetch {origin.name}")
    try:
        origin.content(found, file)
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


def _download(address: str, origin: Source, file: str, target: Path) -> Path:
    """Download and verify a file and move it to its path; raise BadData with a short message."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the target's folder, because a rename is atomic only within one file system.
        _remove_leftovers(target.parent)
        with tempfile.TemporaryDirectory(
            prefix=f"{LEFTOVER}{os.getpid()}-", dir=target.parent
        ) as folder:
            part = Path(folder) / target.name
            download(address, part)
            _verify_download(part, origin, file)
            part.replace(target)
    except OSError as error:
        raise BadData(f"cannot write {target}", got=error.strerror or str(error)) from error
    return target


LEFTOVER = ".fetch-"
"""Start of the name of a temporary folder; the id of its process follows."""


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of downloads that were killed."""
    for path in folder.glob(f"{LEFTOVER}*-*"):
        process = path.name.removeprefix(LEFTOVER).partition("-")[0]
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(path, ignore_errors=True)


def download(address: str, part: Path) -> None:
    """Download a file; raise BadData with a short message if that fails."""
    import pooch

    try:
        pooch.HTTPDownloader(chunk_size=1 << 16, timeout=30)(address, str(part), None)
    except (OSError, ValueError) as error:
        # The client's message repeats the URL, and may contain details of its connection pool.
        reason = str(error).partition(" for url")[0]
        raise BadData(reason if len(reason) < 60 else type(error).__name__) from error


def _verify_download(part: Path, origin: Source, file: str) -> None:
    try:
        origin.content(part, file)
    except BadData as error:
        problem = error.problem.replace(f"{part} ", "it ")
        raise BadData(problem, got=error.got, expected=error.expected) from error
