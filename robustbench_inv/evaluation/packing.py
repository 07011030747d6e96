"""Jobs as bytes for another process, and what becomes of a cell."""

import io
import mmap
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch

from robustbench_inv.errors import UsageError, text_of
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job, rebuild_job
from robustbench_inv.evaluation.loading import LoadCache, NamedModel
from robustbench_inv.foreign import foreign

__all__ = [
    "CellOutcome",
    "Groups",
    "LoadCaches",
    "PackedJob",
    "explain",
    "failed_outcome",
    "has_names",
    "pack_jobs",
    "unpack_jobs",
]


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


Groups = Sequence[Sequence[int]]
"""Numbers of jobs that share their searches."""

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
            return failed_outcome(self.digest, self.title, explain(error))


def explain(error: Exception) -> str:
    """Return the text of an error: its message, with its type unless it is the user's."""
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
        if job.request and has_names(job.request)
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


def has_names(request: EvaluationRequest) -> bool:
    """Do model, attack, data set and panel have names, by which any process can load them?"""
    models = (each.source if isinstance(each, NamedModel) else each for each in request.models)
    parts = (*models, *request.attacks, request.dataset, *request.panel.values())
    return all(isinstance(each, str) for each in parts)


def unpack_jobs(parcel: "bytes | mmap.mmap") -> list[Job | PackedJob]:
    """Return what ``pack_jobs`` packed, in the process that started this one."""
    packed: list[Job | PackedJob] = pickle.loads(parcel)
    return packed
