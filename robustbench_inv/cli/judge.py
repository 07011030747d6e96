"""``invbench judge``: brings another oracle's word into the records of a run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, option
from robustbench_inv.cli.output import complain, print_json

if TYPE_CHECKING:
    from robustbench_inv.results.store import CellFolder

__all__ = ["judge"]


def judge(
    run: Annotated[Path, typer.Argument(help="Folder of results with images; it stays as it is.")],
    oracle: Annotated[
        str, option(metavar="CSV|PANEL", help="Human labels, or a panel of the catalogue.")
    ],
    out: Annotated[
        Path | None, option(help="Folder of the new results.", show_default="RUN-ORACLE")
    ] = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Write a run anew with the classes that people, or a panel, see in its images; the models are not asked."""
    from robustbench_inv.cli.summary import print_invariance
    from robustbench_inv.evaluation.rejudging import Where, rejudge

    stem = Path(oracle).stem if oracle.lower().endswith(".csv") else oracle.partition(":")[0]
    folder = out or run.with_name(f"{run.resolve().name}-{stem}")
    command = ["invbench", *sys.argv[1:]]
    judged = rejudge(run, oracle, folder, Where(device, data_root), command)
    complain(judged.notes)
    cells = [_told(cell) for cell in judged.run.cells()]
    if json:
        return print_json(cells)
    return print_invariance(cells, folder)


def _told(cell: "CellFolder") -> dict[str, Any]:
    from robustbench_inv.results.invariance import describe_invariance

    about = cell.cell
    return {
        "model": about["model"]["name"],
        "attack": about["attack"]["name"],
        "threat": about["threat"]["text"],
        "dataset": about["dataset"]["name"],
        "goal": about["threat"]["goal"],
        "invariance": describe_invariance(cell.records(), cell.oracle_error()),
        "path": str(cell.path),
    }
