"""Writing a cell block by block, with its images: a crash loses at most the block in progress."""

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
    Segment,
    block_samples,
    complete_lines,
    count_complete,
    extend_segments,
    sample_order,
)

__all__ = ["CellRequest", "CellWriter", "ImageShards"]


Tensors = dict[str, np.ndarray]


class ImageShards:
    """The images of a cell under ``images/``, to become adversarial.safetensors.

    A shard is written before the records of its block, so that no record is without its image; a block
    that is evaluated again replaces its shard. A crash between the steps of ``consolidate`` leaves rows
    that are in both places, and they are the same rows.
    """

    def __init__(self, cell: Path) -> None:
        self._cell, self._folder = cell, cell / "images"

    @property
    def any(self) -> bool:
        """Are there images?"""
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
            samples: those that have records; a shard may hold others after a crash.
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
    """What an evaluation asks of a cell.

    Args:
        description: the content of cell.json but for version, batch size and segments.
        samples: sample ids, in any order.
        batch_size: of the blocks, where the cell does not have one yet.
        redo: forget what is there.
    """

    description: Mapping[str, Any]
    samples: tuple[int, ...]
    batch_size: int
    redo: bool = False


class CellWriter:
    """The only writer of a cell: holds its lock, knows which blocks are missing, appends them.

    Records become visible a block at a time, in one write. What a crash leaves of a block is dropped when
    the cell is opened again, and the block is evaluated again as a whole.

    Args:
        path: the cell's folder, made if it is not there.
        request: what is asked of it.

    Raises:
        BadResults: if another process writes the cell, it cannot be written, is damaged or is another's.
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
        """Give the lock back."""
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
        """Number of samples asked for by this and earlier runs."""
        return len(sample_order(self._segments))

    def next_block(self) -> tuple[int, tuple[int, ...]] | None:
        """Return number and sample ids of the first block without records, None when all have theirs."""
        return self._blocks.get(self._done)

    def append(
        self, records: Sequence[Record], images: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write the records of the next block.

        Args:
            records: one for each sample of the block, in its order.
            images: ``clean`` and ``adversarial`` (n, …) to keep besides, or None.

        Raises:
            BadResults: if it cannot be written; the records before it stay.
        """
        number, samples = self._blocks[self._done]
        assert samples == tuple(record.sample for record in records), "not the next block"
        if images is not None:
            self._images.add(number, samples, images)
        self._write("".join(record.to_json_line() for record in records).encode())
        self._done += len(records)

    def note(self, kind: str, **values: object) -> None:
        """Append a note to events.jsonl; it names the block it is about in ``block``."""
        line = json.dumps({"kind": kind, **values}) + "\n"
        with explain_write_errors(self.path / EVENTS), (self.path / EVENTS).open("ab", 0) as file:
            file.write(line.encode())

    def lower_batch_size(self, batch_size: int) -> None:
        """Evaluate the samples without records in smaller blocks from now on."""
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
        """Return cell.json as it is, empty for a new cell."""
        path, spec = self.path / CELL, request.description["spec"]
        if not path.exists() and not os.fstat(self._records).st_size:
            return {}
        known = read_versioned(path)
        if known.get("spec") != spec:
            raise BadResults(f"{path} is another cell's", got=known.get("spec"), expected=str(spec))
        return known

    def _forget(self) -> None:
        with explain_write_errors(self.path):
            os.ftruncate(self._records, 0)
            for name in (EVENTS, ORACLE_FILE):
                (self.path / name).unlink(missing_ok=True)
            self._images.forget()

    def _keep_whole_blocks(self, segments: Sequence[Segment]) -> int:
        """Drop a torn line and the records of an incomplete block; return how many records stay."""
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
        """Return the sample ids of the leading lines; only the last ones may be torn."""
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
