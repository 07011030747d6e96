"""Runs cells in this process or in a worker process, which reports each outcome at once and ends with its parent."""

import io
import logging
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import torch

from robustbench_inv.errors import BadResults, UsageError, text_of
from robustbench_inv.evaluation.engine import (
    Progress,
    ProgressCallback,
    RunOptions,
    ignore_progress,
    run_cell,
)
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job, rebuild_job
from robustbench_inv.evaluation.loading import LoadCache
from robustbench_inv.evaluation.search import CACHE_BYTES, SearchCache
from robustbench_inv.foreign import foreign, time_limit
from robustbench_inv.torch_state import stated_torch

__all__ = [
    "CellOutcome",
    "PackedJob",
    "WorkerDied",
    "WorkerProcess",
    "failed_outcome",
    "pack_jobs",
    "run_group",
    "run_packed",
    "serve",
    "unpack_jobs",
]

_log = logging.getLogger(__name__)

_end_process = os._exit
"""The function itself, which ``foreign`` replaces while foreign code runs."""


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


def failed_outcome(digest: str, title: str, reason: str) -> CellOutcome:
    """Return the outcome of a failed cell; the reason becomes one line."""
    return CellOutcome(digest, title, (), " ".join(reason.split()))


LoadCaches = dict[tuple[str, str | None], LoadCache]
"""What was loaded for a device and a folder of data files."""


@dataclass(frozen=True)
class PackedJob:
    """A job whose model, attack and data set have names, by which another process loads them."""

    request: EvaluationRequest
    samples: tuple[int, ...]
    digest: str
    title: str

    def build(self, caches: LoadCaches) -> Job | CellOutcome:
        """Return the job, or the outcome of one that cannot be built here."""
        place = self.request.device, self.request.data_root
        cache = caches.setdefault(place, LoadCache(*place))
        try:
            with foreign(self.title):
                return rebuild_job(self.request, self.samples, self.digest, cache)
        except Exception as error:
            return failed_outcome(self.digest, self.title, _explain(error))


def run_group(
    group: Sequence[Job | PackedJob],
    root: Path,
    options: RunOptions,
    report: ProgressCallback,
    caches: LoadCaches | None = None,
) -> Iterator[CellOutcome]:
    """Run cells that share their searches, one after the other, and yield their outcomes.

    An error becomes the outcome of its cell, so that the other cells run.

    Raises:
        BadResults: if results cannot be written.
    """
    cache = SearchCache(CACHE_BYTES if len(group) > 1 else 0)
    for each in group:
        with time_limit(options.timeout):
            job = each if isinstance(each, Job) else each.build({} if caches is None else caches)
            done = job if isinstance(job, CellOutcome) else _run(job, root, options, report, cache)
        yield done


def _run(
    job: Job, root: Path, options: RunOptions, report: ProgressCallback, cache: SearchCache
) -> CellOutcome:
    try:
        with foreign(job.title), stated_torch():
            notes = run_cell(job, root / job.spec.digest, options, report, cache)
    except BadResults:
        raise
    except Exception as error:
        _log.debug("%s failed", job.title, exc_info=True)
        return failed_outcome(job.spec.digest, job.title, _explain(error))
    return CellOutcome(job.spec.digest, job.title, tuple(notes))


def _explain(error: Exception) -> str:
    text = text_of(error)
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"


def pack_jobs(jobs: Sequence[Job]) -> bytes:
    """Return jobs as bytes: names where they have names, else the objects, each once.

    Classes and functions of a script or notebook are sent as well, since no other process can import them.

    Raises:
        UsageError: if an object cannot be pickled.
    """
    packed = [
        PackedJob(job.request, job.samples, job.spec.digest, job.title)
        if job.request and _has_names(job.request)
        else job
        for job in jobs
    ]
    for name, module in list(sys.modules.items()):
        if name.startswith(
            "_invbench_"
        ):  # a file, which another process does not import by this name
            cloudpickle.register_pickle_by_value(module)
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(packed)
    except Exception as error:
        titles = jobs[0].title if len(jobs) == 1 else f"{jobs[0].title} or another cell"
        raise UsageError(
            f"{titles} cannot be sent to another process: {error}",
            remedy="name model and attack as file.py:factory, or run in one process",
        ) from error
    return buffer.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles traced networks as well, which pickle refuses, in the form in which torch saves them."""

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, torch.jit.ScriptModule):
            return super().reducer_override(value)
        buffer = io.BytesIO()
        torch.jit.save(value, buffer)
        return _load_traced, (buffer.getvalue(),)


def _load_traced(saved: bytes) -> Any:  # noqa: ANN401 - a ScriptModule
    return torch.jit.load(io.BytesIO(saved))  # type: ignore[no-untyped-call]


def _has_names(request: EvaluationRequest) -> bool:
    parts = (*request.models, *request.attacks, request.dataset, *request.panel.values())
    return all(isinstance(each, str) for each in parts)


def unpack_jobs(parcel: "bytes | mmap.mmap") -> list[Job | PackedJob]:
    """Return what ``pack_jobs`` packed, in the process that started this one."""
    packed: list[Job | PackedJob] = pickle.loads(parcel)
    return packed


def run_packed(
    parcel: bytes, numbers: Sequence[int], root: Path, options: RunOptions
) -> list[CellOutcome]:
    """Run some of the packed jobs, and return their outcomes."""
    packed = unpack_jobs(parcel)
    return list(run_group([packed[n] for n in numbers], root, options, ignore_progress, {}))


class WorkerDied(Exception):
    """A worker process that ended before it finished its task; the message gives its exit code or signal."""


class WorkerProcess:
    """A process that runs tasks, seen from its parent.

    It does not import the user's script, and prints on standard error alone.

    Args:
        parcel: descriptor of a file that holds what ``pack_jobs`` returned.
        root: the run's folder.
        options: how to run.
        threads: number of threads in the process.
    """

    def __init__(self, parcel: int, root: Path, options: RunOptions, threads: int) -> None:
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
        )
        theirs.close()
        os.close(alive)
        self._send((root, options))

    def submit(self, numbers: Sequence[int]) -> None:
        """Give it the numbers of the jobs to run."""
        self._send(tuple(numbers))

    def receive(self) -> "CellOutcome | Progress | None":
        """Return the next message: progress, an outcome, or None after the last job of a task.

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
    """Run tasks until the parent closes the channel: the program of a worker process.

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
        root, options = connection.recv()
        try:
            packed = unpack_jobs(mmap.mmap(parcel, 0, access=mmap.ACCESS_READ))
        except Exception as error:
            connection.send(UsageError(f"a worker process cannot read the jobs: {_explain(error)}"))
            return
        caches: LoadCaches = {}
        while True:
            group = [packed[number] for number in connection.recv()]
            try:
                for outcome in run_group(group, root, options, connection.send, caches):
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
