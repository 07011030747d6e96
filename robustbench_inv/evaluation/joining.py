"""Lets other processes join an evaluation: its jobs as names in jobs.json, and the work of a process that reads them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults
from robustbench_inv.evaluation.engine import BATCH_SIZE, Progress, ProgressCallback, RunOptions
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job
from robustbench_inv.evaluation.loading import NamedModel
from robustbench_inv.evaluation.packing import CellOutcome, PackedJob, has_names
from robustbench_inv.evaluation.worker import work
from robustbench_inv.results.block_board import new_evaluation
from robustbench_inv.results.files import read_json, write_json

__all__ = ["JOBS", "join", "write_jobs"]

JOBS = "jobs.json"


def write_jobs(
    root: Path, jobs: Sequence[Job], groups: Sequence[Sequence[int]], options: RunOptions
) -> bool:
    """Write jobs.json, from which any process can share the evaluation; return whether that is possible.

    Args:
        root: the run's folder.
        jobs: the cells. Objects without a name cannot be loaded elsewhere: then nothing is written.
        groups: numbers of jobs that share their searches.
        options: how to run.

    Raises:
        BadResults: if it cannot be written.
    """
    if not all(job.request and has_names(job.request) for job in jobs):
        (root / JOBS).unlink(missing_ok=True)
        return False
    how = {
        "batch_size": options.batch_size or BATCH_SIZE,
        "keep_images": options.keep_images,
        "timeout": options.timeout,
    }
    listed = [_to_json(job) for job in jobs]
    write_json(root / JOBS, {"jobs": listed, "groups": list(map(list, groups)), "options": how})
    return True


def join(
    root: Path,
    device: str,
    data_root: str | None,
    report: ProgressCallback,
    worker: int = 0,
) -> Iterator[CellOutcome]:
    """Compute blocks of an evaluation until its last one, and yield the outcomes of the cells that ended here.

    Args:
        root: the run's folder, which all its processes see.
        device: where the models compute here.
        data_root: folder of data files here; None for the usual one.
        report: called as the cells progress.
        worker: process number k begins with the k-th group of cells.

    Raises:
        BadResults: if the folder has no jobs that another process can load, or cannot be written.
    """
    try:
        found: Any = read_json(root / JOBS)
        jobs = [_from_json(each, device, data_root) for each in found["jobs"]]
        options = RunOptions(device=device, **found["options"])
        groups = [[jobs[number] for number in group] for group in found["groups"]]
    except (KeyError, TypeError, ValueError, IndexError, BadResults) as error:
        raise BadResults(
            f"{root} has no jobs that another process can load: {error}",
            remedy="start it with evaluate --workers 0, with models, attacks and data that have names",
        ) from error
    places = {job.digest: number for number, job in enumerate(jobs, 1)}

    def numbered(progress: Progress) -> None:
        report(replace(progress, cell=places[progress.digest], cells=len(jobs)))

    for outcome in work(groups, root, options, numbered, f"{new_evaluation()}/{worker}"):
        title, digest = outcome.title, outcome.digest
        numbered(Progress(title, digest, state="failed" if outcome.failure else "completed"))
        yield outcome


def _to_json(job: Job) -> dict[str, Any]:
    request = job.request
    assert request is not None
    (model,), (attack,) = request.models, request.attacks
    return {
        "digest": job.spec.digest,
        "title": job.title,
        "model": model.source if isinstance(model, NamedModel) else model,
        "label": model.label if isinstance(model, NamedModel) else "",
        "attack": attack,
        "threat": job.threat.text,
        "dataset": request.dataset,
        "oracle": request.oracle,
        "panel": dict(request.panel),
        "seed": job.seed,
        "samples": list(job.samples),
        "optional": request.optional,
    }


def _from_json(value: Mapping[str, Any], device: str, data_root: str | None) -> PackedJob:
    """Return a job as another process packs it."""
    label, model = str(value["label"]), str(value["model"])
    request = EvaluationRequest(
        models=[NamedModel(label, model) if label else model],
        attacks=[str(value["attack"])],
        threat=str(value["threat"]),
        dataset=value["dataset"],
        samples=None,
        seed=int(value["seed"]),
        device=device,
        data_root=data_root,
        optional=bool(value["optional"]),
        oracle=str(value["oracle"]),
        panel=dict(value["panel"]),
    )
    samples = tuple(map(int, value["samples"]))
    return PackedJob(request, samples, str(value["digest"]), str(value["title"]))
