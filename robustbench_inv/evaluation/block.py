"""Evaluates one block of samples: clean predictions, searches along the eps sweep, verdicts and replays."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, Kind, runs_at_each_eps
from robustbench_inv.errors import BadData, BadModel
from robustbench_inv.evaluation.judge import (
    Assessment,
    BlockState,
    Judge,
    already_wrong,
)
from robustbench_inv.evaluation.search import SearchFunction, SearchResult, scale_to_budget
from robustbench_inv.results.cell_events import SAMPLE_VALUES
from robustbench_inv.results.record import Status
from robustbench_inv.tensors import Output, where_rows
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.goals import GoalInputs
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["CellContext", "EventLogger", "evaluate_block", "run_searches"]


EventLogger = Callable[..., None]
"""Called with a kind and values for each entry of events.jsonl."""


@dataclass(frozen=True)
class CellContext:
    """What all blocks of a cell share.

    Args:
        attack: the attack.
        threat: the threat with its whole sweep.
        search: searches on a copy of the model, or on a substitute.
        short_run: a short search from a warm start, for a descending sweep; None for an ascending sweep.
        judge: judges on the original model.
        log_event: writes an entry of events.jsonl.
    """

    attack: Attack
    threat: ThreatModel
    search: SearchFunction
    short_run: SearchFunction | None
    judge: Judge
    log_event: EventLogger

    @property
    def descending(self) -> bool:
        """Does the sweep start at its largest eps?"""
        several = len(self.threat.epsilons) > 1
        return self.short_run is not None and several and not self.threat.is_transfer


def evaluate_block(context: CellContext, batch: Batch) -> BlockState:
    """Return the outcome of one block of samples.

    - A misclassified sample needs no attack; a fixed-input attack is run on it nevertheless.
    - An ascending sweep attacks each sample at each eps until it breaks, from the best input so far.
    - A descending sweep, of attacks with a short run, starts from the input that broke the sample at a larger eps
      and continues until the sample is robust.
    - In a transfer attack the search is the same for every model: it runs on all samples, from its own last
      proposals, and the verdicts alone stop.

    Raises:
        BadData: if a clean input is outside the model's bounds.
        BadModel: if the model's output is not a number for every clean input and a few others.
    """
    state = _start_block(context, batch)
    for rows, result in run_searches(context, state):
        _apply_result(context, state, rows, result)
        if result.crash is not None:
            break
    _replay_robust(context, state, state.unbroken)
    return state


def run_searches(context: CellContext, state: BlockState) -> Iterator[tuple[Tensor, SearchResult]]:
    """Yield positions (m,) and results of each search; the caller updates the state before the next one."""
    if context.threat.is_transfer:
        return _on_substitute(context, state)
    if context.descending and context.short_run is not None:
        return _descending(context, state, context.short_run)
    return _ascending(context, state)


def _stages(context: CellContext) -> Iterator[ThreatModel]:
    """Yield the threats to judge under: each eps, or the whole threat for an attack that is run once.

    A minimum-norm attack is run once, and its success breaks the sample at its distance. On a substitute only its
    direction counts, which is scaled to each eps. An invariance attack that searches inside a large ball has not
    searched the smaller ones, so that it is run at each eps.
    """
    each = runs_at_each_eps(context.attack) or context.threat.is_transfer
    sweep = context.threat.epsilons if each else ()
    yield from (context.threat.at(eps) for eps in sweep)
    if not sweep:
        yield context.threat


def _ascending(context: CellContext, state: BlockState) -> Iterator[tuple[Tensor, SearchResult]]:
    """Search at each stage with the samples that are not broken yet."""
    for number, stage in enumerate(_stages(context)):
        rows = state.all if context.attack.kind == "fixed-input" else state.undecided
        if not len(rows):
            return
        start = state.allowed_images[rows] if number else None
        yield rows, context.search(state.batch[rows], start, stage)


def _descending(
    context: CellContext, state: BlockState, short_run: SearchFunction
) -> Iterator[tuple[Tensor, SearchResult]]:
    """Search at the largest eps, then at each smaller one: a short run from a warm start, and a full search if it fails.

    - The warm start is the input that broke the sample, or the clean input. Full searches start from the clean input.
    - A sample that survives a full search is taken to be robust at every smaller eps. If a short run breaks it
      nevertheless, full searches resume from that eps down.
    """
    survived = torch.zeros_like(state.wrong)
    for number, stage in enumerate(reversed(list(_stages(context)))):
        eps = stage.epsilons[-1]
        for search in (short_run, context.search) if number else (context.search,):
            not_broken = ~(state.broken_at <= eps)
            left = not_broken if search is short_run else not_broken & ~survived
            rows = (left & ~state.abandoned).nonzero()[:, 0]
            if not len(rows):
                continue
            batch = state.batch[rows]
            start = None
            if search is short_run:
                start = where_rows(state.is_broken[rows], state.images[rows], batch.images)
            yield rows, search(batch, start, stage)
        survived = ~(state.broken_at <= eps)


def _on_substitute(
    context: CellContext, state: BlockState
) -> Iterator[tuple[Tensor, SearchResult]]:
    """Search with all samples, whatever the attacked model predicts, until every sample is decided."""
    search = _search_each_eps if runs_at_each_eps(context.attack) else _search_once
    results = search(context, state.batch)
    for _ in _stages(context):
        rows = state.undecided
        if not len(rows):
            return
        yield rows, next(results)[rows]


def _search_each_eps(context: CellContext, batch: Batch) -> Iterator[SearchResult]:
    """Yield the result of a search at each stage, started from the proposals of the stage before."""
    start, bounds = None, context.judge.classifier.bounds
    for stage in _stages(context):
        result = context.search(batch, start, stage)
        yield result
        images = result.proposals
        allowed = inside_box(images, bounds) & stage.budget.contains(batch.images, images)
        start = where_rows(allowed, images, batch.images)


def _search_once(context: CellContext, batch: Batch) -> Iterator[SearchResult]:
    """Yield the result of one search without eps, scaled to the eps of each stage."""
    result, bounds = context.search(batch, None, context.threat), context.judge.classifier.bounds
    for number, stage in enumerate(_stages(context)):
        images = result.proposals
        if isinstance(stage.budget, LpBall):
            images = scale_to_budget(batch.images, images - batch.images, stage.budget, bounds)
        yield result.with_proposals(images, stage, already_counted=number > 0)


def _start_block(context: CellContext, batch: Batch) -> BlockState:
    judge = context.judge
    outside = ~inside_box(batch.images, judge.classifier.bounds)
    if outside.any():
        raise BadData(
            f"sample {batch.ids[outside][0]} of {judge.dataset.name} leaves the model's bounds (check C17)",
            got=f"[{batch.images.min():g}, {batch.images.max():g}]",
            expected=str(tuple(judge.classifier.bounds)),
        )
    before = judge.predict(batch.images, batch.ids)
    failed = ~before.valid
    if failed.all() and not judge.works_on_others(batch.ids):
        raise BadModel("the model's output for every clean input is not a number")
    _log_failures(context, "model_failure", batch.ids[failed])
    wrong = already_wrong(context.threat, before, batch.labels) | failed
    return BlockState(batch, before, wrong, judge.true_classes(batch.images, batch.ids))


NOT_A_NUMBER = {
    "model_failure": "the model's output is not a number",
    "numerics": "the proposal or the model's output is not a number",
}
"""Why samples without a valid output have these statuses, unless the model raised."""


def _log_failures(context: CellContext, event: str, ids: Tensor) -> None:
    """Log the samples (m,) for which the model has no valid output, by the reason."""
    reasons = context.judge.take_raised()
    groups: dict[str, list[int]] = {}
    for sample in ids.tolist():
        reason = reasons.get(sample, NOT_A_NUMBER[event])
        groups.setdefault(reason, []).append(sample)
    for reason, samples in groups.items():
        context.log_event(event, reason=reason, samples=samples)


def _apply_result(
    context: CellContext, state: BlockState, rows: Tensor, result: SearchResult
) -> None:
    """Judge the proposals of a search for the samples at (m,) positions, and mark those that it breaks."""
    batch, before = state.batch[rows], state.before[rows]
    state.add_passes(rows, result)
    assessment = context.judge.judge(batch, before, result.proposals, result.threat)
    rerun = _is_rerun(context, result.threat)
    if not rerun:
        statuses = _failure_statuses(context.attack.kind, result, assessment)
        state.set_status({int(rows[row]): status for row, status in statuses.items()})
        _log_failures(
            context, "numerics", batch.ids[[r for r, s in statuses.items() if s == "numerics"]]
        )
    state.abandoned[rows[list(result.crashes)]] = True
    _log_crashes(context, batch, result)
    _record_successes(context, state, result.threat, rows, assessment)
    if result.undefined.any():  # such a query is no success (check C30)
        context.log_event("undefined_output", samples=batch.ids[result.undefined].tolist())
    # a success that a query showed and the attack did not return (check C15)
    lost = (result.succeeded & ~assessment.reached).nonzero()[:, 0]
    if len(lost):
        again = context.judge.judge(batch[lost], before[lost], result.nearest[lost], result.threat)
        rescued = _record_successes(
            context, state, result.threat, rows[lost[again.reached]], again[again.reached]
        )
        if len(rescued):
            samples = state.batch.ids[rescued].tolist()
            context.log_event("silent_success", samples=samples, count=len(samples))
    counted = torch.ones_like(assessment.reached)
    if rerun:
        counted = state.broken_at[rows] <= result.threat.epsilons[-1]
    _log_numbers(context, batch.ids[counted], {k: v[counted] for k, v in result.logged.items()})


def _is_rerun(context: CellContext, stage: ThreatModel) -> bool:
    """Return whether the samples were attacked at a larger eps before, so that only successes count."""
    return context.descending and stage.epsilons[-1] < context.threat.epsilons[-1]


def _eps_values(context: CellContext, stage: ThreatModel) -> tuple[float, ...]:
    """Return the ascending eps at which a success of a stage may break its sample; empty for its distance.

    In a descending sweep these are all eps up to the stage's; an ascending one has searched the smaller ones already.
    """
    if not context.descending:
        return stage.epsilons
    return tuple(eps for eps in context.threat.epsilons if eps <= stage.epsilons[-1])


def _record_successes(
    context: CellContext,
    state: BlockState,
    stage: ThreatModel,
    rows: Tensor,
    assessment: Assessment,
) -> Tensor:
    """Keep m judged inputs, and mark as broken the samples whose success is replayed.

    Returns:
        (k,) positions of the broken samples.
    """
    sure = torch.ones_like(assessment.reached)
    hits = (assessment.reached & ~state.wrong[rows]).nonzero()[:, 0]
    if len(hits):
        batch, before = state.batch[rows[hits]], state.before[rows[hits]]
        sure[hits] = _replay_successes(context, batch, before, assessment[hits])
    broken = assessment.reached & sure
    kept = broken if _is_rerun(context, stage) else torch.ones_like(broken)
    state.set_images(rows[kept], assessment[kept], sure[kept])
    state.mark_broken(rows[broken], _eps_values(context, stage), stage.norm)
    return rows[broken]


def _failure_statuses(
    kind: Kind, result: SearchResult, assessment: Assessment
) -> Mapping[int, Status]:
    """Return the status of each attacked sample, by position in the attacked batch."""
    n = len(assessment.images)
    if result.crash is not None:
        return dict.fromkeys(range(n), "crash")
    outside = ~(assessment.allowed if kind == "fixed-budget" else assessment.in_bounds)
    statuses: dict[int, Status] = dict.fromkeys(range(n), "ok")
    statuses |= dict.fromkeys(outside.nonzero()[:, 0].tolist(), "budget")
    statuses |= dict.fromkeys((~assessment.valid).nonzero()[:, 0].tolist(), "numerics")
    return {**statuses, **result.failures, **dict.fromkeys(result.crashes, "crash")}


def _log_crashes(context: CellContext, batch: Batch, result: SearchResult) -> None:
    """Log that an attack raised, for the whole batch or for single samples."""
    epsilons = result.threat.epsilons
    where = {"eps": epsilons[-1]} if epsilons else {}
    reasons: dict[int, str] = (
        dict.fromkeys(range(len(batch)), result.crash) if result.crash else {**result.crashes}
    )
    for row, status in result.failures.items():
        if status == "crash":
            reasons.setdefault(row, "the attack raised for single samples")
    groups: dict[str, list[int]] = {}
    for row, reason in reasons.items():
        groups.setdefault(reason, []).append(row)
    for reason, rows in groups.items():
        context.log_event("crash", reason=reason, samples=batch.ids[rows].tolist(), **where)


def _log_numbers(context: CellContext, ids: Tensor, logged: Mapping[str, Tensor]) -> None:
    """Log the numbers that an attack reports for some samples (m,); infinite and NaN values as null."""
    if logged and len(ids):
        columns = {name: _json_numbers(values) for name, values in logged.items()}
        context.log_event(SAMPLE_VALUES, samples=ids.tolist(), values=columns)


def _json_numbers(values: Tensor) -> list[float | None]:
    if not values.is_floating_point():
        return list(values.tolist())
    return [float(f"{value:.6g}") if isfinite(value) else None for value in values.tolist()]


def _replay_successes(
    context: CellContext, batch: Batch, before: Output, assessment: Assessment
) -> Tensor:
    """Return which of m successes occur again in another batch, (m,); log the others (check C14)."""
    again = context.judge.replay(assessment.images, batch.ids)
    evidence = GoalInputs(
        batch.images, assessment.images, batch.labels, before, again, assessment.oracle
    )
    same = _same_decision(assessment.after, again) & context.threat.goal.reached(evidence)
    if not same.all():
        samples = batch.ids[~same].tolist()
        context.log_event("not_replayed", samples=samples, count=len(samples))
    return same


def _replay_robust(context: CellContext, state: BlockState, rows: Tensor) -> None:
    """Classify the inputs of the unbroken samples at (m,) positions again, in another batch."""
    if len(rows):
        again = context.judge.replay(state.images[rows], state.batch.ids[rows])
        state.replayed[rows] &= _same_decision(state.after[rows], again)


def _same_decision(output: Output, again: Output) -> Tensor:
    """Return (n,): are prediction and acceptance the same in both outputs?"""
    same = output.decision == again.decision
    if output.accepted is not None and again.accepted is not None:
        same &= output.accepted == again.accepted
    return same
