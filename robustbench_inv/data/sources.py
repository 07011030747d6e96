"""Sources of the data sets that consist of files: their files, their checksums, and the places where they are looked for."""

import hashlib
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from robustbench_inv.data.idx import parse_images, parse_labels, unpacked
from robustbench_inv.data.npy import parse_array
from robustbench_inv.errors import BadData

__all__ = ["EMBEDDED", "Source", "cache_folder", "locate", "places", "source", "verified"]

EMBEDDED = Path(__file__).parent / "mnist5k"
"""The folder of the digits that the package ships."""


@dataclass(frozen=True)
class Source:
    """Where a data set's files come from.

    Args:
        name: the data set.
        sha256: file → SHA-256 of its uncompressed bytes, 64 hexadecimal digits. A file is named without the
            ``.gz`` that it has where it is compressed.
        folders: folders below a data root; the first is the one that a download goes to.
        system: folders that an operating system's package installs into.
        mirrors: addresses of folders that hold the files.
        remote: file → its path below a mirror, where that is not its stored name.
    """

    name: str
    sha256: dict[str, str]
    folders: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    remote: dict[str, str] = field(default_factory=dict)

    def stored(self, file: str) -> str:
        """Return the name of a file as it is downloaded and kept: IDX files are compressed."""
        return file if file.endswith(".npy") else f"{file}.gz"

    def addresses(self, file: str) -> list[str]:
        """Return where a file is offered."""
        path = self.remote.get(file, self.stored(file))
        return [f"{mirror.rstrip('/')}/{path}" for mirror in self.mirrors]

    def target(self, root: Path | None) -> Path:
        """Return the folder that a download goes to: below the data root if one is given, else the cache."""
        return root / self.folders[0] if root else cache_folder() / self.name


def source(name: str) -> Source:
    """Return the source of a data set that consists of files."""
    entry = _sources()[name]
    lists = {key: tuple(entry.get(key, ())) for key in ("folders", "system", "mirrors")}
    return Source(name, dict(entry["sha256"]), **lists, remote=dict(entry.get("remote", {})))


def places(origin: Source, root: Path | None) -> Iterator[Path]:
    """Yield the folders to search: below the data root or ``INVBENCH_DATA``, the system's, the cache."""
    roots = [root] if root else []
    if named := os.environ.get("INVBENCH_DATA"):
        roots.append(Path(named))
    for place in roots:
        yield from (place / folder for folder in origin.folders)
    yield from map(Path, origin.system)
    yield cache_folder() / origin.name


def cache_folder() -> Path:
    """Return the user's cache folder of this program, which need not exist."""
    import pooch

    return Path(pooch.os_cache("robustbench-inv"))


def locate(origin: Source, file: str, root: Path | None) -> Path | None:
    """Return the first place that holds the file, as gzip or plain; None if there is none."""
    if origin.name == EMBEDDED.name:
        return EMBEDDED / f"{file}.gz"
    found = (place / name for place in places(origin, root) for name in (f"{file}.gz", file))
    return next((path for path in found if path.is_file()), None)


def verified(path: Path, sha256: str) -> bytes:
    """Return the uncompressed content of a file that has the right SHA-256.

    Raises:
        BadData: if it cannot be read, or its content is another; the message says what is wrong with it.
    """
    data = unpacked(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest == sha256:
        return data
    # A file that is not even of its format deserves a better message than two checksums.
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
