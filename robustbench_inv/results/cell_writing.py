"""Writes a cell and its images block by block: a crash loses at most the current block."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_parts import Segment
from robustbench_inv.results.files import (
    FORMAT_VERSION,
    explain_write_errors,
    read_versioned,
    write_all,
    write_atomically,
    write_json,
)
from robustbench_inv.results.oracle_error import ORACLE_FILE
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import (
    ADVERSARIAL,
    CELL,
    EVENTS,
    RECORDS,
    block_samples,
    complete_lines,
    count_complete,
    extend_segments,
    sample_order,
)

__all__ = ["CellRequest", "CellWriter", "ImageShards"]


Tensors = dict[str, np.ndarray]


class ImageShards:
    """The images of a cell: one file for each block under ``images/``, later one adversarial.safetensors.

    The file of a block (shard) is written before its records, so that every record has its image. A block
    that is evaluated again replaces its shard. After a crash during ``consolidate`` some rows are in both
    places; they are equal.
    """

    def __init__(self, cell: Path) -> None:
        self._cell, self._folder = cell, cell / "images"

    @property
    def any(self) -> bool:
        """Are images stored?"""
        return (self._cell / ADVERSARIAL).exists() or self._folder.exists()

    def add(self, block: int, samples: Sequence[int], images: Mapping[str, np.ndarray]) -> None:
        """Write the shard of a block.

        Args:
            block: number of the block.
            samples: its n sample ids.
            images: ``clean`` and ``adversarial``, each (n, …).
        """
        with explain_write_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
        shard = {"samples": np.asarray(samples, np.int64), **images}
        write_atomically(self._folder / f"{block:06d}.safetensors", save(shard))

    def consolidate(self, samples: Sequence[int]) -> None:
        """Merge the shards into adversarial.safetensors, rows in ascending order of sample id.

        Args:
            samples: those that have records; after a crash a shard may hold others.
        """
        shards = sorted(self._folder.glob("*.safetensors"))
        if shards:
            path = self._cell / ADVERSARIAL
            parts = [_load(file) for file in (path, *shards) if file.exists()]
            write_atomically(path, save(_merge(parts, samples)))
        self._remove_shards()

    def forget(self) -> None:
        """Remove all images of the cell."""
        (self._cell / ADVERSARIAL).unlink(missing_ok=True)
        self._remove_shards()

    def _remove_shards(self) -> None:
        if self._folder.exists():
            with explain_write_errors(self._folder):
                for file in self._folder.iterdir():
                    file.unlink()
                self._folder.rmdir()


def _merge(parts: Sequence[Tensors], recorded: Sequence[int]) -> Tensors:
    samples = np.concatenate([part["samples"] for part in parts])
    _, rows = np.unique(samples, return_index=True)
    rows = rows[np.isin(samples[rows], np.asarray(recorded))]
    merged = {"samples": samples[rows]}
    for name in ("clean", "adversarial"):
        merged[name] = np.concatenate([part[name] for part in parts])[rows]
    return merged


def _load(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadResults(f"cannot read {path}: {error}") from error


@dataclass(frozen=True)
class CellRequest:
    """The samples that an evaluation adds to a cell.

    Args:
        description: the content of cell.json without version, batch size and segments.
        samples: sample ids, in any order.
        batch_size: of the blocks, if the cell has none yet.
        redo: delete the existing records first.
    """

    description: Mapping[str, Any]
    samples: tuple[int, ...]
    batch_size: int
    redo: bool = False


class CellWriter:
    """The only writer of a cell: it locks the cell, returns the blocks without records and appends records.

    Records appear one block at a time, in one write. When the cell is opened again after a crash, the records
    of an incomplete block are deleted and the whole block is evaluated again.

    Args:
        path: the cell's folder; it is made if it does not exist.
        request: the samples to add.

    Raises:
        BadResults: if another process writes the cell, it cannot be written, is damaged, is of version 1, or
            belongs to another evaluation.
    """

    def __init__(self, path: Path, request: CellRequest) -> None:
        self.path = path
        self._images = ImageShards(path)
        with explain_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._records = os.open(path / RECORDS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self._prepare(request)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._records)

    @property
    def batch_size(self) -> int:
        """The batch size in use, which may be that of an earlier run."""
        return int(self._cell["batch_size"])

    @property
    def done(self) -> int:
        """Number of records."""
        return self._done

    @property
    def has_images(self) -> bool:
        """Are images of earlier blocks kept?"""
        return self._images.any

    @property
    def total(self) -> int:
        """Number of samples that this and earlier runs requested."""
        return len(sample_order(self._segments))

    def next_block(self) -> tuple[int, tuple[int, ...]] | None:
        """Return number and sample ids of the first block without records; None if there is none."""
        return self._blocks.get(self._done)

    def append(
        self, records: Sequence[Record], images: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write the records of the next block.

        Args:
            records: one for each sample of the block, in its order.
            images: ``clean`` and ``adversarial`` (n, …) to store, or None.

        Raises:
            BadResults: if they cannot be written; earlier records are kept.
        """
        number, samples = self._blocks[self._done]
        assert samples == tuple(record.sample for record in records), "not the next block"
        if images is not None:
            self._images.add(number, samples, images)
        self._write("".join(record.to_json_line() for record in records).encode())
        self._done += len(records)

    def note(self, event: str, **values: object) -> None:
        """Append an event to events.jsonl; ``block`` in its values is the number of the block."""
        line = json.dumps({"event": event, **values}) + "\n"
        with explain_write_errors(self.path / EVENTS), (self.path / EVENTS).open("ab", 0) as file:
            file.write(line.encode())

    def lower_batch_size(self, batch_size: int) -> None:
        """Divide the samples without records into smaller blocks."""
        todo = sample_order(self._segments)[self._done :]
        kept = extend_segments(self._segments, self._done, (), batch_size)
        rest = (Segment(batch_size, tuple(todo)),) if todo else ()
        self._describe({**self._cell, "batch_size": batch_size}, (*kept, *rest))

    def finish(self) -> None:
        """Put the kept images into one file; call it when there is no next block."""
        self._images.consolidate(sample_order(self._segments)[: self._done])

    def _lock(self) -> None:
        try:
            fcntl.flock(self._records, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadResults(
                f"another process is writing {self.path}",
                remedy="wait for it, or evaluate into another folder",
            ) from error

    def _prepare(self, request: CellRequest) -> None:
        if request.redo:
            self._forget()
        known = {} if request.redo else self._known(request)
        segments = tuple(map(Segment.from_json, known.get("segments", ())))
        self._done = self._keep_whole_blocks(segments)
        size = int(known.get("batch_size", request.batch_size))
        extended = extend_segments(segments, self._done, request.samples, size)
        if known and extended == segments:
            self._use(known, segments)
        else:
            self._describe({**(known or request.description), "batch_size": size}, extended)

    def _known(self, request: CellRequest) -> dict[str, Any]:
        """Return the content of cell.json; empty for a new cell."""
        path, identity = self.path / CELL, request.description["identity"]
        if not path.exists() and not os.fstat(self._records).st_size:
            return {}
        known = read_versioned(path)
        if known["version"] < FORMAT_VERSION:
            raise BadResults(
                f"{path} is of an earlier version, to which no records can be added",
                got=f"version {known['version']}",
                expected=f"version {FORMAT_VERSION}",
                remedy="evaluate into another folder with --out, or use --existing redo",
            )
        if known.get("identity") != identity:
            raise BadResults(
                f"{path} belongs to another cell",
                got=known.get("identity"),
                expected=str(identity),
                remedy="evaluate into another folder with --out",
            )
        return known

    def _forget(self) -> None:
        with explain_write_errors(self.path):
            os.ftruncate(self._records, 0)
            for name in (EVENTS, ORACLE_FILE):
                (self.path / name).unlink(missing_ok=True)
            self._images.forget()

    def _keep_whole_blocks(self, segments: Sequence[Segment]) -> int:
        """Delete an incomplete line and the records of an incomplete block; return the number of other records."""
        lines = complete_lines(self.path / RECORDS)
        samples = self._readable(lines)
        if samples != sample_order(segments)[: len(samples)]:
            raise BadResults(
                f"{self.path / RECORDS} does not fit {CELL}",
                remedy="restore it, or evaluate this cell again with --existing redo",
            )
        kept = count_complete(segments, len(samples))
        with explain_write_errors(self.path):
            os.ftruncate(self._records, sum(map(len, lines[:kept])))
            self._end_last_note()
        return kept

    def _readable(self, lines: Sequence[bytes]) -> list[int]:
        """Return the sample ids of the readable lines; only the last ones may be incomplete."""
        samples = [_sample_of(line) for line in lines]
        good = samples.index(None) if None in samples else len(samples)
        if any(sample is not None for sample in samples[good:]):
            raise BadResults(
                f"line {good + 1} of {self.path / RECORDS} is damaged",
                remedy="restore it, or evaluate this cell again with --existing redo",
            )
        return [sample for sample in samples[:good] if sample is not None]

    def _end_last_note(self) -> None:
        path = self.path / EVENTS
        if path.exists():
            os.truncate(path, sum(map(len, complete_lines(path))))

    def _describe(self, cell: Mapping[str, Any], segments: tuple[Segment, ...]) -> None:
        listed = [segment.to_json() for segment in segments]
        self._use({"version": FORMAT_VERSION, **cell, "segments": listed}, segments)
        write_json(self.path / CELL, self._cell)

    def _use(self, cell: dict[str, Any], segments: tuple[Segment, ...]) -> None:
        listed = block_samples(segments)
        starts = accumulate(map(len, listed), initial=0)
        self._cell, self._segments = cell, segments
        self._blocks = dict(zip(starts, enumerate(listed), strict=False))

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._records).st_size
        with explain_write_errors(self.path / RECORDS):
            try:
                write_all(self._records, data)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._records, size)
                raise


def _sample_of(line: bytes) -> int | None:
    try:
        return Record.from_json_line(line.decode()).sample
    except (BadResults, UnicodeDecodeError):
        return None
