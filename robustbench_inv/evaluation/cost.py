"""Estimates the cost of an evaluation: the attack is timed on a few samples, a transfer attack by its passes."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, prod
from typing import Any

from torch import Tensor

from robustbench_inv.attacks.protocol import runs_at_each_eps, short_run_of
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
"""Samples in a timed batch, fewer of a slow model."""

TIMING_SECONDS = 0.2
"""Seconds spent on timing each model."""

TRIAL_SIZES = (4, 16, 64, 250)
"""Numbers of samples on which an attack is tried, one after the other."""

TRIAL_SECONDS, TRIALS_SECONDS = 8.0, 60.0
"""Seconds after which the trials of one attack end, and after which no further attack is tried."""

ENOUGH_SAMPLES, ENOUGH_SECONDS, TRIAL_SHARE = 16, 1.0, 0.2
"""No further trial after one of so many samples if the trials took so long, and this share of the expected time."""

RARE_QUERIES = "long_queries"
"""Parameter of a member: queries that only samples get on which gradients do not help."""

LEAST_CALLS = 10
"""Passes of a batch that a trial must have time for."""

MIN_SPREAD = 0.3
"""Least relative uncertainty of an estimate: the machine's load, and samples that differ from those of the trial."""

STOPPED_SPREAD = 2.5
"""Factor between the estimate and the ends of its range if the last trial was stopped."""

RUNS = "restarts", "searches", "binary_search_steps", "target_classes"
"""Parameters that multiply the steps of an attack."""

NUMBERS = (
    *RUNS,
    *("steps", "queries", "long_queries", "lagrangian_steps", "rounds", "candidates"),
    *("initial_queries", "initial_gradient_eval_steps"),
)
"""Parameters that give the passes of an attack."""

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
            first eps), or for a minimum-norm attack a quarter of all steps.
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
        found.append(_refined(job, bounds, times[key]) if tried else bounds)
    return found


def passes(parameters: Mapping[str, Any], cost: str) -> tuple[int, bool]:
    """Return the passes of one sample under one eps, and whether they are a guess.

    Args:
        parameters: the attack's parameters; ``draws``, the numbers of steps, queries, rounds and runs, several losses,
            and ``members`` with their own are understood.
        cost: cost class of its card.

    Example:
        >>> passes({"steps": 40, "restarts": 2}, "gradient")
        (82, False)
        >>> passes({"members": [{"steps": 9}, {"queries": 100}]}, "search")
        (110, False)
        >>> passes({"steps": 1000, "searches": 9}, "search")
        (9009, False)
    """
    if members := parameters.get("members"):
        counts, guesses = zip(*(passes(member, cost) for member in members), strict=True)
        return sum(counts), any(guesses)
    if "draws" in parameters:
        return int(parameters["draws"]), False
    number = {name: int(parameters.get(name) or 0) for name in NUMBERS}
    runs = prod(max(number[name], 1) for name in RUNS)
    if "restarts" not in parameters:  # otherwise they use the losses in turn
        runs *= str(parameters.get("loss", "")).count("+") + 1
    steps = number["steps"]
    queries = number["queries"] + number["long_queries"] + 2 * number["lagrangian_steps"]
    queries += number["rounds"] * (number["candidates"] + 1)
    for first in (
        "initial_queries",
        "initial_gradient_eval_steps",
    ):  # HopSkipJump: first·√t in step t
        queries += int(number[first] * 2 / 3 * steps**1.5)
    if steps or queries:
        return queries + (runs * (steps + 1) if steps else 0), False
    return runs * DEFAULT_STEPS.get(cost, DEFAULT_STEPS["gradient"]), True


def _estimate(job: Job, seconds: float, *, shared: bool) -> Estimate:
    once, guessed = passes(_parameters(job), str(job.attack.card.get("cost", "")))
    further = max(len(job.epsilons), 1) - 1 if runs_at_each_eps(job.attack.attack) else 0
    below = _short_run_passes(job) or once
    n, taken = len(job.samples), 1 if shared else once
    continues = job.attack.attack.kind == "minimum-norm"  # on broken samples
    least = max(once / 4, 1) if continues else 1
    low = n * seconds * (taken if job.threat.is_transfer else least)
    high = n * seconds * (taken + further * (1 if shared else below))
    return Estimate(job.title, n, once + further * below, low, high, guessed, (low * high) ** 0.5)


