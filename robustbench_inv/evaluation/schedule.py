"""Runs cells one after the other, in several processes, or on a Ray cluster."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from robustbench_inv.errors import (
    BadParameter,
    BadResults,
    MissingExtra,
    UsageError,
    describe_error,
)
from robustbench_inv.evaluation.block_runner import REPORT_SECONDS
from robustbench_inv.evaluation.crews import (
    Death,
    Processes,
    SharedRun,
    Task,
    prepare,
    prepare_cell,
    share,
    worker_gpus,
)
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
)
from robustbench_inv.evaluation.sharing import SharedCell, check_time
from robustbench_inv.evaluation.worker import finish, work, work_packed
from robustbench_inv.results.block_board import BlockBoard, new_evaluation
from robustbench_inv.results.cell_content import EVENTS
from robustbench_inv.results.files import check_unlocked
from robustbench_inv.results.run_files import CELL

__all__ = [
    "CellOutcome",
    "Workers",
    "check_locks",
    "check_workers",
    "run_cell",
    "run_jobs",
    "shared_searches",
]

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
    check_locks(jobs, root, options)
    numbered, found = _numbered(jobs, report), {}
    for outcome in run(jobs, root, options, numbered):
        found[outcome.digest] = outcome
        numbered(_end_of(outcome))
    return [replace(found[job.spec.digest], title=job.title) for job in jobs]


def run_cell(
    job: Job, folder: Path, options: RunOptions, report: ProgressCallback = ignore_progress
) -> list[str]:
    """Evaluate the samples of a single cell that have no records yet, and return messages for the user, one line each.

    Args:
        job: the cell and its samples.
        folder: the cell's folder.
        options: how to run.
        report: called when the cell is opened, within blocks, and after each block.

    Raises:
        BadResults: if the folder cannot be written, or belongs to another process or cell.
        BadModel: if the model's output for a clean input is not a number.
        DeadlinePassed: after the deadline; finished blocks are kept.
    """
    check_time(options)
    worker = f"{new_evaluation()}/0"
    notes, ended = prepare_cell(job, BlockBoard(folder, worker), options)
    if ended:
        return list(notes)
    cell = SharedCell(job, folder, replace(options, existing="resume"), report, worker, {})
    for outcome in finish([cell]):
        if cell.error:
            raise cell.error
        notes = (*notes, *outcome.notes)
    return list(dict.fromkeys(notes))


def check_workers(workers: Workers, *, may_wait: bool = False) -> None:
    """Raise BadParameter for an unusable value of ``workers``; 0 is one unless the run may wait for other processes."""
    _scheduler(workers)
    if workers == 0 and not may_wait:
        raise BadParameter("unusable number of workers", got=0, expected=">= 1, or ray")


def check_locks(jobs: Sequence[Job], root: Path, options: RunOptions) -> None:
    """Raise BadResults if another process is writing one of the cells, or computes its blocks and would not share them."""
    for job in jobs:
        folder = root / job.spec.digest
        if options.existing != "skip" or not (folder / CELL).exists():
            check_unlocked(folder / EVENTS)
            if options.existing in ("redo", "repair"):
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
    shared = prepare(jobs, shared_searches(jobs), root, options)
    yield from share(shared, lambda: ThisProcess(shared, report))


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
    report: ProgressCallback,
    address: str | None,
    gpus: float,
) -> Iterator[CellOutcome]:
    ray, parcel = _import_ray(), pack_jobs(jobs)
    if not ray.is_initialized():
        _connect(ray, address)
    shared = prepare(jobs, shared_searches(jobs), root.resolve(), options)
    yield from share(shared, lambda: RayTasks(shared, ray, ray.put(parcel), gpus, report))


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


class ThisProcess:
    """This process alone; others may join it.

    Args:
        shared: the evaluation.
        report: called with its progress.
    """

    def __init__(self, shared: SharedRun, report: ProgressCallback) -> None:
        self._shared, self._report = shared, report

    def start(self) -> None:
        """Do nothing, for it cannot be replaced."""

    def events(self) -> Iterator[CellOutcome]:
        """Yield the outcomes of the cells that end here."""
        shared = self._shared
        cells = [[shared.jobs[number] for number in group] for group in shared.groups]
        yield from work(cells, shared.root, shared.options, self._report, f"{shared.name}/0")

    def close(self) -> None:
        """Do nothing."""


class RayTasks:
    """Tasks of a Ray cluster, each of which works until the last block.

    Args:
        shared: what they share, in a folder that all nodes see.
        ray: the module.
        parcel: Ray's reference to the jobs.
        gpus: share of a GPU that a task gets.
        report: called with their progress, read from the run's folder.
    """

    def __init__(
        self,
        shared: SharedRun,
        ray: Any,  # noqa: ANN401 - a module that is not always installed
        parcel: object,
        gpus: float,
        report: ProgressCallback,
    ) -> None:
        self._shared, self._ray, self._parcel = shared, ray, parcel
        self._cells = [
            SharedCell(job, shared.board(job).cell, shared.options, report, shared.name, {})
            for job in shared.left
        ]
        on_gpu = shared.options.device.startswith("cuda")
        resource, part = ("GPU", gpus) if on_gpu else ("CPU", 1.0)
        fitting = int(ray.cluster_resources().get(resource, part) / part)
        needs = {"num_gpus": gpus} if on_gpu else {}
        self._remote = ray.remote(max_retries=0, **needs)(work_packed)
        self._running: dict[Any, str] = {}
        self._numbers = count()
        for _ in range(max(1, min(fitting, shared.blocks))):
            self.start()

    def start(self) -> None:
        """Start one more."""
        shared, name = self._shared, f"{self._shared.name}/{next(self._numbers)}"
        task = self._remote.remote(self._parcel, shared.groups, shared.root, shared.options, name)
        self._running[task] = name

    def events(self) -> Iterator[CellOutcome | Death]:
        """Yield outcomes and deaths until all tasks have ended."""
        while self._running:
            ended, _ = self._ray.wait(list(self._running), timeout=REPORT_SECONDS)
            for cell in self._cells:
                cell.look()
            if not ended:
                continue
            name = self._running.pop(done := ended[0])
            try:
                outcomes: list[CellOutcome] = self._ray.get(done)
            except BadResults:
                raise
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                yield Death(name, f"its Ray task ended: {reason}")
            else:
                yield from outcomes

    def close(self) -> None:
        """End all tasks."""
        for task in self._running:
            self._ray.cancel(task, force=True)
