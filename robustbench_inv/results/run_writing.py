"""Writing the files of a run: plan.json, checks.json, and a whole run copied with another oracle's classes."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robustbench_inv.errors import BadResults
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

__all__ = ["RewrittenCell", "write_checks", "write_plan", "write_run"]


LOCK = ".lock"


def write_plan(path: Path, plan: Mapping[str, Any]) -> RunFolder:
    """Write a plan into its folder, made if it is not there; cells of earlier plans stay.

    Args:
        path: the run's folder.
        plan: the content of plan.json but for its version.

    Raises:
        BadResults: if the folder holds something else, its plan is damaged, or it cannot be written.
    """
    run = RunFolder(path)
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        strangers = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
    if strangers and not run.exists:
        raise BadResults(
            f"{path} holds other things than results",
            got=", ".join(strangers[:3]),
            expected="a new folder, an empty one, or one of an earlier evaluation",
            remedy="name another with --out",
        )
    with _locked(path):
        write_json(path / PLAN, {"version": FORMAT_VERSION, **_merge_plans(run, plan)})
    return run


def write_checks(run: RunFolder, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Write checks.json; verdicts on models that are not among these stay.

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
        write_json(run.path / CHECKS, [*old, *verdicts])


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
    """What a validity check says."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RewrittenCell:
    """A cell that takes another's place.

    Args:
        old: the cell whose notes and images it keeps.
        digest: of the new cell.
        info: content of its cell.json.
        records: in the order of the old ones.
        error: of its oracle, None if that was not measured.
    """

    old: CellFolder
    digest: str
    info: Mapping[str, Any]
    records: Sequence[Record]
    error: OracleError | None


def write_run(
    old: RunFolder,
    cells: Sequence[RewrittenCell],
    out: Path,
    check: Callable[[Sequence[CellFolder]], Sequence[SupportsToJson]],
    command: Sequence[str] = (),
) -> RunFolder:
    """Write a run of rewritten cells; it appears under its name when it is complete.

    Args:
        old: the run that they come from.
        cells: what is in the new one.
        out: its folder.
        check: makes the verdicts of cells; what the old run says of models is kept.
        command: what the user typed, for plan.json.

    Raises:
        BadResults: if there is something at ``out``, or it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadResults(f"{out} is there already", remedy="name another folder with --out")
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
    check: Callable[[Sequence[CellFolder]], Sequence[SupportsToJson]],
    command: Sequence[str],
) -> None:
    write_plan(new.path, _rewritten_plan(old.plan, cells, command))
    for cell in cells:
        _write_cell(new.path / cell.digest, cell)
    verdicts = [verdict.to_json() for verdict in check(new.cells())]
    named = {(verdict["id"], verdict["subject"]) for verdict in verdicts}
    of_models = [verdict for verdict in old.checks() if verdict["scope"] == "model"]
    kept = [verdict for verdict in of_models if (verdict["id"], verdict["subject"]) not in named]
    write_checks(new, [*kept, *verdicts])


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
                "threat": cell.info["threat"]["text"],
            }
            for cell in cells
        ],
    }


def _write_cell(folder: Path, cell: RewrittenCell) -> None:
    folder.mkdir()
    write_json(folder / CELL, cell.info)
    lines = "".join(record.to_json_line() for record in cell.records)
    write_atomically(folder / RECORDS, lines.encode())
    for name in (EVENTS, ADVERSARIAL):
        if (cell.old.path / name).exists():
            shutil.copyfile(cell.old.path / name, folder / name)
    if cell.error is not None:
        write_oracle_error(folder, cell.error)
