"""The order of a cell's records: which samples make which block, so that a resume repeats the same blocks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

__all__ = ["Segment", "blocks", "extend", "order", "whole"]


@dataclass(frozen=True)
class Segment:
    """The samples that one request added to a cell, ascending, evaluated in blocks of ``batch_size``.

    A cell has one segment; another is added when more samples are asked for, or when the batch size had
    to be lowered because memory ran out.
    """

    batch_size: int
    samples: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Segment":
        """Read one entry of cell.json's ``segments``."""
        return cls(int(value["batch_size"]), tuple(map(int, value["samples"])))

    def to_json(self) -> dict[str, object]:
        """Return the entry of cell.json's ``segments``."""
        return {"batch_size": self.batch_size, "samples": list(self.samples)}


def order(segments: Iterable[Segment]) -> list[int]:
    """Return the sample ids in the order of their records."""
    return [sample for segment in segments for sample in segment.samples]


def blocks(segments: Iterable[Segment]) -> list[tuple[int, ...]]:
    """Return the sample ids of each block, in the order of their records.

    Example:
        >>> blocks([Segment(2, (1, 4, 7)), Segment(2, (2, 3))])
        [(1, 4), (7,), (2, 3)]
    """
    return [
        segment.samples[first : first + segment.batch_size]
        for segment in segments
        for first in range(0, len(segment.samples), segment.batch_size)
    ]


def whole(segments: Iterable[Segment], records: int) -> int:
    """Return how many of the first ``records`` records belong to complete blocks.

    Example:
        >>> whole([Segment(4, (0, 1, 2, 3, 4, 5))], 5)
        4
    """
    ends = accumulate(len(block) for block in blocks(segments))
    return max((end for end in ends if end <= records), default=0)


def extend(
    segments: Sequence[Segment], done: int, samples: Iterable[int], batch_size: int
) -> tuple[Segment, ...]:
    """Return the segments that keep the records there are and end with the samples now asked for.

    Args:
        segments: the segments so far.
        done: number of records in complete blocks.
        samples: the samples now asked for, in any order.
        batch_size: of a segment that is added.
    """
    known = order(segments)
    todo = sorted(set(samples) - set(known[:done]))
    if todo == known[done:]:
        return tuple(segments)
    added = (Segment(batch_size, tuple(todo)),) if todo else ()
    return (*_first(segments, done), *added)


def _first(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    kept: list[Segment] = []
    for segment in segments:
        samples = segment.samples[:count]
        count -= len(samples)
        if samples:
            kept.append(replace(segment, samples=samples))
    return tuple(kept)
