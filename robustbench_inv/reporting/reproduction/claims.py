"""A paper's claims, evaluated on its own numbers and on ours."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import hypot, inf, isnan
from typing import Any, Literal

import numpy as np
import pandas as pd

from robustbench_inv.catalogue.reproduction import Claim, Column, Expectation, Row
from robustbench_inv.reporting.reproduction.comparison import ComparedNumber
from robustbench_inv.reporting.reproduction.outcomes import (
    ReproductionOutcomes,
    SampleMask,
    rate_of,
)
from robustbench_inv.reporting.statistics import (
    Interval,
    PairedOutcomes,
    mean_interval,
    tango,
)
from robustbench_inv.results.experiment_result import MeasuredNumber

__all__ = [
    "BASES",
    "PUBLISHED",
    "Basis",
    "ClaimFinding",
    "ClaimStatus",
    "Comparison",
    "Limits",
    "evaluate_claims",
    "evaluate_expectations",
]

Basis = Literal["paper", "published", "adaptive"]
"""Which numbers a claim is evaluated on: the paper's, ours as published, or ours under adaptive attacks."""

BASES: tuple[Basis, ...] = ("paper", "published", "adaptive")

ClaimStatus = Literal["holds", "does not hold", "undecided", "not measured"]

PUBLISHED = "published"
"""As the right side of a comparison: the paper's number for the left column."""


@dataclass(frozen=True)
class Comparison:
    """A number, or the difference of two numbers of one row.

    Args:
        row: label of the row.
        left: name of a column.
        right: name of the column that is subtracted, or PUBLISHED; empty for the number of ``left`` itself.
        value: left minus right: a fraction for shares, else an amount.
        interval: 95 % interval of the value; a point for the paper's numbers and for amounts.
        samples: number of samples that both sides share; 0 for the paper's numbers and for experiments.
        is_amount: whether the value is an amount rather than a share.
    """

    row: str
    left: str
    right: str
    value: float
    interval: Interval
    samples: int = 0
    is_amount: bool = False

    @property
    def title(self) -> str:
        """Both columns, and the row."""
        return f"{self.columns}, {self.row}"

    @property
    def columns(self) -> str:
        """The columns that are compared."""
        return f"{self.left} − {self.right}" if self.right else self.left

    @property
    def scale(self) -> int:
        """Factor from the value to the unit of limits: percentage points for shares."""
        return 1 if self.is_amount else 100


@dataclass(frozen=True)
class Limits:
    """The range that a claim states for a value.

    Args:
        at_least: lower limit, in per cent or percentage points for shares.
        at_most: upper limit, likewise.
        is_strict: whether the value must exceed the lower limit rather than reach it.
    """

    at_least: float = -inf
    at_most: float = inf
    is_strict: bool = False

    @property
    def text(self) -> str:
        """The range in words.

        Example:
            >>> Limits(-0.2, 0.2).text
            'limits: −0.2 to 0.2'
        """
        low, high = (f"{end:g}".replace("-", "−") for end in (self.at_least, self.at_most))
        if self.at_least == -inf:
            return f"limit: at most {high}"
        if self.at_most == inf:
            return f"limit: {'above' if self.is_strict else 'at least'} {low}"
        return f"limits: {low} to {high}"

    def status(self, comparison: Comparison) -> ClaimStatus:
        """Return whether the whole interval lies inside the limits, outside them, or across one of them."""
        low, high = (comparison.scale * end for end in _ends(comparison.interval))
        above = low > self.at_least if self.is_strict else low >= self.at_least
        below = high <= self.at_least if self.is_strict else high < self.at_least
        if above and high <= self.at_most:
            return "holds"
        return "does not hold" if below or low > self.at_most else "undecided"


