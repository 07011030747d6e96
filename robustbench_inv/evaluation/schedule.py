"""Runs cells one after the other, in several processes, or on a Ray cluster."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from robustbench_inv.errors import (
    BadParameter,
    MissingExtra,
    UsageError,
    describe_error,
)
from robustbench_inv.evaluation.crews import Processes, RayTasks, Task, prepare, share, worker_gpus
from robustbench_inv.evaluation.engine import (
    Progress,
    ProgressCallback,
    RunOptions,
    ignore_progress,
)
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.packing import (
    CellOutcome,
    pack_jobs,
    run_group,
)
from robustbench_inv.results.block_board import BlockBoard
from robustbench_inv.results.cell_content import EVENTS
from robustbench_inv.results.files import check_unlocked
from robustbench_inv.results.run_files import CELL

__all__ = ["CellOutcome", "Workers", "check_locks", "check_workers", "run_jobs", "shared_searches"]

Workers = int | str
"""0: none, the run waits for ``invbench work``. 1: this process. N: so many local processes. ``ray`` or ``ray:ADDRESS``: a Ray cluster; ``,gpus=0.5`` is the share of a
GPU that a task gets."""

RAY = re.compile(r"ray(?::(?P<address>[^,]+))?(?:,gpus=(?P<gpus>\d*\.?\d+))?")


def run_jobs(
    jobs: Sequence[Job],
    root: Path,
    options: RunOptions,
    report: ProgressCallback = ignore_progress,
    workers: Workers = 1,
) -> list[CellOutcome]:
    """Run cells, and return their outcomes in the same order.

    Args:
        jobs: the cells.
        root: the run's folder, on a file system that all workers share.
        options: how to run.
        report: called as the cells progress, and when each is completed or has failed.
        workers: where to run.

    Raises:
        BadResults: if another process writes a cell, before anything runs; if results cannot be written, the
            remaining cells are not run.
        MissingExtra: if Ray is requested and not installed.
        UsageError: if a job cannot be sent to another process.
    """
    run = _scheduler(workers)
    check_locks(jobs, root, options, alone=workers == 1)
    numbered, found = _numbered(jobs, report), {}
    for outcome in run(jobs, root, options, numbered):
        found[outcome.digest] = outcome
        numbered(_end_of(outcome))
    return [replace(found[job.spec.digest], title=job.title) for job in jobs]


def check_workers(workers: Workers, *, may_wait: bool = False) -> None:
    """Raise BadParameter for an unusable value of ``workers``; 0 is one unless the run may wait for other processes."""
    _scheduler(workers)
    if workers == 0 and not may_wait:
        raise BadParameter("unusable number of workers", got=0, expected=">= 1, or ray")


def check_locks(
    jobs: Sequence[Job], root: Path, options: RunOptions, *, alone: bool = True
) -> None:
    """Raise BadResults if another process is writing one of the cells, or computes its blocks and would not share them."""
    for job in jobs:
        folder = root / job.spec.digest
        if options.existing != "skip" or not (folder / CELL).exists():
            check_unlocked(folder / EVENTS)
            if alone:
                BlockBoard(folder, "").check_unclaimed()


def _scheduler(workers: Workers) -> Callable[..., Iterator[CellOutcome]]:
    if isinstance(workers, str) and (match := RAY.fullmatch(workers)):
        if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
            raise _missing_ray()
        gpus = float(match["gpus"] or 1)
        if not gpus:
            raise BadParameter("unusable share of a GPU", got=workers, expected="gpus=F with F > 0")
        return partial(_on_ray, address=match["address"], gpus=gpus)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise BadParameter("unusable number of workers", got=workers, expected=">= 0, or ray")
    return _in_process if workers == 1 else partial(_in_processes, workers=workers)


def _in_process(
    jobs: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback
) -> Iterator[CellOutcome]:
    for task in shared_searches(jobs):
        yield from run_group([jobs[number] for number in task], root, options, report)


def _in_processes(
    jobs: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback, workers: int
) -> Iterator[CellOutcome]:
    """Share the cells' blocks among several fresh processes, which share this machine's threads."""
    worker_gpus(options.device, workers)  # before anything is written
    with TemporaryFile() as parcel:
        parcel.write(pack_jobs(jobs))
        parcel.flush()
        shared = prepare(jobs, shared_searches(jobs), root, options)
        yield from share(shared, partial(Processes, shared, parcel.fileno(), workers, report))


def _on_ray(
    jobs: Sequence[Job],
    root: Path,
    options: RunOptions,
    report: ProgressCallback,  # noqa: ARG001 - a Ray task reports nothing before its end
    address: str | None,
    gpus: float,
) -> Iterator[CellOutcome]:
    ray, parcel = _import_ray(), pack_jobs(jobs)
    if not ray.is_initialized():
        _connect(ray, address)
    shared = prepare(jobs, shared_searches(jobs), root.resolve(), options)
    yield from share(shared, lambda: RayTasks(shared, ray, ray.put(parcel), gpus))


def _connect(ray: Any, address: str | None) -> None:  # noqa: ANN401 - a module that is not always installed
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as error:
        raise UsageError(
            "cannot reach the Ray cluster",
            got=address,
            remedy=describe_error(error),
        ) from error


def _import_ray() -> Any:  # noqa: ANN401 - a module that is not always installed
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise _missing_ray() from error


def _missing_ray() -> MissingExtra:
    return MissingExtra("Ray is not installed", remedy="pip install 'robustbench-inv[ray]'")


def shared_searches(jobs: Sequence[Job]) -> list[Task]:
    """Return the numbers of the jobs in groups that share their searches, in the order of the first of each group."""
    groups: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        key = job.search_key if job.threat.is_transfer else job.spec.digest
        groups.setdefault(key, []).append(number)
    return [tuple(group) for group in groups.values()]


def _end_of(outcome: CellOutcome) -> Progress:
    return Progress(
        outcome.title, outcome.digest, state="failed" if outcome.failure else "completed"
    )


def _numbered(jobs: Sequence[Job], report: ProgressCallback) -> ProgressCallback:
    """Return a callback that adds the number of each cell and the number of all cells.

    The last call about a cell keeps the number of records of the call before.
    """
    known = {
        job.spec.digest: Progress(
            job.title, job.spec.digest, 0, len(job.samples), number, len(jobs)
        )
        for number, job in enumerate(jobs, 1)
    }

    def numbered(progress: Progress) -> None:
        last = known[progress.digest]
        if progress.state == "running":
            last = replace(last, done=progress.done, total=progress.total)
        known[progress.digest] = last
        report(replace(last, state=progress.state, detail=progress.detail))

    return numbered
