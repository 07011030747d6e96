"""A training queue: trains a list of recipes one after the other and reads progress from the output folder."""

import fcntl
import json
import tomllib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from robustbench_inv.catalogue.cards import check_table, read_toml
from robustbench_inv.errors import BadCatalogue, InvbenchError
from robustbench_inv.foreign import foreign
from robustbench_inv.identity import digest_file
from robustbench_inv.training.loop import EpochMetrics, TrainingOptions, read_position
from robustbench_inv.training.recipe import Recipe, find_recipe, read_recipe
from robustbench_inv.training.training_run import LOCK, lock_now, train_recipe, try_lock

__all__ = [
    "MAX_SECONDS",
    "JobState",
    "JobStatus",
    "QueueCallbacks",
    "TrainingJob",
    "TrainingQueue",
    "job_status",
    "read_queue",
    "run_queue",
    "seed_spread",
]

MAX_SECONDS = 2.5 * 3600
"""Longest duration of one job; a longer training is split into stages."""


class JobState(StrEnum):
    """State of a job, read from the output folder."""

    waiting = "waiting"
    running = "running"
    interrupted = "interrupted"
    completed = "completed"
    failed = "failed"


@dataclass(frozen=True)
class TrainingJob:
    """One training, or one stage of it.

    Args:
        path: the recipe's file.
        recipe: the recipe with the job's seed.
        priority: jobs with a lower number are trained first.
        first: number of epochs trained by earlier stages.
        until: epoch after which the job is completed.
        seconds_per_epoch: estimate given in the queue.
        why: purpose of the model.
    """

    path: Path
    recipe: Recipe
    priority: int
    first: int
    until: int
    seconds_per_epoch: float
    why: str

    @property
    def name(self) -> str:
        """Name of the model, with the last epoch of the stage if the training has several stages."""
        whole = self.first == 0 and self.until == self.recipe.epochs
        return self.recipe.name if whole else f"{self.recipe.name} to epoch {self.until}"


@dataclass(frozen=True)
class TrainingQueue:
    """Jobs in training order, and the epochs after which weights are saved."""

    jobs: tuple[TrainingJob, ...]
    snapshots: frozenset[int]


@dataclass(frozen=True)
class JobStatus:
    """Progress of a job.

    Args:
        job: the job.
        state: its state.
        epochs: completed epochs of the job.
        seconds_per_epoch: median of the last ten epochs; the queue's estimate if there are none.
        failure: error of a failed job, one line.
    """

    job: TrainingJob
    state: JobState
    epochs: int
    seconds_per_epoch: float
    failure: str = ""

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the job is completed; 0 for a completed job."""
        if self.state is JobState.completed:
            return 0.0
        return (self.job.until - self.job.first - self.epochs) * self.seconds_per_epoch


@dataclass(frozen=True)
class QueueCallbacks:
    """Functions called before each job, after each epoch and after each job."""

    begin: Callable[[TrainingJob], None]
    epoch: Callable[[EpochMetrics], None]
    end: Callable[[JobStatus], None]


def read_queue(path: Path) -> TrainingQueue:
    """Read a queue.

    Args:
        path: a TOML file with ``snapshots``, a list of epochs, and ``[[entry]]`` tables. An entry has ``recipe`` (a
            model name, or a file relative to the queue), ``priority``, ``seconds_per_epoch``, ``why``, and optionally
            ``seeds`` and ``until_epoch``, the end of a stage.

    Returns:
        One job per entry and seed, lowest priority number first, ties in file order.

    Raises:
        BadCatalogue: if a key is missing, unknown or of the wrong type, a recipe cannot be read, two jobs are the
            same, or a job takes longer than MAX_SECONDS.
        UnknownName: for the name of a model that does not exist.
    """
    file = _QueueFile(**check_table(_QueueFile, read_toml(path), path))
    entries = [
        _Entry(**check_table(_Entry, table, f"{path}: {table.get('recipe', 'an entry')}"))
        for table in file.entry
    ]
    jobs = [job for entry in entries for job in _jobs_of_entry(entry, path)]
    ends: dict[str, set[int]] = {}
    for job in jobs:
        if job.until in ends.setdefault(job.recipe.name, set()):
            expected = "one entry for each recipe, seed and stage"
            _raise_bad_queue(path, f"{job.name} occurs twice", expected)
        ends[job.recipe.name].add(job.until)
    staged = [_after_earlier_stage(job, ends[job.recipe.name]) for job in jobs]
    for job in staged:
        seconds = (job.until - job.first) * job.seconds_per_epoch
        if seconds > MAX_SECONDS:
            expected = f"stages of <= {MAX_SECONDS:.0f} s"
            _raise_bad_queue(path, f"{job.name} takes {seconds:.0f} s", expected)
    ordered = sorted(staged, key=lambda job: job.priority)
    return TrainingQueue(tuple(ordered), frozenset(file.snapshots))


def run_queue(
    queue: TrainingQueue,
    out: Path,
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    callbacks: QueueCallbacks,
) -> list[JobStatus]:
    """Train all jobs of a queue that are not completed, one after the other.

    A job is skipped if another process is training it, or if an earlier stage is missing. A job that fails is
    reported, and the next one begins.

    Args:
        queue: the jobs.
        out: output folder; each model gets a subfolder with checkpoint, metrics, snapshots and ``models/NAME``.
        device: as for ``train_recipe``.
        data_root: folder of the data, if they were not fetched.
        callbacks: receive jobs, epochs and final states.

    Returns:
        The failed jobs.
    """
    failed = []
    for job in queue.jobs:
        folder = out / job.recipe.name
        with try_lock(folder) as acquired:
            if not acquired or _is_completed(job, folder) or _count_epochs(job, folder) < job.first:
                continue
            callbacks.begin(job)
            (folder / FAILURE).unlink(missing_ok=True)
            options = TrainingOptions(job.until, queue.snapshots, callbacks.epoch, locked=True)
            try:
                with foreign(job.recipe.name):
                    train_recipe(
                        job.path,
                        folder,
                        device=device,
                        data_root=data_root,
                        seed=job.recipe.seed,
                        options=options,
                    )
            except Exception as error:  # the next job begins after any failure
                (folder / FAILURE).write_text(_explain(error), encoding="utf-8")
        callbacks.end(found := job_status(job, out))
        if found.state is JobState.failed:
            failed.append(found)
    return failed


def job_status(job: TrainingJob, out: Path) -> JobStatus:
    """Return the progress of a job, read from the output folder without changing it."""
    folder = out / job.recipe.name
    trained = _count_epochs(job, folder)
    epochs = min(max(trained - job.first, 0), job.until - job.first)
    seconds = _seconds_per_epoch(folder / "metrics.jsonl") or job.seconds_per_epoch
    failure = _read_text(folder / FAILURE)
    if _is_completed(job, folder):
        state = JobState.completed
    elif trained < job.first:  # a running or failed training in this folder is an earlier stage
        state = JobState.waiting
    elif _is_locked(folder):
        state = JobState.running
    elif failure:
        state = JobState.failed
    else:
        state = JobState.interrupted if epochs else JobState.waiting
    failure = failure.splitlines()[0] if state is JobState.failed else ""
    return JobStatus(job, state, epochs, seconds, failure)


def seed_spread(queue: TrainingQueue, out: Path) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Return mean, standard deviation and number of seeds of each held-out accuracy.

    The result covers recipes with at least two completed seeds. The standard deviation has n − 1 in the denominator.

    Returns:
        ``(mean, deviation, seeds)`` by recipe name (without a seed) and data set.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for job in queue.jobs:
        folder = out / job.recipe.name
        if job.until == job.recipe.epochs and _is_completed(job, folder):
            for key, value in _read_card(job, folder)["training"].items():
                if key.startswith("accuracy_"):
                    dataset = key.removeprefix("accuracy_")
                    name = job.path.resolve().parent.name
                    found.setdefault(name, {}).setdefault(dataset, []).append(value)
    return {
        name: {key: (mean(each), stdev(each), len(each)) for key, each in values.items()}
        for name, values in found.items()
        if all(len(each) > 1 for each in values.values())
    }


FAILURE = "failure.txt"
"""File in a model's folder with the error of the last attempt: one line, then the traceback."""