@dataclass(frozen=True)
class ClaimFinding:
    """A claim and the comparisons that decide it.

    Args:
        text: the claim, in one sentence.
        limits: the range that it states.
        comparisons: by basis.
        needs: whether ``every`` comparison must hold, or ``most`` of them.
        missing: by basis, the number of further comparisons that lack records.
    """

    text: str
    limits: Limits
    comparisons: Mapping[Basis, tuple[Comparison, ...]]
    needs: Literal["every", "most"] = "every"
    missing: Mapping[Basis, int] = field(default_factory=dict)

    def status(self, basis: Basis) -> ClaimStatus:
        """Return the verdict over all comparisons of a basis; one that lacks records counts as undecided."""
        votes = self.votes(basis)
        n, holds, fails = len(votes), votes.count("holds"), votes.count("does not hold")
        if not n:
            return "not measured"
        n += self.missing.get(basis, 0)
        most = self.needs == "most"
        if 2 * holds > n if most else holds == n:
            return "holds"
        return "does not hold" if (2 * fails >= n if most else fails) else "undecided"

    def votes(self, basis: Basis) -> list[ClaimStatus]:
        """Return the verdict of each comparison."""
        return [self.limits.status(each) for each in self.comparisons[basis]]

    def decisive(self, basis: Basis) -> Comparison:
        """Return the comparison to quote.

        It is one of those that have the verdict of the claim, if there are any: of a claim with a strict limit the one
        with the smallest difference, and otherwise the first.
        """
        compared, status = self.comparisons[basis], self.status(basis)
        agreeing = [each for each in compared if self.limits.status(each) == status] or compared
        if self.limits.is_strict:
            return min(agreeing, key=lambda each: each.value)
        return agreeing[0]

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints; shares are fractions."""
        compared = [
            {
                "basis": basis,
                "row": each.row,
                "left": each.left,
                "right": each.right or None,
                "value": each.value,
                "interval": [each.interval.low, each.interval.high],
                "samples": each.samples,
                "status": self.limits.status(each),
            }
            for basis in BASES
            for each in self.comparisons[basis]
        ]
        statuses = {str(basis): self.status(basis) for basis in BASES}
        missing = dict(self.missing)
        return {"claim": self.text, **statuses, "missing": missing, "comparisons": compared}


def evaluate_claims(outcomes: ReproductionOutcomes) -> list[ClaimFinding]:
    """Return the finding on each claim that concerns rows of the item."""
    item = outcomes.item
    rows = [[row for row in item.rows if _matches(row.label, c.rows)] for c in item.claims]
    return [
        _claim_finding(outcomes, claim, found)
        for claim, found in zip(item.claims, rows, strict=True)
        if found
    ]


def evaluate_expectations(
    expectations: Sequence[Expectation], numbers: Sequence[ComparedNumber]
) -> list[ClaimFinding]:
    """Return the finding on each expectation that concerns rows of an experiment; without numbers it is not measured."""
    return [
        _expectation_finding(each, numbers)
        for each in expectations
        if any(_concerns(each, number) for number in numbers)
    ]


def _concerns(expectation: Expectation, number: ComparedNumber) -> bool:
    named = number.column in expectation.columns
    return named and _matches(number.row.label, expectation.rows)


def _matches(label: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(label, pattern) for pattern in patterns)


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _point(value: float) -> Interval:
    return Interval(value, value)


def _claim_finding(
    outcomes: ReproductionOutcomes, claim: Claim, rows: Sequence[Row]
) -> ClaimFinding:
    columns = {column.name: column for column in outcomes.item.columns}
    cells = [(row, columns[a], columns.get(b)) for row in rows for a, b in claim.pairs]
    comparisons, missing = dict[Basis, tuple[Comparison, ...]](), dict[Basis, int]()
    for basis in BASES:
        known = [cell for cell in cells if _has_cells(outcomes, basis, *cell)]
        missing[basis] = len(cells) - len(known)
        found = (_compare(outcomes, basis, *cell) for cell in known)
        comparisons[basis] = tuple(filter(None, found))
    limits = Limits(at_least=claim.min_difference, is_strict=True)
    return ClaimFinding(claim.text, limits, comparisons, claim.needs, missing)


def _has_cells(
    outcomes: ReproductionOutcomes, basis: Basis, row: Row, left: Column, right: Column | None
) -> bool:
    """Return whether all records of a comparison are there; the paper's numbers need none."""
    if basis == "paper":
        return True
    (data,) = outcomes.item.datasets
    return all(outcomes.has_cells(row, each, basis, data) for each in (left, right) if each)


def _compare(
    outcomes: ReproductionOutcomes, basis: Basis, row: Row, left: Column, right: Column | None
) -> Comparison | None:
    """Return the comparison of two columns; None if nothing was measured or published to compare."""
    if basis == "paper":
        return _compare_published(outcomes, row, left, right)
    (data,) = outcomes.item.datasets
    ours = outcomes.counted(row, left, basis, data)
    if right is None:
        return _compare_with_paper(outcomes.published_share(row, left), ours, row, left)
    return _compare_paired(ours, outcomes.counted(row, right, basis, data), row, (left, right))


