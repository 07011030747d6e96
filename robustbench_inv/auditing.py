"""Audits a model within a time limit, by the suite ``audit`` and every check; certifies models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from time import time
from typing import Any, TypedDict, Unpack
from warnings import catch_warnings, simplefilter

from robustbench_inv.api import AttackSource, Inputs, Labelling, Models, check_run, evaluate
from robustbench_inv.arguments import check_number
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import DEADLINE_PASSED, BadParameter, EvaluationWarning
from robustbench_inv.evaluation.engine import Existing, ProgressCallback, until
from robustbench_inv.evaluation.schedule import Workers, check_workers
from robustbench_inv.results.certificates import CertificateOptions
from robustbench_inv.run import CellFailure, Run, warn_of_failures
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["audit", "certify"]

FIRST_SAMPLES: Mapping[int, float] = {16: 0.5, 2: 1.0}
"""Samples of the first stage, which measures the time of a sample, and the share of the attacks' time it may take. If it
takes longer, it is tried with fewer samples."""

GROWTH = 4
"""Largest factor by which a stage adds samples: larger batches need less time for each sample."""

LEAST_GROWTH = 1.25
"""Smallest factor by which a further stage adds samples."""

ATTACK_SHARE, LAST_SHARE = 0.6, 0.75
"""Share of the time limit that is planned for the attacks, and after which they are stopped; the rest is for the checks."""

LEAST_CHECK_SECONDS = 5.0
"""Seconds for the checks, however late it is."""


class AuditOptions(TypedDict, total=False):
    """The options that an audit shares with ``evaluate``."""

    threat: str | ThreatModel | None
    oracle: str | Models | None
    dataset: str | Dataset | None
    x: Inputs | None
    y: Labelling | None
    seed: int
    out: str | Path | None
    batch_size: int | None
    device: str
    workers: Workers
    keep_images: bool
    data_root: str | Path | None
    progress: ProgressCallback | bool
    timeout: float | None
    command: Sequence[str]


class EvaluateOptions(AuditOptions, total=False):
    """The options that certification shares with ``evaluate``."""

    attack: AttackSource | Sequence[AttackSource] | None
    samples: int | str | None
    existing: Existing
    checks: bool


def certify(
    model: Models,
    *,
    milp_seconds: float = 0.0,
    optimise: int = 20,
    **options: Unpack[EvaluateOptions],
) -> Run:
    """Attack models and certify their samples, in linf or l2; results as of ``evaluate``, with certificates.

    Each sample is certified robust, broken or open (``Run.to_json``, key ``certified``; ``Run.cells[i].certificates``).

    Args:
        model: as ``evaluate`` takes it.
        milp_seconds: time for the MILP of each target class that linear bounds leave open; 0 for no MILP.
        optimise: steps of the optimisation of the linear bounds; 0 for none.
        options: those of ``evaluate``.

    Example:
        >>> run = certify("mnist-mlp", threat="linf=0.02", samples=100)  # doctest: +SKIP
    """
    check_number(optimise, "number of steps", 0)
    return evaluate(model, certify=CertificateOptions(milp_seconds, optimise), **options)


def audit(
    model: Models,
    *,
    minutes: float = 10.0,
    samples: int | None = None,
    existing: Existing = "resume",
    **options: Unpack[AuditOptions],
) -> Run:
    """Attack a model with the suite ``audit``, run every check, and return the results.

    The attacks start on 16 class-balanced samples, fewer if these take too long, and add samples as long as the measured time of a sample lets them
    end in time. ``Run.verdict`` is publishable, publishable with reservations or do not publish; ``Run.conclusions`` has reasons.

    Args:
        model: as for ``evaluate``.
        minutes: the time limit. Attacks that it stops are named in ``Run.notes``, checks have fewer samples or are not
            made, and the verdict is one with reservations.
        samples: largest number of samples; None for all.
        existing: resume, skip or redo existing results.
        options: threat, oracle, dataset, x, y, seed, out and the others of ``evaluate`` but attack, suite and checks.

    Raises:
        UsageError: for an impossible request, before anything runs; if no attack ended within the time limit.
        RangeMismatch: if the model declares other bounds than the data have.

    Example:
        >>> run = audit("mnist-cnn", threat="linf=0.1", minutes=5)  # doctest: +SKIP
        >>> run.verdict  # doctest: +SKIP
        'publishable'
    """
    began, seconds = time(), 60 * _check_minutes(minutes)
    check_workers(options.get("workers", 1))
    most = _size(options) if samples is None else check_number(samples, "number of samples")
    stages = _Stages({"model": model, "suite": "audit", **options}, existing, began, seconds)
    run = stages.first(most)
    most = min(most, *(len(job.dataset) for job in run.plan.jobs))
    while (count := stages.next_count(most)) > stages.done:
        run = stages.evaluate(count)
        if _stopped(run):
            run = stages.evaluate(stages.done, inf)  # read from its records
            break
    if not run.records():
        raise BadParameter(
            "no attack ended within the time limit",
            got=f"{minutes:g} minutes",
            remedy="raise --minutes",
        )
    left = max(began + seconds - time(), LEAST_CHECK_SECONDS)
    check_run(run, str(options.get("device", "cpu")), left)
    notes = [f"{failure}; raise --minutes" for failure in _stopped(run)]
    if stages.done < most:
        notes.append(f"audited {stages.done} of {most} samples within {minutes:g} minutes")
    failures = tuple(failure for failure in run.failures if failure not in _stopped(run))
    audited = replace(run, failures=failures, notes=(*run.notes, *notes))
    warn_of_failures(audited, checked=True)
    return audited


def _stopped(run: Run) -> list[CellFailure]:
    """Return the cells that the deadline stopped."""
    return [failure for failure in run.failures if failure.reason == DEADLINE_PASSED]


class _Stages:
    """Evaluates more and more samples.

    Args:
        settings: arguments of ``evaluate``.
        existing: what the first stage does with existing results; the others resume.
        began: time of ``time.time``.
        seconds: the time limit.
    """

    def __init__(
        self, settings: dict[str, Any], existing: Existing, began: float, seconds: float
    ) -> None:
        self._settings, self._existing = settings, existing
        self._end, self._last_end = (
            began + share * seconds for share in (ATTACK_SHARE, LAST_SHARE)
        )
        self._per_sample = 0.0
        self.done = 0
        """Number of samples of the last stage that was not stopped."""

    def first(self, most: int) -> Run:
        """Return the first stage; if even its least samples take too long, the last attacks are missing."""
        *many, least = FIRST_SAMPLES.items()
        for samples, share in many:
            run = self.evaluate(
                min(samples, most), time() + share * max(self._last_end - time(), 0.0)
            )
            if not _stopped(run):
                return run
        run = self.evaluate(min(least[0], most))
        self.done = min(least[0], most)
        return run

    def evaluate(self, samples: int, deadline: float | None = None) -> Run:
        """Evaluate a number of samples, until a time of ``time.time`` at most."""
        start, existing, self._existing = time(), self._existing, "resume"
        with until(self._last_end if deadline is None else deadline), catch_warnings():
            simplefilter("ignore", EvaluationWarning)  # of cells that the deadline stops
            settings = {**self._settings, "samples": samples, "existing": existing, "checks": False}
            if callable(report := settings.get("progress")):
                settings["progress"] = _with_samples(report, samples)
            run = evaluate(**settings)
        self._per_sample = (time() - start) / max(samples - self.done, 1)
        self.done = self.done if _stopped(run) else samples
        return run

    def next_count(self, most: int) -> int:
        """Return the number of samples of the next stage; that of the last one if there is no time for more."""
        further = max(0, int((self._end - time()) / max(self._per_sample, 1e-9)))
        count = min(most, self.done + min(further, GROWTH * self.done))
        return count if count >= min(most, LEAST_GROWTH * self.done) else self.done


def _with_samples(report: ProgressCallback, samples: int) -> ProgressCallback:
    """Return a callback whose titles name the samples of the stage: each attack runs once in every stage."""
    return lambda progress: report(replace(progress, title=f"{progress.title}, {samples} samples"))


def _check_minutes(minutes: object) -> float:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes < inf:
        raise BadParameter("unusable time limit", got=minutes, expected="minutes > 0")
    return float(minutes)


def _size(options: AuditOptions) -> int:
    """Return the number of samples of a data set; that of a model's card is larger than the first stage."""
    x, dataset = options.get("x"), options.get("dataset")
    if isinstance(dataset, str):
        dataset = load_dataset(dataset, data_root=options.get("data_root"))
    known = x if x is not None else dataset
    return LARGE if known is None else len(known)


LARGE = 10**9
