"""Estimates the cost of an evaluation: the attack is timed on a few samples, a transfer attack by its passes."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import Tensor

from robustbench_inv.attacks.protocol import short_run_of
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import InvbenchError, TimeLimitExceeded
from robustbench_inv.evaluation.block import CellContext, evaluate_block
from robustbench_inv.evaluation.engine import BATCH_SIZE
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import Judge
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.search import make_searches
from robustbench_inv.models.protocol import device_of, has_fresh_draws
from robustbench_inv.randomness import SampleRNG, seeded
from robustbench_inv.tensors import margin
from robustbench_inv.torch_state import kept_modules

__all__ = ["Estimate", "estimate_jobs", "passes"]

TIMED_SAMPLES = 32
"""Samples in a timed batch; a small batch is slower per sample, so that the estimate is an upper bound."""

TIMING_SECONDS = 0.2
"""Seconds spent on timing each model."""

TRIAL_SIZES = (4, 16, 64, 250)
"""Numbers of samples on which an attack is tried, as long as the next number is likely to take TRIAL_SECONDS at most."""

TRIAL_SECONDS, TRIALS_SECONDS = 8.0, 60.0
"""Seconds after which the trial of one attack ends, and after which no further attack is tried."""

MIN_SPREAD = 0.3
"""Least relative uncertainty of an estimate: the machine's load, and samples that differ from those of the trial."""

STOPPED_SPREAD = 2.5
"""Factor between the estimate and the ends of its range if the last trial was stopped."""

LEAST_MARGINAL, SINGLE_MARGINAL = 0.25, 0.5
"""Share of a small batch's time that is proportional to its samples: the least, and that assumed from one batch."""

DEFAULT_STEPS: Mapping[str, int] = {"probe": 10, "gradient": 100, "search": 1000, "query": 5000}
"""Steps assumed for an attack without such a parameter, by the cost class of its card."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of one cell.

    Args:
        title: the cell's title.
        samples: number of samples.
        passes: forward and backward passes of a sample that survives.
        low: likely least seconds. Without a trial: if every sample breaks at the first query (on a substitute, at the
            first eps).
        high: likely most seconds. Without a trial: if every sample survives.
        guessed: is the number of steps assumed, since the attack has no such parameter?
        seconds: expected seconds.
        timed: number of samples that the attack was tried on.
    """

    title: str
    samples: int
    passes: int
    low: float
    high: float
    guessed: bool
    seconds: float = 0.0
    timed: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the mapping that ``--dry-run --json`` prints."""
        return dict(vars(self))


def estimate_jobs(jobs: Iterable[Job]) -> list[Estimate]:
    """Estimate each cell; each model is timed once, and a shared search counts for the first cell.

    Attacks are tried on a few samples until TRIALS_SECONDS have passed.
    """
    began = time.perf_counter()
    times: dict[str, float] = {}
    searches: set[object] = set()
    found = []
    for job in jobs:
        key = f"{job.search_model.digest}/{job.guide and job.guide.digest}/{job.dataset.digest}"
        if key not in times:
            times[key] = _seconds_per_pass(job)
        shared = job.threat.is_transfer and job.search_key in searches
        searches.add(job.search_key)
        bounds = _estimate(job, times[key], shared=shared)
        tried = not job.threat.is_transfer and time.perf_counter() - began < TRIALS_SECONDS
        found.append(_refined(job, bounds) if tried else bounds)
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
    return Estimate(job.title, n, once + further * below, low, high, guessed, (low * high) ** 0.5)


def _refined(job: Job, bounds: Estimate) -> Estimate:
    """Return an estimate from runs of the attack on more and more samples; bounds where the first takes too long."""
    times: dict[int, float] = {}
    attempt = _Trial(job)
    for size in TRIAL_SIZES:
        count = min(size, bounds.samples)
        taken = attempt.seconds(count) if count and count not in times else None
        if taken is None:
            break
        times[count] = taken
        if taken * 3 > TRIAL_SECONDS:
            break
    if not times:
        return bounds
    timed = max(times)
    spread = 1 + max(MIN_SPREAD, 2 / timed**0.5)
    if times[timed] == inf:  # stopped, so that this is a guess
        times[timed], spread = 2 * TRIAL_SECONDS, STOPPED_SPREAD
    expected = _extrapolated(times, bounds.samples)
    low, high = expected / spread, expected * spread
    return replace(bounds, low=low, high=high, seconds=expected, timed=timed)


def _extrapolated(times: Mapping[int, float], samples: int) -> float:
    """Return the seconds of all samples in blocks from those of small batches.

    Example:
        >>> round(_extrapolated({4: 0.6, 16: 1.2}, 500), 1)
        25.8
    """
    *_, size = sorted(times)
    per_sample = times[size] / size
    marginal = SINGLE_MARGINAL * per_sample
    if len(times) > 1:
        before = sorted(times)[-2]
        marginal = (times[size] - times[before]) / (size - before)
    marginal = min(max(marginal, LEAST_MARGINAL * per_sample), per_sample)
    return -(-samples // BATCH_SIZE) * (times[size] - marginal * size) + samples * marginal


class _Trial:
    """Runs the attack of a job on a few samples; nothing is written.

    Args:
        job: the cell.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._device = job, device_of(job.model.classifier)
        self._deadline = inf
        self._searches = make_searches(job, self._device, watch=self._check)

    def seconds(self, count: int) -> float | None:
        """Return the seconds that a number of samples takes; infinity beyond TRIAL_SECONDS, None if a part fails."""
        job = self._job
        judge = Judge(job.model.classifier, job.dataset, job.seed, job.effective_oracle)
        loader = Loader(job.dataset, self._device, job.model.classifier.dtype)
        step = max(1, len(job.samples) // count)
        ids = list(job.samples[::step][:count])
        kind = job.attack.attack.kind
        context = CellContext(kind, job.threat, *self._searches, judge, lambda *_, **__: None)
        began = time.perf_counter()
        self._deadline = began + TRIAL_SECONDS
        try:
            with (
                kept_modules([job.model.classifier] if job.model.is_foreign else []),
                seeded(job.seed, ids[0], self._device),
            ):
                evaluate_block(context, loader.batch(ids))
        except (InvbenchError, RuntimeError, MemoryError):
            return None  # the evaluation itself reports it
        taken = time.perf_counter() - began
        return taken if taken < TRIAL_SECONDS else inf

    def _check(self, *_: object) -> None:
        if time.perf_counter() > self._deadline:
            raise TimeLimitExceeded("the trial takes too long")


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
