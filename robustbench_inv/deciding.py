"""Evaluates samples in random order until a comparison of models, or a limit of their robust accuracy, is decided."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from robustbench_inv.arguments import format_eps
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.engine import CellState, Progress, ProgressCallback, RunOptions
from robustbench_inv.evaluation.plan import Plan
from robustbench_inv.evaluation.schedule import CellOutcome, Workers, run_jobs
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.rate import Decision
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.results.run_writing import write_plan

if TYPE_CHECKING:  # imported on demand: an evaluation of all samples draws no table
    from robustbench_inv.reporting.model_comparison import PairedResult
    from robustbench_inv.reporting.run_results import WorstCase
    from robustbench_inv.results.cell import FinishedCell

__all__ = ["StopRule", "first_stage", "run_until_decided", "shuffled_samples", "stage_sizes"]

FIRST, STEP, GROWTH = 20, 10, 10
"""Samples of the first stage, least samples that a stage adds, and the share (one tenth) of those evaluated that it adds.

Looking costs about 0.1 s a cell; at one tenth a decision takes at most 10 % more samples than looking after each.
"""


@dataclass(frozen=True)
class StopRule:
    """When an evaluation may stop before its last sample.

    Args:
        fail_under: decide whether each robust accuracy reaches this share; None to decide which of two models is better.
    """

    fail_under: float | None = None

    @classmethod
    def of(cls, fail_under: float | None, *, until_decided: bool) -> "StopRule | None":
        """Return the rule of an evaluation; None to evaluate all samples.

        Raises:
            BadParameter: for a limit that is no share, or that nothing is compared with.
        """
        if not isinstance(until_decided, bool):
            expected = "True or False"
            raise BadParameter("unusable until_decided", got=until_decided, expected=expected)
        if fail_under is not None and not until_decided:
            remedy = "until_decided=True, or compare Run.summary() with it"
            raise BadParameter("fail_under has no effect", got=fail_under, remedy=remedy)
        number = isinstance(fail_under, int | float) and not isinstance(fail_under, bool)
        if fail_under is not None and not (number and 0 <= fail_under <= 1):
            raise BadParameter("unusable fail_under", got=fail_under, expected="0 to 1")
        return cls(fail_under) if until_decided else None

    def check(self, plan: Plan, options: RunOptions, workers: Workers) -> None:
        """Check that a plan has something to decide.

        Raises:
            BadParameter: for a single model without a limit, several data sets, or options that write no new records.
        """
        models = {job.model.digest for job in plan.jobs}
        if self.fail_under is None and len(models) < 2:
            problem = "nothing to decide"
            expected = "two models, or a limit of the robust accuracy (--fail-under)"
            raise BadParameter(problem, got=f"{len(models)} model", expected=expected)
        if len({job.spec.dataset for job in plan.jobs}) > 1:
            names = sorted({job.dataset.name for job in plan.jobs})
            raise BadParameter("several data sets", got=names, expected="one: --dataset NAME")
        if options.existing in ("skip", "repair") or workers == 0:
            got = "0 workers" if workers == 0 else f"existing {options.existing}"
            raise BadParameter("cannot stop early", got=got, expected="resume or redo, workers")


def shuffled_samples(plan: Plan) -> list[int]:
    """Return all samples of a plan in the random order of its seed, so that any first ones are a random sample."""
    ids = torch.tensor(sorted({sample for job in plan.jobs for sample in job.samples}))
    keys = SampleRNG(plan.jobs[0].seed, ids, "order").integers(2**31)
    return [int(each) for each in ids[keys.argsort(stable=True)]]


def stage_sizes(population: int) -> Iterator[int]:
    """Yield the numbers of samples after which a decision is possible.

    Example:
        >>> [*stage_sizes(52)], list(stage_sizes(1000))[9:13]
        ([20, 30, 40, 50, 52], [110, 121, 133, 146])
    """
    count = min(FIRST, population)
    yield count
    while count < population:
        count = min(count + max(STEP, count // GROWTH), population)
        yield count


def first_stage(plan: Plan) -> Plan:
    """Return a plan with the samples of its first stage."""
    return _restricted(plan, shuffled_samples(plan)[:FIRST])


def run_until_decided(
    plan: Plan,
    folder: Path,
    options: RunOptions,
    report: ProgressCallback,
    workers: Workers,
    rule: StopRule,
) -> tuple[list[CellOutcome], Plan]:
    """Run the cells of a plan in stages until everything is decided, or all samples are evaluated.

    Args:
        plan: the cells with all samples that may be evaluated.
        folder: of the results; plan.json gets the decisions.
        options: how to run.
        report: called as ``run_jobs`` does.
        workers: where to run.
        rule: what shall be decided.

    Returns:
        The outcomes of the cells, and the plan with the samples that were evaluated.
    """
    order, looks, decided = shuffled_samples(plan), list[int](), dict[str, Decision]()
    notes: dict[str, dict[str, None]] = {}

    def report_running(progress: Progress) -> None:
        if progress.state == "running":  # a stage is no end
            report(progress)

    for count in stage_sizes(len(order)):
        part, looks = _restricted(plan, order[:count]), [*looks, count]
        write_plan(folder, part.to_json())
        outcomes = run_jobs(part.jobs, folder, options, report_running, workers)
        for each in outcomes:
            notes.setdefault(each.digest, {}).update(dict.fromkeys(each.notes))
        options = replace(options, existing="resume")
        if any(each.failure for each in outcomes):
            break
        found = list(_ask(part, folder, rule, len(order), tuple(looks)))
        decided |= {each.question: each for each in found if each.question not in decided}
        if found and all(
            each.question in decided and decided[each.question].decided for each in found
        ):
            break
        if count < len(order):
            decided = {key: each for key, each in decided.items() if each.decided}
    write_plan(folder, {**part.to_json(), "decisions": [d.to_json() for d in decided.values()]})
    for number, each in enumerate(outcomes, 1):
        state: CellState = "failed" if each.failure else "completed"
        done = len(part.jobs[number - 1].samples)
        report(Progress(each.title, each.digest, done, done, number, len(outcomes), state))
    return [replace(each, notes=tuple(notes[each.digest])) for each in outcomes], part


def _restricted(plan: Plan, samples: Iterable[int]) -> Plan:
    kept = frozenset(samples)
    jobs = (replace(job, samples=tuple(s for s in job.samples if s in kept)) for job in plan.jobs)
    return replace(plan, jobs=tuple(jobs))


def _ask(
    plan: Plan, folder: Path, rule: StopRule, population: int, looks: tuple[int, ...]
) -> Iterator[Decision]:
    """Yield each decision after the samples of a plan, made or not."""
    from robustbench_inv.reporting.exports import largest_budgets
    from robustbench_inv.reporting.model_comparison import compare_models
    from robustbench_inv.reporting.run_results import CellGroup
    from robustbench_inv.results.sequences import LEVEL

    cells = [
        replace(_read(folder, job.spec.digest, job.samples), model_label=job.shown[0])
        for job in plan.jobs
    ]
    if rule.fail_under is not None:
        cases = largest_budgets(cells)
        level = LEVEL / max(len(cases), 1)
        yield from (_limit(each, rule.fail_under, level, population, looks) for each in cases)
        return
    models = list(dict.fromkeys(cell.model_label for cell in cells))
    mine = {name: [cell for cell in cells if cell.model_label == name] for name in models}
    places = {
        (CellGroup.of(cell), eps) for cell in mine[models[0]] for eps in cell.epsilons or (inf,)
    }
    level = LEVEL / (len(places) * (len(models) - 1))
    for other in models[1:]:
        for result in compare_models(mine[models[0]], mine[other]):
            if result.is_primary:
                yield _pair(result, level, population, looks)


def _read(folder: Path, digest: str, samples: Sequence[int]) -> "FinishedCell":
    cell = CellFolder(folder / digest).read()
    return replace(cell, records=cell.records.where(np.isin(cell.ids, samples)))


def _pair(
    result: "PairedResult", level: float, population: int, looks: tuple[int, ...]
) -> Decision:
    """Return whether it is decided which of two models is better."""
    from robustbench_inv.results.sequences import difference_sequence, evidence

    a, b = result.models
    lost, gained = len(result.lost), len(result.gained)
    value = evidence(gained, lost)
    decided = value >= 1 / level
    better, worse = (b, a) if gained > lost else (a, b)
    most, least = max(gained, lost), min(gained, lost)
    what = f"{result.name}, {result.place}"
    counts = f"it has the better result on {most} samples, {worse} on {least}"
    text = f"{better} is better than {worse}: {what}; {counts}"
    if not decided:
        text = f"{a} and {b} are not told apart: {what}; {a} has the better result on {lost} samples, {b} on {gained}"
    test = f"anytime-valid paired test, p = {min(1.0, 1 / value):.2g}, level {100 * level:.2g} %"
    if decided and len(result.ids) == looks[-1] < population:
        low, high = difference_sequence(most, least, looks[-1], population, level)
        text += f"; difference on all {population:,} samples [{100 * low:+.1f}, {100 * high:+.1f}] points"
    return Decision(
        question=f"{a} or {b}: {what}",
        sentence=f"{_after(looks, population, decided=decided)}: {text} ({test}).",
        decided=decided,
        models=result.models,
        eps=None if result.eps == inf else result.eps,
        samples=looks[-1],
        population=population,
        looks=looks,
        level=level,
    )


def _limit(
    worst: "WorstCase", limit: float, level: float, population: int, looks: tuple[int, ...]
) -> Decision:
    """Return whether it is decided that a robust accuracy reaches a limit, or that it does not."""
    from robustbench_inv.reporting.table_formats import dataset_title, norm_symbol
    from robustbench_inv.results.sequences import confidence_sequence

    low, high = confidence_sequence(worst.rate, level=level)
    decided = low >= limit or high < limit
    reached = (
        "is at least" if low >= limit else "is below" if decided else "may be on either side of"
    )
    place = f"{dataset_title(worst.group.dataset)} at {norm_symbol(worst.group.norm)} ≤ {format_eps(worst.eps)}"
    what = f"the robust accuracy of {worst.model} on {place}"
    evidence_text = f"{worst.rate.successes} robust, confidence sequence [{100 * low:.1f}, {100 * high:.1f}] %, "
    if worst.rate.trials == looks[-1] < population:
        low, high = confidence_sequence(worst.rate, population, level)
        evidence_text += f"of all {population:,} samples [{100 * low:.1f}, {100 * high:.1f}] %, "
    evidence_text += f"level {100 * level:.2g} %"
    return Decision(
        question=f"{what}, {100 * limit:g} %",
        sentence=f"{_after(looks, population, decided=decided)}: {what} {reached} {100 * limit:g} % ({evidence_text}).",
        decided=decided,
        models=(worst.model,),
        eps=worst.eps,
        samples=looks[-1],
        population=population,
        looks=looks,
        level=level,
    )


def _after(looks: tuple[int, ...], population: int, *, decided: bool) -> str:
    word = "Decided" if decided else "Not decided"
    times = f"{len(looks)} looks" if len(looks) > 1 else "1 look"
    return f"{word} after {looks[-1]:,} of {population:,} samples in random order ({times})"
