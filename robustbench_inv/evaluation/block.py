"""Evaluates one block of samples: clean answers, attack, verdicts, replay, records."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind
from robustbench_inv.errors import BadData, BadModel
from robustbench_inv.evaluation.metering import inside_box
from robustbench_inv.evaluation.search import Found
from robustbench_inv.evaluation.setting import Setting
from robustbench_inv.evaluation.standing import Standing
from robustbench_inv.evaluation.sweep import Step, follow
from robustbench_inv.evaluation.verdict import Judgement, already_wrong, is_number
from robustbench_inv.results.measured import MEASURED
from robustbench_inv.results.record import Record, Status
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import Evidence

__all__ = ["Evaluated", "evaluate_block"]


@dataclass(frozen=True)
class Evaluated:
    """The outcome of a block: its records, and what is shown of each sample, (n, …)."""

    records: list[Record]
    clean: Tensor
    shown: Tensor


def evaluate_block(setting: Setting, batch: Batch) -> Evaluated:
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
    standing = _begin(setting, batch)
    for step in follow(setting, standing):
        _settle(setting, standing, step)
        if step.found.crash is not None:
            break
    _replay(setting, standing, standing.unbroken)
    source = setting.court.oracle.source if setting.court.oracle else None
    return Evaluated(standing.records(source), batch.images, standing.images)


def _begin(setting: Setting, batch: Batch) -> Standing:
    court = setting.court
    if not inside_box(batch.images, court.classifier.bounds).all():
        raise BadData(
            f"{court.dataset.name} leaves the model's bounds (check C17)",
            got=f"[{batch.images.min():g}, {batch.images.max():g}]",
            expected=str(tuple(court.classifier.bounds)),
        )
    before = court.answer(batch.images, batch.ids)
    if not is_number(before).all():
        raise BadModel("the model's answer to a clean input is not a number")
    wrong = already_wrong(setting.threat, before, batch.labels)
    return Standing(batch, before, wrong, court.true_classes(batch.images, batch.ids))


def _settle(setting: Setting, standing: Standing, step: Step) -> None:
    """Judge what a search found, and let the samples fall that it breaks."""
    rows, found = step.rows, step.found
    batch, before = standing.batch[rows], standing.before[rows]
    standing.charge(rows, found)
    judged = setting.court.judge(batch, before, found.proposals, step.stage)
    if not step.only_successes:
        excuses = _excuses(setting.kind, found, judged)
        standing.excuse({int(rows[row]): status for row, status in excuses.items()})
    _note_crashes(setting, batch, step)
    _take(setting, standing, step, rows, judged)
    # a success that a query showed and the attack did not return (check C15)
    lost = (found.met & ~judged.reached).nonzero()[:, 0]
    if len(lost):
        again = setting.court.judge(batch[lost], before[lost], found.nearest[lost], step.stage)
        rescued = _take(setting, standing, step, rows[lost[again.reached]], again[again.reached])
        if len(rescued):
            samples = standing.batch.ids[rescued].tolist()
            setting.note("silent_success", samples=samples, count=len(samples))
    shown = torch.ones_like(judged.reached)
    if step.only_successes:
        shown = standing.broken_at[rows] <= step.ladder[-1]
    _note_measured(setting, batch.ids[shown], {k: v[shown] for k, v in found.measured.items()})


def _take(
    setting: Setting, standing: Standing, step: Step, rows: Tensor, judged: Judgement
) -> Tensor:
    """Show the m inputs that were judged, and let those fall that are successes, also when asked again.

    Returns:
        (k,) positions of those that fell.
    """
    sure = torch.ones_like(judged.reached)
    hits = (judged.reached & ~standing.wrong[rows]).nonzero()[:, 0]
    if len(hits):
        batch, before = standing.batch[rows[hits]], standing.before[rows[hits]]
        sure[hits] = _replays(setting, batch, before, judged[hits])
    fallen = judged.reached & sure
    shown = fallen if step.only_successes else torch.ones_like(fallen)
    standing.show(rows[shown], judged[shown], sure[shown])
    standing.fall(rows[fallen], step.ladder, step.stage.norm)
    return rows[fallen]


def _excuses(kind: Kind, found: Found, judged: Judgement) -> dict[int, Status]:
    """Return why there is no valid proposal, by position in the attacked batch."""
    n = len(judged.images)
    if found.crash is not None:
        return dict.fromkeys(range(n), "crash")
    outside = ~(judged.allowed if kind == "budget" else judged.boxed)
    excuses: dict[int, Status] = dict.fromkeys(range(n), "ok")
    excuses |= dict.fromkeys(outside.nonzero()[:, 0].tolist(), "budget")
    excuses |= dict.fromkeys((~judged.usable).nonzero()[:, 0].tolist(), "numerics")
    return excuses | found.marks


def _note_crashes(setting: Setting, batch: Batch, step: Step) -> None:
    """Note that an attack raised, or that it raised for single samples while it went on with the others."""
    crash, where = step.found.crash, {"eps": step.ladder[-1]} if step.ladder else {}
    single = [row for row, status in step.found.marks.items() if status == "crash"]
    if crash is not None:
        setting.note("crash", reason=crash, samples=batch.ids.tolist(), **where)
    if single:
        samples = batch.ids[single].tolist()
        reason = "the attack raised for single samples"
        setting.note("crash", reason=reason, samples=samples, **where)


def _note_measured(setting: Setting, ids: Tensor, measured: dict[str, Tensor]) -> None:
    """Note the numbers that an attack keeps of some samples (m,); those that are not finite as null."""
    if measured and len(ids):
        columns = {name: _plain(values) for name, values in measured.items()}
        setting.note(MEASURED, samples=ids.tolist(), values=columns)


def _plain(values: Tensor) -> list[float | None]:
    if not values.is_floating_point():
        return list(values.tolist())
    return [float(f"{value:.6g}") if isfinite(value) else None for value in values.tolist()]


def _replays(setting: Setting, batch: Batch, before: Output, judged: Judgement) -> Tensor:
    """Return which of m successes are there again in another batch, (m,); take a note of the others (check C14)."""
    again = setting.court.replay(judged.images, batch.ids)
    evidence = Evidence(batch.images, judged.images, batch.labels, before, again, judged.oracle)
    same = _agree(judged.after, again) & setting.threat.goal.reached(evidence)
    if not same.all():
        samples = batch.ids[~same].tolist()
        setting.note("not_replayed", samples=samples, count=len(samples))
    return same


def _replay(setting: Setting, standing: Standing, rows: Tensor) -> None:
    """Ask again, in another batch, about the samples at (m,) positions, which no attack broke."""
    if len(rows):
        again = setting.court.replay(standing.images[rows], standing.batch.ids[rows])
        standing.replayed[rows] &= _agree(standing.after[rows], again)


def _agree(output: Output, again: Output) -> Tensor:
    """Return (m,): is the second answer the same decision, and accepted if the first was?"""
    same = output.decision == again.decision
    if output.accepted is not None and again.accepted is not None:
        same &= output.accepted == again.accepted
    return same
