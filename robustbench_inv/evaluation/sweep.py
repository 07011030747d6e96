"""The order in which the samples of a block are searched for along a sweep."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.evaluation.describe import epsilons
from robustbench_inv.evaluation.metering import inside_box
from robustbench_inv.evaluation.search import Found, Search
from robustbench_inv.evaluation.setting import Setting
from robustbench_inv.evaluation.standing import Standing
from robustbench_inv.evaluation.transfer import lengthen
from robustbench_inv.tensors import where_rows
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Step", "follow"]


@dataclass(frozen=True)
class Step:
    """A search that was made at one stage of a threat.

    Args:
        stage: the budget that the verdict is taken under.
        rows: (m,) positions of the samples.
        found: what was found for these.
        ladder: ascending eps, the smallest that holds a success is where its sample falls; empty for its distance.
        only_successes: have the samples been shown at a larger eps, so that what is no success changes nothing?
    """

    stage: ThreatModel
    rows: Tensor
    found: Found
    ladder: tuple[float, ...]
    only_successes: bool = False


def follow(setting: Setting, standing: Standing) -> Iterator[Step]:
    """Yield one search after the other; its verdicts are to be in before the next is asked for."""
    if setting.threat.transfers:
        return _on_a_substitute(setting, standing)
    if setting.brief is None or len(epsilons(setting.threat)) < 2:
        return _upward(setting, standing)
    return _downward(setting, standing, setting.brief)


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


def _upward(setting: Setting, standing: Standing) -> Iterator[Step]:
    """Search at each stage with the samples that still stand."""
    for number, stage in enumerate(_stages(setting)):
        rows = standing.all if setting.kind == "given" else standing.undecided
        if not len(rows):
            return
        start = standing.allowed_images[rows] if number else None
        found = setting.search(standing.batch[rows], start, stage)
        yield Step(stage, rows, found, epsilons(stage))


def _downward(setting: Setting, standing: Standing, brief: Search) -> Iterator[Step]:
    """Search at the largest eps, then at each smaller one: briefly from what broke a sample, wholly where that fails.

    What nothing broke is searched for briefly from the clean input. Whole searches begin anew, as at their eps alone.
    A sample that has withstood one is taken to stand at every smaller eps as well, unless a brief search shows
    otherwise: from there down it is searched for wholly again.
    """
    sweep, withstood = epsilons(setting.threat), torch.zeros_like(standing.wrong)
    for number, stage in enumerate(reversed(list(_stages(setting)))):
        ladder = sweep[: len(sweep) - number]
        for search in (brief, setting.search) if number else (setting.search,):
            holds = ~(standing.broken_at <= ladder[-1])
            rows = (holds if search is brief else holds & ~withstood).nonzero()[:, 0]
            if not len(rows):
                continue
            batch = standing.batch[rows]
            start = None
            if search is brief:
                broken = standing.is_broken[rows]
                start = where_rows(broken, standing.images[rows], batch.images)
            found = search(batch, start, stage)
            yield Step(stage, rows, found, ladder, only_successes=number > 0)
        withstood = ~(standing.broken_at <= ladder[-1])


def _on_a_substitute(setting: Setting, standing: Standing) -> Iterator[Step]:
    """Search with all samples, whatever the model says of them, as long as one of them stands."""
    search = _each_anew if setting.kind == "budget" else _one_for_all
    found = search(setting, standing.batch)
    for stage in _stages(setting):
        rows = standing.undecided
        if not len(rows):
            return
        yield Step(stage, rows, next(found)[rows], epsilons(stage))


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
