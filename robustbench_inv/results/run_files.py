"""Results folders: the files of a run and of its cells, and the order of a cell's records."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults
from robustbench_inv.identity import digest_value
from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.cell_content import (
    EVENTS,
    RECORDS,
    REPAIR,
    CellContent,
    is_compacted,
    read_content,
    sample_order,
)
from robustbench_inv.results.cell_events import EVENT_BYTES, LaterEvents, parse_events
from robustbench_inv.results.certificates import read_certificates
from robustbench_inv.results.field_types import check_plan, check_types, is_verdict
from robustbench_inv.results.files import FORMAT_VERSION, read_json, read_versioned
from robustbench_inv.results.image_files import ADVERSARIAL, Images, read_images
from robustbench_inv.results.oracle_error import OracleError, read_oracle_error
from robustbench_inv.results.record import Record
from robustbench_inv.results.record_columns import Records

__all__ = [
    "ADVERSARIAL",
    "CELL",
    "CHECKS",
    "EVENTS",
    "PLAN",
    "RECORDS",
    "WITHOUT_DIGESTS",
    "CellFolder",
    "RunFolder",
    "cell_salt",
]


PLAN = "plan.json"
CHECKS = "checks.json"

WITHOUT_DIGESTS = (
    "an earlier version wrote the records without digests, so damage to them cannot be detected"
)
CELL = "cell.json"


def cell_salt(identity: Mapping[str, Any]) -> str:
    """Return what the digests of a cell's files begin with, so that files of another cell do not fit."""
    return digest_value(identity)


@lru_cache(maxsize=8)
def _ascending(order: tuple[int, ...]) -> tuple[int, ...]:
    """Return samples in ascending order, the same tuple for cells of the same samples, which saves memory."""
    return tuple(sorted(order))


_SOFTWARE = {"device": str, "dtype": str, "versions": Mapping, "git": Mapping | None}


def _check_info(info: CellInfo) -> None:
    """Raise TypeError or ValueError if a value of cell.json has the wrong type or is impossible."""
    check_types(info)
    for key, value in info.software.items():
        if not isinstance(value, _SOFTWARE[key]):
            raise TypeError(f"{key} is {value!r}")
    eps = info.threat.epsilons
    if list(eps) != sorted(set(eps)) or (eps and eps[0] < 0):
        raise ValueError(f"epsilons are {list(eps)}, not ascending")
    order = sample_order(info.segments)
    if len(set(order)) < len(order) or min((0, *order)) < 0:
        raise ValueError("segments repeat a sample, or name one below 0")
    if min((1, *(segment.batch_size for segment in info.segments))) < 1:
        raise ValueError("a batch size is below 1")


