"""From a paper's table or figure to the plan that reproduces it: every trial on every column's model."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from robustbench_inv.catalogue.cards import SuiteEntry
from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.evaluation.jobs import EvaluationRequest, build_jobs
from robustbench_inv.evaluation.plan import Job, Plan, plan_jobs

__all__ = ["plan_reproduction"]


def plan_reproduction(
    item: Reproduction, request: EvaluationRequest, command: Iterable[str] = ()
) -> Plan:
    """Return the plan of a reproduction, checked; nothing is written.

    Args:
        item: what is to be reproduced.
        request: a data set that stands in for the item's own, samples, seed, device and data root; its
            models and attacks are replaced.
        command: what the user typed.

    Raises:
        UsageError: for an unknown name, or things that do not fit together.
    """
    ranked = [each for data in item.places(request.dataset) for each in _jobs(item, data, request)]
    # trial by trial, so that a run that is interrupted has whole rows
    jobs = [job for _, job in sorted(ranked, key=lambda each: each[0])]
    _check_distinct(jobs)
    return plan_jobs(jobs, label=item.name, command=command)


def _check_distinct(jobs: Iterable[Job]) -> None:
    """Raise if two names stand for one cell: its records could be found by one of them only."""
    titles: dict[str, str] = {}
    for job in jobs:
        known = titles.setdefault(job.spec.digest, job.title)
        if known != job.title:
            raise BadCatalogue("two trials are the same", got=[known, job.title], expected="one")


def _jobs(item: Reproduction, data: str, request: EvaluationRequest) -> Iterator[tuple[int, Job]]:
    """Yield the jobs of one data set, each with the position of its trial; every model is loaded once."""
    dataset = item.places(request.dataset)[data]
    for model, trials in _models(item, data).items():
        ranked = [(rank, run) for rank in sorted(trials) for run in _runs(item, rank, data)]
        runs = tuple(run for _, run in ranked)
        jobs = build_jobs(replace(request, models=[model], runs=runs, dataset=dataset))
        yield from ((rank, job) for (rank, _), job in zip(ranked, jobs, strict=True))


def _models(item: Reproduction, data: str) -> dict[str, set[int]]:
    """Return every model of the columns, and the positions of the trials that attack it."""
    found: dict[str, set[int]] = {}
    for column in item.columns:
        for rank, trial in enumerate(item.trials):
            if trial.attacks(column):
                found.setdefault(column.model(trial.side, data), set()).add(rank)
    return found


def _runs(item: Reproduction, rank: int, data: str) -> Iterator[SuiteEntry]:
    trial = item.trials[rank]
    samples = item.samples if trial.samples is None else trial.samples
    for threat in item.threats(trial, data):
        yield SuiteEntry(trial.attack, threat, samples)
