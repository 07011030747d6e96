"""``invbench report``: writes the HTML report of one or several runs."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, option
from robustbench_inv.cli.output import print_json

__all__ = ["report"]


def report(
    definition: Annotated[
        str | None, typer.Argument(help="A report definition.", show_default="everything there is")
    ] = None,
    runs: Annotated[
        list[Path] | None, option("--from", help="A folder of results; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        option(help="The file to write.", show_default="report.html in the first folder"),
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML file, with its tables and figures beside it."""
    from robustbench_inv.errors import UsageError

    if not runs:
        raise UsageError("no results to report on", remedy="add --from RUNS")
    from robustbench_inv.reporting.html import write_report

    path = write_report(runs, out or runs[0] / "report.html", definition)
    if json:
        return print_json({"report": str(path)})
    typer.echo(path)
    return None
