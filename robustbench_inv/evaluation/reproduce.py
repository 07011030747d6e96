"""From a paper's table or figure to the plan that reproduces it: every trial on every column's model."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from robustbench_inv.catalogue.cards import SuiteRun
from robustbench_inv.catalogue.reproduction import Reproduction, Side, Trial
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.evaluation.plan import Job, Plan, plan_jobs
from robustbench_inv.evaluation.sources import Question, build_jobs

__all__ = ["plan_reproduction"]


def plan_reproduction(item: Reproduction, question: Question, command: Iterable[str] = ()) -> Plan:
    """Return the plan of a reproduction, checked; nothing is written.

    Args:
        item: what is to be reproduced.
        question: a data set that stands in for the item's own, samples, seed, device and data root; its
            models and attacks are replaced.
        command: what the user typed.

    Raises:
        UsageError: for an unknown name, or things that do not fit together.
    """
    ranked = [
        each for data in item.places(question.dataset) for each in _jobs(item, data, question)
    ]
    # trial by trial, so that a run that is interrupted has whole rows
    jobs = [job for _, job in sorted(ranked, key=lambda each: each[0])]
    _demand_distinct(jobs)
    return plan_jobs(jobs, label=item.name, command=command)


def _demand_distinct(jobs: Iterable[Job]) -> None:
    """Raise if two names stand for one cell: its records could be found by one of them only."""
    titles: dict[str, str] = {}
    for job in jobs:
        known = titles.setdefault(job.spec.digest, job.title)
        if known != job.title:
            raise BadCatalogue("two trials are the same", got=[known, job.title], expected="one")


def _jobs(item: Reproduction, data: str, question: Question) -> Iterator[tuple[int, Job]]:
    """Yield the jobs of one data set, each with the position of its trial; every model is loaded once."""
    dataset = item.places(question.dataset)[data]
    for model, sides in _models(item, data).items():
        trials = [trial for trial in item.trials if trial.on in sides]
        if not trials:
            continue
        runs = tuple(_run(item, trial, data) for trial in trials)
        jobs = build_jobs(replace(question, models=[model], runs=runs, dataset=dataset))
        yield from ((item.trials.index(t), job) for t, job in zip(trials, jobs, strict=True))


def _models(item: Reproduction, data: str) -> dict[str, set[Side]]:
    """Return every model of the columns, and whether it is attacked as published, adaptively, or both."""
    sides: dict[str, set[Side]] = {}
    for column in item.columns:
        sides.setdefault(column.model("published", data), set()).add("published")
        sides.setdefault(column.model("adaptive", data), set()).add("adaptive")
    return sides


def _run(item: Reproduction, trial: Trial, data: str) -> SuiteRun:
    samples = item.samples if trial.samples is None else trial.samples
    return SuiteRun(trial.attack, item.threat(trial, data), samples)