def _parameters(job: Job) -> Mapping[str, Any]:
    """Return an attack's parameters, and those that an adapter passes to another library."""
    parameters = job.attack.card.get("parameters") or {}
    inner = parameters.get("parameters") or ()
    return {**parameters, **(inner if isinstance(inner, Mapping) else dict(inner))}


@dataclass(frozen=True)
class _Trial:
    """An attack's run on a few samples.

    Args:
        samples: their number.
        seconds: the time it took.
        calls: forward and backward passes of a batch.
        passes: forward and backward passes of single samples.
        finished: did it end by itself, not by the time limit?
        surviving: share of the samples that nothing broke.
        calls_each: forward and backward passes for each forward pass, between 1 and 2.
    """

    samples: int
    seconds: float
    calls: float
    passes: float
    finished: bool = True
    surviving: float = 1.0
    calls_each: float = 2.0


def _refined(job: Job, bounds: Estimate, seconds: float) -> Estimate:
    """Return an estimate from runs of the attack on more and more samples; bounds where the first fails.

    Args:
        job: the cell.
        bounds: its estimate from the number of passes.
        seconds: of a forward and backward pass of one sample.
    """
    trials = _try(job, bounds)
    if not trials:
        return bounds
    *_, base = [t for t in trials if t.finished] or trials
    spread = 1 + max(MIN_SPREAD, 2 / base.samples**0.5)
    if not base.finished:
        base, spread = _completed(job, base), STOPPED_SPREAD
    expected = _extrapolated(trials, base, bounds.samples, seconds / 3)
    low, high = expected / spread, expected * spread
    return replace(bounds, low=low, high=high, seconds=expected, timed=base.samples)


def _try(job: Job, bounds: Estimate) -> list[_Trial]:
    """Return trials of growing size until they suffice, or TRIAL_SECONDS have passed; the last one may be unfinished."""
    run, trials, end = _TrialRunner(job), list[_Trial](), time.perf_counter() + TRIAL_SECONDS
    for count in sorted({min(size, bounds.samples) for size in TRIAL_SIZES} - {0}):
        trial = run.trial(count, end)
        if trial is None:
            break
        trials.append(trial)
        left = end - time.perf_counter()
        longest_call = max(TRIAL_SIZES) / min(TRIAL_SIZES) * trial.seconds / max(trial.calls, 1)
        if not trial.finished or left < LEAST_CALLS * min(longest_call, trial.seconds):
            break
        taken = TRIAL_SECONDS - left
        enough = max(ENOUGH_SECONDS, TRIAL_SHARE * _extrapolated(trials, trial, bounds.samples))
        if count >= ENOUGH_SAMPLES and taken > enough:
            break
    return trials


def _completed(job: Job, trial: _Trial) -> _Trial:
    """Return what a stopped trial would have needed if its unbroken samples took the usual passes to the end.

    A minimum-norm attack continues on broken samples.
    """
    calls = max(_without_rare_queries(job) * trial.calls_each, 2 * trial.calls)
    share = 1.0 if job.attack.attack.kind == "minimum-norm" else trial.surviving
    passes = max(trial.passes, share * trial.samples * calls)
    return replace(trial, calls=calls, passes=passes)


def _without_rare_queries(job: Job) -> int:
    """Return the passes of a sample that survives, without the long runs of members that few samples get."""
    parameters = _parameters(job)
    members = [{**each, RARE_QUERIES: 0} for each in parameters.get("members") or ()]
    return passes({**parameters, "members": members}, str(job.attack.card.get("cost", "")))[0]


