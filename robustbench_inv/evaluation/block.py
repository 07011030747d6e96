"""Evaluates one block of samples: clean answers, attack, verdicts, replay, records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch
from robustbench_inv.data.protocol import JudgesLabels
from robustbench_inv.errors import BadData, BadModel, UsageError
from robustbench_inv.evaluation.beyond import move_beyond
from robustbench_inv.evaluation.describe import epsilons
from robustbench_inv.evaluation.metering import Meter, inside_box
from robustbench_inv.evaluation.standing import Standing
from robustbench_inv.evaluation.verdict import (
    Court,
    Judgement,
    already_wrong,
    checked_shape,
    is_number,
)
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.results.record import Record, Status
from robustbench_inv.threat.goals import Evidence
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Evaluated", "Note", "Setting", "evaluate_block", "out_of_memory"]

Note = Callable[..., None]
"""Called with a kind and values for what is worth an entry in events.jsonl."""


@dataclass(frozen=True)
class Setting:
    """What all blocks of a cell share.

    Args:
        attack: the attack.
        threat: the threat with its whole sweep.
        searched: the model that the attack searches on.
        court: judges on the original.
        note: takes notes.
    """

    attack: Attack
    threat: ThreatModel
    searched: Classifier
    court: Court
    note: Note


@dataclass(frozen=True)
class Evaluated:
    """The outcome of a block: its records, and what is shown of each sample, (n, …)."""

    records: list[Record]
    clean: Tensor
    shown: Tensor


def evaluate_block(setting: Setting, batch: Batch) -> Evaluated:
    """Evaluate the samples of one block.

    A sample that the model gets wrong needs no attack. The others are attacked at each eps in ascending
    order, from what is shown of them so far, until they fall.

    Raises:
        BadData: if a clean input is outside the model's bounds.
        BadModel: if the model's answer to a clean input is not a number.
    """
    standing = _begin(setting, batch)
    for number, stage in enumerate(_stages(setting)):
        rows = standing.undecided
        if not len(rows) or not _attack(setting, standing, rows, stage, warm=number > 0):
            break
    _replay(setting, standing, standing.unbroken)
    data = setting.court.dataset
    source = data.oracle_source if isinstance(data, JudgesLabels) else None
    return Evaluated(standing.records(source), batch.images, standing.images)


def out_of_memory(error: BaseException) -> bool:
    """Is this the error of a device, or of the CPU's allocator, that has no memory left?"""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text and "memory" in text
    )


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
    return Standing(batch, before, wrong, court.true_classes(batch.images))


def _stages(setting: Setting) -> Iterator[ThreatModel]:
    """Yield the threats to search under: each eps for a budget attack, the largest alone for the others."""
    sweep = epsilons(setting.threat) if setting.attack.kind == "budget" else ()
    yield from (setting.threat.at(eps) for eps in sweep)
    if not sweep:
        yield setting.threat


def _attack(
    setting: Setting, standing: Standing, rows: Tensor, stage: ThreatModel, *, warm: bool
) -> bool:
    """Attack the samples at (m,) positions and settle what became of them; False if the attack crashed."""
    batch, given = standing.batch[rows], standing.batch[rows]  # an attack may write into its own
    if warm:
        given = replace(given, start=standing.allowed_images[rows])
    # draws of its own for each eps: an image that only looked broken must not look so again
    noise = setting.court.noise(batch.ids).named(f"attack/{stage.budget}")
    keeps_best = setting.attack.kind != "invariance"
    meter = Meter(setting.searched, batch, stage, noise, keep_best=keeps_best)
    proposals, crashed = _propose(setting, meter, given, stage)
    standing.charge(rows, meter)
    before = standing.before[rows]
    judged = setting.court.judge(batch, before, proposals, stage)
    standing.show(rows, judged)
    for row, status in _excuses(setting, meter, judged, crashed=crashed).items():
        standing.status[int(rows[row])] = status
    _note_single_crashes(setting, meter)
    standing.fall(rows[judged.reached], _ladder(setting, stage), stage.norm)
    _rescue(setting, standing, rows, meter, judged)
    # at once, so that a sample whose success is taken back is attacked again at the next eps
    _replay(setting, standing, rows[~standing.broken_at[rows].isnan()])
    return not crashed


