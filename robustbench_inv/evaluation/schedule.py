"""Runs cells one after the other, in several processes, or on a Ray cluster."""

import importlib.util
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from robustbench_inv.errors import (
    BadParameter,
    BadResults,
    MissingExtra,
    UsageError,
    describe_error,
)
from robustbench_inv.evaluation.engine import (
    Progress,
    ProgressCallback,
    RunOptions,
    ignore_progress,
)
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.worker import (
    CellOutcome,
    WorkerDied,
    WorkerProcess,
    failed_outcome,
    pack_jobs,
    run_group,
    run_packed,
)
from robustbench_inv.results.cell_content import RECORDS
from robustbench_inv.results.files import check_unlocked
from robustbench_inv.results.run_files import CELL

__all__ = ["CellOutcome", "Workers", "check_locks", "check_workers", "run_jobs"]

Workers = int | str
"""1: this process. N: so many local processes. ``ray`` or ``ray:ADDRESS``: a Ray cluster."""

Task = tuple[int, ...]
"""Numbers of cells that share their searches and run one after the other."""


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


def check_workers(workers: Workers) -> None:
    """Raise BadParameter for an unusable value of ``workers``."""
    _scheduler(workers)


def check_locks(jobs: Sequence[Job], root: Path, options: RunOptions) -> None:
    """Raise BadResults if another process is writing one of the cells."""
    for job in jobs:
        folder = root / job.spec.digest
        if options.existing != "skip" or not (folder / CELL).exists():
            check_unlocked(folder / RECORDS)


def _scheduler(workers: Workers) -> Callable[..., Iterator[CellOutcome]]:
    if isinstance(workers, str) and workers.split(":")[0] == "ray" and workers != "ray:":
        if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
            raise _missing_ray()
        return partial(_on_ray, address=workers.partition(":")[2] or None)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise BadParameter("unusable number of workers", got=workers, expected=">= 1, or ray")
    return _in_process if workers == 1 else partial(_in_processes, workers=workers)


def _in_process(
    jobs: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback
) -> Iterator[CellOutcome]:
    for task in _tasks(jobs):
        yield from run_group([jobs[number] for number in task], root, options, report)


def _in_processes(
    jobs: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback, workers: int
) -> Iterator[CellOutcome]:
    """Run the tasks in several fresh processes that share this machine's threads."""
    queue, threads = _Queue(jobs), max(1, torch.get_num_threads() // workers)
    with TemporaryFile() as parcel:
        parcel.write(pack_jobs(jobs))
        parcel.flush()
        start = partial(WorkerProcess, parcel.fileno(), root, options, threads)
        with closing(_Pool(start, workers)) as pool:
            while pool.submit(queue.tasks):
                for message in pool.receive():
                    if isinstance(message, Progress):
                        report(message)
                    elif isinstance(message, CellOutcome):
                        yield queue.annotated(message)
                    else:
                        yield from queue.put_back(*message)


@dataclass
class _Pool:
    """Worker processes, each with at most one task.

    Args:
        start: starts one.
        size: largest number of processes.
    """

    start: Callable[[], WorkerProcess]
    size: int
    _idle: list[WorkerProcess] = field(default_factory=list)
    _busy: dict[Any, tuple[WorkerProcess, list[int]]] = field(default_factory=dict)

    def submit(self, tasks: deque[Task]) -> bool:
        """Give waiting tasks to idle or new processes; return whether any process has a task."""
        while tasks and len(self._busy) < self.size:
            worker, task = self._idle.pop() if self._idle else self.start(), tasks.popleft()
            self._busy[worker.connection] = worker, list(task)
            worker.submit(task)
        return bool(self._busy)

    def receive(self) -> Iterator[CellOutcome | Progress | tuple[list[int], str]]:
        """Yield messages, and for a process that died the numbers of its cells without an outcome, and how it died."""
        for connection in wait(list(self._busy)):
            worker, remaining = self._busy[connection]
            try:
                message = worker.receive()
            except WorkerDied as death:
                del self._busy[connection]
                worker.close()
                yield remaining, str(death)
                continue
            if message is not None:
                del remaining[: isinstance(message, CellOutcome)]
                yield message
            else:
                del self._busy[connection]
                self._idle.append(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            worker.close()


def _on_ray(
    jobs: Sequence[Job],
    root: Path,
    options: RunOptions,
    report: ProgressCallback,  # noqa: ARG001 - a Ray task reports nothing before its end
    address: str | None,
) -> Iterator[CellOutcome]:
    ray, queue = _import_ray(), _Queue(jobs)
    parcel = pack_jobs(jobs)
    if not ray.is_initialized():
        _connect(ray, address)
    shared = ray.put(parcel)
    remote = ray.remote(max_retries=0)(run_packed)
    running: dict[Any, Task] = {}
    while queue.tasks or running:
        while queue.tasks:
            task = queue.tasks.popleft()
            running[remote.remote(shared, task, root.resolve(), options)] = task
        (done, *_), _ = ray.wait(list(running))
        task = running.pop(done)
        try:
            outcomes: list[CellOutcome] = ray.get(done)
        except BadResults:
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            yield from queue.put_back(task, f"its Ray task ended: {reason}")
        else:
            yield from map(queue.annotated, outcomes)


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


ATTEMPTS = 2
"""How often a cell is started whose process dies: memory may be short for a moment only."""


class _Queue:
    """The tasks that wait for a process, and the cells whose process died.

    Args:
        jobs: the cells.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs, self._deaths = jobs, Counter[int]()
        self._notes: dict[str, str] = {}
        self.tasks = deque(_tasks(jobs))

    def put_back(self, remaining: Sequence[int], reason: str) -> Iterator[CellOutcome]:
        """Queue the cells of a task whose process died again; yield the outcome of one that died too often.

        Args:
            remaining: numbers of the cells without an outcome; the first one was running.
            reason: how the process died.
        """
        if not remaining:
            return
        first, *rest = remaining
        job = self._jobs[first]
        self._deaths[first] += 1
        if self._deaths[first] < ATTEMPTS:
            self._notes[job.spec.digest] = f"{job.title}: resumed in a new process, since {reason}"
            self.tasks.append((first,))
        else:
            yield failed_outcome(job.spec.digest, job.title, f"{reason}, {ATTEMPTS} times")
        if rest:
            self.tasks.append(tuple(rest))

    def annotated(self, outcome: CellOutcome) -> CellOutcome:
        """Return an outcome with a note if a process died before."""
        note = self._notes.get(outcome.digest)
        return replace(outcome, notes=(*outcome.notes, note)) if note else outcome


def _tasks(jobs: Sequence[Job]) -> list[Task]:
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
