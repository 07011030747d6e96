"""``invbench export``: writes results in formats of other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, option, print_path

__all__ = ["export"]


class ExportFormat(StrEnum):
    """The formats, by the name of their file."""

    parquet = "parquet"
    eval_results = "eval-results"
    junit = "junit"
    metrics = "metrics"


FILES = {
    ExportFormat.parquet: "records.parquet",
    ExportFormat.eval_results: "robustness.yaml",
    ExportFormat.junit: "junit.xml",
    ExportFormat.metrics: "metrics.json",
}


def export(  # noqa: PLR0913, PLR0917 - one parameter is one option
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of results.")],
    format_: Annotated[
        ExportFormat,
        typer.Argument(
            metavar="FORMAT",
            help="parquet: every record; eval-results: the worst case, for .eval_results/ of a model repository; "
            "junit: checks and verdicts, for continuous integration; metrics: the worst case and verdicts as JSON. Tables "
            "as CSV, LaTeX and Markdown are in the page of invbench report.",
        ),
    ],
    model: Annotated[
        list[str] | None,
        option("--model", metavar="M…", help="Export these models.", show_default="all"),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="Write to this file.",
            show_default="records.parquet, robustness.yaml, junit.xml or metrics.json in RUN",
        ),
    ] = None,
    dataset: Annotated[
        str | None, option(metavar="NAME", help="Export this data set.", show_default="all")
    ] = None,
    hub_dataset: Annotated[
        str | None,
        option(
            metavar="ORG/NAME",
            help="Name the benchmark's data set on the hub, for eval-results.",
        ),
    ] = None,
    source: Annotated[
        str | None, option(metavar="URL", help="Name the address of a report, for eval-results.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the results of a run in a format that other tools read."""
    import re
    from json import dumps

    from robustbench_inv.arguments import check_file, printable_json
    from robustbench_inv.errors import BadParameter, UsageError
    from robustbench_inv.reporting.definitions import Selection
    from robustbench_inv.reporting.exports import (
        conclusions_of,
        metrics_of,
        to_eval_results,
        to_junit,
        to_parquet,
    )
    from robustbench_inv.reporting.run_results import read_runs
    from robustbench_inv.results.files import explain_write_errors, replaced, write_atomically

    path = out or run / FILES[format_]
    check_file(path, "export")
    if format_ is ExportFormat.eval_results and not hub_dataset:
        remedy = "add --hub-dataset ORG/NAME"
        raise UsageError("the benchmark's data set on the hub is not named", remedy=remedy)
    if hub_dataset and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_dataset):
        raise BadParameter("unusable --hub-dataset", got=hub_dataset, expected="ORG/NAME")
    if source and not re.match(r"https?://[\w.-]+", source):
        expected = "an address that begins with https://"
        raise BadParameter("unusable --source", got=source, expected=expected)
    select = Selection(models=tuple(model or ()), datasets=(dataset,) if dataset else ())
    found = read_runs([run], select)
    cells = [cell for each in found for cell in each.cells]
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if format_ is ExportFormat.parquet:
        with replaced(path) as temporary, temporary.open("wb") as file:
            to_parquet(cells, file)
        return print_path(path, json=json, key="export")
    conclusions = conclusions_of(*found)
    content = {
        ExportFormat.eval_results: lambda: to_eval_results(
            cells, hub_dataset or "", source or "", conclusions
        ).encode(),
        ExportFormat.junit: lambda: to_junit(found).encode(),
        ExportFormat.metrics: lambda: printable_json(
            dumps(metrics_of(cells, conclusions), indent=2)
        ).encode(),
    }[format_]()
    write_atomically(path, content)
    return print_path(path, json=json, key="export")
