"""A training queue: trains a list of recipes one after the other; what is completed is read from the output folder."""

import fcntl
import json
import os
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, TextIO

from robustbench_inv.errors import BadCatalogue, InvbenchError
from robustbench_inv.identity import digest_file
from robustbench_inv.training.loop import EpochMetrics, TrainingOptions, read_position
from robustbench_inv.training.recipe import Recipe, find_recipe, read_recipe
from robustbench_inv.training.training_run import train_recipe

__all__ = [
    "LONGEST",
    "Job",
    "JobState",
    "Listener",
    "Queue",
    "Status",
    "read_queue",
    "run_queue",
    "seed_spread",
    "status",
]

LONGEST = 2.5 * 3600
"""Seconds that one job may take at most; a longer training is split into stages."""


class JobState(StrEnum):
    """What the output folder says about a job."""

    waiting = "waiting"
    running = "running"
    interrupted = "interrupted"
    completed = "completed"
    failed = "failed"


@dataclass(frozen=True)
class Job:
    """One training, or one stage of it.

    Args:
        path: the recipe's file.
        recipe: with the job's seed.
        priority: jobs of a lower number are trained first.
        first: epochs that earlier stages train.
        until: the epoch after which the job is completed.
        seconds_per_epoch: as stated in the queue.
        why: what the network is needed for.
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
        """Name of the model, with the stage's last epoch where there are several stages."""
        whole = self.first == 0 and self.until == self.recipe.epochs
        return self.recipe.name if whole else f"{self.recipe.name} to epoch {self.until}"


@dataclass(frozen=True)
class Queue:
    """The jobs in their order, and the epochs after which weights are kept."""

    jobs: tuple[Job, ...]
    snapshots: frozenset[int]


