"""The work of one process on cells, and a worker process, seen from its parent and from itself.

No process directs the others. A process that finds enough finished blocks moves them into the journal, in order.
"""

import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Thread

import torch

from robustbench_inv.errors import BadResults, UsageError
from robustbench_inv.evaluation.engine import (
    Progress,
    ProgressCallback,
    RunOptions,
    ignore_progress,
)
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.packing import (
    CellOutcome,
    Groups,
    LoadCaches,
    PackedJob,
    explain,
    unpack_jobs,
)
from robustbench_inv.evaluation.search import CACHE_BYTES, SearchCache
from robustbench_inv.evaluation.sharing import SharedCell, digest_of

__all__ = ["WorkerDied", "WorkerProcess", "finish", "serve", "work", "work_packed"]

POLL_SECONDS = 0.25
"""Pause of a process that finds nothing to claim, before it looks again."""

_end_process = os._exit
"""The function itself, which ``foreign`` replaces while foreign code runs."""


def work(
    groups: Sequence[Sequence[Job | PackedJob]],
    root: Path,
    options: RunOptions,
    report: ProgressCallback,
    worker: str,
) -> Iterator[CellOutcome]:
    """Compute blocks until no cell has one left, and yield the outcome of each cell that this process ended.

    Args:
        groups: cells that share their searches; process number k begins with the k-th group.
        root: the run's folder.
        options: how to run; existing results are resumed, whatever they say.
        report: called as the cells progress.
        worker: name of this process, ``EVALUATION/NUMBER``.

    Raises:
        BadResults: if results cannot be written.
    """
    caches: LoadCaches = {}
    first = int(worker.rpartition("/")[2]) % max(len(groups), 1)
    ordered = [*groups[first:], *groups[:first]]
    yield from finish(
        *(
            [
                SharedCell(job, root / digest_of(job), options, report, worker, caches)
                for job in group
            ]
            for group in ordered
        )
    )


def finish(*groups: "Sequence[SharedCell]") -> Iterator[CellOutcome]:
    """Compute blocks of cells, in groups that share their searches, as ``work`` does."""
    waiting = everything = [_Group(cells) for cells in groups]
    try:
        while waiting:
            worked = False
            for group in waiting:
                while group.step():
                    worked = True
                    yield from group.outcomes()
                group.rest()
                yield from group.outcomes()
            waiting = [group for group in waiting if not group.ended]
            if waiting and not worked:
                time.sleep(POLL_SECONDS)
    finally:
        for group in everything:
            group.save()


class _Group:
    """Cells that share their searches: a process computes the same block of all of them.

    Args:
        cells: the cells.
    """

    def __init__(self, cells: "Sequence[SharedCell]") -> None:
        self._cells, self._told = cells, set[str]()
        self._cache = SearchCache(CACHE_BYTES if len(cells) > 1 else 0)

    @property
    def ended(self) -> bool:
        """Is no cell left to work on?"""
        return all(cell.ended for cell in self._cells)

    def outcomes(self) -> Iterator[CellOutcome]:
        """Yield the outcomes that were not yielded before."""
        for cell in self._cells:
            if cell.outcome and cell.digest not in self._told:
                self._told.add(cell.digest)
                yield cell.outcome

    def rest(self) -> None:
        """Release what the cells hold, since another group is next."""
        for cell in self._cells:
            cell.rest()

    def save(self) -> None:
        """Move finished blocks of cells that are not complete into their journals, since this process ends."""
        for cell in self._cells:
            cell.save()

    def step(self) -> bool:
        """Open a cell, move blocks into a journal, or compute one block of each; return whether anything was done."""
        left = [cell for cell in self._cells if not cell.ended]
        for cell in left:
            cell.refresh()
        if unopened := [cell for cell in left if not cell.opened]:
            return sum(cell.open() for cell in unopened) > 0
        pending = [(cell, set(cell.pending())) for cell in left]
        if sum(cell.move() for cell in left):
            return True
        numbers = sorted(set[int]().union(*(each for _, each in pending)))
        claimed = set[int]().union(*(cell.claimed for cell in left))
        for number in sorted(numbers, key=lambda each: each in claimed):
            self._cache.clear()
            wanted = [cell for cell, each in pending if number in each]
            if sum(cell.compute(number, self._cache) for cell in wanted):
                return True
        return False


