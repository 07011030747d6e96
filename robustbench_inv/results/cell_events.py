"""The events of a cell: digests of its files after each block, numbers that an attack measured, and notes."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from robustbench_inv.results.cell_parts import JSON
from robustbench_inv.results.field_types import check_types
from robustbench_inv.results.files import GrowingFile, parse_json

__all__ = [
    "DIGESTS",
    "EVENT_BYTES",
    "LOOK",
    "SAMPLE_VALUES",
    "Checkpoint",
    "LaterEvents",
    "SampleValues",
    "checkpoints",
    "complete_lines",
    "event_line",
    "looks_of",
    "parse_events",
    "sample_values",
]

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
    def line(cls, files: "tuple[GrowingFile, GrowingFile]", **values: object) -> bytes:
        """Return the line of events.jsonl with the present digests of records and events.

        Args:
            files: records.jsonl and events.jsonl.
            values: ``records``, ``images`` and ``finished``, and ``compacted`` if there is a Parquet file.
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


EVENT_BYTES = 100_000
"""Events of a cell up to this size stay in memory."""


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
