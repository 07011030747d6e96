"""How well a rejection score separates inputs that should be rejected from clean ones, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from robustbench_inv.reporting.statistics import CONFIDENCE, Interval
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.record import NO_PREDICTION
from robustbench_inv.results.record_columns import OutputColumns
from robustbench_inv.results.summary import Distances, Rate, share_of

__all__ = [
    "AreaUnderCurve",
    "RiskCoverage",
    "SelectiveAccuracy",
    "aupr",
    "auroc",
    "clean_scores",
    "detection_at",
    "fpr_at",
    "has_scores",
    "knows_thresholds",
    "risk_coverage",
    "scores_to_reject",
    "selective_adversarial",
    "selective_clean",
]


Z = float(ndtri((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class AreaUnderCurve:
    """An area under a curve, 0 to 1, with its 95 % interval."""

    value: float
    interval: Interval


def auroc(clean: Distances, to_reject: Distances) -> AreaUnderCurve | None:
    """Return the probability that a clean input scores higher than an input to reject; ties count one half.

    Args:
        clean: scores of clean inputs; higher means more in-distribution.
        to_reject: scores of inputs to reject.

    Returns:
        None unless there are two of each.

    References:
        DeLong, DeLong and Clarke-Pearson, Biometrics 1988, for the variance; Sun and Xu, IEEE Signal Processing
        Letters 2014, for its computation from ranks. The interval is that of the logit, which stays inside 0 to 1;
        where all pairs are in order, it is as wide as that of a share of none.

    Example:
        >>> auroc([3.0, 4.0, 5.0], [1.0, 2.0, 4.0]).value
        0.8333333333333334
    """
    x, y = np.asarray(clean, float), np.asarray(to_reject, float)
    m, n = len(x), len(y)
    if min(m, n) < 2:
        return None
    ranks = rankdata(np.concatenate([x, y]))
    placed_x = (ranks[:m] - rankdata(x)) / n
    placed_y = 1 - (ranks[m:] - rankdata(y)) / m
    value = float(placed_x.mean())
    deviation = sqrt(placed_x.var(ddof=1) / m + placed_y.var(ddof=1) / n)
    return AreaUnderCurve(value, _on_logit(value, deviation, min(m, n)))


def aupr(clean: Distances, to_reject: Distances) -> AreaUnderCurve | None:
    """Return the average precision of rejecting the lowest scores first, ties taken together.

    Args:
        clean: scores of clean inputs.
        to_reject: scores of inputs to reject: the positives, whose share is the value of a random score.

    Returns:
        None unless there are two of each.

    References:
        Boyd, Eng and Page, AreaUnderCurve under the precision-recall curve, ECML 2013, section 3.3, for the interval: that
        of a share of as many trials as there are positives. Wilson's, for near 1 that on the logit spans everything.

    Example:
        >>> aupr([3.0, 4.0], [1.0, 2.0]).value
        1.0
    """
    x, y = np.asarray(clean, float), np.asarray(to_reject, float)
    if min(len(x), len(y)) < 2:
        return None
    limits = np.unique(y)
    found = np.searchsorted(np.sort(y), limits, side="right")
    wrongly = np.searchsorted(np.sort(x), limits, side="right")
    gained = np.diff(found, prepend=0)
    value = min(1.0, fsum(gained * found / (found + wrongly)) / len(y))
    return AreaUnderCurve(value, _of_share(value, len(y)))


def detection_at(clean: Distances, to_reject: Distances, false: float) -> Rate:
    """Return the share that is rejected at the threshold with this false-rejection rate.

    Args:
        clean: scores of clean inputs.
        to_reject: scores of inputs to reject.
        false: largest share of rejected clean inputs, 0 to below 1.

    Example:
        >>> detection_at([1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.5], 0.25)
        Rate(successes=2, trials=3)
    """
    if not len(clean):
        return Rate(0, 0)
    threshold = sorted(clean)[int(false * len(clean))]
    return Rate(sum(score < threshold for score in to_reject), len(to_reject))


def fpr_at(clean: Distances, to_reject: Distances, kept: float = 0.95) -> Rate:
    """Return the share of inputs to reject that is accepted while this share of clean inputs is (FPR@95).

    Args:
        clean: scores of clean inputs.
        to_reject: scores of inputs to reject.
        kept: share of clean inputs that must be accepted.
    """
    caught = detection_at(clean, to_reject, round(1 - kept, 12))
    return Rate(caught.trials - caught.successes, caught.trials)


@dataclass(frozen=True)
class RiskCoverage:
    """The share of errors among accepted inputs, for every number of them, highest scores first.

    Args:
        coverage: (n,) ascending shares of accepted inputs.
        risk: (n,) share of errors among them.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC); nan without inputs."""
        return float(self.risk.mean()) if len(self.risk) else float("nan")

    def at(self, coverage: float) -> Rate:
        """Return the errors among accepted inputs at this coverage."""
        k = max(1, round(coverage * len(self.risk)))
        return Rate(round(float(self.risk[k - 1]) * k), k)


def risk_coverage(scores: Distances, right: Sequence[bool] | NDArray[np.bool_]) -> RiskCoverage:
    """Return the risk-coverage curve of a score; inputs of equal scores are accepted together, at their mean risk.

    References:
        Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017, section 2.

    Example:
        >>> risk_coverage([0.9, 0.8, 0.1], [True, True, False]).risk.round(2).tolist()
        [0.0, 0.0, 0.33]
    """
    score, wrong = np.asarray(scores, float), 1.0 - np.asarray(right, float)
    values, group = np.unique(-score, return_inverse=True)
    means = np.bincount(group, wrong) / np.bincount(group) if len(values) else wrong
    ordered = means[np.sort(group)] if len(values) else wrong
    answered = np.arange(1, len(ordered) + 1)
    return RiskCoverage(answered / max(len(ordered), 1), ordered.cumsum() / answered)


def _of_share(value: float, trials: int) -> Interval:
    """Return Wilson's interval of a share that need not be a whole number of the trials."""
    centre = (value * trials + Z**2 / 2) / (trials + Z**2)
    half = Z / (trials + Z**2) * sqrt(trials * value * (1 - value) + Z**2 / 4)
    return Interval(min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)))


