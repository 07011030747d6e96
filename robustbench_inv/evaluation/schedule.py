"""Runs cells one after the other, in several processes, or on a Ray cluster."""

import importlib
import logging
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robustbench_inv.errors import BadParameter, BadResults, MissingExtra, UsageError
from robustbench_inv.evaluation.engine import (
    Progress,
    ProgressCallback,
    RunOptions,
    ignore_progress,
    run_cell,
)
from robustbench_inv.evaluation.jobs import Job, rebuild_job
from robustbench_inv.evaluation.loading import LoadCache
from robustbench_inv.evaluation.search import CACHE_BYTES, SearchCache

__all__ = ["CellOutcome", "Workers", "check_workers", "run_jobs"]

Workers = int | str
"""1: this process. N: so many local processes. ``ray`` or ``ray:ADDRESS``: a Ray cluster."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellOutcome:
    """Outcome of a cell.

    Args:
        digest: the cell's digest.
        title: the cell's title.
        notes: messages for the user.
        failure: why the cell failed, one line; None if it is complete.
    """

    digest: str
    title: str
    notes: tuple[str, ...] = ()
    failure: str | None = None


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
        report: called as the cells progress; for cells in other processes, when they are complete.
        workers: where to run.

    Raises:
        BadResults: if results cannot be written; the remaining cells are not run.
        MissingExtra: if Ray is requested and not installed.
        UsageError: if a job cannot be sent to another process.
    """
    run = _scheduler(workers)
    found = {
        outcome.digest: outcome for outcome in run(jobs, root, options, _numbered(jobs, report))
    }
    return [found[job.spec.digest] for job in jobs]


def check_workers(workers: Workers) -> None:
    """Raise BadParameter for an unusable value of ``workers``."""
    _scheduler(workers)


def _scheduler(workers: Workers) -> Callable[..., Iterator[CellOutcome]]:
    if isinstance(workers, str) and workers.split(":")[0] == "ray":
        return partial(_on_ray, address=workers.partition(":")[2] or None)
    if not isinstance(workers, int) or workers < 1:
        raise BadParameter("unusable number of workers", got=workers, expected=">= 1, or ray")
    return _in_process if workers == 1 else partial(_in_processes, workers=workers)


def _in_process(
    jobs: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback
) -> Iterator[CellOutcome]:
    for group in _group_by_search(jobs):
        yield from _run_group(group, root, options, report)


def _in_processes(
    jobs: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback, workers: int
) -> Iterator[CellOutcome]:
    """Run each group of cells in one of several fresh processes that share this machine's threads."""
    groups = _group_by_search(jobs)
    parcels = [_pack(group) for group in groups]
    pool = ProcessPoolExecutor(
        min(workers, len(groups)) or 1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(max(1, torch.get_num_threads() // workers),),
    )
    try:
        futures = {
            pool.submit(_unpack_and_run, parcel, root, options): group
            for group, parcel in zip(groups, parcels, strict=True)
        }
        for future in as_completed(futures):
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                reason = "a worker process was killed, perhaps for lack of memory"
                outcomes = [_failed(job, reason) for job in futures[future]]
            _report_all(futures[future], report)
            yield from outcomes
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(
    jobs: Sequence[Job],
    root: Path,
    options: RunOptions,
    report: ProgressCallback,
    address: str | None,
) -> Iterator[CellOutcome]:
    ray, groups = _import_ray(), _group_by_search(jobs)
    parcels = [_pack(group) for group in groups]
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    remote = ray.remote(_unpack_and_run)
    tasks = {
        remote.remote(parcel, root.resolve(), options): group
        for group, parcel in zip(groups, parcels, strict=True)
    }
    waiting = list(tasks)
    while waiting:
        done, waiting = ray.wait(waiting)
        outcomes: list[CellOutcome] = ray.get(done[0])
        _report_all(tasks[done[0]], report)
        yield from outcomes


def _import_ray() -> Any:  # noqa: ANN401 - a module that is not always installed
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra(
            "Ray is not installed", remedy="pip install 'robustbench-inv[ray]'"
        ) from error


def _report_all(group: Sequence[Job], report: ProgressCallback) -> None:
    for job in group:
        report(Progress(job.title, len(job.samples), len(job.samples)))


def _pack(group: Sequence[Job]) -> bytes:
    """Return jobs as bytes: their requests where they have one, else the objects themselves.

    Raises:
        UsageError: if an object cannot be pickled.
    """
    parcel = [(job.request, job.samples, job.spec.digest) if job.request else job for job in group]
    try:
        return pickle.dumps(parcel)
    except Exception as error:
        raise UsageError(
            f"{group[0].title} cannot be sent to another process: {error}",
            remedy="name model and attack as file.py:factory, or run in one process",
        ) from error


def _unpack(parcel: bytes) -> list[Job]:
    """Return the jobs that ``_pack`` packed; each model and data set is loaded once."""
    packed = pickle.loads(parcel)  # made by _pack, in the process that started this one
    caches: dict[tuple[str, str | None], LoadCache] = {}
    jobs = []
    for each in packed:
        if isinstance(each, Job):
            jobs.append(each)
            continue
        request, samples, digest = each
        place = request.device, request.data_root
        cache = caches.setdefault(place, LoadCache(*place))
        jobs.append(rebuild_job(request, samples, digest, cache))
    return jobs


def _unpack_and_run(parcel: bytes, root: Path, options: RunOptions) -> list[CellOutcome]:
    return list(_run_group(_unpack(parcel), root, options, ignore_progress))


def _group_by_search(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs in groups that share their searches, in the order of the first of each group."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        key = job.search_key if job.threat.is_transfer else job.spec.digest
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def _run_group(
    group: Sequence[Job], root: Path, options: RunOptions, report: ProgressCallback
) -> Iterator[CellOutcome]:
    """Run cells that share their searches, one after the other."""
    cache = SearchCache(CACHE_BYTES if len(group) > 1 else 0)
    for job in group:
        yield _run_guarded(job, root, options, report, cache)


def _run_guarded(
    job: Job, root: Path, options: RunOptions, report: ProgressCallback, cache: SearchCache
) -> CellOutcome:
    """Run a cell; an error becomes its outcome, so that the other cells run."""
    try:
        notes = run_cell(job, root / job.spec.digest, options, report, cache)
    except BadResults:
        raise
    except Exception as error:
        _log.debug("%s failed", job.title, exc_info=True)
        name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        return _failed(job, f"{name}{error}")
    return CellOutcome(job.spec.digest, job.title, tuple(notes))


def _failed(job: Job, reason: str) -> CellOutcome:
    return CellOutcome(job.spec.digest, job.title, (), " ".join(reason.split()))


def _numbered(jobs: Sequence[Job], report: ProgressCallback) -> ProgressCallback:
    """Return a callback that adds the number of each cell and the number of all cells."""
    numbers = {job.title: number for number, job in enumerate(jobs, 1)}

    def numbered(progress: Progress) -> None:
        report(replace(progress, cell=numbers[progress.title], cells=len(jobs)))

    return numbered
