"""Audits a model within a time limit: the suite ``audit`` on as many samples as fit, and every check."""

from dataclasses import replace
from math import inf
from time import perf_counter
from typing import Any

from robustbench_inv.api import Run, evaluate
from robustbench_inv.arguments import check_number
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.engine import Existing

__all__ = ["audit"]

FIRST_SAMPLES = 16
"""Samples of the first stage, which measures the time of a sample."""

GROWTH = 4
"""Largest factor by which a stage adds samples: larger batches need less time for each sample."""

LEAST_GROWTH = 1.25
"""Smallest factor by which a further stage adds samples."""

ATTACK_SHARE = 0.6
"""Share of the time limit for the attacks; the rest is for the checks."""


def audit(
    model: object,
    *,
    minutes: float = 10.0,
    samples: int | None = None,
    existing: Existing = "resume",
    **options: Any,  # noqa: ANN401 - those of evaluate
) -> Run:
    """Attack a model with the suite ``audit``, run every check, and return the results.

    The attacks start on 16 class-balanced samples, and add samples as long as the measured time of a sample lets them
    end in time. ``Run.conclusions`` holds the verdict: publishable, publishable with reservations or do not publish.

    Args:
        model: as for ``evaluate``.
        minutes: the time limit, an aim: the first stage and the checks are run to their end.
        samples: largest number of samples; None for all.
        existing: resume, skip or redo existing results.
        options: threat, dataset, x, y, seed, out and all others of ``evaluate`` but attack, suite and checks.

    Raises:
        UsageError: for an impossible request, before anything runs.
        RangeMismatch: if the model declares other bounds than the data have.

    Example:
        >>> run = audit("mnist-cnn", threat="linf=0.1", minutes=5)  # doctest: +SKIP
        >>> run.conclusions[0].verdict  # doctest: +SKIP
        'publishable'
    """
    end = perf_counter() + 60 * ATTACK_SHARE * _check_minutes(minutes)
    most = _size(options) if samples is None else check_number(samples, "number of samples")
    settings = {"model": model, "suite": "audit", **options}
    done, count = 0, min(FIRST_SAMPLES, most)
    while count > done:
        start = perf_counter()
        run = evaluate(**settings, samples=count, existing=existing, checks=False)
        now, existing = perf_counter(), "resume"
        most = min(most, *(len(job.dataset) for job in run.plan.jobs))
        further = max(0, int((end - now) * (count - done) / (now - start)))
        done, count = count, min(most, count + min(further, GROWTH * count))
        if count < min(most, LEAST_GROWTH * done):
            break
    finished = evaluate(**settings, samples=done, existing="resume", checks=True)
    note = f"audited {done} of {most} samples within {minutes:g} minutes" if done < most else ""
    return replace(finished, notes=(*finished.notes, *([note] if note else [])))


def _check_minutes(minutes: object) -> float:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes < inf:
        raise BadParameter("unusable time limit", got=minutes, expected="minutes > 0")
    return float(minutes)


def _size(options: dict[str, Any]) -> int:
    """Return the number of samples of a data set; that of a model's card is larger than the first stage."""
    x, dataset = options.get("x"), options.get("dataset")
    if isinstance(dataset, str):
        dataset = load_dataset(dataset, data_root=options.get("data_root"))
    known = x if x is not None else dataset
    return LARGE if known is None else len(known)


LARGE = 10**9
