"""Writes plan.json and checks.json of a run, and a copy of a run with the classes of another oracle."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.files import (
    FORMAT_VERSION,
    explain_write_errors,
    write_atomically,
    write_json,
)
from robustbench_inv.results.oracle_error import OracleError, write_oracle_error
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import (
    ADVERSARIAL,
    CELL,
    CHECKS,
    EVENTS,
    PLAN,
    RECORDS,
    CellFolder,
    RunFolder,
)

__all__ = ["CheckFunction", "RewrittenCell", "write_checks", "write_plan", "write_run"]


LOCK = ".lock"


def write_plan(path: Path, plan: Mapping[str, Any]) -> RunFolder:
    """Write plan.json into a folder, which is made if it does not exist; cells of earlier plans are kept.

    Args:
        path: the run's folder.
        plan: the content of plan.json but for its version.

    Raises:
        BadResults: if the folder holds other files, its plan is damaged, or it cannot be written.
    """
    run = RunFolder(path)
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        other_files = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
    if other_files and not run.exists:
        raise BadResults(
            f"{path} holds files that are no results",
            got=", ".join(other_files[:3]),
            expected="a new folder, an empty one, or one of an earlier evaluation",
            remedy="give another folder with --out",
        )
    with _locked(path):
        write_json(path / PLAN, {"version": FORMAT_VERSION, **_merge_plans(run, plan)})
    return run


def write_checks(run: RunFolder, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Write checks.json and keep older verdicts about other models.

    Raises:
        BadResults: if it cannot be written.
    """
    with _locked(run.path):
        new = {(verdict["id"], verdict["subject"]) for verdict in verdicts}
        old = [
            verdict
            for verdict in run.checks()
            if verdict["scope"] == "model" and (verdict["id"], verdict["subject"]) not in new
        ]
        content = {"version": FORMAT_VERSION, "verdicts": [*old, *verdicts]}
        write_json(run.path / CHECKS, content)


def _merge_plans(run: RunFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    if not run.exists:
        return dict(plan)
    old = run.plan
    cells = {cell["digest"]: cell for cell in (*old["cells"], *plan["cells"])}
    new = [command for command in plan["commands"] if command not in old["commands"]]
    return {
        **plan,
        "name": old["name"],
        "commands": [*old["commands"], *new],
        "samples": sorted({*old["samples"], *plan["samples"]}),
        "cells": list(cells.values()),
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process rewrites the same files."""
    with explain_write_errors(path), (path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class SupportsToJson(Protocol):
    """A verdict of a validity check."""

    def to_json(self) -> dict[str, Any]: ...


CheckFunction = Callable[[Sequence[FinishedCell]], Sequence[SupportsToJson]]
"""Returns the verdicts about finished cells."""


@dataclass(frozen=True)
class RewrittenCell:
    """A cell that replaces another.

    Args:
        old: the cell whose events and images it keeps.
        digest: of the new cell.
        info: the content of its cell.json.
        records: in the order of the old ones.
        error: of its oracle; None if it was not measured.
    """

    old: CellFolder
    digest: str
    info: CellInfo
    records: Sequence[Record]
    error: OracleError | None


def write_run(
    old: RunFolder,
    cells: Sequence[RewrittenCell],
    out: Path,
    check: CheckFunction,
    command: Sequence[str] = (),
) -> RunFolder:
    """Write a run of rewritten cells; the folder appears under its name when it is complete.

    Args:
        old: the run that they come from.
        cells: the cells of the new run.
        out: its folder.
        check: returns the verdicts about cells; the old run's verdicts about models are kept.
        command: what the user typed, for plan.json.

    Raises:
        BadResults: if ``out`` exists already, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadResults(f"{out} exists already", remedy="give another folder with --out")
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    with explain_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_files(RunFolder(fresh), old, cells, check, command)
            fresh.replace(out)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return RunFolder(out)


def _write_files(
    new: RunFolder,
    old: RunFolder,
    cells: Sequence[RewrittenCell],
    check: CheckFunction,
    command: Sequence[str],
) -> None:
    write_plan(new.path, _rewritten_plan(old.plan, cells, command))
    for cell in cells:
        _write_cell(new.path / cell.digest, cell)
    write_checks(new, [verdict for verdict in old.checks() if verdict["scope"] == "model"])
    verdicts = check([folder.read() for folder in new.cells()])
    write_checks(new, [verdict.to_json() for verdict in verdicts])


def _rewritten_plan(
    plan: Mapping[str, Any], cells: Sequence[RewrittenCell], command: Sequence[str]
) -> dict[str, Any]:
    entries = {entry["digest"]: entry for entry in plan["cells"]}
    return {
        **{key: value for key, value in plan.items() if key != "version"},
        "commands": [*plan["commands"], *([list(command)] if command else [])],
        "cells": [
            {
                **entries[cell.old.digest],
                "digest": cell.digest,
                "threat": cell.info.threat.text,
            }
            for cell in cells
        ],
    }


def _write_cell(folder: Path, cell: RewrittenCell) -> None:
    folder.mkdir()
    write_json(folder / CELL, cell.info.to_json())
    lines = "".join(record.to_json_line() for record in cell.records)
    write_atomically(folder / RECORDS, lines.encode())
    events = "".join(json.dumps(event) + "\n" for event in cell.old.events())
    write_atomically(folder / EVENTS, events.encode())
    if (cell.old.path / ADVERSARIAL).exists():
        shutil.copyfile(cell.old.path / ADVERSARIAL, folder / ADVERSARIAL)
    if cell.error is not None:
        write_oracle_error(folder, cell.error)
