"""Two models on the same samples: paired differences, adjusted for their number, in words and as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from math import inf, isinf, nan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.arguments import format_eps
from robustbench_inv.reporting.facts import IntervalOf, place_facts, rate_facts
from robustbench_inv.reporting.run_results import CellGroup, WorstCase, group_cells, worst_cases
from robustbench_inv.reporting.statistics import (
    SIGNIFICANCE,
    Interval,
    PairedOutcomes,
    mcnemar,
    median_of,
    tango,
    wilson,
)
from robustbench_inv.reporting.table_formats import dataset_title, format_number, norm_symbol
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.sequences import confidence_sequence, evidence
from robustbench_inv.results.summary import Rate

__all__ = [
    "PairedResult",
    "compare_models",
    "pairs_of_models",
    "worst_case_result",
]

Quantity = Literal["clean", "robust", "fixed", "follows", "rejects", "distance"]
"""What is compared: correct clean or fixed inputs, robust samples, predictions that follow a change of class, rejected
inputs of no class, the larger distance."""

VERBS: dict[Quantity, tuple[str, str]] = {
    "clean": ("classifies", " of clean samples correctly"),
    "robust": ("keeps", ""),
    "fixed": ("classifies", " of fixed inputs correctly"),
    "follows": ("follows the change of the true class on", " of samples"),
    "rejects": ("rejects", " of inputs that belong to no class"),
}
NAMES: dict[Quantity, str] = {
    "clean": "clean accuracy",
    "robust": "robust accuracy",
    "fixed": "accuracy on fixed inputs",
    "follows": "follows the change of class",
    "rejects": "rejected inputs",
    "distance": "larger distance",
}


@dataclass(frozen=True, eq=False)
class PairedResult:
    """One quantity of two models on the same samples; the higher its share, the better.

    Args:
        quantity: a property that each sample has, or lacks.
        group: data set, norm, goal and oracle.
        eps: the budget; inf for any distance, nan for clean inputs.
        models: the first, which is the baseline, and the second.
        ids: (n,) the samples.
        holds: (2, n) of each model: does the quantity hold for the sample?
        attacks: on the first, on the second.
        medians: distances of the two, of the quantity ``distance``.
        p_adjusted: of all comparisons made together; nan until ``adjusted`` computes it.
        comparisons: their number.
        looked: was a cell looked at before its end? Then the p value is one that is valid at any time.
        decided: did the evaluation stop at this result? Such results are adjusted for each other alone.
    """

    quantity: Quantity
    group: CellGroup
    eps: float
    models: tuple[str, str]
    ids: NDArray[np.int64]
    holds: NDArray[np.bool_]
    attacks: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    medians: tuple[float, float] | None = None
    p_adjusted: float = nan
    comparisons: int = 1
    looked: bool = False
    decided: bool = False

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """The share of each model."""
        return tuple(Rate(int(each.sum()), len(self.ids)) for each in self.holds)  # type: ignore[return-value]

    @cached_property
    def pairs(self) -> PairedOutcomes:
        """The outcomes of the second model against those of the first."""
        return PairedOutcomes.of(self.holds[1], self.holds[0])

    @property
    def difference(self) -> float:
        """The second share minus the first."""
        return self.pairs.difference

    @cached_property
    def interval(self) -> Interval:
        """Tango's 95 % interval of the difference, not adjusted."""
        return tango(self.pairs)

    @property
    def p(self) -> float:
        """McNemar's exact p value, not adjusted; of distances it is that of the sign test."""
        if self.looked:
            return min(1.0, 1 / evidence(self.pairs.first, self.pairs.second))
        return mcnemar(self.pairs)

    @property
    def is_primary(self) -> bool:
        """Does the result answer which of two models is better? Clean accuracies and repetitions do not."""
        repeats = self.group.keeps if self.quantity == "distance" else self.eps == inf
        return self.quantity != "clean" and not (
            repeats and self.quantity in ("robust", "distance")
        )

    @property
    def differs(self) -> bool:
        """Is there a difference after the adjustment?"""
        return self.p_adjusted <= SIGNIFICANCE

    @property
    def gained(self) -> list[int]:
        """Samples for which the quantity holds for the second model alone."""
        return [int(i) for i in self.ids[self.holds[1] & ~self.holds[0]]]

    @property
    def lost(self) -> list[int]:
        """Samples for which the quantity holds for the first model alone."""
        return [int(i) for i in self.ids[self.holds[0] & ~self.holds[1]]]

    @property
    def same_attacks(self) -> bool:
        """Were both models attacked by the same?"""
        return set(self.attacks[0]) == set(self.attacks[1])

    @property
    def name(self) -> str:
        """The quantity in words."""
        return NAMES[self.quantity]

    @property
    def place(self) -> str:
        """Data set and budget, as words."""
        data = dataset_title(self.group.dataset)
        if self.quantity == "clean" or self.eps == inf:
            return data
        return f"{data} at {norm_symbol(self.group.norm)} ≤ {format_eps(self.eps)}"

    @property
    def sentence(self) -> str:
        """The result in words, with interval, samples and p value."""
        first, second = self.models
        points = 100 * self.difference
        end = f"{self._interval_text}; {len(self.ids):,} samples, {self._p_text}."
        if not self.differs:
            what = f"{second} minus {first}: {self.name}, {self.place}"
            return f"No difference shown: {what}, {points:+.1f} points {end}"
        if self.quantity == "distance":
            return f"{self._distances}, {points:+.1f} points {end}"
        verb, object_ = VERBS[self.quantity]
        amount = f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'}"
        return f"{second} {verb} {amount}{object_} than {first} on {self.place} {end}"

    @property
    def _distances(self) -> str:
        larger, smaller = (f"{100 * rate.value:.1f} %" for rate in reversed(self.rates))
        sign, (first, second) = norm_symbol(self.group.norm), self.models
        medians = "" if self.medians is None else f" (medians {_medians(self.medians)})"
        where = f"on {dataset_title(self.group.dataset)}"
        return (
            f"{second} is broken at a larger {sign} distance than {first} {where} on {larger} of samples, at a smaller "
            f"one on {smaller}{medians}"
        )

    @property
    def _interval_text(self) -> str:
        """Tango's interval; the share of discordant samples with its confidence sequence if it was looked at before."""
        if not self.looked:
            return f"[{100 * self.interval.low:.1f}, {100 * self.interval.high:.1f}]"
        gained, discordant = self.pairs.first, self.pairs.first + self.pairs.second
        low, high = confidence_sequence(Rate(gained, discordant))
        return f"({gained} of {discordant} discordant samples, 95 % confidence sequence [{100 * low:.1f}, {100 * high:.1f}] %)"

    @property
    def _p_text(self) -> str:
        p = "p < 0.001" if self.p_adjusted < 0.001 else f"p = {self.p_adjusted:.3f}"
        return f"{p} adjusted for {self.comparisons} comparisons" if self.comparisons > 1 else p

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            **self.facts(wilson),
            "sentence": self.sentence,
            "attacks": list(self.attacks[0]),
            "second_attacks": list(self.attacks[1]),
            "gained": self.gained,
            "lost": self.lost,
        }

    def facts(self, interval: IntervalOf) -> dict[str, Any]:
        """Return the numbers as columns of a data frame."""
        first, second = self.rates
        medians = self.medians or (nan, nan)
        return {
            "quantity": self.quantity,
            **place_facts(self.models[0], self.group),
            "second": self.models[1],
            "eps": nan if isinf(self.eps) else self.eps,
            "samples": len(self.ids),
            "attacks": "+".join(self.attacks[0]),
            "second_attacks": "+".join(self.attacks[1]),
            **rate_facts({"share": first}, interval),
            **rate_facts({"second_share": second}, interval),
            "median": medians[0],
            "second_median": medians[1],
            "difference": self.difference,
            "difference_low": self.interval.low,
            "difference_high": self.interval.high,
            "p_mcnemar": self.p,
            "p_adjusted": self.p_adjusted,
        }


