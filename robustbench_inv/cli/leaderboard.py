"""``invbench leaderboard``: a static site over many runs."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, exit_with_failures, folder_option, print_path
from robustbench_inv.cli.output import print_warnings, show_progress

__all__ = ["leaderboard"]


def leaderboard(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Folders of results, or folders of such; a benchmark file (.toml) is run first.",
        ),
    ],
    out: Annotated[
        Path | None, folder_option("Write the site to this folder.", "leaderboard")
    ] = None,
    note: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Add a sentence to the first page (default none)."),
    ] = None,
    json: Json = False,
) -> None:
    """Rank the models of many runs, and write a page for each.

    Models are compared on the same samples, data and threat alone. Models whose numbers are not publishable are
    listed apart. A cell that lies in two folders must have the same results. Pages that an earlier leaderboard left in
    the folder are deleted, and nothing else. A benchmark file is run as ``invbench run FILE`` does it: results that
    are complete are not computed again.
    """
    from robustbench_inv.reporting.leaderboard import read_leaderboard

    command = ["invbench", *sys.argv[1:]]
    folders = [_evaluate(run, command) if run.suffix == ".toml" else run for run in runs]
    found = read_leaderboard(folders, note or "", shlex.join(command))
    path = found.write(out or Path("leaderboard"))
    boards = [{"title": board.title, "models": board.models} for board in found.boards]
    return print_path(path, json=json, key="leaderboard", boards=boards)


def _evaluate(file: Path, command: list[str]) -> Path:
    """Run a benchmark file with its checks, and return the folder of its results."""
    from robustbench_inv.api import run_plan
    from robustbench_inv.evaluation.jobs import EvaluationRequest
    from robustbench_inv.evaluation.plan import plan_benchmark

    plan = plan_benchmark(file, EvaluationRequest(models=()), command)
    with show_progress() as progress:
        run = run_plan(plan, progress=progress, checks=True)
    print_warnings(run.notes)
    if run.failures:
        exit_with_failures(run.failures)
    return run.path
