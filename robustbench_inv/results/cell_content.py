"""Records and events of a cell: the order of its records, the files that grow, and digests that detect damage."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_parts import Segment
from robustbench_inv.results.field_types import check_types
from robustbench_inv.results.files import GrowingFile, parse_json
from robustbench_inv.results.record import Record

__all__ = [
    "DIGESTS",
    "EVENTS",
    "RECORDS",
    "REPAIR",
    "CellContent",
    "Checkpoint",
    "block_samples",
    "complete_lines",
    "count_complete",
    "extend_segments",
    "read_content",
    "sample_order",
]

RECORDS = "records.jsonl"
EVENTS = "events.jsonl"

REPAIR = "restore it, or compute what is damaged again with --existing repair"


def sample_order(segments: Iterable[Segment]) -> list[int]:
    """Return the sample ids in the order of their records."""
    return [sample for segment in segments for sample in segment.samples]


def block_samples(segments: Iterable[Segment]) -> list[tuple[int, ...]]:
    """Return the sample ids of each block, in the order of their records.

    Example:
        >>> block_samples([Segment(2, (1, 4, 7)), Segment(2, (2, 3))])
        [(1, 4), (7,), (2, 3)]
    """
    return [
        segment.samples[first : first + segment.batch_size]
        for segment in segments
        for first in range(0, len(segment.samples), segment.batch_size)
    ]


def count_complete(segments: Iterable[Segment], records: int) -> int:
    """Return how many of the first ``records`` records belong to complete blocks.

    Example:
        >>> count_complete([Segment(4, (0, 1, 2, 3, 4, 5))], 5)
        4
    """
    ends = accumulate(len(block) for block in block_samples(segments))
    return max((end for end in ends if end <= records), default=0)


def extend_segments(
    segments: Sequence[Segment], done: int, samples: Iterable[int], batch_size: int
) -> tuple[Segment, ...]:
    """Return the segments that keep the existing records and end with the samples of a new request.

    Args:
        segments: the segments so far.
        done: number of records in complete blocks.
        samples: of the new request, in any order.
        batch_size: of the segment that is added.
    """
    known = sample_order(segments)
    todo = sorted(set(samples) - set(known[:done]))
    if todo == known[done:]:
        return tuple(segments)
    added = (Segment(batch_size, tuple(todo)),) if todo else ()
    return (*_leading(segments, done), *added)


def _leading(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    kept: list[Segment] = []
    for segment in segments:
        samples = segment.samples[:count]
        count -= len(samples)
        if samples:
            kept.append(replace(segment, samples=samples))
    return tuple(kept)


DIGESTS = "digests"
"""The event that holds the digests of records.jsonl and events.jsonl up to it."""


@dataclass(frozen=True)
class Checkpoint:
    """An event with the digests of both files after a block, or at the end of an evaluation.

    Args:
        records: number of records.
        size: bytes of records.jsonl.
        records_digest: SHA-256 of these bytes.
        events_size: bytes of events.jsonl before this event.
        events_digest: SHA-256 of these bytes.
        images: does the block have images?
        finished: is it the end of an evaluation?
        end: bytes of events.jsonl with this event.
    """

    records: int
    size: int
    records_digest: str
    events_size: int
    events_digest: str
    images: bool
    finished: bool
    end: int

    @classmethod
    def line(cls, files: "tuple[GrowingFile, GrowingFile]", **values: object) -> bytes:
        """Return the line of events.jsonl with the present digests of records and events.

        Args:
            files: records.jsonl and events.jsonl.
            values: ``records``, ``images`` and ``finished``.
        """
        records, events = files
        found = {
            "event": DIGESTS,
            **values,
            "size": records.size,
            "records_digest": records.digest,
            "events_digest": events.digest,
        }
        return (json.dumps(found) + "\n").encode()


def _checkpoints(events: Sequence[bytes]) -> Iterator[Checkpoint]:
    """Yield the checkpoints among the lines of events.jsonl, in order; unreadable lines are passed over."""
    end = 0
    for line in events:
        start, end = end, end + len(line)
        if DIGESTS.encode() not in line:
            continue
        with suppress(ValueError, TypeError, KeyError):
            value = parse_json(line)
            if isinstance(value, dict) and value.pop("event", "") == DIGESTS:
                found = Checkpoint(**value, events_size=start, end=end)
                check_types(found)
                yield found


def complete_lines(data: bytes) -> list[bytes]:
    """Return the lines that end in a newline, newline included."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