class CellFolder:
    """One cell on disk; it may still be growing.

    Args:
        path: its folder.
        label: the user's label of its model; empty for the model's name.
    """

    def __init__(self, path: Path, label: str = "") -> None:
        self.path, self.label = path, label

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
            info = CellInfo.from_json(value)
            _check_info(info)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadResults(
                f"{self.path / CELL} is damaged: {error!r}",
                remedy=REPAIR,
            ) from error
        return info

    @property
    def started(self) -> bool:
        """Is there a cell.json, or are there records that have lost it?"""
        records = self.path / RECORDS
        if (self.path / CELL).exists() or is_compacted(self.path):
            return True
        return records.exists() and records.stat().st_size > 0

    def has_description(
        self, *, repair: bool = False, identity: Mapping[str, Any] | None = None
    ) -> bool:
        """Is there a cell.json? One that is damaged, or of another identity, does not count if it shall be repaired."""
        path = self.path / CELL
        if not path.exists() or not repair:
            return path.exists()
        try:
            value = read_json(path)
            version = value.get("version") if isinstance(value, dict) else None
            if type(version) is int and version > FORMAT_VERSION:
                return True
            info = self.info
        except BadResults:
            return False
        return identity is None or info.identity == identity

    @property
    def digest(self) -> str:
        """The digest that identifies the cell and names its folder."""
        return self.path.name

    @property
    def samples(self) -> tuple[int, ...]:
        """The requested samples, ascending."""
        return _ascending(tuple(sample_order(self.info.segments)))

    @property
    def finished(self) -> bool:
        """Are there as many records as samples?"""
        return len(self._undamaged().samples) == len(self.samples)

    @property
    def salt(self) -> str:
        """What the digests of the cell's files begin with: the digest of its identity."""
        return cell_salt(self.info.identity)

    def read(self) -> FinishedCell:
        """Return the cell with its records.

        Raises:
            BadResults: if a file is missing or damaged.
        """
        content = self._undamaged()
        return FinishedCell(
            digest=self.digest,
            info=self.info,
            records=Records.of(content.records),
            requested=self.samples,
            events=self._parsed_events(content),
            oracle_error=read_oracle_error(self.path),
            certificates=read_certificates(self.path),
            read_images=self.images,
            model_label=self.label,
            remarks=tuple(self._remarks(content)),
        )

    def records(self) -> list[Record]:
        """Return the records of whole blocks, in the order of the file.

        Raises:
            BadResults: if the file is missing or damaged.
        """
        return list(self._undamaged().records)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the evaluation (crashes, lost successes, times), oldest first.

        Raises:
            BadResults: if a file of the cell is missing or damaged.
        """
        return parse_events(self._undamaged().events)

    def images(self) -> Images | None:
        """Return ``samples`` (n,), ``clean`` and ``adversarial`` (n, …); None if no images are there.

        Raises:
            BadResults: if the file is damaged.
        """
        path = self.path / ADVERSARIAL
        return read_images(path, self.salt) if path.exists() else None

    def oracle_error(self) -> OracleError | None:
        """Return the error rate of the cell's oracle; None if it was not measured, as for an exact one.

        Raises:
            BadResults: if the file is damaged.
        """
        return read_oracle_error(self.path)

    def _parsed_events(self, content: CellContent) -> Sequence[Mapping[str, Any]]:
        """Return the events; those of a large cell are read again when they are needed."""
        large = len(content.events) > EVENT_BYTES
        return LaterEvents(self.events) if large else tuple(parse_events(content.events))

    def content(self) -> CellContent:
        """Read records and events, and compare them with their digests."""
        return read_content(self.path, self.info.segments, self.salt, sealed=self.info.sealed)

    def _undamaged(self) -> CellContent:
        content = self.content()
        if content.damage:
            raise content.damage
        return content

    def _remarks(self, content: CellContent) -> Iterator[str]:
        """Yield remarks on the files for readers of the results."""
        if not content.checked and content.samples:
            yield WITHOUT_DIGESTS
        if (
            content.with_images
            and not (self.path / ADVERSARIAL).exists()
            and self._complete(content)
        ):
            yield f"the images of {len(content.with_images)} samples were removed"

    def _complete(self, content: CellContent) -> bool:
        return bool(content.checked) and content.checked[-1].finished


class RunFolder:
    """The results of one or several evaluations: plan.json, a folder for each cell, checks.json."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def exists(self) -> bool:
        """Is there a plan in the folder, or a cell?"""
        return (self.path / PLAN).exists() or bool(self._cell_folders())

    @property
    def plan(self) -> dict[str, Any]:
        """The content of plan.json; without it, or if it is damaged, the same from the cells.

        Raises:
            BadResults: if the folder is not one of results, or the plan is of a later version.
        """
        return self._read_plan()[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the files of the run for readers of the results, one clause each."""
        problem = self._read_plan()[1]
        return (f"the plan comes from the cells, since {problem}",) if problem else ()

    def _read_plan(self) -> tuple[dict[str, Any], str]:
        """Return the plan, and why it was made from the cells; empty if it was not."""
        path, cells = self.path / PLAN, self._cell_folders()
        if not path.exists() and not cells:
            raise BadResults(
                "not a results folder",
                got=str(self.path),
                expected=f"a folder with a {PLAN}",
                remedy="give the folder that evaluate printed",
            )
        try:
            return _checked_plan(path), ""
        except BadResults as error:
            if not cells or error.problem.endswith("by a newer program"):
                raise
            problem = error.problem if path.exists() else f"{PLAN} is missing"
        return _plan_of_cells(self.path.resolve().name, cells), problem

    def _cell_folders(self) -> list[CellFolder]:
        return [CellFolder(path.parent) for path in sorted(self.path.glob(f"*/{CELL}"))]

    def cells(self) -> list[CellFolder]:
        """Return the cells that have been started, in the order of the plan."""
        folders = [
            CellFolder(self.path / cell["digest"], str(cell.get("label") or ""))
            for cell in self.plan["cells"]
        ]
        return [folder for folder in folders if folder.started]

    def checks(self) -> list[dict[str, Any]]:
        """Return the verdicts of the validity checks; none if the checks were not run.

        Raises:
            BadResults: if checks.json is damaged.
        """
        path = self.path / CHECKS
        if not path.exists():
            return []
        value = read_json(path)
        found = value.get("verdicts") if isinstance(value, dict) else value
        if not isinstance(found, list) or not all(map(is_verdict, found)):
            raise BadResults(
                f"{path} does not hold verdicts",
                expected="a list of verdicts",
                remedy="evaluate again with --existing repair",
            )
        return [
            {("rule" if key == "limit" else key): v for key, v in each.items()} for each in found
        ]


def _checked_plan(path: Path) -> dict[str, Any]:
    """Read plan.json, and check the types of its entries.

    Raises:
        BadResults: if it is missing, damaged or of a later version.
    """
    plan = read_versioned(path)
    try:
        check_plan(plan)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadResults(f"{path} is damaged: {error!r}", remedy=REPAIR) from error
    return plan


def _plan_of_cells(name: str, cells: Sequence[CellFolder]) -> dict[str, Any]:
    """Return a plan with all cells of a folder; which command made them is unknown."""
    infos = {cell.digest: _info_or_none(cell) for cell in cells}
    readable = [info for info in infos.values() if info]
    return {
        "name": name,
        "created_by": dict(readable[0].software.get("versions", {})) if readable else {},
        "commands": [],
        "samples": sorted({s for info in readable for s in sample_order(info.segments)}),
        "cells": [{"digest": digest, **_plan_names(info)} for digest, info in infos.items()],
    }


def _plan_names(info: CellInfo | None) -> dict[str, Any]:
    if info is None:  # the cell is damaged, and every read raises that
        return {**dict.fromkeys(("model", "attack", "threat", "dataset"), "unknown"), "seed": 0}
    return {
        "model": info.model.name,
        "attack": info.attack.name,
        "threat": info.threat.text,
        "dataset": info.dataset.name,
        "seed": info.seed,
    }


def _info_or_none(cell: CellFolder) -> CellInfo | None:
    try:
        return cell.info
    except BadResults:
        return None
