"""The files of a cell that grow, and its events: digests after each block, numbers that an attack measured, and notes."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_parts import JSON
from robustbench_inv.results.field_types import check_types
from robustbench_inv.results.files import PIECE, explain_write_errors, parse_json, write_all

__all__ = [
    "DIGESTS",
    "EVENT_BYTES",
    "LOOK",
    "MOVING",
    "SAMPLE_VALUES",
    "Checkpoint",
    "GrowingFile",
    "LaterEvents",
    "SampleValues",
    "announced_records",
    "checkpoints",
    "complete_lines",
    "event_line",
    "looks_of",
    "parse_events",
    "read_undamaged",
    "sample_values",
]


class GrowingFile:
    """A file that grows by whole writes, and the SHA-256 of its content.

    On a disk that is read-only, an existing file is opened for reading.

    Args:
        path: the file; it is made if it does not exist.
        salt: precedes the content in the digest, so that a file of another cell has another digest.

    Raises:
        BadResults: if it cannot be opened.
    """

    def __init__(self, path: Path, salt: str) -> None:
        self.path, self._salt, self.size = path, salt, 0
        self._hash = hashlib.sha256(salt.encode())
        with explain_write_errors(path):
            self.descriptor, self._writable = _open(path)

    def close(self) -> None:
        """Close the file, which releases a lock on its descriptor."""
        os.close(self.descriptor)

    @property
    def writable(self) -> bool:
        """Is the disk writable?"""
        return self._writable

    @property
    def digest(self) -> str:
        """SHA-256 of the salt and the content."""
        return self._hash.hexdigest()

    @property
    def state(self) -> tuple[int, str]:
        """Size and digest of the content."""
        return self.size, self.digest

    def flush(self) -> None:
        """Flush what was appended to disk."""
        with explain_write_errors(self.path):
            os.fsync(self.descriptor)

    def read_to(self, size: int) -> str:
        """Continue after the first bytes of the file, which are read in pieces; return their digest."""
        while data := os.pread(self.descriptor, max(0, min(size - self.size, PIECE)), self.size):
            self._hash.update(data)
            self.size += len(data)
        return self.digest

    def keep(self, data: bytes) -> None:
        """Continue after ``data``, the first bytes of the file; what follows them is deleted."""
        with explain_write_errors(self.path):
            if os.fstat(self.descriptor).st_size != len(data):
                self._check_writable()
                os.ftruncate(self.descriptor, len(data))
        self.size, self._hash = len(data), hashlib.sha256(self._salt.encode() + data)

    def append(self, data: bytes, *, flush: bool) -> tuple[int, str]:
        """Write bytes at the end, in one piece or not at all; return the new state.

        Raises:
            BadResults: if they cannot be written, or if the file was removed or changed since the last write.
        """
        self._check_in_place()
        with explain_write_errors(self.path):
            self._check_writable()
            try:
                write_all(self.descriptor, data, flush=flush)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self.descriptor, self.size)
                raise
        self._hash.update(data)
        self.size += len(data)
        return self.state

    def _check_writable(self) -> None:
        if not self._writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def _check_in_place(self) -> None:
        found = None
        with suppress(OSError):
            found = self.path.stat()
        mine = os.fstat(self.descriptor)
        if found is None or not os.path.samestat(found, mine) or found.st_size != self.size:
            raise BadResults(
                f"{self.path} was {'changed' if found else 'removed'} while the evaluation ran",
                remedy="run the same command again with --existing repair",
            )


def _open(path: Path) -> tuple[int, bool]:
    """Open or create a file; return its descriptor, and whether it can be written."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), True
    except OSError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY), False


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
        compacted: digest of records.parquet, if the records were compacted to it.
    """

    records: int
    size: int
    records_digest: str
    events_size: int
    events_digest: str
    images: bool
    finished: bool
    end: int
    compacted: str = ""

    @classmethod
    def line(cls, journal: tuple[int, str], events: str, **values: object) -> bytes:
        """Return a line of events.jsonl with digests of records and events.

        Args:
            journal: size and digest of records.jsonl.
            events: digest of events.jsonl.
            values: ``records``, ``images`` and ``finished``, and ``compacted`` if there is a Parquet file.
        """
        found = {
            "event": DIGESTS,
            **values,
            "size": journal[0],
            "records_digest": journal[1],
            "events_digest": events,
        }
        return (json.dumps(found) + "\n").encode()


def checkpoints(events: Sequence[bytes]) -> Iterator[Checkpoint]:
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


def read_undamaged(records: GrowingFile, events: GrowingFile) -> list[Checkpoint] | None:
    """Read both files of a cell in pieces, up to their ends, and return their checkpoints.

    None if a digest does not fit, or anything but events follows the last one.
    """
    found, line = list[Checkpoint](), b"\n"
    with events.path.open("rb") as lines:
        for line in lines:
            start = events.size
            for point in checkpoints([line]):
                digests = records.read_to(point.size), events.digest
                if digests != (point.records_digest, point.events_digest):
                    return None
                found.append(replace(point, events_size=start, end=start + len(line)))
            events.read_to(start + len(line))
    whole = records.size == os.fstat(records.descriptor).st_size
    return found if whole and line.endswith(b"\n") else None


def complete_lines(data: bytes) -> list[bytes]:
    """Return the lines that end in a newline, newline included."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def event_line(event: str, **values: object) -> bytes:
    """Return a line of events.jsonl."""
    return (json.dumps({"event": event, **values}) + "\n").encode()