@dataclass(frozen=True)
class CellContent:
    """The undamaged content of records.jsonl and events.jsonl.

    Args:
        path: of records.jsonl.
        lines: of the records of whole blocks, in the order of the file.
        samples: of these records.
        events: bytes of events.jsonl, without an incomplete last line.
        checked: the checkpoints whose digests fit; none for a cell of an earlier version.
        damage: what is wrong with the rest; None if nothing is.
    """

    path: Path
    lines: tuple[bytes, ...] = ()
    samples: tuple[int, ...] = ()
    events: bytes = b""
    checked: tuple[Checkpoint, ...] = ()
    damage: BadResults | None = None

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The records, parsed when they are needed; their digests were compared before.

        Raises:
            BadResults: if a line is no record of its sample all the same.
        """
        records, damage = _parse(self.path, self.lines, self.samples)
        if damage:
            raise damage
        return records

    @property
    def with_images(self) -> set[int]:
        """The samples whose images were kept."""
        starts = (0, *(point.records for point in self.checked))
        spans = zip(starts, self.checked, strict=False)
        return {
            sample
            for start, point in spans
            if point.images
            for sample in self.samples[start : point.records]
        }

    def first(self, count: int) -> "CellContent":
        """Return the content that ends with the first ``count`` records, at the end of a block."""
        checked = tuple(point for point in self.checked if point.records <= count)
        events = self.events
        if len(checked) < len(self.checked):
            events = events[: checked[-1].end] if checked else b""
        lines, samples = self.lines[:count], self.samples[:count]
        return replace(self, lines=lines, samples=samples, events=events, checked=checked)


def read_content(
    folder: Path, segments: Sequence[Segment], salt: str, *, sealed: bool
) -> CellContent:
    """Read records and events of a cell, and compare them with their digests.

    The block that another process is writing is left out.

    Args:
        folder: of the cell.
        segments: its samples in the order of their records.
        salt: of the digests.
        sealed: was the cell written by a version that writes digests?
    """
    # first the events, so that a block that is written meanwhile is not among them
    events, data = _bytes(folder / EVENTS), _bytes(folder / RECORDS)
    path, order = folder / RECORDS, tuple(sample_order(segments))
    if not path.exists():
        return CellContent(path, damage=BadResults(f"{path} is missing", remedy=REPAIR))
    if sealed and not segments:  # it starts again: what lies here is of the cell before it
        return CellContent(path)
    found = list(_checkpoints(complete_lines(events)))
    good = tuple(_matching(found, data, events, salt))
    if len(good) == len(found) and (good or sealed):
        end = good[-1].size if good else 0
        damage = _unexpected(folder, complete_lines(data[end:]), segments, good)
        data = data[:end]
    else:
        records, damage = _parse(path, complete_lines(data), order)
        data = b"".join(complete_lines(data)[: len(records)])
    lines = complete_lines(data)
    whole = b"".join(complete_lines(events))
    content = CellContent(path, tuple(lines), order[: len(lines)], whole, good, damage)
    if len(lines) > len(order):
        content = replace(content, damage=_too_many(path, lines, order))
    if len(good) == len(found):
        return content
    changed = content.damage or _changed(folder, good, found[len(good)])
    cut = replace(content, damage=changed, events=events[: good[-1].end] if good else b"")
    return cut.first(good[-1].records if good else 0)


def _matching(
    found: Iterable[Checkpoint], records: bytes, events: bytes, salt: str
) -> Iterator[Checkpoint]:
    """Yield the checkpoints before the first one whose digests do not fit."""
    ends, hashes = [0, 0], [hashlib.sha256(salt.encode()) for _ in range(2)]
    for point in found:
        sizes = point.size, point.events_size
        for file, data in enumerate((records, events)):
            hashes[file].update(data[ends[file] : sizes[file]])
            ends[file] = sizes[file]
        digests = [each.hexdigest() for each in hashes]
        if digests != [point.records_digest, point.events_digest] or len(records) < point.size:
            return
        yield point


def _changed(folder: Path, good: Sequence[Checkpoint], bad: Checkpoint) -> BadResults:
    """Return the error about the first block whose records or events do not fit their digests."""
    first = good[-1].records if good else 0
    return BadResults(
        f"{folder / RECORDS} or {EVENTS} was changed after it was written: "
        f"records {first + 1} to {max(bad.records, first + 1)} do not fit their digest",
        remedy=REPAIR,
    )


def _unexpected(
    folder: Path, rest: Sequence[bytes], segments: Iterable[Segment], good: Sequence[Checkpoint]
) -> BadResults | None:
    """Return an error if there are more records without a digest than a killed process can leave."""
    done = good[-1].records if good else 0
    starts = accumulate(map(len, block_samples(segments)), initial=0)
    blocks = dict(zip(starts, block_samples(segments), strict=False))
    if len(rest) <= len(blocks.get(done, ())):
        return None
    problem = f"{folder / EVENTS} lacks the digests of {len(rest)} records in {RECORDS}"
    return BadResults(problem, remedy=REPAIR)


def _parse(
    path: Path, lines: Sequence[bytes], order: Sequence[int]
) -> tuple[tuple[Record, ...], BadResults | None]:
    """Return the records before the first damaged line, and the error about that line."""
    records: list[Record] = []
    for number, line in enumerate(lines):
        try:
            record = Record.from_json_line(line)
        except BadResults as error:
            problem = f"line {number + 1} of {path} is damaged: {error}"
            return tuple(records), BadResults(problem, remedy=REPAIR)
        if number >= len(order):
            return tuple(records), _too_many(path, lines, order)
        if record.sample != order[number]:
            problem = f"line {number + 1} of {path} does not fit the samples of the cell"
            expected = f"sample {order[number]}"
            damage = BadResults(problem, got=record.sample, expected=expected, remedy=REPAIR)
            return tuple(records), damage
        records.append(record)
    return tuple(records), None


def _too_many(path: Path, lines: Sequence[bytes], order: Sequence[int]) -> BadResults:
    return BadResults(
        f"{path} does not fit the samples of the cell",
        got=f"{len(lines)} lines",
        expected=f"{len(order)}",
        remedy=REPAIR,
    )


def _bytes(path: Path) -> bytes:
    """Return the content of a file; nothing without it.

    Raises:
        BadResults: if it cannot be read.
    """
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BadResults(f"cannot read {path}: {error.strerror or error}", remedy=REPAIR) from error
