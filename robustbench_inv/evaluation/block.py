"""Evaluates one block of samples: clean predictions, searches along the eps sweep, verdicts, replays, records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind
from robustbench_inv.errors import BadData, BadModel
from robustbench_inv.evaluation.block_state import BlockState
from robustbench_inv.evaluation.judge import Assessment, Judge, already_wrong, is_valid_output
from robustbench_inv.evaluation.search import SearchFunction, SearchResult, scale_to_budget
from robustbench_inv.results.cell import SAMPLE_VALUES
from robustbench_inv.results.record import Record, Status
from robustbench_inv.tensors import Output, where_rows
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.goals import GoalInputs
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "BlockResult",
    "CellContext",
    "EventLogger",
    "SearchStep",
    "evaluate_block",
    "run_searches",
]


EventLogger = Callable[..., None]
"""Called with a kind and values for what is worth an entry in events.jsonl."""


@dataclass(frozen=True)
class CellContext:
    """What all blocks of a cell share.

    Args:
        kind: of the attack.
        threat: the threat with its whole sweep.
        search: searches on a copy of the model, or on a substitute.
        short_run: the same in brief, which makes a sweep go down from its largest eps; None for one that goes up.
        judge: judges on the original.
        log_event: takes notes.
    """

    kind: Kind
    threat: ThreatModel
    search: SearchFunction
    short_run: SearchFunction | None
    judge: Judge
    log_event: EventLogger


@dataclass(frozen=True)
class SearchStep:
    """A search that was made at one stage of a threat.

    Args:
        stage: the budget that the verdict is taken under.
        rows: (m,) positions of the samples.
        found: what was found for these.
        eps_values: ascending eps, the smallest that holds a success is where its sample falls; empty for its distance.
        only_successes: have the samples been shown at a larger eps, so that what is no success changes nothing?
    """

    stage: ThreatModel
    rows: Tensor
    found: SearchResult
    eps_values: tuple[float, ...]
    only_successes: bool = False


def run_searches(setting: CellContext, standing: BlockState) -> Iterator[SearchStep]:
    """Yield one search after the other; its verdicts are to be in before the next is asked for."""
    if setting.threat.is_transfer:
        return _on_substitute(setting, standing)
    if setting.short_run is None or len(setting.threat.epsilons) < 2:
        return _ascending(setting, standing)
    return _descending(setting, standing, setting.short_run)


def _stages(setting: CellContext) -> Iterator[ThreatModel]:
    """Yield the threats to be judged under: each eps, or the whole threat for an attack that is run once.

    An attack that seeks the nearest success is run once, and its success falls where it is. On a substitute
    its direction counts, which is tried at the length of each eps.
    """
    each = setting.kind == "fixed-budget" or setting.threat.is_transfer
    sweep = setting.threat.epsilons if each else ()
    yield from (setting.threat.at(eps) for eps in sweep)
    if not sweep:
        yield setting.threat


def _ascending(setting: CellContext, standing: BlockState) -> Iterator[SearchStep]:
    """SearchFunction at each stage with the samples that still stand."""
    for number, stage in enumerate(_stages(setting)):
        rows = standing.all if setting.kind == "fixed-input" else standing.undecided
        if not len(rows):
            return
        start = standing.allowed_images[rows] if number else None
        found = setting.search(standing.batch[rows], start, stage)
        yield SearchStep(stage, rows, found, stage.epsilons)


def _descending(
    setting: CellContext, standing: BlockState, short_run: SearchFunction
) -> Iterator[SearchStep]:
    """SearchFunction at the largest eps, then at each smaller one: briefly from what broke a sample, wholly where that fails.

    What nothing broke is searched for briefly from the clean input. Whole searches begin anew, as at their eps alone.
    A sample that has withstood one is taken to stand at every smaller eps as well, unless a brief search shows
    otherwise: from there down it is searched for wholly again.
    """
    sweep, survived = setting.threat.epsilons, torch.zeros_like(standing.wrong)
    for number, stage in enumerate(reversed(list(_stages(setting)))):
        eps_values = sweep[: len(sweep) - number]
        for search in (short_run, setting.search) if number else (setting.search,):
            not_broken = ~(standing.broken_at <= eps_values[-1])
            rows = (not_broken if search is short_run else not_broken & ~survived).nonzero()[:, 0]
            if not len(rows):
                continue
            batch = standing.batch[rows]
            start = None
            if search is short_run:
                broken = standing.is_broken[rows]
                start = where_rows(broken, standing.images[rows], batch.images)
            found = search(batch, start, stage)
            yield SearchStep(stage, rows, found, eps_values, only_successes=number > 0)
        survived = ~(standing.broken_at <= eps_values[-1])


def _on_substitute(setting: CellContext, standing: BlockState) -> Iterator[SearchStep]:
    """SearchFunction with all samples, whatever the model says of them, as long as one of them stands."""
    search = _search_each_eps if setting.kind == "fixed-budget" else _search_once
    found = search(setting, standing.batch)
    for stage in _stages(setting):
        rows = standing.undecided
        if not len(rows):
            return
        yield SearchStep(stage, rows, next(found)[rows], stage.epsilons)


def _search_each_eps(setting: CellContext, batch: Batch) -> Iterator[SearchResult]:
    """Yield what a search finds at each stage, begun from what it proposed at the one before."""
    start, bounds = None, setting.judge.classifier.bounds
    for stage in _stages(setting):
        found = setting.search(batch, start, stage)
        yield found
        images = found.proposals
        allowed = inside_box(images, bounds) & stage.budget.contains(batch.images, images)
        start = where_rows(allowed, images, batch.images)


def _search_once(setting: CellContext, batch: Batch) -> Iterator[SearchResult]:
    """Yield what one search without eps finds, at the length of each stage."""
    found, bounds = setting.search(batch, None, setting.threat), setting.judge.classifier.bounds
    for number, stage in enumerate(_stages(setting)):
        images = found.proposals
        if isinstance(stage.budget, LpBall):
            images = scale_to_budget(batch.images, images - batch.images, stage.budget, bounds)
        yield found.with_proposals(images, already_counted=number > 0)


@dataclass(frozen=True)
class BlockResult:
    """The outcome of a block: its records, and what is shown of each sample, (n, …)."""

    records: list[Record]
    clean: Tensor
    shown: Tensor


def evaluate_block(setting: CellContext, batch: Batch) -> BlockResult:
    """Evaluate the samples of one block.

    A sample that the model gets wrong needs no attack, but is shown what is given instead of it. The others are
    attacked at each eps in ascending order, from what is shown of them so far, until they fall; or, by an attack
    that has a brief form, in descending order, from what broke them, until they stand. Under a transfer
    threat the search is the same for every model: it goes on with all samples, from what it last proposed, and
    only their verdicts stop.

    Raises:
        BadData: if a clean input is outside the model's bounds.
        BadModel: if the model's answer to a clean input is not a number.
    """
    standing = _start_block(setting, batch)
    for step in run_searches(setting, standing):
        _apply_result(setting, standing, step)
        if step.found.crash is not None:
            break
    _replay_robust(setting, standing, standing.unbroken)
    source = setting.judge.oracle.source if setting.judge.oracle else None
    return BlockResult(standing.records(source), batch.images, standing.images)


def _start_block(setting: CellContext, batch: Batch) -> BlockState:
    judge = setting.judge
    if not inside_box(batch.images, judge.classifier.bounds).all():
        raise BadData(
            f"{judge.dataset.name} leaves the model's bounds (check C17)",
            got=f"[{batch.images.min():g}, {batch.images.max():g}]",
            expected=str(tuple(judge.classifier.bounds)),
        )
    before = judge.predict(batch.images, batch.ids)
    if not is_valid_output(before).all():
        raise BadModel("the model's answer to a clean input is not a number")
    wrong = already_wrong(setting.threat, before, batch.labels)
    return BlockState(batch, before, wrong, judge.true_classes(batch.images, batch.ids))


def _apply_result(setting: CellContext, standing: BlockState, step: SearchStep) -> None:
    """Judge what a search found, and let the samples fall that it breaks."""
    rows, found = step.rows, step.found
    batch, before = standing.batch[rows], standing.before[rows]
    standing.add_passes(rows, found)
    assessment = setting.judge.judge(batch, before, found.proposals, step.stage)
    if not step.only_successes:
        statuses = _failure_statuses(setting.kind, found, assessment)
        standing.set_status({int(rows[row]): status for row, status in statuses.items()})
    _log_crashes(setting, batch, step)
    _record_successes(setting, standing, step, rows, assessment)
    # a success that a query showed and the attack did not return (check C15)
    lost = (found.succeeded & ~assessment.reached).nonzero()[:, 0]
    if len(lost):
        again = setting.judge.judge(batch[lost], before[lost], found.nearest[lost], step.stage)
        rescued = _record_successes(
            setting, standing, step, rows[lost[again.reached]], again[again.reached]
        )
        if len(rescued):
            samples = standing.batch.ids[rescued].tolist()
            setting.log_event("silent_success", samples=samples, count=len(samples))
    shown = torch.ones_like(assessment.reached)
    if step.only_successes:
        shown = standing.broken_at[rows] <= step.eps_values[-1]
    _log_numbers(setting, batch.ids[shown], {k: v[shown] for k, v in found.measured.items()})


def _record_successes(
    setting: CellContext,
    standing: BlockState,
    step: SearchStep,
    rows: Tensor,
    assessment: Assessment,
) -> Tensor:
    """Show the m inputs that were judged, and let those fall that are successes, also when asked again.

    Returns:
        (k,) positions of those that fell.
    """
    sure = torch.ones_like(assessment.reached)
    hits = (assessment.reached & ~standing.wrong[rows]).nonzero()[:, 0]
    if len(hits):
        batch, before = standing.batch[rows[hits]], standing.before[rows[hits]]
        sure[hits] = _replay_successes(setting, batch, before, assessment[hits])
    broken = assessment.reached & sure
    shown = broken if step.only_successes else torch.ones_like(broken)
    standing.set_images(rows[shown], assessment[shown], sure[shown])
    standing.mark_broken(rows[broken], step.eps_values, step.stage.norm)
    return rows[broken]


def _failure_statuses(kind: Kind, found: SearchResult, assessment: Assessment) -> dict[int, Status]:
    """Return why there is no valid proposal, by position in the attacked batch."""
    n = len(assessment.images)
    if found.crash is not None:
        return dict.fromkeys(range(n), "crash")
    outside = ~(assessment.allowed if kind == "fixed-budget" else assessment.in_bounds)
    statuses: dict[int, Status] = dict.fromkeys(range(n), "ok")
    statuses |= dict.fromkeys(outside.nonzero()[:, 0].tolist(), "budget")
    statuses |= dict.fromkeys((~assessment.valid).nonzero()[:, 0].tolist(), "numerics")
    return {**statuses, **found.failures}


def _log_crashes(setting: CellContext, batch: Batch, step: SearchStep) -> None:
    """Note that an attack raised, or that it raised for single samples while it went on with the others."""
    crash, where = step.found.crash, {"eps": step.eps_values[-1]} if step.eps_values else {}
    single = [row for row, status in step.found.failures.items() if status == "crash"]
    if crash is not None:
        setting.log_event("crash", reason=crash, samples=batch.ids.tolist(), **where)
    if single:
        samples = batch.ids[single].tolist()
        reason = "the attack raised for single samples"
        setting.log_event("crash", reason=reason, samples=samples, **where)


def _log_numbers(setting: CellContext, ids: Tensor, measured: dict[str, Tensor]) -> None:
    """Note the numbers that an attack keeps of some samples (m,); those that are not finite as null."""
    if measured and len(ids):
        columns = {name: _json_numbers(values) for name, values in measured.items()}
        setting.log_event(SAMPLE_VALUES, samples=ids.tolist(), values=columns)


def _json_numbers(values: Tensor) -> list[float | None]:
    if not values.is_floating_point():
        return list(values.tolist())
    return [float(f"{value:.6g}") if isfinite(value) else None for value in values.tolist()]


def _replay_successes(
    setting: CellContext, batch: Batch, before: Output, assessment: Assessment
) -> Tensor:
    """Return which of m successes are there again in another batch, (m,); take a note of the others (check C14)."""
    again = setting.judge.replay(assessment.images, batch.ids)
    evidence = GoalInputs(
        batch.images, assessment.images, batch.labels, before, again, assessment.oracle
    )
    same = _same_decision(assessment.after, again) & setting.threat.goal.reached(evidence)
    if not same.all():
        samples = batch.ids[~same].tolist()
        setting.log_event("not_replayed", samples=samples, count=len(samples))
    return same


def _replay_robust(setting: CellContext, standing: BlockState, rows: Tensor) -> None:
    """Ask again, in another batch, about the samples at (m,) positions, which no attack broke."""
    if len(rows):
        again = setting.judge.replay(standing.images[rows], standing.batch.ids[rows])
        standing.replayed[rows] &= _same_decision(standing.after[rows], again)


def _same_decision(output: Output, again: Output) -> Tensor:
    """Return (m,): is the second answer the same decision, and accepted if the first was?"""
    same = output.decision == again.decision
    if output.accepted is not None and again.accepted is not None:
        same &= output.accepted == again.accepted
    return same
