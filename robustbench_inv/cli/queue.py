"""``invbench queue``: trains a list of recipes one after the other, or lists what is completed."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Json, TrainingDevice, option
from robustbench_inv.cli.output import print_json, print_line, print_message
from robustbench_inv.cli.train import report_progress

if TYPE_CHECKING:
    from robustbench_inv.training.loop import EpochMetrics
    from robustbench_inv.training.training_queue import (
        JobStatus,
        QueueCallbacks,
        TrainingJob,
        TrainingQueue,
    )

__all__ = ["queue"]


def queue(  # noqa: PLR0913, PLR0917 - one parameter is one option
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Queue of recipes, such as models/queue.toml.")
    ],
    out: Annotated[
        Path, option(metavar="FOLDER", help="Write checkpoints and models to this folder.")
    ] = Path("checkpoints"),
    status: Annotated[
        bool, option("--status", help="List state, epochs and estimated time left; train nothing.")
    ] = False,
    threads: Annotated[int, option(min=1, metavar="N", help="Number of CPU threads.")] = 1,
    device: TrainingDevice = "cpu",
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Train the recipes of a queue one after the other.

    A checkpoint is written after every epoch; run the same command again to resume. An entry that fails is reported,
    and the next one begins.
    """
    import torch

    from robustbench_inv.arguments import check_folder
    from robustbench_inv.tensors import check_device
    from robustbench_inv.training.training_queue import read_queue, run_queue

    jobs = read_queue(file)
    check_folder(out, "folder of the models")
    check_device("cpu" if device == "auto" else device)
    if not status:
        torch.set_num_threads(threads)
        failed = run_queue(jobs, out, device=device, data_root=data_root, callbacks=_callbacks())
        if failed:
            _list(jobs, out, json=json)
            raise typer.Exit(1)
    _list(jobs, out, json=json)


def _callbacks() -> "QueueCallbacks":
    from robustbench_inv.training.training_queue import QueueCallbacks

    progress = report_progress()

    def begin(job: "TrainingJob") -> None:
        nonlocal progress
        progress = report_progress(job.until)
        print_message(f"{time.strftime('%F %T')}  training {job.name}: {job.why}")

    def end(found: "JobStatus") -> None:
        print_message(
            f"{time.strftime('%F %T')}  {found.state} {found.job.name} {found.failure}".rstrip()
        )

    def epoch(result: "EpochMetrics") -> None:
        progress(result)

    return QueueCallbacks(begin, epoch, end)


def _list(jobs: "TrainingQueue", out: Path, *, json: bool) -> None:
    from robustbench_inv.training.training_queue import job_status, seed_spread

    found = [job_status(job, out) for job in jobs.jobs]
    spread = seed_spread(jobs, out)
    if json:
        print_json({"jobs": list(map(_plain, found)), "seeds": spread})
        return
    width = max((len(each.job.name) for each in found), default=0)
    print_line(f"{'entry':<{width}}  {'state':<11}  {'epochs':>9}  {'s/epoch':>7}  {'left':>7}")
    for each in found:
        print_line(f"{each.job.name:<{width}}  {_row(each)}")
    left = sum(each.seconds_left for each in found)
    print_line(f"{'all':<{width}}  {'':<31}  {_hours(left):>7}")
    for name, accuracies in spread.items():
        for dataset, (mean, deviation, seeds) in accuracies.items():
            print_line(
                f"{name}: accuracy on {dataset} {mean:.2%} ± {deviation:.2%} ({seeds} seeds)"
            )


def _row(found: "JobStatus") -> str:
    epochs = f"{found.epochs}/{found.job.until - found.job.first}"
    left = _hours(found.seconds_left)
    row = f"{found.state:<11}  {epochs:>9}  {found.seconds_per_epoch:>7.1f}  {left:>6}"
    return f"{row}  {found.failure}".rstrip()


def _plain(found: "JobStatus") -> dict[str, object]:
    return {
        "entry": found.job.name,
        "recipe": str(found.job.path),
        "seed": found.job.recipe.seed,
        "priority": found.job.priority,
        "why": found.job.why,
        "state": str(found.state),
        "epochs": found.epochs,
        "of": found.job.until - found.job.first,
        "seconds_per_epoch": round(found.seconds_per_epoch, 2),
        "seconds_left": round(found.seconds_left),
        "failure": found.failure,
    }


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
