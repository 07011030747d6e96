"""Results folders: the files of a run and of its cells, and the order of a cell's records."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.cell_parts import Segment
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
    "block_samples",
    "count_complete",
    "extend_segments",
    "sample_order",
]


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


PLAN = "plan.json"
CHECKS = "checks.json"
CELL = "cell.json"
RECORDS = "records.jsonl"
EVENTS = "events.jsonl"
ADVERSARIAL = "adversarial.safetensors"

STAGES_V1 = {"raw": "raw", "clip": "clipped", "round": "rounded"}


class CellFolder:
    """One cell on disk; it may still be growing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"CellFolder({str(self.path)!r})"

    @cached_property
    def info(self) -> CellInfo:
        """The content of cell.json.

        Raises:
            BadResults: if it is missing, damaged, or of a later version.
        """
        value = read_versioned(self.path / CELL)
        try:
            return CellInfo.from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadResults(
                f"{self.path / CELL} is damaged: {error!r}",
                remedy="restore it, or evaluate this cell again with --existing redo",
            ) from error

    @property
    def digest(self) -> str:
        """The digest that identifies the cell and names its folder."""
        return self.path.name

    @property
    def samples(self) -> tuple[int, ...]:
        """The requested samples, ascending."""
        return tuple(sorted(sample_order(self.info.segments)))

    @property
    def finished(self) -> bool:
        """Are there as many records as samples?"""
        return len(self.records()) == len(self.samples)

    def read(self) -> FinishedCell:
        """Return the cell with its records.

        Raises:
            BadResults: if a file is missing or damaged.
        """
        return FinishedCell(
            digest=self.digest,
            info=self.info,
            records=tuple(self.records()),
            requested=self.samples,
            events=tuple(self.events()),
            oracle_error=read_oracle_error(self.path),
            read_images=self.images,
        )

    def records(self) -> list[Record]:
        """Return the records in the order of the file; an incomplete last line is ignored.

        Raises:
            BadResults: if another line is damaged, naming it.
        """
        lines = complete_lines(self.path / RECORDS)
        return [self._record(number, line) for number, line in enumerate(lines, 1)]

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the evaluation (crashes, lost successes, times), oldest first."""
        found = []
        for line in complete_lines(self.path / EVENTS):
            with suppress(ValueError):  # events are no results: an unreadable one is ignored
                found.append(upgrade_event_v1(json.loads(line)))
        return found

    def images(self) -> Mapping[str, np.ndarray] | None:
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
        """Return the error rate of the cell's oracle; None if it was not measured, as for an exact one.

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
                remedy="give the folder that evaluate printed",
            )
        return read_versioned(self.path / PLAN)

    def cells(self) -> list[CellFolder]:
        """Return the cells that have been started, in the order of the plan."""
        folders = [CellFolder(self.path / cell["digest"]) for cell in self.plan["cells"]]
        return [folder for folder in folders if (folder.path / CELL).exists()]

    def checks(self) -> list[dict[str, Any]]:
        """Return the verdicts of the validity checks; none if the checks were not run.

        Raises:
            BadResults: if checks.json is damaged.
        """
        path = self.path / CHECKS
        if not path.exists():
            return []
        value = read_json(path)
        verdicts = value.get("verdicts") if isinstance(value, dict) else value
        if not isinstance(verdicts, list):
            raise BadResults(f"{path} does not hold verdicts", expected="a list")
        return [
            {("rule" if key == "limit" else key): v for key, v in each.items()} for each in verdicts
        ]


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


def complete_lines(path: Path) -> list[bytes]:
    """Return a file's lines that end in a newline, newline included; none without the file."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
