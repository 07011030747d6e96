"""The kept images of a cell: a file for each block, later one file; each carries a digest of its content."""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import (
    DIGEST,
    explain_write_errors,
    matching,
    read_whole,
    remove_leftovers,
    write_atomically,
)
from robustbench_inv.results.record import Record

__all__ = [
    "ADVERSARIAL",
    "ImageShards",
    "Images",
    "differing_samples",
    "images_to_bytes",
    "read_images",
]

ADVERSARIAL = "adversarial.safetensors"

Images = dict[str, NDArray[Any]]
"""``samples`` (n,) int64, ``clean`` and ``adversarial`` (n, …) of one floating type."""

UNREADABLE = (OSError, SafetensorError, ValueError, TypeError, KeyError, OverflowError, MemoryError)
"""Errors of safetensors and numpy for damaged files."""

DISTANCE_TOLERANCE = 1e-3
"""Largest relative difference between a distance in a record and that of its images."""


def images_to_bytes(images: Images, cell: str) -> bytes:
    """Return a file of images; ``cell`` is the digest of the cell's identity, part of the digest of the content."""
    return save(images, metadata={DIGEST: _digest(images, cell)})


def read_images(path: Path, cell: str) -> Images:
    """Read a file of images; those of earlier versions have no digest.

    Args:
        path: the file.
        cell: digest of the cell's identity.

    Raises:
        BadResults: if the file is damaged, was changed, or belongs to another cell.
    """
    try:
        data = read_whole(path)  # a mapped file ends the process if another machine replaces it
        images = load(data)
        digest = _header(io.BytesIO(data)).get("__metadata__", {}).get(DIGEST)
        _check_arrays(images)
    except UNREADABLE as error:
        raise _damaged(path, f"is damaged: {error}") from error
    if digest is not None and digest != _digest(images, cell):
        raise _damaged(path, "was changed after it was written")
    return images


def differing_samples(images: Images, records: Sequence[Record]) -> list[int]:
    """Return the samples whose images have another distance than their record, ascending."""
    rows = {sample: row for row, sample in enumerate(images["samples"].tolist())}
    known = [record for record in records if record.sample in rows]
    if not known:
        return []
    chosen = [rows[record.sample] for record in known]
    found = _distances(images["clean"][chosen], images["adversarial"][chosen])
    stored = np.array([list(vars(record.distance).values()) for record in known], float)
    close = np.abs(found - stored) <= DISTANCE_TOLERANCE * np.maximum(1.0, np.abs(stored))
    return sorted(known[row].sample for row in np.flatnonzero(~close.all(1)))


