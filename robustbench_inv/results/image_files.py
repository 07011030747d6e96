"""The kept images of a cell: a file for each block, later one file; each carries a digest of its content."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import (
    DIGEST,
    PIECE,
    explain_write_errors,
    matching,
    read_whole,
    remove_leftovers,
    replaced,
    write_atomically,
)
from robustbench_inv.results.pixels import differing_samples
from robustbench_inv.results.record import Record

__all__ = [
    "ADVERSARIAL",
    "ImageShards",
    "Images",
    "images_to_bytes",
    "read_images",
]

ADVERSARIAL = "adversarial.safetensors"

Images = dict[str, NDArray[Any]]
"""``samples`` (n,) int64, ``clean`` and ``adversarial`` (n, …) of one floating type."""

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    OverflowError,
    MemoryError,
)
"""Errors of json and numpy for damaged files."""


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
    file = _ImageFile(path, cell, whole=True)
    return file.rows(0, len(file))


class _ImageFile:
    """A file of images, of which a part is in memory.

    Args:
        path: the file.
        cell: digest of the cell's identity.
        whole: read it at once, since another process may replace it: a mapped file ends the process then.

    Raises:
        BadResults: if the file is damaged, was changed, or belongs to another cell.
    """

    def __init__(self, path: Path, cell: str, *, whole: bool) -> None:
        self._path = path
        try:
            self._data = read_whole(path) if whole else None
            with self._open() as file:
                header = _header(file)
                self._start, end = file.tell(), file.seek(0, os.SEEK_END)
            digest = header.pop("__metadata__", {}).get(DIGEST)
            self._arrays = {name: _Array.of(about) for name, about in header.items()}
            _check_arrays(self._arrays, end - self._start)
            if len(np.unique(self.array("samples", 0, len(self)))) < len(self):
                raise ValueError("a sample occurs twice")
            found = self._digest(cell) if digest is not None else None
        except UNREADABLE as error:
            raise _damaged(path, f"is damaged: {error}") from error
        if digest != found:
            raise _damaged(path, "was changed after it was written")

    def _open(self) -> io.BufferedIOBase:
        return self._path.open("rb") if self._data is None else io.BytesIO(self._data)

    def __len__(self) -> int:
        return int(self._arrays["samples"].shape[0])

    def array(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Read rows ``first`` to ``last`` of an array."""
        about = self._arrays[name]
        found: NDArray[Any] = np.empty((last - first, *about.shape[1:]), about.kind)
        with self._open() as file:
            file.seek(self._start + about.start + first * about.row_bytes)
            if file.readinto(found.reshape(-1).view(np.uint8).data) < found.nbytes:
                raise ValueError("it is cut off")
        return found

    def rows(self, first: int, last: int) -> Images:
        """Read some rows of all arrays."""
        return {name: self.array(name, first, last) for name in self._arrays}

    def spans(self, name: str, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the first and last of rows that take about a megabyte together."""
        size = max(1, PIECE // max(1, self._arrays[name].row_bytes))
        for start in range(first, last, size):
            yield start, min(start + size, last)

    def _digest(self, cell: str) -> str:
        found = hashlib.sha256(cell.encode())
        for name in sorted(self._arrays):
            found.update(_about(name, self._arrays[name].kind, self._arrays[name].shape))
            for first, last in self.spans(name, 0, len(self)):
                found.update(self.array(name, first, last).data)
        return found.hexdigest()


class _Merged:
    """The images of several files as one, rows in ascending order of sample id; those of one file are in memory.

    Args:
        files: the files. A sample that is in several has equal images there.
        read: reads one of them.
        wanted: the samples to keep.
    """

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[Path], _ImageFile],
        wanted: NDArray[np.int64],
    ) -> None:
        self._files, self._read = files, lru_cache(maxsize=1)(read)
        listed = [_read_samples(path) for path in files]
        samples, places = np.unique(np.concatenate(listed), return_index=True)
        kept = np.isin(samples, wanted)
        self._samples, places = samples[kept], places[kept]
        starts = np.cumsum([0, *map(len, listed)])
        self._file = np.searchsorted(starts, places, side="right") - 1
        self._row = places - starts[self._file]

    def write(self, out: BinaryIO, cell: str) -> None:
        """Write them to a file as ``images_to_bytes`` does; ``cell`` is the digest of the cell's identity."""
        first = self._read(self._files[0]).array("clean", 0, 0)
        kind, shape = first.dtype, (len(self._samples), *first.shape[1:])
        arrays = {"samples": (np.dtype(np.int64), shape[:1])}
        arrays |= {"adversarial": (kind, shape), "clean": (kind, shape)}
        found = hashlib.sha256(cell.encode())
        out.write(_header_bytes(arrays, found.hexdigest()))
        out.write(self._samples.data)
        for name in ("adversarial", "clean"):
            found.update(_about(name, kind, shape))
            for rows in self._runs(name):
                data = np.ascontiguousarray(rows.astype(kind, copy=False)).data
                out.write(data)
                found.update(data)
        found.update(_about("samples", *arrays["samples"]))
        found.update(self._samples.data)
        out.seek(0)
        out.write(_header_bytes(arrays, found.hexdigest()))

    def _runs(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield the rows of an array, those that follow each other in a file together, up to some size."""
        ends = (np.diff(self._file) != 0) | (np.diff(self._row) != 1)
        bounds = [0, *(np.flatnonzero(ends) + 1).tolist(), len(self._row)]
        for start, end in pairwise(bounds):
            if start < end:
                file, row = self._read(self._files[self._file[start]]), int(self._row[start])
                for first, last in file.spans(name, row, row + end - start):
                    yield file.array(name, first, last)


_DTYPES = {"I64": "<i8", "F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""Types of arrays as safetensors names them."""


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

    def differing(self, records: Iterable[Record], *, repair: bool = False) -> set[int]:
        """Return the samples whose images have another distance than their record.

        Args:
            records: some records, in any order.
            repair: delete damaged files instead of raising.

        Raises:
            BadResults: if a file is damaged.
        """
        kinds = np.dtype((np.float64, 5))
        rows = ((record.sample, *vars(record.distance).values()) for record in records)
        known = np.fromiter(rows, kinds).view(np.float64).reshape(-1, 5)
        known = known[known[:, 0].argsort()]
        wrong = set[int]()
        for path in self._files():
            try:
                file = self._read(path)
                for first, last in file.spans("clean", 0, len(file)):
                    wrong.update(differing_samples(file.rows(first, last), known))
            except BadResults:
                if not repair:
                    raise
                path.unlink()
        return wrong

    def _read(self, path: Path) -> _ImageFile:
        return _ImageFile(path, self._cell, whole=path != self._path)

    def samples(self) -> set[int]:
        """Return the samples whose images are stored."""
        return {sample for path in self._files() for sample in _read_samples(path).tolist()}

    def consolidate(self, samples: Sequence[int]) -> None:
        """Merge the shards into adversarial.safetensors, rows in ascending order of sample id.

        Args:
            samples: those that have records; after a crash a shard may hold others.
        """
        if self._shards():
            merged = _Merged(self._files(), self._read, np.asarray(samples))
            with replaced(self._path) as temporary, temporary.open("wb") as out:
                merged.write(out, self._cell)
                out.flush()
                os.fsync(out.fileno())
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


def _read_samples(path: Path) -> NDArray[np.int64]:
    try:
        with path.open("rb") as file:
            start, end = _header(file)["samples"]["data_offsets"]
            file.seek(start, os.SEEK_CUR)
            return np.frombuffer(file.read(end - start), np.int64)
    except UNREADABLE as error:
        raise _damaged(path, f"is damaged: {error}") from error


def _header_bytes(arrays: Mapping[str, tuple[Any, Any]], digest: str) -> bytes:
    """Return what precedes arrays (type and shape by name, in their order) in a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {DIGEST: digest}}
    names, end = {kind: name for name, kind in _DTYPES.items()}, 0
    for name, (kind, shape) in arrays.items():
        start, end = end, end + kind.itemsize * prod(shape)
        about = {"dtype": names[kind.str], "shape": shape, "data_offsets": (start, end)}
        header[name] = about
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header(file: io.BufferedIOBase) -> dict[str, Any]:
    """Read the header of a safetensors file, and stop where its arrays begin."""
    header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


class _Array(NamedTuple):
    """Type, shape and place of an array in a file of images."""

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "_Array":
        """Read an entry of the header."""
        return cls(np.dtype(_DTYPES[about["dtype"]]), tuple(about["shape"]), *about["data_offsets"])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.kind.itemsize * prod(self.shape[1:])


def _check_arrays(arrays: Mapping[str, _Array], size: int) -> None:
    """Raise ValueError for arrays of wrong names, types or shapes, or which do not fill a file of so many bytes."""
    if set(arrays) != {"samples", "clean", "adversarial"}:
        raise ValueError(f"it holds {', '.join(sorted(arrays))}")
    samples, clean, adversarial = (arrays[name] for name in ("samples", "clean", "adversarial"))
    if samples.kind != np.int64 or samples.shape != clean.shape[:1]:
        raise ValueError(f"samples are {samples.kind} of shape {samples.shape}")
    if clean[:2] != adversarial[:2]:
        raise ValueError("clean and adversarial images have different shapes")
    if clean.kind.kind != "f" or len(clean.shape) < 2:
        raise ValueError(f"images are {clean.kind} of shape {clean.shape}")
    end = 0
    for array in sorted(arrays.values(), key=attrgetter("start")):
        if (array.start, array.end) != (end, end + array.row_bytes * array.shape[0]):
            raise ValueError("its header gives other places of its arrays")
        end = array.end
    if end != size:
        raise ValueError(f"it holds {size} bytes of arrays, not {end}")


def _digest(images: Images, cell: str) -> str:
    found = hashlib.sha256(cell.encode())
    for name in sorted(images):
        array = np.ascontiguousarray(images[name])
        found.update(_about(name, array.dtype, array.shape))
        found.update(array.data)
    return found.hexdigest()


def _about(name: str, kind: Any, shape: Any) -> bytes:  # noqa: ANN401 - a type of numpy and a tuple
    return f"{name} {kind.str} {shape}".encode()


def _damaged(path: Path, problem: str) -> BadResults:
    return BadResults(
        f"{path} {problem}",
        remedy="restore it, or compute its samples again with --existing repair",
    )