@dataclass(frozen=True)
class Status:
    """State of a job.

    Args:
        job: the job.
        state: what the output folder says.
        epochs: epochs of the job that are completed.
        seconds_per_epoch: median of the last ten epochs; as stated in the queue where there are none.
        failure: the error of a failed job, one line.
    """

    job: Job
    state: JobState
    epochs: int
    seconds_per_epoch: float
    failure: str = ""

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the job is completed; 0 for a completed one."""
        if self.state is JobState.completed:
            return 0.0
        return (self.job.until - self.job.first - self.epochs) * self.seconds_per_epoch


@dataclass(frozen=True)
class Listener:
    """Functions that are called while a queue is trained: before a job, after an epoch, after a job."""

    begin: Callable[[Job], None]
    epoch: Callable[[EpochMetrics], None]
    end: Callable[[Status], None]


def read_queue(path: Path) -> Queue:
    """Read a queue.

    Args:
        path: a TOML file with ``snapshots``, a list of epochs, and ``[[entry]]`` tables: ``recipe`` (a name, or a
            file relative to the queue), ``priority``, ``seconds_per_epoch``, ``why``, and if need be ``seeds`` and
            ``until_epoch``, the end of a stage.

    Returns:
        One job for each entry and seed, lowest priority first, in the order of the file where priorities agree.

    Raises:
        BadCatalogue: if a key is missing, unknown or of the wrong type, a recipe cannot be read, two entries are the
            same, or a job takes longer than LONGEST.
        UnknownName: for the name of a model that does not exist.
    """
    value = _read_toml(path)
    entries = [_Entry.read(table, path) for table in value.get("entry", [])]
    jobs = [job for entry in entries for job in _jobs(entry, path)]
    ends: dict[str, set[int]] = {}
    for job in jobs:
        if job.until in ends.setdefault(job.recipe.name, set()):
            _complain(path, f"{job.name} occurs twice", "one entry for each recipe, seed and stage")
        ends[job.recipe.name].add(job.until)
    staged = [_after_earlier_stage(job, ends[job.recipe.name]) for job in jobs]
    for job in staged:
        seconds = (job.until - job.first) * job.seconds_per_epoch
        if seconds > LONGEST:
            _complain(path, f"{job.name} takes {seconds:.0f} s", f"stages of <= {LONGEST:.0f} s")
    ordered = sorted(staged, key=lambda job: job.priority)
    return Queue(tuple(ordered), frozenset(value.get("snapshots", ())))


def run_queue(
    queue: Queue,
    out: Path,
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    listener: Listener,
) -> list[Status]:
    """Train all jobs of a queue that are not completed, one after the other.

    A job that another process is training is left out, and so is a stage before which an earlier one is missing. A
    job that fails is reported, and the next one begins.

    Args:
        queue: the jobs.
        out: gets a folder for each model, with checkpoint, metrics, snapshots and, in the end, ``models/NAME``.
        device: as for ``train_recipe``.
        data_root: where the data lie, if not fetched.
        listener: receives jobs, epochs and final states.

    Returns:
        The jobs that failed.
    """
    failed = []
    for job in queue.jobs:
        folder = out / job.recipe.name
        with _lock(folder) as mine:
            if not mine or _completed(job, folder) or _trained(job, folder) < job.first:
                continue
            listener.begin(job)
            (folder / FAILURE).unlink(missing_ok=True)
            options = TrainingOptions(job.until, queue.snapshots, listener.epoch)
            try:
                _train(job, folder, (device, data_root), options)
            except Exception as error:  # whatever it is, the next job begins
                (folder / FAILURE).write_text(_explain(error), encoding="utf-8")
        listener.end(found := status(job, out))
        if found.state is JobState.failed:
            failed.append(found)
    return failed


def status(job: Job, out: Path) -> Status:
    """Return the state of a job as the output folder shows it; nothing is changed."""
    folder = out / job.recipe.name
    trained = _trained(job, folder)
    epochs = min(max(trained - job.first, 0), job.until - job.first)
    seconds = _seconds_per_epoch(folder / "metrics.jsonl") or job.seconds_per_epoch
    failure = _read(folder / FAILURE)
    if _completed(job, folder):
        state = JobState.completed
    elif trained < job.first:  # what is running or failed there is an earlier stage
        state = JobState.waiting
    elif _locked(folder):
        state = JobState.running
    elif failure:
        state = JobState.failed
    else:
        state = JobState.interrupted if epochs else JobState.waiting
    failure = failure.splitlines()[0] if state is JobState.failed else ""
    return Status(job, state, epochs, seconds, failure)


def seed_spread(queue: Queue, out: Path) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Return mean, standard deviation and number of seeds of each held-out accuracy, for recipes of several seeds.

    The deviation is that of the sample (n − 1 in the denominator). Seeds that are not completed are left out, and so
    is a recipe with fewer than two that are.

    Returns:
        Accuracies by recipe (its own name, without a seed) and data set.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for job in queue.jobs:
        folder = out / job.recipe.name
        if job.until == job.recipe.epochs and _completed(job, folder):
            for key, value in _card(job, folder)["training"].items():
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
"""File of a model's folder with the error of its last try: one line, then where it came from."""

LOCK = ".lock"
"""File of a model's folder that its trainer holds; the operating system lets go of it when the process ends."""


@dataclass(frozen=True)
class _Entry:
    recipe: str
    priority: int
    seconds_per_epoch: float
    why: str
    seeds: tuple[int, ...] | None = None
    until_epoch: int | None = None

    @staticmethod
    def read(table: dict[str, Any], path: Path) -> "_Entry":
        types: dict[str, type | tuple[type, ...]] = {
            "recipe": str,
            "priority": int,
            "seconds_per_epoch": (int, float),
            "why": str,
            "seeds": list,
            "until_epoch": int,
        }
        name = table.get("recipe", "an entry")
        for key, value in table.items():
            if key not in types or not isinstance(value, types[key]):
                _complain(path, f"{name}: {key} = {value!r}", ", ".join(types))
        needed = [field.name for field in fields(_Entry)][:4]
        if missing := [key for key in needed if key not in table]:
            _complain(path, f"{name}: missing key {missing[0]}", ", ".join(needed))
        seeds = {"seeds": tuple(table["seeds"])} if "seeds" in table else {}
        return _Entry(**(table | seeds))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = f"cannot read the queue {path}"
        raise BadCatalogue(problem, expected="a TOML file", remedy=str(error)) from error
    if unknown := sorted(value.keys() - {"entry", "snapshots"}):
        _complain(path, f"unknown key {unknown[0]}", "snapshots, entry")
    return value


