"""Writes plan.json and checks.json of a run, and a copy of a run with the classes of another oracle."""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Protocol

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.cell_content import (
    EVENTS,
    RECORDS,
)
from robustbench_inv.results.cell_events import DIGESTS, Checkpoint, GrowingFile
from robustbench_inv.results.files import (
    DIGEST,
    FORMAT_VERSION,
    explain_write_errors,
    read_json,
    remove_leftovers,
    temporary_path,
    write_atomically,
    write_json,
)
from robustbench_inv.results.image_files import ADVERSARIAL, images_to_bytes
from robustbench_inv.results.oracle_error import OracleError, write_oracle_error
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import (
    CELL,
    CHECKS,
    PLAN,
    CellFolder,
    RunFolder,
    cell_salt,
)

__all__ = [
    "CheckFunction",
    "RewrittenCell",
    "check_seconds",
    "checked_subject",
    "read_old_verdicts",
    "write_checks",
    "write_plan",
    "write_run",
]


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
    known = run.exists and not run.remarks and _is_covered(run.plan, plan)
    try:
        with _locked(path):
            remove_leftovers(path)
            merged = {"version": FORMAT_VERSION, **_merge_plans(run, plan)}
            if not known or {DIGEST: run.plan.get(DIGEST), **merged} != run.plan:
                write_json(path / PLAN, merged)
    except BadResults:
        if not known:  # a finished run on a read-only disk can be read
            raise
    return run


def _is_covered(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Does a plan name all cells and samples of a new one?"""
    cells, samples = {cell["digest"] for cell in old["cells"]}, set(old["samples"])
    return {cell["digest"] for cell in new["cells"]} <= cells and set(new["samples"]) <= samples


def write_checks(
    run: RunFolder,
    verdicts: Sequence[Mapping[str, Any]],
    seconds: float | None = None,
    subject: str | None = None,
) -> None:
    """Write checks.json and keep older verdicts about other models.

    Args:
        run: the run.
        verdicts: the new verdicts.
        seconds: the time that the checks took; not written if the verdicts are the old ones.
        subject: digest of all that the verdicts depend on, for ``checked_subject``; None to check again next time.

    Raises:
        BadResults: if it cannot be written.
    """
    old = run.checks()
    same = old == _merge_verdicts(old, verdicts)
    if same and subject == checked_subject(run):
        return
    taken = check_seconds(run) if same else seconds
    try:
        with _locked(run.path):
            merged = _merge_verdicts(run.checks(), verdicts)
            content = {"version": FORMAT_VERSION, "verdicts": merged}
            known = {CHECK_SECONDS: taken, SUBJECT: subject}
            present = {key: value for key, value in known.items() if value is not None}
            write_json(run.path / CHECKS, {**content, **present})
    except BadResults:
        if not same:  # a finished run on a read-only disk can be read
            raise


CHECK_SECONDS = "seconds"
"""Key of checks.json: the time that the checks took."""

SUBJECT = "subject"
"""Key of checks.json: digest of all that the verdicts depend on."""


def check_seconds(run: RunFolder) -> float | None:
    """Return the seconds that the checks took; None if they were not run or not timed."""
    found = _checks_value(run, CHECK_SECONDS)
    return float(found) if isinstance(found, float | int) and 0 <= found < inf else None


def checked_subject(run: RunFolder) -> str | None:
    """Return the digest of what the last checks depended on; None if they must be made again."""
    found = _checks_value(run, SUBJECT)
    return found if isinstance(found, str) else None


def _checks_value(run: RunFolder, key: str) -> object:
    path = run.path / CHECKS
    value = read_json(path) if path.exists() else None
    return value.get(key) if isinstance(value, dict) else None


def read_old_verdicts(run: RunFolder, *, repair: bool) -> None:
    """Read checks.json before an evaluation whose verdicts will be added to it.

    Args:
        run: the run.
        repair: delete a damaged file instead of raising.

    Raises:
        BadResults: if it is damaged.
    """
    try:
        run.checks()
    except BadResults:
        if not repair:
            raise
        (run.path / CHECKS).unlink()


def _merge_verdicts(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    known = {key for verdict in new for key in _verdict_keys(verdict)}
    kept = (v for v in old if v["scope"] == "model" and _verdict_keys(v)[0] not in known)
    return [*kept, *new]


def _verdict_keys(verdict: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what replaces a verdict: its check and the digests of its subject; in older files the subject's name."""
    about, named = verdict.get("about") or (), (verdict["id"], verdict["subject"])
    return [(verdict["id"], *about), named] if about else [named]


def _merge_plans(run: RunFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    if not run.exists:
        return dict(plan)
    old = run.plan
    labels = {c["digest"]: {"label": c["label"]} for c in old["cells"] if c.get("label")}
    both = (*old["cells"], *plan["cells"])
    cells = {cell["digest"]: {**labels.get(cell["digest"], {}), **cell} for cell in both}
    asked = [each for part in (old, plan) for each in part.get("decisions", ())]
    decisions = list({each["question"]: each for each in asked}.values())
    new = [command for command in plan["commands"] if command not in old["commands"]]
    return {
        **plan,
        "name": old["name"],
        "commands": [*old["commands"], *new],
        "samples": sorted({*old["samples"], *plan["samples"]}),
        "cells": list(cells.values()),
        **({"decisions": decisions} if decisions else {}),
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
    fresh = temporary_path(out)
    with explain_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent, out.name)
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
    salt, images = cell_salt(cell.info.identity), cell.old.images()
    with (
        closing(GrowingFile(folder / RECORDS, salt)) as records,
        closing(GrowingFile(folder / EVENTS, salt)) as events,
    ):
        lines = "".join(record.to_json_line() for record in cell.records)
        records.append(lines.encode(), flush=True)
        kept = (event for event in cell.old.events() if event["event"] != DIGESTS)
        notes = "".join(json.dumps(event) + "\n" for event in kept)
        events.append(notes.encode(), flush=False)
        values = {"records": len(cell.records), "images": images is not None, "finished": True}
        events.append(Checkpoint.line(records.state, events.digest, **values), flush=True)
    if images is not None:
        write_atomically(folder / ADVERSARIAL, images_to_bytes(images, salt))
    if cell.error is not None:
        write_oracle_error(folder, cell.error)