def _medians(values: tuple[float, float]) -> str:
    return " and ".join(map(format_number, reversed(values)))


def compare_models(
    first: Sequence[FinishedCell], second: Sequence[FinishedCell]
) -> Iterator[PairedResult]:
    """Yield every quantity that two models share, on the samples that both were evaluated on.

    Args:
        first: cells of the first model, the baseline.
        second: cells of the second model, whose label differs.
    """
    looked = any(cell.looks for cell in (*first, *second))
    for result in _all_results(first, second):
        yield replace(result, looked=looked)


def _all_results(
    first: Sequence[FinishedCell], second: Sequence[FinishedCell]
) -> Iterator[PairedResult]:
    yield from _clean_results(first, second)
    ours, theirs = (_by_group(cells) for cells in (first, second))
    for key, mine in ours.items():
        if key in theirs:
            pair = _common_samples(mine, theirs[key])
            for a, b in pairs_of_models([*pair[0], *pair[1]]):
                yield worst_case_result(a, b)
            yield from _distance_results(*pair)


def pairs_of_models(cells: Sequence[FinishedCell]) -> Iterator[tuple[WorstCase, WorstCase]]:
    """Yield the worst cases of each two models of one group, at each eps, on the same samples.

    Without a budget, two models on which the attacks succeed on the same samples are passed over.
    """
    by_place: dict[tuple[float, tuple[int, ...]], list[WorstCase]] = {}
    for worst in worst_cases(cells):
        by_place.setdefault((worst.eps, worst.ids), []).append(worst)
    for found in by_place.values():
        for a, b in combinations(found, 2):
            if a.eps < inf or (a.robust != b.robust).any():
                yield a, b


