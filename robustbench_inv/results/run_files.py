"""Results folders: the files of a run, of its cells, and the order of a cell's records."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import read_json, read_versioned
from robustbench_inv.results.oracle_error import OracleError, read_oracle_error
from robustbench_inv.results.record import Record

__all__ = [
    "ADVERSARIAL",
    "CELL",
    "CHECKS",
    "EVENTS",
    "PLAN",
    "RECORDS",
    "CellFolder",
    "RunFolder",
    "Segment",
    "block_samples",
    "count_complete",
    "extend_segments",
    "sample_order",
]


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
    """Return the segments that keep the records there are and end with the samples now asked for.

    Args:
        segments: the segments so far.
        done: number of records in complete blocks.
        samples: the samples now asked for, in any order.
        batch_size: of a segment that is added.
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


PLAN = "plan.json"
CHECKS = "checks.json"
CELL = "cell.json"
RECORDS = "records.jsonl"
EVENTS = "events.jsonl"
ADVERSARIAL = "adversarial.safetensors"


class CellFolder:
    """One cell on disk; it may still be growing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"CellFolder({str(self.path)!r})"

    @cached_property
    def cell(self) -> dict[str, Any]:
        """The content of cell.json.

        Raises:
            BadResults: if it is missing, damaged, or of a later version.
        """
        return read_versioned(self.path / CELL)

    @property
    def digest(self) -> str:
        """The digest of the cell's spec, which names its folder."""
        return self.path.name

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The order in which the samples are evaluated.

        Raises:
            BadResults: if cell.json does not hold it.
        """
        try:
            return tuple(Segment.from_json(value) for value in self.cell["segments"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadResults(f"{self.path / CELL} has no usable segments: {error!r}") from error

    @property
    def samples(self) -> tuple[int, ...]:
        """The samples that were asked for, ascending."""
        return tuple(sorted(sample_order(self.segments)))

    @property
    def finished(self) -> bool:
        """Are there as many records as samples?"""
        return len(self.records()) == len(self.samples)

    def records(self) -> list[Record]:
        """Return the records in the order of the file; a torn last line is left out.

        Raises:
            BadResults: if another line is damaged, naming it.
        """
        lines = complete_lines(self.path / RECORDS)
        return [self._record(number, line) for number, line in enumerate(lines, 1)]

    def events(self) -> list[dict[str, Any]]:
        """Return the notes of the evaluation (crashes, rescued successes, times), oldest first."""
        found = []
        for line in complete_lines(self.path / EVENTS):
            with suppress(ValueError):  # notes are no results: what cannot be read is passed over
                found.append(json.loads(line))
        return found

    def adversarial(self) -> Mapping[str, np.ndarray] | None:
        """Return ``samples`` (n,), ``clean`` and ``adversarial`` (n, …); None if no images were kept.

        Raises:
            BadResults: if the file is damaged.
        """
        path = self.path / ADVERSARIAL
        if not path.exists():
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise BadResults(f"cannot read {path}: {error}") from error

    def oracle_error(self) -> OracleError | None:
        """Return how often the cell's oracle errs itself; None if it was not measured, as of an exact one.

        Raises:
            BadResults: if the file is damaged.
        """
        return read_oracle_error(self.path)

    def _record(self, number: int, line: bytes) -> Record:
        try:
            return Record.from_json_line(line.decode())
        except (BadResults, UnicodeDecodeError) as error:
            raise BadResults(
                f"line {number} of {self.path / RECORDS} is damaged: {error}",
                remedy="evaluate this cell again with --existing redo",
            ) from error


class RunFolder:
    """The results of one or several evaluations: plan.json, a folder for each cell, checks.json."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def exists(self) -> bool:
        """Is there a plan in the folder?"""
        return (self.path / PLAN).exists()

    @property
    def plan(self) -> dict[str, Any]:
        """The content of plan.json.

        Raises:
            BadResults: if the folder is not one of results, or the plan is damaged or of a later version.
        """
        if not self.exists:
            raise BadResults(
                "not a results folder",
                got=str(self.path),
                expected=f"a folder with a {PLAN}",
                remedy="name the folder that evaluate printed",
            )
        return read_versioned(self.path / PLAN)

    def cells(self) -> list[CellFolder]:
        """Return the cells that have been started, in the order of the plan."""
        folders = [CellFolder(self.path / cell["digest"]) for cell in self.plan["cells"]]
        return [folder for folder in folders if (folder.path / CELL).exists()]

    def checks(self) -> list[dict[str, Any]]:
        """Return the verdicts of the validity checks; none if they have not been run.

        Raises:
            BadResults: if checks.json is damaged.
        """
        path = self.path / CHECKS
        if not path.exists():
            return []
        verdicts = read_json(path)
        if not isinstance(verdicts, list):
            raise BadResults(f"{path} does not hold verdicts", expected="a list")
        return verdicts


def complete_lines(path: Path) -> list[bytes]:
    """Return a file's lines that end in a newline, newline included; none without the file."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