def _propose(
    setting: Setting, meter: Meter, batch: Batch, stage: ThreatModel
) -> tuple[Tensor, bool]:
    """Return the attack's proposals and whether it crashed; the clean inputs if it did.

    Args:
        setting: the attack.
        meter: answers it.
        batch: the attack's own copy of the meter's batch, with the images to start from.
        stage: the threat.

    Raises:
        UsageError: if the attack says that it cannot be used so.
    """
    try:
        found = setting.attack.run(meter, batch, stage, meter.noise)
        proposals = checked_shape(found, meter.batch)
        final = meter.repeatable or setting.attack.kind != "minimal"
        return (proposals if final else move_beyond(meter, proposals)), False
    except UsageError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        setting.note("crash", reason=reason, samples=meter.batch.ids.tolist())
        return meter.batch.images, True


def _excuses(
    setting: Setting, meter: Meter, judged: Judgement, *, crashed: bool
) -> dict[int, Status]:
    """Return why there is no valid proposal, by position in the attacked batch."""
    n = len(judged.images)
    if crashed:
        return dict.fromkeys(range(n), "crash")
    outside = ~(judged.allowed if setting.attack.kind == "budget" else judged.boxed)
    found: dict[int, Status] = dict.fromkeys(range(n), "ok")
    found |= dict.fromkeys(outside.nonzero()[:, 0].tolist(), "budget")
    found |= dict.fromkeys((~judged.usable).nonzero()[:, 0].tolist(), "numerics")
    return found | meter.marks


def _note_single_crashes(setting: Setting, meter: Meter) -> None:
    """Note the samples for which an attack raised while it went on with the others."""
    rows = [row for row, status in meter.marks.items() if status == "crash"]
    if rows:
        samples = meter.batch.ids[rows].tolist()
        setting.note("crash", reason="the attack raised for single samples", samples=samples)


def _rescue(
    setting: Setting, standing: Standing, rows: Tensor, meter: Meter, judged: Judgement
) -> None:
    """Use a success that a query showed and the attack did not return (check C15)."""
    lost = (meter.found & ~judged.reached).nonzero()[:, 0]
    if not len(lost):
        return
    batch = meter.batch[lost]
    found = setting.court.judge(batch, standing.before[rows[lost]], meter.best[lost], meter.threat)
    kept = rows[lost[found.reached]]
    if len(kept):
        standing.show(kept, found[found.reached])
        standing.fall(kept, _ladder(setting, meter.threat), meter.threat.norm)
        samples = standing.batch.ids[kept].tolist()
        setting.note("silent_success", samples=samples, count=len(samples))


def _ladder(setting: Setting, stage: ThreatModel) -> tuple[float, ...]:
    """Return the eps at which a success under a stage can have fallen."""
    return epsilons(stage) if setting.attack.kind == "budget" else epsilons(setting.threat)


def _replay(setting: Setting, standing: Standing, rows: Tensor) -> None:
    """Ask again about the samples at (m,) positions, in another batch.

    A success that does not replay is taken back (check C14).
    """
    if not len(rows):
        return
    batch, before, after = standing.batch[rows], standing.before[rows], standing.after[rows]
    images, broken = standing.images[rows], standing.is_broken[rows]
    again = setting.court.replay(images, batch.ids)
    same = again.decision == after.decision
    if again.accepted is not None and after.accepted is not None:
        same &= again.accepted == after.accepted
    evidence = Evidence(batch.images, images, batch.labels, before, again, standing.oracle[rows])
    same &= ~broken | setting.threat.goal.reached(evidence)
    standing.replayed[rows] &= same
    lost = rows[broken & ~same]
    if len(lost):
        standing.withdraw(lost)
        samples = standing.batch.ids[lost].tolist()
        setting.note("not_replayed", samples=samples, count=len(samples))
