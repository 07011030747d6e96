"""``invbench report``: writes the HTML report of one or several runs."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, option, print_path

__all__ = ["report"]


def report(
    definition: Annotated[
        str | None,
        typer.Argument(
            metavar="DEFINITION",
            help="Report definition: catalogue name or TOML file.",
            show_default="default",
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        option("--from", metavar="FOLDER…", help="Read results from these folders (one or more)."),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="Write the report to this HTML file.",
            show_default="report.html in the first folder",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write the HTML report of one or several runs.

    The report is self-contained; its tables and figures are also stored as separate files.
    """
    from robustbench_inv.errors import UsageError

    if not runs:
        raise UsageError("no results to report on", remedy="add --from RUNS")
    from robustbench_inv.reporting.html import write_report

    path = write_report(runs, out or runs[0] / "report.html", definition)
    return print_path(path, json=json, key="report")
