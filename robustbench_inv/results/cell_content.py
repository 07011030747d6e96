"""Records and events of a cell: the order of its records, the files that grow, and digests that detect damage."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_events import (
    Checkpoint,
    announced_records,
    checkpoints,
    complete_lines,
    parse_events,
)
from robustbench_inv.results.cell_parts import Segment
from robustbench_inv.results.files import read_whole
from robustbench_inv.results.parquet_records import (
    COMPACTED,
    compacted_digest,
    records_of,
    restore_lines,
)
from robustbench_inv.results.record import Record
from robustbench_inv.results.record_columns import Records

__all__ = [
    "EVENTS",
    "RECORDS",
    "REPAIR",
    "CellContent",
    "block_samples",
    "count_checked",
    "count_complete",
    "extend_segments",
    "is_compacted",
    "read_content",
    "sample_order",
    "samples_with_images",
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


def samples_with_images(samples: Sequence[int], checked: Sequence[Checkpoint]) -> set[int]:
    """Return the samples whose images were kept, of all in the order of their records."""
    starts = (0, *(point.records for point in checked))
    spans = zip(starts, checked, strict=False)
    kept = (samples[start : point.records] for start, point in spans if point.images)
    return set(chain.from_iterable(kept))


def count_complete(segments: Iterable[Segment], records: int) -> int:
    """Return how many of the first ``records`` records belong to complete blocks.

    Example:
        >>> count_complete([Segment(4, (0, 1, 2, 3, 4, 5))], 5)
        4
    """
    ends = accumulate(len(block) for block in block_samples(segments))
    return max((end for end in ends if end <= records), default=0)


def extend_segments(
    segments: Sequence[Segment],
    done: int,
    samples: Iterable[int],
    batch_size: int,
    *,
    shared: bool = False,
) -> tuple[Segment, ...]:
    """Return the segments that keep the existing records and end with the samples of a new request.

    Args:
        segments: the segments so far.
        done: number of records in complete blocks.
        samples: of the new request, in any order.
        batch_size: of the segment that is added.
        shared: do other processes compute the samples without records? Then these keep their places.
    """
    known = sample_order(segments)
    kept = len(known) if shared else done
    todo = sorted(set(samples) - set(known[:kept]))
    if todo == known[kept:]:
        return tuple(segments)
    added = (Segment(batch_size, tuple(todo)),) if todo else ()
    return (*_leading(segments, kept), *added)


def _leading(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    kept: list[Segment] = []
    for segment in segments:
        samples = segment.samples[:count]
        count -= len(samples)
        if samples:
            kept.append(replace(segment, samples=samples))
    return tuple(kept)


@dataclass(frozen=True)
class CellContent:
    """The undamaged content of records.jsonl and events.jsonl.

    Args:
        path: of records.jsonl.
        journal: lines of the records of whole blocks, in the order of the file.
        samples: of these records.
        events: bytes of events.jsonl, without an incomplete last line.
        checked: the checkpoints whose digests fit; none for a cell of an earlier version.
        damage: what is wrong with the rest; None if nothing is.
        compacted: the records in the place of the journal, if they were compacted.
    """

    path: Path
    journal: tuple[bytes, ...] = ()
    samples: tuple[int, ...] = ()
    events: bytes = b""
    checked: tuple[Checkpoint, ...] = ()
    damage: BadResults | None = None
    compacted: Records | None = None

    @cached_property
    def lines(self) -> tuple[bytes, ...]:
        """The lines of records.jsonl, restored if they were compacted."""
        if self.compacted is None:
            return self.journal
        return tuple(record.to_json_line().encode() for record in self.compacted)

    @cached_property
    def records(self) -> Sequence[Record]:
        """The records, parsed when they are needed; their digests were compared before.

        Raises:
            BadResults: if a line is no record of its sample all the same.
        """
        if self.compacted is not None:
            return self.compacted
        records, damage = _parse(self.path, self.lines, self.samples)
        if damage:
            raise damage
        return records

    @property
    def with_images(self) -> set[int]:
        """The samples whose images were kept."""
        return samples_with_images(self.samples, self.checked)

    def first(self, count: int) -> "CellContent":
        """Return the content that ends with the first ``count`` records, at the end of a block."""
        if count == len(self.samples):
            return self
        checked = tuple(point for point in self.checked if point.records <= count)
        events = self.events
        if len(checked) < len(self.checked):
            events = events[: checked[-1].end] if checked else b""
        lines, samples = self.lines[:count], self.samples[:count]
        shorter = replace(self, journal=lines, samples=samples, compacted=None)
        return replace(shorter, events=events, checked=checked)


def is_compacted(folder: Path) -> bool:
    """Are the records of a cell in records.parquet alone? As long as records.jsonl exists, that one counts."""
    return not (folder / RECORDS).exists() and (folder / COMPACTED).exists()


def count_checked(folder: Path) -> int:
    """Return the number of records that the last digest in events.jsonl covers, undamaged or not."""
    found = checkpoints(complete_lines(_bytes(folder / EVENTS) or b""))
    return max((point.records for point in found), default=0)


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
    path, order = folder / RECORDS, tuple(sample_order(segments))
    if sealed and not segments:  # it starts again: what lies here is of the cell before it
        return CellContent(path)
    events, data, packed = _read_files(folder)
    if data is None and packed is None:
        return CellContent(path, damage=BadResults(f"{path} is missing", remedy=REPAIR))
    found = list(checkpoints(complete_lines(events)))
    if data is None:
        content = _compacted(folder, order, salt, (events, found, packed or b""))
        if content.damage is None:
            return content
        rest = b"".join(restore_lines(packed or b""))
        kept = _read_journal(folder, segments, salt, sealed=sealed, files=(events, rest, found))
        return replace(kept, damage=content.damage)
    return _read_journal(folder, segments, salt, sealed=sealed, files=(events, data, found))


def _read_files(folder: Path) -> tuple[bytes, bytes | None, bytes | None]:
    """Return the content of events.jsonl, records.jsonl, and records.parquet if there is no records.jsonl.

    One of the two is there at every moment while another process compacts the cell, or restores its journal.
    """
    for _ in range(READ_TRIES):
        # first the events, so that a block that is written meanwhile is not among them
        events = _bytes(folder / EVENTS) or b""
        if (data := _bytes(folder / RECORDS)) is not None:
            if len(_bytes(folder / EVENTS) or b"") == len(events):
                return events, data, None
            continue  # several blocks may have been moved into both
        events = _bytes(folder / EVENTS) or b""  # with the digest of the file that replaced it
        if (packed := _bytes(folder / COMPACTED)) is not None:
            return events, None, packed
    return events, data, None


READ_TRIES = 3
"""How often the records of a cell are looked for while another process moves them."""


def _compacted(
    folder: Path,
    order: tuple[int, ...],
    salt: str,
    files: tuple[bytes, Sequence[Checkpoint], bytes],
) -> CellContent:
    """Return the content of a cell whose records were compacted; with damage if its files do not fit their digests."""
    events, found, packed = files
    path, last = folder / COMPACTED, found[-1] if found else None
    if last is None or last.compacted != compacted_digest(salt, packed):
        damage = BadResults(f"{path} was changed after it was written", remedy=REPAIR)
        return CellContent(path, damage=damage)
    good = tuple(_matching(found, None, events, salt))
    if len(good) < len(found) or last.end != len(events):
        damage = BadResults(f"{folder / EVENTS} was changed after it was written", remedy=REPAIR)
        return CellContent(path, damage=damage)
    samples, digest = order[: last.records], last.compacted
    records = records_of(path, salt, digest, samples)
    return CellContent(path, (), samples, events, good, compacted=records)


def _read_journal(
    folder: Path,
    segments: Sequence[Segment],
    salt: str,
    *,
    sealed: bool,
    files: tuple[bytes, bytes, Sequence[Checkpoint]],
) -> CellContent:
    """Return the content of events and records.jsonl."""
    path, order = folder / RECORDS, tuple(sample_order(segments))
    events, data, found = files
    good = tuple(_matching(found, data, events, salt))
    if len(good) == len(found) and (good or sealed):
        end = good[-1].size if good else 0
        damage = _unexpected(folder, complete_lines(data[end:]), segments, (good, events))
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
    found: Iterable[Checkpoint], records: bytes | None, events: bytes, salt: str
) -> Iterator[Checkpoint]:
    """Yield the checkpoints before the first one whose digests do not fit; without ``records``, that of the events."""
    ends, hashes = [0, 0], [hashlib.sha256(salt.encode()) for _ in range(2)]
    for point in found:
        sizes = point.size, point.events_size
        for file, data in enumerate((records or b"", events)):
            hashes[file].update(data[ends[file] : sizes[file]])
            ends[file] = sizes[file]
        digests = [each.hexdigest() for each in hashes]
        fits = [digests[0] == point.records_digest, digests[1] == point.events_digest]
        if not fits[1] or (records is not None and not (fits[0] and len(records) >= point.size)):
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
    folder: Path,
    rest: Sequence[bytes],
    segments: Iterable[Segment],
    found: tuple[Sequence[Checkpoint], bytes],
) -> BadResults | None:
    """Return an error if there are more records without a digest than a killed process can leave."""
    good, events = found
    done = good[-1].records if good else 0
    starts = accumulate(map(len, block_samples(segments)), initial=0)
    blocks = dict(zip(starts, block_samples(segments), strict=False))
    if len(rest) <= max(len(blocks.get(done, ())), announced_records(parse_events(events)) - done):
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


def _bytes(path: Path) -> bytes | None:
    """Return the content of a file; None without it.

    Raises:
        BadResults: if it cannot be read.
    """
    try:
        return read_whole(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadResults(f"cannot read {path}: {error.strerror or error}", remedy=REPAIR) from error
