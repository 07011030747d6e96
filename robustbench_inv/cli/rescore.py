"""``invbench rescore``: re-scores the images of a run with human labels or a panel oracle."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, folder_option, option
from robustbench_inv.cli.output import print_json, print_warnings

__all__ = ["rescore"]


def rescore(  # noqa: PLR0913, PLR0917 - one parameter is one option
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of results with stored images; it is not modified."
        ),
    ],
    oracle: Annotated[
        str,
        option(
            metavar="CSV|PANEL",
            help="Take true classes from this CSV file of human labels, or from this panel: mnist-panel, or panel:MODEL,MODEL,… of your own.",
        ),
    ],
    out: Annotated[
        Path | None,
        folder_option("Write the re-scored results to this folder.", "RUN-ORACLE"),
    ] = None,
    dataset: Annotated[
        str | None,
        option(metavar="DATASET", help="Data set of the run, if a Python function makes it."),
    ] = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Re-score a run with human labels or a panel oracle.

    The attacked models are not queried.
    """
    from robustbench_inv.arguments import check_folder, check_root
    from robustbench_inv.checks.suite import check_records
    from robustbench_inv.cli.run_tables import print_rescored
    from robustbench_inv.evaluation.rejudge import LoadOptions, rejudge
    from robustbench_inv.results.rates import cell_to_json
    from robustbench_inv.tensors import check_device

    stem = Path(oracle).stem if oracle.lower().endswith(".csv") else oracle.partition(":")[0]
    folder = out or run.with_name(f"{run.resolve().name}-{stem}")
    check_folder(folder)
    check_device(device)
    check_root(data_root)
    command = ["invbench", *sys.argv[1:]]
    options = LoadOptions(device, data_root, dataset)
    rescored = rejudge(run, oracle, folder, check_records, options, command)
    print_warnings(rescored.notes)
    found = [(cell.read(), cell.path) for cell in rescored.run.cells()]
    cells = [
        {**cell_to_json(cell), "model": cell.model_label, "path": str(path)} for cell, path in found
    ]
    if json:
        return print_json(cells)
    return print_rescored(cells, folder)