def _on_logit(value: float, deviation: float, count: int) -> Interval:
    """Return an interval that is symmetric on the logit; at 0 and 1 that of a share of none of ``count``."""
    if deviation == 0 or not 0 < value < 1:
        end = 1 - (1 - CONFIDENCE) ** (1 / count)
        return Interval(max(0.0, value - end), min(1.0, value + end))
    centre, half = log(value / (1 - value)), Z * deviation / (value * (1 - value))
    return Interval(*(1 / (1 + exp(-min(700.0, max(-700.0, centre + s * half)))) for s in (-1, 1)))


def has_scores(cell: FinishedCell) -> bool:
    """Has the model a reject option, and every valid output its score?"""
    if not cell.can_reject:
        return False
    outputs = cell.records.columns.clean, cell.records.columns.adversarial
    valid = [each.score[each.prediction != NO_PREDICTION] for each in outputs]
    scores = np.concatenate(valid)
    return len(scores) > 0 and not bool(np.isnan(scores).any())


def knows_thresholds(cell: FinishedCell) -> bool:
    """Did a search aim at inputs that the model accepts?

    It stops just past the model's own thresholds, so that its inputs are rejected at stricter ones, at which the same
    search would go farther. Their scores measure no other threshold.
    """
    aims = cell.goal.endswith("accepted") or cell.threat.wants_same_prediction
    searches = cell.kind != "fixed-input" or cell.uses_gradients
    return (
        cell.can_reject and searches and (aims or (cell.goal == "accept" and cell.uses_gradients))
    )


def clean_scores(cell: FinishedCell) -> NDArray[np.float64]:
    """Return the scores of clean inputs minus the threshold of the predicted class."""
    return _scores(cell, cell.records.columns.clean)


def scores_to_reject(cell: FinishedCell) -> NDArray[np.float64]:
    """Return the same for inputs to reject: misclassified ones, or all inputs that belong to no class."""
    found = cell.records.columns
    chosen = found.was_attacked & (cell.threat.no_class | ~found.is_correct)
    return _scores(cell, found.adversarial)[chosen]


@dataclass(frozen=True)
class SelectiveAccuracy:
    """Errors among accepted inputs as the threshold varies, and at the model's own threshold.

    Args:
        curve: share of errors against the share of accepted inputs.
        coverage: accepted inputs at the model's own threshold.
        risk: errors among these.
    """

    curve: RiskCoverage
    coverage: Rate
    risk: Rate


def selective_clean(cell: FinishedCell) -> SelectiveAccuracy:
    """Return the selective accuracy on the clean inputs of a cell."""
    found = cell.records.columns
    return _selective(cell, found.clean, found.is_clean_correct)


def selective_adversarial(cell: FinishedCell) -> SelectiveAccuracy:
    """Return the selective accuracy on the adversarial inputs of a cell."""
    found = cell.records.columns
    return _selective(cell, found.adversarial, found.is_correct)


def _selective(
    cell: FinishedCell, answers: OutputColumns, right: NDArray[np.bool_]
) -> SelectiveAccuracy:
    taken = answers.accepted == 1
    curve, coverage = (
        risk_coverage(_scores(cell, answers), right),
        Rate(int(taken.sum()), len(right)),
    )
    return SelectiveAccuracy(curve, coverage, share_of(~right, taken))


def _scores(cell: FinishedCell, answers: OutputColumns) -> NDArray[np.float64]:
    """Return the scores minus the thresholds; inf without a valid output, which counts as accepted at any threshold."""
    valid, scores = answers.prediction != NO_PREDICTION, answers.score
    if cell.model.rejection and cell.model.rejection.values:
        thresholds = np.array(cell.model.rejection.values, float)
        scores = scores - thresholds[np.where(valid, answers.prediction, 0)]
    return np.where(valid, scores, inf)
