"""Evaluates one block of samples: clean answers, attack, verdicts, replay, records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind
from robustbench_inv.errors import BadData, BadModel
from robustbench_inv.evaluation.describe import epsilons
from robustbench_inv.evaluation.metering import inside_box
from robustbench_inv.evaluation.search import Found, Search
from robustbench_inv.evaluation.standing import Standing
from robustbench_inv.evaluation.transfer import lengthen
from robustbench_inv.evaluation.verdict import Court, Judgement, already_wrong, is_number
from robustbench_inv.results.measured import MEASURED
from robustbench_inv.results.record import Record, Status
from robustbench_inv.tensors import where_rows
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import Evidence
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Evaluated", "Note", "Setting", "evaluate_block"]

Note = Callable[..., None]
"""Called with a kind and values for what is worth an entry in events.jsonl."""

Step = tuple[ThreatModel, Tensor, Found]
"""A stage, the (m,) positions of the samples that stand, and what was found for these."""


@dataclass(frozen=True)
class Setting:
    """What all blocks of a cell share.

    Args:
        kind: of the attack.
        threat: the threat with its whole sweep.
        search: searches on a copy of the model, or on a substitute.
        court: judges on the original.
        note: takes notes.
    """

    kind: Kind
    threat: ThreatModel
    search: Search
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

    A sample that the model gets wrong needs no attack, but is shown what is given instead of it. The others are
    attacked at each eps in ascending order, from what is shown of them so far, until they fall. Under a transfer
    threat the search is the same for every model: it goes on with all samples, from what it last proposed, and
    only their verdicts stop.

    Raises:
        BadData: if a clean input is outside the model's bounds.
        BadModel: if the model's answer to a clean input is not a number.
    """
    standing = _begin(setting, batch)
    follow = _on_a_substitute if setting.threat.transfers else _on_the_model
    for stage, rows, found in follow(setting, standing):
        _settle(setting, standing, rows, stage, found)
        if found.crash is not None:
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


def _stages(setting: Setting) -> Iterator[ThreatModel]:
    """Yield the threats to be judged under: each eps, or the whole threat for an attack that is run once.

    An attack that seeks the nearest success is run once, and its success falls where it is. On a substitute
    its direction counts, which is tried at the length of each eps.
    """
    each = setting.kind == "budget" or setting.threat.transfers
    sweep = epsilons(setting.threat) if each else ()
    yield from (setting.threat.at(eps) for eps in sweep)
    if not sweep:
        yield setting.threat


def _on_the_model(setting: Setting, standing: Standing) -> Iterator[Step]:
    """Search at each stage with the samples that still stand."""
    for number, stage in enumerate(_stages(setting)):
        rows = standing.all if setting.kind == "given" else standing.undecided
        if not len(rows):
            return
        start = standing.allowed_images[rows] if number else None
        yield stage, rows, setting.search(standing.batch[rows], start, stage)


def _on_a_substitute(setting: Setting, standing: Standing) -> Iterator[Step]:
    """Search with all samples, whatever the model says of them, as long as one of them stands."""
    search = _each_anew if setting.kind == "budget" else _one_for_all
    found = search(setting, standing.batch)
    for stage in _stages(setting):
        rows = standing.undecided
        if not len(rows):
            return
        yield stage, rows, next(found)[rows]


def _each_anew(setting: Setting, batch: Batch) -> Iterator[Found]:
    """Yield what a search finds at each stage, begun from what it proposed at the one before."""
    start, bounds = None, setting.court.classifier.bounds
    for stage in _stages(setting):
        found = setting.search(batch, start, stage)
        yield found
        images = found.proposals
        allowed = inside_box(images, bounds) & stage.budget.contains(batch.images, images)
        start = where_rows(allowed, images, batch.images)


def _one_for_all(setting: Setting, batch: Batch) -> Iterator[Found]:
    """Yield what one search without eps finds, at the length of each stage."""
    found, bounds = setting.search(batch, None, setting.threat), setting.court.classifier.bounds
    for number, stage in enumerate(_stages(setting)):
        images = found.proposals
        if isinstance(stage.budget, LpBall):
            images = lengthen(batch.images, images - batch.images, stage.budget, bounds)
        yield found.proposing(images, again=number > 0)


def _settle(
    setting: Setting, standing: Standing, rows: Tensor, stage: ThreatModel, found: Found
) -> None:
    """Judge what was found for the samples at (m,) positions, and let those that it breaks fall."""
    batch = standing.batch[rows]
    standing.charge(rows, found)
    judged = setting.court.judge(batch, standing.before[rows], found.proposals, stage)
    standing.show(rows, judged)
    excuses = _excuses(setting.kind, found, judged)
    standing.excuse({int(rows[row]): status for row, status in excuses.items()})
    _note_crashes(setting, batch, found)
    _note_measured(setting, batch, found)
    standing.fall(rows[judged.reached], epsilons(stage), stage.norm)
    _rescue(setting, standing, rows, stage, found, judged)
    # at once, so that a sample whose success is taken back is attacked again at the next eps
    _replay(setting, standing, rows[~standing.broken_at[rows].isnan()])


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


def _note_crashes(setting: Setting, batch: Batch, found: Found) -> None:
    """Note that an attack raised, or that it raised for single samples while it went on with the others."""
    single = [row for row, status in found.marks.items() if status == "crash"]
    if found.crash is not None:
        setting.note("crash", reason=found.crash, samples=batch.ids.tolist())
    if single:
        samples = batch.ids[single].tolist()
        setting.note("crash", reason="the attack raised for single samples", samples=samples)


def _note_measured(setting: Setting, batch: Batch, found: Found) -> None:
    """Note the numbers that an attack keeps of each sample; those that are not finite as null."""
    if found.measured:
        columns = {name: _plain(values) for name, values in found.measured.items()}
        setting.note(MEASURED, samples=batch.ids.tolist(), values=columns)


def _plain(values: Tensor) -> list[float | None]:
    if not values.is_floating_point():
        return list(values.tolist())
    return [float(f"{value:.6g}") if isfinite(value) else None for value in values.tolist()]


def _rescue(
    setting: Setting,
    standing: Standing,
    rows: Tensor,
    stage: ThreatModel,
    found: Found,
    judged: Judgement,
) -> None:
    """Use a success that a query showed and the attack did not return (check C15)."""
    lost = (found.met & ~judged.reached).nonzero()[:, 0]
    if not len(lost):
        return
    batch, before = standing.batch[rows[lost]], standing.before[rows[lost]]
    again = setting.court.judge(batch, before, found.nearest[lost], stage)
    kept = rows[lost[again.reached]]
    if len(kept):
        standing.show(kept, again[again.reached])
        standing.fall(kept, epsilons(stage), stage.norm)
        samples = standing.batch.ids[kept].tolist()
        setting.note("silent_success", samples=samples, count=len(samples))


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
