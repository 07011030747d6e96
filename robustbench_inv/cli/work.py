"""``invbench work`` and ``invbench status``: share the blocks of a run, and see who computes what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, option
from robustbench_inv.cli.output import print_json, print_line, print_warnings, show_progress

__all__ = ["status", "work"]

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder of a run that was started with --workers 0, or that other processes compute.",
    ),
]

SLURM = """\
#!/bin/sh
#SBATCH --job-name=invbench
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task=4
#SBATCH --requeue
# Add what your cluster wants (partition, time, --gres=gpu:1), and submit this file with sbatch.
exec invbench work {run} --device {device} --number "$SLURM_ARRAY_TASK_ID"
"""


def work(
    run: Run,
    device: Device = "cpu",
    data_root: DataRoot = None,
    number: Annotated[
        int,
        option(
            metavar="K",
            help="Begin with the K-th cell, so that several processes begin with different ones.",
        ),
    ] = 0,
    slurm: Annotated[
        int | None,
        option(
            metavar="N",
            help="Print a SLURM script with an array of N such processes, and do nothing else.",
        ),
    ] = None,
) -> None:
    """Compute blocks of a run together with other processes, on this machine or others with access to the folder.

    It ends with the last block. Run the command of the evaluation again afterwards for checks and tables.
    """
    from robustbench_inv.arguments import check_number, check_root

    if slurm is not None:
        check_number(slurm, "number of processes")
        typer.echo(SLURM.format(last=slurm - 1, run=run.resolve(), device=device), nl=False)
        return
    check_root(data_root)
    from robustbench_inv.evaluation.joining import join

    root = None if data_root is None else str(data_root)
    with show_progress() as progress:
        outcomes = list(join(run.resolve(), device, root, progress, number))
    print_warnings([note for outcome in outcomes for note in outcome.notes])
    failures = [f"{outcome.title}: {outcome.failure}" for outcome in outcomes if outcome.failure]
    print_warnings(failures)
    raise typer.Exit(1 if failures else 0)


def status(run: Run, json: Json = False) -> None:
    """Show how far the cells of a run are, and which processes compute them."""
    from robustbench_inv.results.labels import distinct_labels
    from robustbench_inv.results.run_files import RunFolder

    entries = RunFolder(run).plan["cells"]
    titles = distinct_labels((entry["digest"], _title(entry)) for entry in entries)
    rows = [_describe(run / digest, title) for digest, title in titles.items()]
    if json:
        return print_json(rows)
    for row in rows:
        print_line(f"{row['cell']}: {row['state']}, {row['done']} of {row['samples']} samples")
        for claim in row["claims"]:
            block, age = claim["block"], claim["seconds"]
            detail = f": {claim['detail']}" if claim["detail"] else ""
            print_line(f"  block {block} by {claim['worker']}, renewed {age:.0f} s ago{detail}")
    return None


def _title(entry: Mapping[str, Any]) -> str:
    from robustbench_inv.results.labels import cell_title

    named = {key: entry[key] for key in ("attack", "threat", "dataset", "seed")}
    return cell_title(model=entry.get("label") or entry["model"], **named)


def _describe(folder: Path, title: str) -> dict[str, Any]:
    """Return the state of a cell while processes compute its blocks."""
    from robustbench_inv.results.block_board import OPENING, BlockBoard
    from robustbench_inv.results.cell_content import block_samples
    from robustbench_inv.results.run_files import CellFolder

    cell, board = CellFolder(folder), BlockBoard(folder, "")
    found = {"cell": title, "digest": folder.name, "state": "waiting", "done": 0, "samples": 0}
    claims = [
        {
            "block": "cell.json" if number == OPENING else number + 1,
            "worker": claim.worker,
            "seconds": board.age(number),
            "detail": board.details(number),
        }
        for number, claim in board.claims().items()
    ]
    if cell.started:
        blocks = block_samples(cell.info.segments)
        stored = sum(len(blocks[n]) for n in board.numbers()[0] if n < len(blocks))
        records = len(cell.content().samples)
        total = len(cell.samples)
        state = "completed" if records == total else "running" if claims else "interrupted"
        found |= {"state": state, "done": min(records + stored, total), "samples": total}
    if reason := board.failure:
        found["state"] = f"failed: {reason}"
    return {**found, "claims": claims}
