"""``invbench compare``: paired differences of models that were evaluated."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, option
from robustbench_inv.cli.output import print_json, print_line, print_warnings

__all__ = ["compare"]


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of results: the baseline's.")],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER",
            help="Folder of results to compare.",
            show_default="the other models in RUN",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        option(
            "--model",
            metavar="M…",
            help="Compare these models, the baseline first.",
            show_default="models of one name; in one folder all of them with the first",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="Write the page to this HTML file.",
            show_default="OTHER/compare.html",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare models sample by sample: before and after a defence, or the models of one run.

    It reads records and evaluates nothing. Differences are paired, have a 95 % interval, and their p values are
    adjusted for the number of comparisons.
    """
    from robustbench_inv.reporting.compare import compare as compare_runs

    found = compare_runs(run, other, model or ())
    path = found.write(out or (other or run) / "compare.html")
    print_warnings(found.notes)
    if json:
        return print_json({**found.to_json(), "page": str(path)})
    print_line(found)
    return print_line(f"page: {path}")
