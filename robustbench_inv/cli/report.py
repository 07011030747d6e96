"""``invbench report``: writes the HTML report of one or several runs."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import AfterRun, FailOnOption, FailUnder, Json, option, print_path

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
    fail_on: FailOnOption = None,
    fail_under: FailUnder = None,
    json: Json = False,
) -> None:
    """Write the HTML report of one or several runs.

    The report is self-contained; its tables and figures are also stored as separate files. The exit code is 3
    if a verdict is one of --fail-on, or a robust accuracy may be below --fail-under.
    """
    from robustbench_inv.errors import UsageError

    if not runs:
        raise UsageError("no results to report on", remedy="add --from RUNS")
    after = AfterRun(fail_on, fail_under)
    from robustbench_inv.reporting.html import read_conclusions, write_report

    path = write_report(runs, out or runs[0] / "report.html", definition)
    print_path(path, json=json, key="report")
    if fail_on or fail_under is not None:
        after.judge(*read_conclusions(runs, definition))