@dataclass(frozen=True)
class _QueueFile:
    entry: tuple[dict[str, Any], ...] = ()
    snapshots: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Entry:
    recipe: str
    priority: int
    seconds_per_epoch: float
    why: str
    seeds: tuple[int, ...] = ()
    until_epoch: int = 0


def _jobs_of_entry(entry: _Entry, queue: Path) -> Iterator[TrainingJob]:
    is_file = entry.recipe.endswith(".toml")
    path = queue.parent / entry.recipe if is_file else find_recipe(entry.recipe)
    recipe = read_recipe(path)
    until = entry.until_epoch or recipe.epochs
    if not 0 < until <= recipe.epochs:
        _raise_bad_queue(queue, f"{entry.recipe}: until_epoch = {until}", f"1 … {recipe.epochs}")
    for seed in entry.seeds or (recipe.seed,):
        plan = (entry.priority, 0, until, entry.seconds_per_epoch, entry.why)
        yield TrainingJob(path, recipe.with_seed(seed), *plan)


def _after_earlier_stage(job: TrainingJob, ends: set[int]) -> TrainingJob:
    return replace(job, first=max((end for end in ends if end < job.until), default=0))


def _is_locked(folder: Path) -> bool:
    """Return whether a process is training in this folder, by taking a shared lock for a moment."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            return not lock_now(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _is_completed(job: TrainingJob, folder: Path) -> bool:
    if job.until < job.recipe.epochs:
        return _count_epochs(job, folder) >= job.until
    card = _read_card(job, folder)
    weights = folder / "models" / job.recipe.name / "weights.safetensors"
    return (
        card.get("training", {}).get("recipe") == job.recipe.digest
        and weights.is_file()
        and digest_file(weights) == card.get("weights_sha256")
    )


def _read_card(job: TrainingJob, folder: Path) -> dict[str, Any]:
    """Return the card of the finished model, or an empty one if it is missing or damaged."""
    try:
        return tomllib.loads(_read_text(folder / "models" / job.recipe.name / "card.toml"))
    except tomllib.TOMLDecodeError:
        return {}


def _count_epochs(job: TrainingJob, folder: Path) -> int:
    """Return the epochs in the checkpoint, earlier stages included; 0 for a checkpoint of another recipe."""
    position = read_position(folder / "checkpoint.safetensors")
    return position.epoch if position and position.recipe == job.recipe.digest else 0


def _seconds_per_epoch(metrics: Path) -> float:
    """Return the median duration of the last ten epochs; 0 if there are none."""
    seconds = []
    for line in _read_text(metrics).splitlines()[-10:]:
        try:
            seconds.append(float(json.loads(line)["seconds"]))
        except (ValueError, KeyError, TypeError):  # a line that is being written
            continue
    return median(seconds) if seconds else 0.0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _explain(error: Exception) -> str:
    line = str(error) if isinstance(error, InvbenchError) else f"{type(error).__name__}: {error}"
    return " ".join(line.split()) + "\n" + "".join(traceback.format_exception(error))


def _raise_bad_queue(path: Path, problem: str, expected: str) -> None:
    raise BadCatalogue(f"{path}: {problem}", expected=expected)
