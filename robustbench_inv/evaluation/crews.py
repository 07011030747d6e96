"""An evaluation that several processes share, seen from the one that starts them: local processes, or Ray tasks."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from math import ceil
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch

from robustbench_inv.errors import BadParameter, BadResults
from robustbench_inv.evaluation.engine import (
    BATCH_SIZE,
    SKIPPED,
    Progress,
    ProgressCallback,
    RunOptions,
    cell_messages,
    complete_cell,
    open_cell,
)
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.joining import write_jobs
from robustbench_inv.evaluation.packing import CellOutcome, explain, failed_outcome
from robustbench_inv.evaluation.worker import WorkerDied, WorkerProcess
from robustbench_inv.foreign import foreign, time_limit
from robustbench_inv.results.block_board import BlockBoard, new_evaluation
from robustbench_inv.results.run_files import CELL, CellFolder
from robustbench_inv.torch_state import stated_torch

__all__ = [
    "Death",
    "Processes",
    "SharedRun",
    "Task",
    "prepare",
    "prepare_cell",
    "share",
    "worker_gpus",
]

Task = tuple[int, ...]
"""Numbers of cells that share their searches."""


@dataclass(frozen=True)
class SharedRun:
    """An evaluation that several processes share.

    Args:
        jobs: the cells.
        groups: numbers of jobs that share their searches.
        root: the run's folder.
        options: how the processes run: they resume.
        name: of the evaluation.
        skipped: outcomes of the cells that are not run.
        notes: messages about the other cells, by their digests.
    """

    jobs: Sequence[Job]
    groups: Sequence[Task]
    root: Path
    options: RunOptions
    name: str
    skipped: Sequence[CellOutcome]
    notes: dict[str, tuple[str, ...]]

    @property
    def left(self) -> list[Job]:
        """The cells to run."""
        return [self.jobs[number] for group in self.groups for number in group]

    @property
    def blocks(self) -> int:
        """How many blocks there are at most."""
        size = self.options.batch_size or BATCH_SIZE
        return sum(ceil(len(job.samples) / size) for job in self.left)

    def board(self, job: Job) -> BlockBoard:
        """Return the claims of a cell."""
        return BlockBoard(self.root / job.spec.digest, f"{self.name}/")

    def outcome(self, job: Job) -> CellOutcome:
        """Return how a cell has ended that another process may have completed."""
        digest, folder = job.spec.digest, CellFolder(self.root / job.spec.digest)
        if reason := self.board(job).failure:
            return failed_outcome(digest, job.title, reason)
        if folder.started and folder.finished:
            return CellOutcome(digest, job.title)
        return failed_outcome(digest, job.title, "all processes ended before it was complete")

    def annotated(self, outcome: CellOutcome) -> CellOutcome:
        """Return an outcome with the messages about its cell."""
        notes = (*outcome.notes, *self.notes.get(outcome.digest, ()))
        return replace(outcome, notes=tuple(dict.fromkeys(notes)))


def prepare(
    jobs: Sequence[Job], tasks: Iterable[Task], root: Path, options: RunOptions
) -> SharedRun:
    """Do what one process must do alone: skip cells, complete those without further blocks, delete damage, forget failures.

    Raises:
        BadResults: if other processes compute blocks of a cell that is to be deleted or repaired.
    """
    resumed, name = replace(options, existing="resume"), new_evaluation()
    found = SharedRun(jobs, [], root, resumed, name, [], {})
    groups, skipped = list[Task](), list[CellOutcome]()
    for task in tasks:
        outcomes = {number: _prepared(found, jobs[number], options) for number in task}
        skipped += filter(None, outcomes.values())
        if kept := tuple(number for number, outcome in outcomes.items() if outcome is None):
            groups.append(kept)
    return replace(found, groups=groups, skipped=skipped)


def _prepared(shared: SharedRun, job: Job, options: RunOptions) -> CellOutcome | None:
    """Return the outcome of a cell that is not run, else None."""
    digest = job.spec.digest
    try:
        notes, ended = prepare_cell(job, shared.board(job), options)
    except BadResults:
        raise
    except Exception as error:
        return failed_outcome(digest, job.title, explain(error))
    shared.notes[digest] = notes
    return CellOutcome(digest, job.title, notes) if ended else None


def prepare_cell(job: Job, board: BlockBoard, options: RunOptions) -> tuple[tuple[str, ...], bool]:
    """Skip, complete, repair or delete a cell; return messages for the user, and whether nothing is left to do."""
    folder = board.cell
    if options.existing == "skip" and (folder / CELL).exists():
        return (f"{job.title}: {SKIPPED}",), True
    board.forgive()
    if options.existing in ("redo", "repair"):
        board.check_unclaimed()
        board.clear()
    elif board.folder.exists():  # others may be at work
        return (), False
    if not CellFolder(folder).started:
        return (), False
    with (
        time_limit(options.timeout),
        foreign(job.title),
        stated_torch(),
        open_cell(job, folder, options) as writer,
    ):
        notes = tuple(cell_messages(job, writer, options))
        if writer.next_block() is None:
            return (*notes, *complete_cell(job, writer)), True
        if writer.restores_images:
            board.mark_images()
    return notes, False


@dataclass(frozen=True)
class Death:
    """A process that ended before its work did.

    Args:
        worker: its name.
        reason: how it ended.
    """

    worker: str
    reason: str


class _Crew(Protocol):
    """Processes that share an evaluation."""

    def start(self) -> None:
        """Start one more."""

    def events(self) -> Iterator[CellOutcome | Death]:
        """Yield outcomes and deaths until all processes have ended."""

    def close(self) -> None:
        """End all processes."""


ATTEMPTS = 2
"""How often a block is started whose process dies: memory may be short for a moment only."""


def share(shared: SharedRun, gather: Callable[[], _Crew]) -> Iterator[CellOutcome]:
    """Yield the outcome of every cell; a process that dies is replaced while there is something to do.

    Args:
        shared: the evaluation.
        gather: starts the processes, if there is a cell to run.
    """
    yield from shared.skipped
    if not shared.groups:
        return
    write_jobs(shared.root, shared.jobs, shared.groups, shared.options)
    found, deaths, idle = dict[str, CellOutcome](), Counter[tuple[str, int]](), 0
    with closing(gather()) as crew:
        for event in crew.events():
            if isinstance(event, CellOutcome):
                if event.digest not in found:
                    found[event.digest] = event
                    yield shared.annotated(event)
                continue
            held = list(_release(shared, event, deaths))
            idle += not held
            left = [job for job in shared.left if job.spec.digest not in found]
            if idle <= ATTEMPTS and any(shared.board(job).failure is None for job in left):
                crew.start()
    for job in shared.left:
        if job.spec.digest not in found:
            yield shared.annotated(shared.outcome(job))


def _release(
    shared: SharedRun, death: Death, deaths: Counter[tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    """Release the blocks of a process that died, and yield them; the cell of a block fails when it has killed too many."""
    for job in shared.left:
        digest, board = job.spec.digest, shared.board(job)
        for number, claim in board.claims().items():
            if claim.worker != death.worker:
                continue
            deaths[digest, number] += 1
            if deaths[digest, number] >= ATTEMPTS:
                board.fail(f"{death.reason}, {ATTEMPTS} times")
            else:
                note = f"{job.title}: resumed in a new process, since {death.reason}"
                shared.notes[digest] = (*shared.notes.get(digest, ()), note)
            board.release(number, claim)
            yield digest, number


def worker_gpus(device: str, workers: int) -> tuple[str, ...]:
    """Return the GPU of each worker for CUDA_VISIBLE_DEVICES; none if ``device`` is not ``cuda``, so that they share it.

    Raises:
        BadParameter: for more workers than GPUs.
    """
    if device != "cuda":
        return ()
    count = torch.cuda.device_count()
    if workers > count:
        raise BadParameter(
            "more workers than GPUs",
            got=workers,
            expected=f"at most {count}",
            remedy="--device cuda:0 lets all workers share one GPU",
        )
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named or map(str, range(count)))[:workers]


class Processes:
    """Local processes, each of which works until the last block.

    Args:
        shared: what they share.
        parcel: descriptor of the file of jobs.
        workers: number of processes; fewer if there are fewer blocks. With the device ``cuda`` each has its own GPU.
        report: called with their progress.
    """

    def __init__(
        self, shared: SharedRun, parcel: int, workers: int, report: ProgressCallback
    ) -> None:
        self._shared, self._parcel, self._report = shared, parcel, report
        self._threads = max(1, torch.get_num_threads() // workers)
        self._gpus = worker_gpus(shared.options.device, workers)
        self._running: dict[Any, WorkerProcess] = {}
        self._numbers = count()
        for _ in range(max(1, min(workers, shared.blocks))):
            self.start()

    def start(self) -> None:
        """Start one more."""
        name = f"{self._shared.name}/{next(self._numbers)}"
        task = self._shared.groups, self._shared.root, self._shared.options
        used = {worker.gpu for worker in self._running.values()}
        gpu = next((each for each in self._gpus if each not in used), None)
        worker = WorkerProcess(self._parcel, self._threads, name, task, gpu)
        self._running[worker.connection] = worker

    def events(self) -> Iterator[CellOutcome | Death]:
        """Yield outcomes and deaths until all processes have ended; report progress meanwhile."""
        while self._running:
            for connection in wait(list(self._running)):
                worker = self._running[connection]
                try:
                    message = worker.receive()
                except WorkerDied as death:
                    worker.close()
                    del self._running[connection]
                    yield Death(worker.name, str(death))
                    continue
                if isinstance(message, Progress):
                    self._report(message)
                elif message is None:
                    worker.close()
                    del self._running[connection]
                else:
                    yield message

    def close(self) -> None:
        """End all processes."""
        for worker in self._running.values():
            worker.close()
