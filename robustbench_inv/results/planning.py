"""Writing a run's own files: plan.json, to which a later evaluation adds its cells, and checks.json."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import FORMAT_VERSION, explain_failures, write_json
from robustbench_inv.results.store import CHECKS, PLAN, RunFolder

__all__ = ["add_checks", "add_plan"]

LOCK = ".lock"


def add_plan(path: Path, plan: Mapping[str, Any]) -> RunFolder:
    """Write a plan into its folder, made if it is not there; cells of earlier plans stay.

    Args:
        path: the run's folder.
        plan: the content of plan.json but for its version.

    Raises:
        BadResults: if the folder holds something else, its plan is damaged, or it cannot be written.
    """
    run = RunFolder(path)
    with explain_failures(path):
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
        write_json(path / PLAN, {"version": FORMAT_VERSION, **_merge(run, plan)})
    return run


def add_checks(run: RunFolder, verdicts: Sequence[Mapping[str, Any]]) -> None:
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


def _merge(run: RunFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
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
    with explain_failures(path), (path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