SAMPLE_VALUES = "sample_values"
"""The events that hold numbers of single samples."""

SampleValues = dict[int, float | None]


def sample_values(events: Iterable[JSON]) -> dict[str, SampleValues]:
    """Return name → sample → number; None for one that is not finite.

    A block that is evaluated again writes its numbers again: the last ones count.

    Example:
        >>> event = {"event": "sample_values", "samples": [3, 8], "values": {"donor": [5, 1]}}
        >>> sample_values([{"event": "crash"}, event])
        {'donor': {3: 5, 8: 1}}
    """
    columns: dict[str, SampleValues] = {}
    for event in events:
        if event.get("event") != SAMPLE_VALUES:
            continue
        for name, values in event["values"].items():
            columns.setdefault(name, {}).update(zip(event["samples"], values, strict=True))
    return columns


LOOK = "extended"
"""The event of samples that are added to a cell whose results could be seen."""


def looks_of(events: Iterable[JSON], samples: int) -> tuple[int, ...]:
    """Return the numbers of samples, less than all, after which the results could be seen."""
    counts = {event.get("records") for event in events if event.get("event") == LOOK}
    return tuple(sorted(n for n in counts if isinstance(n, int) and 0 < n < samples))


def announced_records(events: Iterable[JSON]) -> int:
    """Return the largest number of records that was announced."""
    counts = [each.get("records") for each in events if each.get("event") == MOVING]
    return max((count for count in counts if isinstance(count, int)), default=0)


EVENT_BYTES = 100_000
"""Events of a cell up to this size stay in memory."""


MOVING = "moving"
"""The event that names the number of records after blocks whose records are appended next, and their digests last."""


class LaterEvents(Sequence[JSON]):
    """The events of a large cell, read when they are needed; those that were read last stay in memory.

    Args:
        read: returns them.
    """

    def __init__(self, read: Callable[[], Sequence[JSON]]) -> None:
        self._read = read

    def __len__(self) -> int:
        return len(_read_once(self))

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - as a tuple
        return _read_once(self)[index]

    def __iter__(self) -> Iterator[JSON]:
        return iter(_read_once(self))

    def read(self) -> tuple[JSON, ...]:
        """Read them."""
        return tuple(self._read())


@lru_cache(maxsize=1)
def _read_once(events: LaterEvents) -> tuple[JSON, ...]:
    return events.read()


STAGES_V1 = {"raw": "raw", "clip": "clipped", "round": "rounded"}


_EVENTS_V1 = {
    "time": "block_time",
    "batch_size": "batch_size_lowered",
    "measured": "sample_values",
}

_COLUMNS_V1 = {
    "broken_by": "ensemble_member",
    "reencoding": "reencoding_error",
    "reconstruction": "reconstruction_error",
    "activation": "activation_error",
    "pattern": "changed_units",
    "solver": "solver_status",
    **{f"{old}_decision": f"{new}_same_prediction" for old, new in STAGES_V1.items()},
    **{f"{old}_logits": f"{new}_logit_distance" for old, new in STAGES_V1.items()},
}


def upgrade_event_v1(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event with the keys of version 2; an event of version 2 is unchanged.

    Example:
        >>> upgrade_event_v1({"kind": "measured", "samples": [3], "values": {"solver": [0]}})
        {'event': 'sample_values', 'samples': [3], 'values': {'solver_status': [0]}}
    """
    if "kind" not in event:
        return dict(event)
    new = {"event": _EVENTS_V1.get(event["kind"], event["kind"]), **event}
    del new["kind"]
    if new["event"] == "sample_values":
        new["values"] = {_COLUMNS_V1.get(k, k): v for k, v in event["values"].items()}
    return new


def parse_events(data: bytes) -> list[dict[str, Any]]:
    """Return the events; an unreadable one, which has no digest, is passed over."""
    found = []
    for line in complete_lines(data):
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            event = upgrade_event_v1(json.loads(line))
            sample_values([event])
            found.append(event)
    return found
