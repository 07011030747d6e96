"""A run written anew from another one: all of it or nothing, the old one left as it is."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import explain_failures, write_atomically, write_json
from robustbench_inv.results.oracle import OracleError, write_error
from robustbench_inv.results.planning import add_checks, add_plan
from robustbench_inv.results.record import Record
from robustbench_inv.results.store import ADVERSARIAL, CELL, EVENTS, RECORDS, CellFolder, RunFolder

__all__ = ["Rewritten", "write_run"]


class Verdict(Protocol):
    """What a validity check says."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Rewritten:
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
    cells: Sequence[Rewritten],
    out: Path,
    check: Callable[[Sequence[CellFolder]], Sequence[Verdict]],
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
    with explain_failures(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fill(RunFolder(fresh), old, cells, check, command)
            fresh.replace(out)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return RunFolder(out)


def _fill(
    new: RunFolder,
    old: RunFolder,
    cells: Sequence[Rewritten],
    check: Callable[[Sequence[CellFolder]], Sequence[Verdict]],
    command: Sequence[str],
) -> None:
    add_plan(new.path, _plan(old.plan, cells, command))
    for cell in cells:
        _write_cell(new.path / cell.digest, cell)
    verdicts = [verdict.to_json() for verdict in check(new.cells())]
    named = {(verdict["id"], verdict["subject"]) for verdict in verdicts}
    of_models = [verdict for verdict in old.checks() if verdict["scope"] == "model"]
    kept = [verdict for verdict in of_models if (verdict["id"], verdict["subject"]) not in named]
    add_checks(new, [*kept, *verdicts])


def _plan(
    plan: Mapping[str, Any], cells: Sequence[Rewritten], command: Sequence[str]
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


def _write_cell(folder: Path, cell: Rewritten) -> None:
    folder.mkdir()
    write_json(folder / CELL, cell.info)
    lines = "".join(record.to_line() for record in cell.records)
    write_atomically(folder / RECORDS, lines.encode())
    for name in (EVENTS, ADVERSARIAL):
        if (cell.old.path / name).exists():
            shutil.copyfile(cell.old.path / name, folder / name)
    if cell.error is not None:
        write_error(folder, cell.error)
