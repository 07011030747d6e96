"""Writes a cell and its images block by block: a crash loses at most the current block."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.block_board import BlockBoard, StoredBlock
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
    samples_with_images,
)
from robustbench_inv.results.cell_events import (
    LOOK,
    MOVING,
    Checkpoint,
    GrowingFile,
    event_line,
    read_undamaged,
)
from robustbench_inv.results.cell_parts import CellRequest, Segment
from robustbench_inv.results.files import (
    DIGEST,
    FORMAT_VERSION,
    explain_write_errors,
    file_digest,
    lock,
    read_json,
    remove_leftovers,
    write_atomically,
    write_json,
)
from robustbench_inv.results.image_files import ImageShards
from robustbench_inv.results.oracle_error import ORACLE_FILE, has_readable_oracle
from robustbench_inv.results.parquet_records import COMPACTED, compact_file
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CELL, CellFolder, cell_salt

__all__ = ["COMPACTED_FROM", "CellWriter"]

COMPACTED_FROM = int(os.environ.get("INVBENCH_COMPACT") or 1000)
"""A complete cell of so many records is compacted to a Parquet file; smaller ones stay readable by eye."""


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

    def next_block(self) -> tuple[int, tuple[int, ...]] | None:
        """Return number and sample ids of the first block without records; None if there is none."""
        return next(self._pending(), None)

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
        self._append_blocks([StoredBlock(samples, lines.encode(), b"", images is not None, "")])

    def absorb(self, board: BlockBoard) -> int:
        """Append the next blocks that other processes have finished, in order; return how many there were."""
        count = 0
        while blocks := list(board.next_blocks(self._pending())):
            self._append_blocks([block for _, block in blocks])
            for number, _ in blocks:
                board.discard(number)
            count += len(blocks)
        return count

    def _pending(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield numbers and samples of the blocks without records, in order."""
        done = self._done
        while block := self._blocks.get(done):
            yield block
            done += len(block[1])

    def _append_blocks(self, blocks: Sequence[StoredBlock]) -> None:
        """Append the next blocks, whose records are flushed before digests that cover them are written."""
        if len(blocks) > 1:
            end = self._done + sum(len(block.samples) for block in blocks)
            self._events.append(event_line(MOVING, records=end), flush=True)
            self._closed = False
        states = [self._records.append(block.records, flush=False) for block in blocks]
        self._records.flush()
        for block, state in zip(blocks, states, strict=True):
            self._events.append(block.events, flush=False)
            if block.images:
                self._with_images |= set(block.samples)
            self._done += len(block.samples)
            self._add_checkpoint(state, flush=False, images=block.images)
        self._events.flush()

    def note(self, event: str, **values: object) -> None:
        """Append an event to events.jsonl; ``block`` in its values is the number of the block."""
        self._events.append(event_line(event, **values), flush=False)
        self._closed = False

    def finish(self) -> None:
        """Put the kept images into one file, and compact the records; call it when there is no next block."""
        self._images.consolidate(sample_order(self._segments)[: self._done])
        if self._sealed and not self._closed:
            self._add_checkpoint(self._records.state, finished=True)
        if self._sealed and self._journal and self._done >= COMPACTED_FROM:
            with suppress(BadResults, OSError):  # a full or read-only disk: the journal is complete
                self._compact(self._journal)

    def _compact(self, journal: GrowingFile) -> None:
        """Replace records.jsonl by records.parquet; one of them is complete at every moment."""
        path, file = self.path / RECORDS, self.path / COMPACTED
        if not journal.writable or file_digest(self._salt, path) != journal.digest:
            return
        digest = compact_file(path, file, self._salt)
        if file_digest(self._salt, file) == digest:
            self._add_checkpoint(journal.state, finished=True, compacted=digest)
            path.unlink()
            journal.close()
            self._journal = None

    def _add_checkpoint(
        self, journal: tuple[int, str], *, flush: bool = True, **values: object
    ) -> None:
        """Append the digests of events and records, whose size and digest are given."""
        values = {"records": self._done, "images": False, "finished": False, **values}
        line = Checkpoint.line(journal, self._events.digest, **values)
        self._events.append(line, flush=flush)
        self._closed = bool(values["finished"])

    def _prepare(self, request: CellRequest) -> None:
        with explain_write_errors(self.path):
            remove_leftovers(self.path)
            self._images.remove_leftovers()
        before = self._count_lines() if request.repair else 0
        self.restores_images = request.repair and self._images.any
        if request.repair and not has_readable_oracle(self.path):
            (self.path / ORACLE_FILE).unlink()
        known = self._known(request)
        segments = tuple(map(Segment.from_json, known.get("segments", ())))
        size = int(known.get("batch_size", request.batch_size))
        resumed = not request.repair and self._resume(known, segments, trusted=request.trusted)
        content = None if resumed else self._content(known, segments, repair=request.repair)
        done = self._done if content is None else len(content.samples)
        extended = extend_segments(segments, done, request.samples, size, shared=request.shared)
        if content is not None:
            self._go_on_after(content, grows=not known or extended != segments)
        self.repaired = before - self._done if request.repair else 0
        old = bool(known) and DIGEST not in known
        self.unprotected = old and self._done > 0
        complete = self._done == len(sample_order(segments))
        if known and extended == segments and (complete or not old):
            self._use(known, segments)
            self._sealed = not old
            return
        if old:
            self._add_checkpoint(self._records.state)  # before cell.json declares digests
        self._describe({**(known or request.description), "batch_size": size}, extended)
        if complete and self._done and request.after_look:
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

    def _resume(
        self, known: Mapping[str, Any], segments: Sequence[Segment], *, trusted: bool
    ) -> bool:
        """Continue after an undamaged journal, which is read in pieces; return whether there is one."""
        if DIGEST not in known or not segments or is_compacted(self.path):
            return False
        points = read_undamaged(self._records, self._events)
        last = points[-1] if points else None
        done = last.records if last else 0
        if points is None or count_complete(segments, done) != done:
            return False
        if not trusted and self._images.any:
            with (self.path / RECORDS).open("rb") as lines:
                if self._images.differing(map(Record.from_json_line, lines)):
                    return False
        self._done = done
        self._with_images = samples_with_images(sample_order(segments), points)
        self._closed = bool(last and last.finished and last.end == self._events.size)
        return True

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
        wrong = set[int]()
        if self._images.any:
            wrong = self._images.differing(content.records, repair=repair)
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