def _jobs(entry: _Entry, queue: Path) -> Iterator[Job]:
    beside = queue.parent / entry.recipe
    path = beside if entry.recipe.endswith(".toml") else find_recipe(entry.recipe)
    recipe = read_recipe(path)
    until = entry.until_epoch or recipe.epochs
    if not 0 < until <= recipe.epochs:
        _complain(queue, f"{entry.recipe}: until_epoch = {until}", f"1 … {recipe.epochs}")
    for seed in entry.seeds or (recipe.seed,):
        yield Job(
            path,
            recipe.with_seed(seed),
            entry.priority,
            0,
            until,
            entry.seconds_per_epoch,
            entry.why,
        )


def _after_earlier_stage(job: Job, ends: set[int]) -> Job:
    first = max((end for end in ends if end < job.until), default=0)
    return Job(**(vars(job) | {"first": first}))


def _train(
    job: Job, folder: Path, where: tuple[str, Path | None], options: TrainingOptions
) -> None:
    device, data_root = where
    train_recipe(
        job.path,
        folder,
        device=device,
        data_root=data_root,
        seed=job.recipe.seed,
        options=options,
    )


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a model's folder while the block runs; False if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if mine := _try_to_lock(file):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield mine


def _try_to_lock(file: TextIO, tries: int = 10) -> bool:
    """Lock a file; tried for a second, because a status listing may hold the lock for a moment."""
    for _ in range(tries):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def _locked(folder: Path) -> bool:
    """Is a process training in this folder? A shared lock that is given back at once finds out."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _completed(job: Job, folder: Path) -> bool:
    if job.until < job.recipe.epochs:
        return _trained(job, folder) >= job.until
    card = _card(job, folder)
    weights = folder / "models" / job.recipe.name / "weights.safetensors"
    return (
        card.get("training", {}).get("recipe") == job.recipe.digest
        and weights.is_file()
        and digest_file(weights) == card.get("weights_sha256")
    )


def _card(job: Job, folder: Path) -> dict[str, Any]:
    """Return the card of the finished model; an empty one if it is missing or damaged."""
    try:
        return tomllib.loads(_read(folder / "models" / job.recipe.name / "card.toml"))
    except tomllib.TOMLDecodeError:
        return {}


def _trained(job: Job, folder: Path) -> int:
    """Return the epochs that the checkpoint holds, earlier stages included; 0 for one of another recipe."""
    position = read_position(folder / "checkpoint.safetensors")
    return position.epoch if position and position.recipe == job.recipe.digest else 0


def _seconds_per_epoch(metrics: Path) -> float:
    """Return the median time of the last ten epochs; 0 if there is none."""
    seconds = []
    for line in _read(metrics).splitlines()[-10:]:
        try:
            seconds.append(float(json.loads(line)["seconds"]))
        except (ValueError, KeyError, TypeError):  # a line that is being written
            continue
    return median(seconds) if seconds else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _explain(error: Exception) -> str:
    line = str(error) if isinstance(error, InvbenchError) else f"{type(error).__name__}: {error}"
    return " ".join(line.split()) + "\n" + "".join(traceback.format_exception(error))


def _complain(path: Path, problem: str, expected: str) -> None:
    raise BadCatalogue(f"{path}: {problem}", expected=expected)
