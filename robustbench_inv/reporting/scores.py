"""What a cell's records say of a model's score: how far inputs lie above their thresholds, and which are answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from robustbench_inv.reporting.cells import CellResult
from robustbench_inv.reporting.detection import RiskCoverage, risk_coverage
from robustbench_inv.results.record import Answer
from robustbench_inv.results.rejection import above_threshold, is_right
from robustbench_inv.results.summary import Rate

__all__ = ["Answered", "answered_clean", "answered_shown", "clean_scores", "scored", "wrong_scores"]


def scored(cell: CellResult) -> bool:
    """Is the model of a cell one that rejects, and does every record hold its score?"""
    if cell.summary.acceptance is None:
        return False
    return all(None not in (r.before.score, r.after.score) for r in cell.records)


def clean_scores(cell: CellResult) -> list[float]:
    """Return how far clean inputs score above the threshold of the class decided for."""
    return [_above(cell, r.before) for r in cell.records]


def wrong_scores(cell: CellResult) -> list[float]:
    """Return the same for what ought to be rejected: wrong decisions, or everything where what is shown is of no class."""
    anything = cell.panel.no_class
    attacked = [r for r in cell.records if r.status != "already_wrong"]
    return [_above(cell, r.after) for r in attacked if anything or not is_right(r)]


@dataclass(frozen=True)
class Answered:
    """What a model answers as its threshold moves, and at the threshold that it has.

    Args:
        curve: share of wrong answers over the share of inputs that are answered.
        coverage: inputs that are answered, at the model's own threshold.
        risk: wrong ones of these.
    """

    curve: RiskCoverage
    coverage: Rate
    risk: Rate


def answered_clean(cell: CellResult) -> Answered:
    """Return what a model that rejects makes of the clean inputs of a cell."""
    right = [r.before.decision == r.label for r in cell.records]
    return _answered(cell, [r.before for r in cell.records], right)


def answered_shown(cell: CellResult) -> Answered:
    """Return what it makes of the inputs that an attack shows."""
    return _answered(cell, [r.after for r in cell.records], [is_right(r) for r in cell.records])


def _answered(cell: CellResult, answers: Sequence[Answer], right: Sequence[bool]) -> Answered:
    given = [fine for answer, fine in zip(answers, right, strict=True) if answer.accepted]
    curve = risk_coverage([_above(cell, answer) for answer in answers], right)
    return Answered(curve, Rate(len(given), len(answers)), Rate(given.count(False), len(given)))


def _above(cell: CellResult, answer: Answer) -> float:
    value = above_threshold(answer, cell.info["model"])
    return nan if value is None else value
