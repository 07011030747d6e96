"""``invbench leaderboard``: a static site over many runs."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, folder_option, print_path

__all__ = ["leaderboard"]


def leaderboard(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of results, or folders of such."),
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
    the folder are deleted, and nothing else.
    """
    from robustbench_inv.reporting.leaderboard import read_leaderboard

    found = read_leaderboard(runs, note or "")
    path = found.write(out or Path("leaderboard"))
    boards = [{"title": board.title, "models": board.models} for board in found.boards]
    return print_path(path, json=json, key="leaderboard", boards=boards)