def work_packed(
    parcel: bytes, groups: Groups, root: Path, options: RunOptions, worker: str
) -> list[CellOutcome]:
    """Share the packed jobs as ``work`` does, and return the outcomes of the cells that this process ended."""
    packed = unpack_jobs(parcel)
    cells = [[packed[number] for number in group] for group in groups]
    return list(work(cells, root, options, ignore_progress, worker))


class WorkerDied(Exception):
    """A worker process that ended before it finished its task; the message gives its exit code or signal."""


class WorkerProcess:
    """A process that runs tasks, seen from its parent.

    It does not import the user's script, and prints on standard error alone.

    Args:
        parcel: descriptor of a file that holds what ``pack_jobs`` returned.
        threads: number of threads in the process.
        name: ``EVALUATION/NUMBER``.
        task: numbers of the jobs that share their searches, the run's folder, and how to run.
        gpu: the only GPU that the process has, which is its ``cuda``; None for all.
    """

    def __init__(
        self,
        parcel: int,
        threads: int,
        name: str,
        task: tuple[Groups, Path, RunOptions],
        gpu: str | None = None,
    ) -> None:
        self.name, self.gpu = name, gpu
        self.connection, theirs = Pipe()
        alive, self._lifeline = os.pipe()
        numbers = (theirs.fileno(), alive, parcel, threads)
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve{numbers}"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=numbers[:3],
            env=os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
        )
        theirs.close()
        os.close(alive)
        self._send((*task, name))

    def receive(self) -> "CellOutcome | Progress | None":
        """Return the next message: progress, an outcome, or None after its last block.

        Raises:
            WorkerDied: if the process ended.
            BadResults: if it could not write results.
            UsageError: if it could not read the jobs.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            raise WorkerDied(self._end()) from None
        if isinstance(message, Exception):
            raise message
        assert message is None or isinstance(message, CellOutcome | Progress)
        return message

    def close(self) -> None:
        """End the process; what it has written is complete at any moment."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        with suppress(OSError):
            os.close(self._lifeline)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # a dead process is noticed by receive
            self.connection.send(message)

    def _end(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if code is not None and code < 0:
            reason = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
            return f"its worker process was killed by {signal.Signals(-code).name}{reason}"
        return f"its worker process ended with exit code {code}"


def serve(channel: int, lifeline: int, parcel: int, threads: int) -> None:
    """Share an evaluation: the program of a worker process.

    Args:
        channel: descriptor of the connection to the parent.
        lifeline: descriptor of a pipe that closes when the parent ends.
        parcel: descriptor of the file of jobs.
        threads: number of threads.
    """
    Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(threads)
    connection = Connection(channel)
    with suppress(EOFError, BrokenPipeError):
        groups, root, options, worker = connection.recv()
        try:
            packed = unpack_jobs(mmap.mmap(parcel, 0, access=mmap.ACCESS_READ))
        except Exception as error:
            connection.send(UsageError(f"a worker process cannot read the jobs: {explain(error)}"))
            return
        cells = [[packed[number] for number in group] for group in groups]
        try:
            for outcome in work(cells, root, options, connection.send, worker):
                connection.send(outcome)
            connection.send(None)
        except BadResults as error:
            connection.send(error)


def _end_with_parent(lifeline: int) -> None:
    """End this process when the parent has ended: its end of the pipe is closed, or the parent is another."""
    parent = os.getppid()
    while os.getppid() == parent and not select.select([lifeline], [], [], 1.0)[0]:
        pass
    _end_process(1)