def _compare_published(
    outcomes: ReproductionOutcomes, row: Row, left: Column, right: Column | None
) -> Comparison | None:
    if right is None:
        return None
    value = outcomes.published_share(row, left) - outcomes.published_share(row, right)
    return (
        None if isnan(value) else Comparison(row.label, left.name, right.name, value, _point(value))
    )


def _compare_with_paper(
    published: float, ours: SampleMask, row: Row, column: Column
) -> Comparison | None:
    """Subtract the published share from ours: the interval is that of our share, for the paper gives no samples."""
    rate = rate_of(ours)
    if not rate.trials or isnan(published):
        return None
    interval = Interval(rate.low - published, rate.high - published)
    value = rate.value - published
    return Comparison(row.label, column.name, PUBLISHED, value, interval, rate.trials)


def _compare_paired(
    left: SampleMask, right: SampleMask, row: Row, columns: tuple[Column, Column]
) -> Comparison | None:
    """Compare two columns on the samples that both have."""
    both = pd.concat([left, right], axis=1, join="inner")
    if both.empty:
        return None
    pairs = PairedOutcomes.of(both.iloc[:, 0].tolist(), both.iloc[:, 1].tolist())
    first, second = (column.name for column in columns)
    return Comparison(row.label, first, second, pairs.difference, tango(pairs), pairs.total)


def _expectation_finding(
    expectation: Expectation, numbers: Sequence[ComparedNumber]
) -> ClaimFinding:
    comparisons: dict[Basis, tuple[Comparison, ...]] = {
        "paper": tuple(_expected_comparisons(expectation, numbers, _published_value)),
        "published": tuple(_expected_comparisons(expectation, numbers, _measured_value)),
        "adaptive": (),
    }
    low, high = expectation.at_least, expectation.at_most
    limits = Limits(-inf if low is None else low, inf if high is None else high)
    return ClaimFinding(expectation.text, limits, comparisons)


ValueOf = Callable[[ComparedNumber, ComparedNumber | None], tuple[float, Interval] | None]
"""(number, number to subtract) → value and interval; None if one of them is missing."""


def _expected_comparisons(
    expectation: Expectation, numbers: Sequence[ComparedNumber], value_of: ValueOf
) -> Iterator[Comparison]:
    by_cell = {(number.row.label, number.column): number for number in numbers}
    for number in numbers:
        row, column = number.row, number.column
        if not _concerns(expectation, number):
            continue
        subtracted = by_cell.get((row.label, expectation.minus))
        found = value_of(number, subtracted)
        if found and (subtracted or not expectation.minus):
            yield Comparison(row.label, column, expectation.minus, *found, is_amount=row.is_amount)


def _published_value(
    number: ComparedNumber, subtracted: ComparedNumber | None
) -> tuple[float, Interval] | None:
    value = number.published - (subtracted.published if subtracted else 0)
    return None if isnan(value) else (value, _point(value))


def _measured_value(
    number: ComparedNumber, subtracted: ComparedNumber | None
) -> tuple[float, Interval] | None:
    if number.ours is None or (subtracted is not None and subtracted.ours is None):
        return None
    other = subtracted.ours if subtracted else None
    value = number.ours.value - (other.value if other else 0)
    return value, _difference_interval(number.ours, other)


def _difference_interval(left: MeasuredNumber, right: MeasuredNumber | None) -> Interval:
    """Return the 95 % interval of a share or of a difference of shares: paired if both list their trials.

    The interval of a mean over trainings describes the trainings, not the samples.

    References:
        Newcombe, Interval estimation for the difference between independent proportions, Statistics in
        Medicine 1998, method 10, for shares of different trials.
    """
    a, b = left.rate, right.rate if right else None
    if left.trainings and (right is None or right.trainings):
        return mean_interval(left.trainings, right.trainings if right else ())
    if a is None:
        return _point(left.value - (right.value if right else 0))
    if right is None or b is None:
        return Interval(a.low, a.high)
    if left.counted is not None and right.counted is not None and left.trials == right.trials:
        return tango(_paired_outcomes(left, right))
    d = a.value - b.value
    return Interval(
        d - hypot(a.value - a.low, b.high - b.value), d + hypot(a.high - a.value, b.value - b.low)
    )


def _paired_outcomes(left: MeasuredNumber, right: MeasuredNumber) -> PairedOutcomes:
    counted = np.zeros((2, left.trials), dtype=bool)
    counted[0, list(left.counted or ())] = True
    counted[1, list(right.counted or ())] = True
    return PairedOutcomes.of(counted[0].tolist(), counted[1].tolist())