GroupKey = tuple[CellGroup, str, str]


def _by_group(cells: Sequence[FinishedCell]) -> dict[GroupKey, list[FinishedCell]]:
    """Return the cells by group, identity of the data, and file of human labels."""
    found: dict[GroupKey, list[FinishedCell]] = {}
    for group, mine in group_cells(cells).items():
        for cell in mine:
            oracle = cell.threat.oracle
            judged = oracle.digest if oracle and group.oracle and not oracle.members else ""
            found.setdefault((group, cell.info.dataset_key, judged), []).append(cell)
    return found


def _common_samples(
    first: Sequence[FinishedCell], second: Sequence[FinishedCell]
) -> tuple[list[FinishedCell], list[FinishedCell]]:
    """Return the cells with the samples alone that both sides have records of."""
    ours, theirs = (
        frozenset[int]().union(*(cell.sample_ids for cell in cells)) for cells in (first, second)
    )
    both = ours & theirs
    restricted = ([_restrict(cell, both) for cell in cells] for cells in (first, second))
    a, b = ([cell for cell in cells if cell.records] for cells in restricted)
    return a, b


def _restrict(cell: FinishedCell, ids: frozenset[int]) -> FinishedCell:
    if cell.sample_ids <= ids:
        return cell
    return replace(cell, records=cell.records.where(np.isin(cell.ids, list(ids))))


def _clean_results(
    first: Sequence[FinishedCell], second: Sequence[FinishedCell]
) -> Iterator[PairedResult]:
    """Yield the clean accuracies on each data set, on the most samples that two cells have in common."""
    best: dict[str, tuple[int, FinishedCell, FinishedCell]] = {}
    for a, b in product(first, second):
        common = len(a.sample_ids & b.sample_ids)
        key = a.info.dataset_key
        if key == b.info.dataset_key and common > best.get(key, (0,))[0]:
            best[key] = (common, a, b)
    for _, a, b in best.values():
        ids = sorted(a.sample_ids & b.sample_ids)
        holds = [c.records.columns.is_clean_correct[c.positions(ids)] for c in (a, b)]
        models = a.model_label, b.model_label
        yield _result("clean", CellGroup.of(a), nan, models, ids, holds)


def worst_case_result(first: WorstCase, second: WorstCase) -> PairedResult:
    """Return the result of two worst cases of one group, at one eps, on the same samples."""
    quantity, ids = _quantity(first), np.array(first.ids)
    holds = np.stack([first.robust, second.robust])
    if quantity in ("follows", "rejects") or first.eps == inf:
        attacked = first.attacked & second.attacked
        ids, holds = ids[attacked], holds[:, attacked]
    found = _result(
        quantity, first.group, first.eps, (first.model, second.model), ids.tolist(), holds
    )
    return replace(found, attacks=(first.attacks, second.attacks))


def _quantity(worst: WorstCase) -> Quantity:
    group = worst.group
    if group.no_class:
        return "rejects"
    if group.keeps:
        return "follows"
    return "fixed" if group.fixed else "robust"


def _distance_results(
    first: Sequence[FinishedCell], second: Sequence[FinishedCell]
) -> Iterator[PairedResult]:
    """Yield which model falls at the larger distance, of attacks that minimise it, where both are attacked."""
    a, b = ([cell for cell in cells if cell.minimizes_distance] for cells in (first, second))
    if not (a and b):
        return
    ids = frozenset.intersection(*(cell.sample_ids for cell in (*a, *b)))
    chosen = [
        WorstCase(c[0].model_label, CellGroup.of(c[0]), inf, tuple(sorted(ids)), tuple(c))
        for c in (a, b)
    ]
    attacked = chosen[0].attacked & chosen[1].attacked
    if not attacked.any():
        return
    x, y = (
        np.min([cell.failure_distance[cell.positions(worst.ids)] for cell in worst.cells], axis=0)[
            attacked
        ]
        for worst in chosen
    )
    found = _result(
        "distance",
        chosen[0].group,
        inf,
        (chosen[0].model, chosen[1].model),
        np.array(chosen[0].ids)[attacked].tolist(),
        [x > y, y > x],
    )
    medians = [median_of(each) for each in (x, y)]
    values = tuple(median.value if median else nan for median in medians)
    yield replace(
        found, attacks=(chosen[0].attacks, chosen[1].attacks), medians=(values[0], values[1])
    )


def _result(
    quantity: Quantity,
    group: CellGroup,
    eps: float,
    models: tuple[str, str],
    ids: Sequence[int],
    holds: Any,  # noqa: ANN401 - two rows of truth values
) -> PairedResult:
    return PairedResult(
        quantity, group, eps, models, np.array(ids, np.int64), np.array(holds, bool)
    )
