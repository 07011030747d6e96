"""Fetches and verifies data sets that are published as one archive: CIFAR-10 and CIFAR-100."""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustbench_inv.data.fetch import (
    MIRROR,
    FileCheck,
    cache_folder,
    download,
    fetch_dataset,
    verify_dataset,
)
from robustbench_inv.errors import BadData, MissingData

__all__ = ["ARCHIVES", "Archive", "fetch_or_unpack", "verify_files"]


@dataclass(frozen=True)
class Archive:
    """An archive of a data set.

    Args:
        name: name of the file.
        md5: its published MD5.
        folder: folder in the archive with the files.
        files: names of the files in it.
        address: URL of the folder with the archive.
    """

    name: str
    md5: str
    folder: str
    files: tuple[str, ...]
    address: str = "https://www.cs.toronto.edu/~kriz"


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
    ),
    "cifar100": Archive(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        ("train", "test"),
    ),
}
"""Archives by data set, with the MD5 that Krizhevsky published."""

LARGEST = 1 << 28
"""Bytes beyond which no file of an archive is unpacked."""


def fetch_or_unpack(name: str, root: Path | None = None) -> list[Path]:
    """Fetch what is missing of a data set; an archive that lies in the data root is unpacked instead.

    Args:
        name: name of the data set.
        root: data root to fetch into; None for the user's cache.

    Returns:
        The paths of its files, each verified; none for a generated data set.

    Raises:
        BadData: if the files cannot be fetched, or are others than those published.
    """
    if name not in ARCHIVES:
        return fetch_dataset(name, root)
    try:
        return _verified_folders(name, root)
    except BadData as error:
        if not error.problem.startswith("cannot find"):
            raise
    _unpack(name, ARCHIVES[name], root)
    return _verified_folders(name, root)


def verify_files(name: str, root: Path | None = None) -> list[FileCheck]:
    """Compare the content of each file of a data set with what was published; none for a generated data set."""
    if name not in ARCHIVES:
        return verify_dataset(name, root)
    try:
        return [FileCheck(path, True, "ok") for path in _verified_folders(name, root)]
    except BadData as error:
        return [FileCheck((root or cache_folder()) / ARCHIVES[name].folder, False, str(error))]


def _verified_folders(name: str, root: Path | None) -> list[Path]:
    """Open both splits, which verifies their content, and return their folders."""
    from robustbench_inv.data import cifar

    opener = {"cifar10": cifar.open_cifar10, "cifar100": cifar.open_cifar100}[name]
    for split in cifar.SPLITS:
        opener(split, root)
    return list(dict.fromkeys(cifar.find_folder(name, split, root) for split in cifar.SPLITS))


def _unpack(name: str, archive: Archive, root: Path | None) -> None:
    """Put the files of an archive into the data root, or the cache; a failed attempt removes what it wrote."""
    target = root or cache_folder() / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target) as folder:
            path = _archive_file(name, archive, target, Path(folder))
            for file, content in _members(path, archive):
                (Path(folder) / file).write_bytes(content)
            (target / archive.folder).mkdir(exist_ok=True)
            for file in archive.files:
                (Path(folder) / file).replace(target / archive.folder / file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadData(f"cannot write {target / archive.folder}", got=reason) from error


def _archive_file(name: str, archive: Archive, target: Path, folder: Path) -> Path:
    """Return the archive in the target, or else the downloaded one, after comparing its MD5."""
    path, failure = target / archive.name, ""
    if not path.is_file():
        path = folder / archive.name
        mirror = os.environ.get(MIRROR)
        address = f"{mirror.rstrip('/')}/{name}" if mirror else archive.address
        try:
            download(f"{address}/{archive.name}", path)
        except BadData as error:
            failure = f" ({address}/{archive.name}: {error})"
    if failure:
        raise MissingData(
            f"cannot fetch {archive.name} of {name}{failure}",
            remedy=f"put {archive.name} into a folder DIR, and repeat the command with --data-root DIR",
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        raise BadData(
            f"{path.name} has the wrong checksum", got=f"MD5 {found}", expected=archive.md5
        )
    return path


def _members(path: Path, archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files in an archive, and of nothing else in it."""
    wanted = {f"{archive.folder}/{file}": file for file in archive.files}
    try:
        with tarfile.open(path, "r:*") as stored:
            for member in stored:
                if member.name in wanted and member.isreg() and member.size <= LARGEST:
                    content = stored.extractfile(member)
                    assert content is not None, "a regular file has content"
                    yield wanted.pop(member.name), content.read()
    except (tarfile.TarError, EOFError) as error:
        raise BadData(f"{path.name} is damaged", got=str(error), expected="an archive") from error
    if wanted:
        raise BadData(f"{path.name} is incomplete", got=f"no {next(iter(wanted))}")
