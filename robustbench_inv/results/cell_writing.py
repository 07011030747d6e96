"""Writes a cell and its images block by block: a crash loses at most the current block."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.block_board import BlockBoard
from robustbench_inv.results.cell_content import (
    EVENTS,
    RECORDS,
    REPAIR,
    CellContent,
    block_samples,
    count_checked,
    count_complete,
    extend_segments,
    is_compacted,
    read_content,
    sample_order,
)
from robustbench_inv.results.cell_events import LOOK, Checkpoint, complete_lines, event_line
from robustbench_inv.results.cell_parts import Segment
from robustbench_inv.results.files import (
    DIGEST,
    FORMAT_VERSION,
    GrowingFile,
    explain_write_errors,
    lock,
    read_json,
    remove_leftovers,
    write_atomically,
    write_json,
)
from robustbench_inv.results.image_files import ImageShards, differing_samples
from robustbench_inv.results.oracle_error import ORACLE_FILE, has_readable_oracle
from robustbench_inv.results.parquet_records import COMPACTED, compact, compacted_digest
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CELL, CellFolder, cell_salt

__all__ = ["COMPACTED_FROM", "CellRequest", "CellWriter"]

COMPACTED_FROM = int(os.environ.get("INVBENCH_COMPACT") or 1000)
"""A complete cell of so many records is compacted to a Parquet file; smaller ones stay readable by eye."""


@dataclass(frozen=True)
class CellRequest:
    """The samples that an evaluation adds to a cell.

    Args:
        description: the content of cell.json without version, batch size and segments.
        samples: sample ids, in any order.
        batch_size: of the blocks, if the cell has none yet.
        redo: delete the existing records first.
        repair: delete damaged blocks and those after them, instead of refusing the cell.
        after_look: could the results of the samples so far have been seen, if they are complete?
    """

    description: Mapping[str, Any]
    samples: tuple[int, ...]
    batch_size: int
    redo: bool = False
    repair: bool = False
    after_look: bool = False


class CellWriter:
    """The only writer of a cell: it locks the cell, returns the blocks without records and appends records.

    Records appear one block at a time, in one write. When the cell is opened again after a crash, the records
    of an incomplete block are deleted and the whole block is evaluated again. A cell that is compacted gets its journal
    back before it grows.

    Args:
        path: the cell's folder; it is made if it does not exist.
        request: the samples to add.

    Attributes:
        repaired: number of records that a repair deleted.
        restores_images: does a repair replace images that were kept?
        unprotected: did an earlier version write records, without digests?

    Raises:
        BadResults: if another process writes the cell, it cannot be written, is damaged, is of version 1, or
            belongs to another evaluation.
    """

    def __init__(self, path: Path, request: CellRequest) -> None:
        self.path = path
        salt = cell_salt(request.description["identity"])
        self._images = ImageShards(path, salt)
        with explain_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        _check_present(path, request)
        self._salt = salt
        self._journal: GrowingFile | None = None
        self._events = GrowingFile(path / EVENTS, salt)
        try:
            lock(self._events.descriptor, path)
            if not is_compacted(path):
                self._journal = GrowingFile(path / RECORDS, salt)
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
        self._events.close()
        if self._journal:
            self._journal.close()

    @property
    def _records(self) -> GrowingFile:
        self._journal = self._journal or GrowingFile(self.path / RECORDS, self._salt)
        return self._journal

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
    def lost_images(self) -> list[int]:
        """The samples whose images were kept and are no longer there."""
        return sorted(self._with_images - self._images.samples())

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
        lines = "".join(record.to_json_line() for record in records)
        self._append_lines(samples, lines.encode(), images=images is not None)

    def absorb(self, board: BlockBoard) -> int:
        """Append the next blocks that other processes have finished, in order; return how many there were."""
        count = 0
        while pending := self.next_block():
            number, samples = pending
            block = board.read(number, samples)
            if block is None:
                break
            self._events.append(block.events, flush=False)
            self._closed = False
            self._append_lines(samples, block.records, images=block.images)
            board.discard(number)
            count += 1
        return count

    def _append_lines(self, samples: tuple[int, ...], lines: bytes, *, images: bool) -> None:
        if images:
            self._with_images |= set(samples)
        self._records.append(lines, flush=True)
        self._done += len(samples)
        self._add_checkpoint(images=images)

    def note(self, event: str, **values: object) -> None:
        """Append an event to events.jsonl; ``block`` in its values is the number of the block."""
        self._events.append(event_line(event, **values), flush=False)
        self._closed = False

    def finish(self) -> None:
        """Put the kept images into one file, and compact the records; call it when there is no next block."""
        self._images.consolidate(sample_order(self._segments)[: self._done])
        if self._sealed and not self._closed:
            self._add_checkpoint(finished=True)
        if self._sealed and self._journal and self._done >= COMPACTED_FROM:
            with suppress(BadResults, OSError):  # a full or read-only disk: the journal is complete
                self._compact(self._journal)

    def _compact(self, journal: GrowingFile) -> None:
        """Replace records.jsonl by records.parquet; one of them is complete at every moment."""
        path, file = self.path / RECORDS, self.path / COMPACTED
        lines = path.read_bytes()
        whole = journal.writable and compacted_digest(self._salt, lines) == journal.digest
        if not whole or (data := compact(complete_lines(lines))) is None:
            return
        write_atomically(file, data)
        if file.read_bytes() == data:
            self._add_checkpoint(finished=True, compacted=compacted_digest(self._salt, data))
            path.unlink()
            journal.close()
            self._journal = None

    def _add_checkpoint(
        self, *, images: bool = False, finished: bool = False, compacted: str = ""
    ) -> None:
        more = {"compacted": compacted} if compacted else {}
        values = {"records": self._done, "images": images, "finished": finished, **more}
        line = Checkpoint.line((self._records, self._events), **values)
        self._events.append(line, flush=True)
        self._closed = finished

    def _prepare(self, request: CellRequest) -> None:
        self._remove_leftovers()
        before = self._count_lines() if request.repair else 0
        self.restores_images = request.repair and self._images.any
        if request.repair and not has_readable_oracle(self.path):
            (self.path / ORACLE_FILE).unlink()
        known = self._known(request)
        segments = tuple(map(Segment.from_json, known.get("segments", ())))
        content = self._content(known, segments, repair=request.repair)
        size = int(known.get("batch_size", request.batch_size))
        done = len(content.samples)
        extended = extend_segments(segments, done, request.samples, size)
        self._go_on_after(content, grows=not known or extended != segments)
        self.repaired = before - self._done if request.repair else 0
        old = bool(known) and DIGEST not in known
        self.unprotected = old and self._done > 0
        if known and extended == segments and not (old and self._pending(extended)):
            self._use(known, segments)
            self._sealed = not old
            return
        if old:
            self._add_checkpoint()  # before cell.json declares digests
        complete = 0 < self._done == len(sample_order(segments))
        self._describe({**(known or request.description), "batch_size": size}, extended)
        if complete and request.after_look:
            self.note(LOOK, records=self._done)

    def _known(self, request: CellRequest) -> dict[str, Any]:
        """Return the content of cell.json; empty for a new cell, or one that starts again."""
        path = self.path / CELL
        identity, cell = request.description["identity"], CellFolder(self.path)
        if request.redo or (
            request.repair and not cell.has_description(repair=True, identity=identity)
        ):
            # without samples, so that a process that is killed now leaves no records that belong to it
            if path.exists():
                self._describe({**request.description, "batch_size": request.batch_size}, ())
            self._forget()
            return {}
        if not cell.started:
            return {}
        info = cell.info
        if info.version < FORMAT_VERSION:
            raise BadResults(
                f"{path} is of an earlier version, to which no records can be added",
                got=f"version {info.version}",
                expected=f"version {FORMAT_VERSION}",
                remedy="evaluate into another folder with --out, or use --existing redo",
            )
        if info.identity != identity:
            raise BadResults(
                f"{path} belongs to another cell",
                got=info.identity,
                expected=str(identity),
                remedy="evaluate into another folder with --out",
            )
        known = read_json(path)
        assert isinstance(known, dict)  # CellInfo read it
        if not info.segments:
            self._forget()
        return known

    def _forget(self) -> None:
        self._events.keep(b"")
        self._records.keep(b"")
        with explain_write_errors(self.path):
            (self.path / COMPACTED).unlink(missing_ok=True)
            (self.path / ORACLE_FILE).unlink(missing_ok=True)
            self._images.forget()

    def _content(
        self, known: Mapping[str, Any], segments: Sequence[Segment], *, repair: bool
    ) -> CellContent:
        """Return the undamaged records and events of whole blocks.

        Raises:
            BadResults: if something is damaged and shall not be repaired.
        """
        salt, sealed = cell_salt(known.get("identity", {})), DIGEST in known
        content = read_content(self.path, segments, salt, sealed=sealed)
        damage, good = content.damage, len(content.samples)
        if not repair and damage:
            raise damage
        good = count_complete(
            segments, min(good, self._first_without_images(content, repair=repair))
        )
        return content.first(good)

    def _first_without_images(self, content: CellContent, *, repair: bool) -> int:
        """Return the number of records before the first one whose image is damaged, or lost while repairing."""
        images = self._images.read(repair=repair)
        wrong = set() if images is None else set(differing_samples(images, content.records))
        if wrong and not repair:
            raise BadResults(
                f"images of {self.path} do not fit {RECORDS}: sample {min(wrong)} has another distance",
                remedy=REPAIR,
            )
        if repair:
            self.restores_images |= bool(content.with_images)
            wrong |= content.with_images - self._images.samples()
        rows = (row for row, sample in enumerate(content.samples) if sample in wrong)
        return next(rows, len(content.samples))

    def _go_on_after(self, content: CellContent, *, grows: bool) -> None:
        self._done, self._with_images = len(content.samples), content.with_images
        if is_compacted(self.path) and (grows or content.compacted is None):
            write_atomically(self.path / RECORDS, b"".join(content.lines))
            (self.path / COMPACTED).unlink()
        if not is_compacted(self.path):
            self._records.keep(b"".join(content.lines))
        self._events.keep(content.events)
        last = content.checked[-1] if content.checked else None
        self._closed = bool(last and last.finished and last.end == len(content.events))

    def _count_lines(self) -> int:
        if is_compacted(self.path):
            return count_checked(self.path)
        path = self.path / RECORDS
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def _remove_leftovers(self) -> None:
        with explain_write_errors(self.path):
            remove_leftovers(self.path)
            self._images.remove_leftovers()

    def _pending(self, segments: Sequence[Segment]) -> bool:
        return len(sample_order(segments)) > self._done

    def _describe(self, cell: Mapping[str, Any], segments: tuple[Segment, ...]) -> None:
        listed = [segment.to_json() for segment in segments]
        self._use({"version": FORMAT_VERSION, **cell, "segments": listed}, segments)
        write_json(self.path / CELL, self._cell)
        self._sealed = True

    def _use(self, cell: dict[str, Any], segments: tuple[Segment, ...]) -> None:
        listed = block_samples(segments)
        starts = accumulate(map(len, listed), initial=0)
        self._cell, self._segments = cell, segments
        self._blocks = dict(zip(starts, enumerate(listed), strict=False))


def _check_present(path: Path, request: CellRequest) -> None:
    """Raise BadResults if a cell has lost its records."""
    if request.redo or request.repair or not (path / CELL).exists():
        return
    if not (path / RECORDS).exists() and not (path / COMPACTED).exists():
        raise BadResults(f"{path / RECORDS} is missing", remedy=REPAIR)