def _extrapolated(
    trials: Sequence[_Trial], base: _Trial, samples: int, least: float = 0.0
) -> float:
    """Return the seconds of all samples in blocks.

    A pass of a batch takes a time that does not depend on its samples, and a time for each sample. Both are fitted to
    the trials.

    Args:
        trials: timed ones.
        base: its passes are those of the other samples, too; its calls are those of a block.
        samples: number of all samples.
        least: seconds of a sample's pass, at least.

    Example:
        >>> small, large = _Trial(4, 0.6, 100, 400), _Trial(16, 1.2, 100, 1600)
        >>> round(_extrapolated([small, large], large, 500), 1)
        25.8
    """
    blocks = -(-samples // BATCH_SIZE)
    if base.finished and base.samples == min(samples, BATCH_SIZE):
        return base.seconds * samples / base.samples
    call, single = _fitted(trials, least)
    return blocks * call * base.calls + samples * single * base.passes / base.samples


def _fitted(trials: Sequence[_Trial], least: float) -> tuple[float, float]:
    """Return the seconds of a batch's pass, and those of each sample in it, with the least relative error."""
    from scipy.optimize import nnls

    rows = [(trial.calls / trial.seconds, trial.passes / trial.seconds) for trial in trials]
    (_, single), _ = nnls(rows, [1.0] * len(rows)) if len(rows) > 1 else ((0.0, least), 0.0)
    single = min(max(float(single), least), min(t.seconds / max(t.passes, 1.0) for t in trials))
    call = max(
        sum(t.seconds - single * t.passes for t in trials) / sum(t.calls for t in trials), 0.0
    )
    return call, single


class _TrialRunner:
    """Runs the attack of a job on a few samples; nothing is written.

    Args:
        job: the cell.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._device = job, device_of(job.model.classifier)
        self._deadline, self._calls = inf, 0
        self._searches = make_searches(job, self._device, watch=self._check)

    def trial(self, count: int, deadline: float) -> _Trial | None:
        """Run the attack on a number of samples until a time of ``time.perf_counter``; return None if a part fails."""
        job = self._job
        judge = Judge(job.model.classifier, job.dataset, job.seed, job.effective_oracle)
        place = self._device, job.model.classifier.dtype
        loader = Loader(job.dataset, *place, job.effective_oracle)
        step = max(1, len(job.samples) // count)
        ids = list(job.samples[::step][:count])
        attack = job.attack.attack
        context = CellContext(attack, job.threat, *self._searches, judge, lambda *_, **__: None)
        began = time.perf_counter()
        self._deadline, self._calls = deadline, 0
        try:
            with (
                kept_modules([job.model.classifier] if job.model.is_foreign else []),
                seeded(job.seed, ids[0], self._device),
            ):
                state = evaluate_block(context, loader.batch(ids))
        except (InvbenchError, RuntimeError, MemoryError):
            return None  # the evaluation itself reports it
        now = time.perf_counter()
        records = state.records(None)
        forward = sum(record.forward_passes for record in records)
        backward = sum(record.backward_passes for record in records)
        each = 1 + backward / max(forward, 1)
        surviving = int(state.broken_at.isnan().sum()) / count
        calls = max(1, self._calls) * each
        total = max(forward + backward, 1)
        return _Trial(count, now - began, calls, total, now < deadline, surviving, each)

    def _check(self, *_: object) -> None:
        self._calls += 1
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
    classifier, device = job.search_model.classifier, device_of(job.search_model.classifier)
    loader = Loader(job.dataset, device, classifier.dtype)
    seconds, count = 0.0, 1
    while count and seconds * count < TIMING_SECONDS:
        batch = loader.batch(list(job.samples[:count]))
        rng, guide = SampleRNG(0, batch.ids), job.guide.classifier if job.guide else None
        meter = CountingModel(classifier, batch, job.threat, rng, keep_best=False, guide=guide)
        seconds = _fastest(partial(meter.gradient, batch.images, _loss)) / len(batch)
        count = 0 if count == TIMED_SAMPLES else TIMED_SAMPLES
    return seconds


def _fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few calls, of a single one that is slow."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < TIMING_SECONDS:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
        if sum(times) > 3 * TIMING_SECONDS:
            break
    return min(times)


def _loss(output: Any, labels: Tensor) -> Tensor:  # noqa: ANN401
    return margin(output.logits, labels)
