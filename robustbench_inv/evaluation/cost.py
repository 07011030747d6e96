"""Estimates the cost of an evaluation: passes of each attack times the measured time of a pass of each model."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustbench_inv.attacks.protocol import short_run_of
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.models.protocol import device_of, has_fresh_draws
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import margin

__all__ = ["Estimate", "estimate_jobs", "passes"]

TIMED_SAMPLES = 32
"""Samples in a timed batch; a small batch is slower per sample, so that the estimate is an upper bound."""

TIMING_SECONDS = 0.2
"""Seconds spent on timing each model."""

DEFAULT_STEPS: Mapping[str, int] = {"probe": 10, "gradient": 100, "search": 1000, "query": 5000}
"""Steps assumed for an attack without such a parameter, by the cost class of its card."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of one cell.

    Args:
        title: the cell's title.
        samples: number of samples.
        passes: forward and backward passes of a sample that survives.
        low: seconds if every sample breaks at the first query (on a substitute, at the first eps).
        high: seconds if every sample survives.
        guessed: is the number of steps assumed, since the attack has no such parameter?
    """

    title: str
    samples: int
    passes: int
    low: float
    high: float
    guessed: bool

    def to_json(self) -> dict[str, object]:
        """Return the mapping that ``--dry-run --json`` prints."""
        return dict(vars(self))


def estimate_jobs(jobs: Iterable[Job]) -> list[Estimate]:
    """Estimate each cell; each model is timed once, and a shared search counts for the first cell."""
    times: dict[str, float] = {}
    searches: set[object] = set()
    found = []
    for job in jobs:
        key = f"{job.search_model.digest}/{job.guide and job.guide.digest}/{job.dataset.digest}"
        if key not in times:
            times[key] = _seconds_per_pass(job)
        shared = job.threat.is_transfer and job.search_key in searches
        searches.add(job.search_key)
        found.append(_estimate(job, times[key], shared=shared))
    return found


def passes(parameters: Mapping[str, Any], cost: str) -> tuple[int, bool]:
    """Return the passes of one sample under one eps, and whether they are a guess.

    Args:
        parameters: the attack's parameters; ``steps``, ``restarts``, ``target_classes``, ``queries`` and ``long_queries``, ``draws``, and
            ``members`` with their own are understood.
        cost: cost class of its card.

    Example:
        >>> passes({"steps": 40, "restarts": 2}, "gradient")
        (82, False)
        >>> passes({"members": [{"steps": 9}, {"queries": 100}]}, "search")
        (110, False)
    """
    if members := parameters.get("members"):
        counts, guesses = zip(*(passes(member, cost) for member in members), strict=True)
        return sum(counts), any(guesses)
    if "draws" in parameters:
        return int(parameters["draws"]), False
    queries = sum(int(parameters.get(name) or 0) for name in ("queries", "long_queries"))
    runs = int(parameters.get("restarts") or 1) * max(1, int(parameters.get("target_classes") or 0))
    if parameters.get("steps"):
        return queries + runs * (int(parameters["steps"]) + 1), False
    if queries:
        return queries, False
    return runs * DEFAULT_STEPS.get(cost, DEFAULT_STEPS["gradient"]), True


def _estimate(job: Job, seconds: float, *, shared: bool) -> Estimate:
    parameters = job.attack.card.get("parameters") or {}
    inner = parameters.get("parameters") or ()
    known = {**parameters, **(inner if isinstance(inner, Mapping) else dict(inner))}
    once, guessed = passes(known, str(job.attack.card.get("cost", "")))
    further = max(len(job.epsilons), 1) - 1 if job.attack.attack.kind == "fixed-budget" else 0
    below = _short_run_passes(job) or once
    n, taken = len(job.samples), 1 if shared else once
    low = n * seconds * (taken if job.threat.is_transfer else 1)
    high = n * seconds * (taken + further * (1 if shared else below))
    return Estimate(job.title, n, once + further * below, low, high, guessed)


def _short_run_passes(job: Job) -> int | None:
    """Return the passes of one sample at each further eps of a descending sweep; None for an ascending one."""
    short_run = short_run_of(job.attack.attack)
    if short_run is None or job.threat.is_transfer or has_fresh_draws(job.search_model.classifier):
        return None
    members = {"members": [vars(member) for member in vars(short_run).get("members", ())]}
    return passes(vars(short_run) | members, str(job.attack.card.get("cost", "")))[0]


def _seconds_per_pass(job: Job) -> float:
    """Return the seconds of one forward and backward pass of one sample, on the queried model."""
    classifier, ids = job.search_model.classifier, list(job.samples[:TIMED_SAMPLES])
    device = device_of(classifier)
    batch = Loader(job.dataset, device, classifier.dtype).batch(ids)
    rng, guide = SampleRNG(0, batch.ids), job.guide.classifier if job.guide else None
    meter = CountingModel(classifier, batch, job.threat, rng, keep_best=False, guide=guide)
    return _fastest(lambda: meter.gradient(batch.images, _loss)) / len(ids)


def _fastest(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < TIMING_SECONDS:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
        if sum(times) > 3 * TIMING_SECONDS:
            break
    return min(times)


def _loss(output: Any, labels: Tensor) -> Tensor:  # noqa: ANN401
    return margin(output.logits, labels)