class ImageShards:
    """The images of a cell: one file for each block under ``images/``, later one adversarial.safetensors.

    The file of a block (shard) is written before its records, so that every record has its image. A block
    that is evaluated again replaces its shard. After a crash during ``consolidate`` some rows are in both
    places; they are equal.

    Args:
        folder: the cell's folder.
        cell: digest of the cell's identity.
    """

    def __init__(self, folder: Path, cell: str) -> None:
        self._path, self._folder, self._cell = folder / ADVERSARIAL, folder / "images", cell

    @property
    def any(self) -> bool:
        """Are images stored?"""
        return self._path.exists() or self._folder.exists()

    @property
    def scattered(self) -> bool:
        """Are images stored in files of blocks?"""
        return self._folder.exists()

    def add(self, block: int, samples: Sequence[int], images: Mapping[str, np.ndarray]) -> None:
        """Write the shard of a block.

        Args:
            block: number of the block.
            samples: its n sample ids.
            images: ``clean`` and ``adversarial``, each (n, …).
        """
        with explain_write_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
        shard: Images = {"samples": np.asarray(samples, np.int64), **images}
        path = self._folder / f"{block:06d}.safetensors"
        write_atomically(path, images_to_bytes(shard, self._cell))

    def read(self, *, repair: bool = False) -> Images | None:
        """Return all stored images, rows in ascending order of sample id; None without any.

        Args:
            repair: delete damaged files instead of raising.

        Raises:
            BadResults: if a file is damaged.
        """
        parts = []
        for path in self._files():
            try:
                parts.append(read_images(path, self._cell))
            except BadResults:
                if not repair:
                    raise
                path.unlink()
        return _merge(parts) if parts else None

    def samples(self) -> set[int]:
        """Return the samples whose images are stored."""
        return {sample for path in self._files() for sample in _read_samples(path)}

    def consolidate(self, samples: Sequence[int]) -> None:
        """Merge the shards into adversarial.safetensors, rows in ascending order of sample id.

        Args:
            samples: those that have records; after a crash a shard may hold others.
        """
        if self._shards() and (images := self.read()) is not None:
            kept = np.isin(images["samples"], np.asarray(samples))
            chosen = {name: array[kept] for name, array in images.items()}
            write_atomically(self._path, images_to_bytes(chosen, self._cell))
        self._remove_shards()

    def forget(self) -> None:
        """Remove all images of the cell."""
        self._path.unlink(missing_ok=True)
        self._remove_shards()

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a process that was killed."""
        remove_leftovers(self._folder)

    def _files(self) -> list[Path]:
        return [path for path in (self._path, *self._shards()) if path.exists()]

    def _shards(self) -> list[Path]:
        return matching(self._folder, "*.safetensors")

    def _remove_shards(self) -> None:
        if self._folder.exists():
            with explain_write_errors(self._folder):
                for file in matching(self._folder, "*"):
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # a process that lost its claim may be writing a shard again
                self._folder.rmdir()


def _read_samples(path: Path) -> list[int]:
    with path.open("rb") as file:
        start, end = _header(file)["samples"]["data_offsets"]
        file.seek(start, os.SEEK_CUR)
        found: list[int] = np.frombuffer(file.read(end - start), np.int64).tolist()
    return found


def _header(file: BinaryIO) -> dict[str, Any]:
    """Read the header of a safetensors file, and stop where its arrays begin."""
    header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _merge(parts: Sequence[Images]) -> Images:
    samples = np.concatenate([part["samples"] for part in parts])
    _, rows = np.unique(samples, return_index=True)
    return {name: np.concatenate([part[name] for part in parts])[rows] for name in parts[0]}


def _distances(clean: NDArray[np.generic], adversarial: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the distances of images (n, …) in the order of ``Distances``: (n, 4)."""
    delta = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
    delta = delta.reshape(len(delta), -1)
    norms = (delta != 0).sum(1), delta.sum(1), np.sqrt((delta**2).sum(1)), delta.max(1, initial=0)
    return np.stack(norms, 1).astype(np.float64)


def _check_arrays(images: Images) -> None:
    """Raise ValueError for arrays of the wrong names, types or shapes."""
    if set(images) != {"samples", "clean", "adversarial"}:
        raise ValueError(f"it holds {', '.join(sorted(images))}")
    samples, clean, adversarial = (images[key] for key in ("samples", "clean", "adversarial"))
    if samples.dtype != np.int64 or samples.shape != clean.shape[:1]:
        raise ValueError(f"samples are {samples.dtype} of shape {samples.shape}")
    if clean.dtype != adversarial.dtype or clean.shape != adversarial.shape:
        raise ValueError("clean and adversarial images have different shapes")
    if clean.dtype.kind != "f" or clean.ndim < 2:
        raise ValueError(f"images are {clean.dtype} of shape {clean.shape}")
    if len(np.unique(samples)) < len(samples):
        raise ValueError("a sample occurs twice")


def _digest(images: Images, cell: str) -> str:
    found = hashlib.sha256(cell.encode())
    for name in sorted(images):
        array = np.ascontiguousarray(images[name])
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.data)
    return found.hexdigest()


def _damaged(path: Path, problem: str) -> BadResults:
    return BadResults(
        f"{path} {problem}",
        remedy="restore it, or compute its samples again with --existing repair",
    )
