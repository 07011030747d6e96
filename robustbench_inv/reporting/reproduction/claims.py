"""A paper's claims, evaluated on its own numbers and on ours."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from robustbench_inv.reporting.statistics import Interval, PairedOutcomes, tango
from robustbench_inv.reporting.table_formats import BLANK, Table, TableCell, Tone, format_number
from robustbench_inv.results.experiment_result import MeasuredNumber

__all__ = [
    "BASES",
    "Basis",
    "ClaimFinding",
    "ClaimStatus",
    "Contrast",
    "ExpectationFinding",
    "ExpectedValue",
    "evaluate_claims",
    "evaluate_expectations",
    "expectations_table",
]


Basis = Literal["paper", "published", "adaptive"]
"""Which numbers a claim is held against: the paper's own, ours as published, ours adaptive."""

BASES: tuple[Basis, ...] = ("paper", "published", "adaptive")

ClaimStatus = Literal["holds", "does not hold", "undecided", "not measured"]

STATUS_TONES: dict[ClaimStatus, Tone] = {
    "holds": "pass",
    "undecided": "warn",
    "does not hold": "fail",
}


@dataclass(frozen=True)
class Contrast:
    """One comparison: left minus right, on the same samples.

    Args:
        row: label of the row.
        left: column.
        right: column; empty for the published number of the left one.
        difference: of the shares.
        interval: 95 %; a point for the paper's own numbers, which come without samples.
        samples: how many both saw; 0 for the paper's own.
    """

    row: str
    left: str
    right: str
    difference: float
    interval: Interval
    samples: int

    def status_against(self, by: float) -> ClaimStatus:
        """Say whether the difference is above ``by`` points: undecided if the interval holds that."""
        if self.interval.low > by / 100:
            return "holds"
        return "does not hold" if self.interval.high < by / 100 else "undecided"

    @property
    def title(self) -> str:
        """What was compared."""
        return f"{self.left} − {self.right or 'published'}, {self.row}"


@dataclass(frozen=True)
class ClaimFinding:
    """A claim, and the comparisons that decide on it, by basis."""

    claim: Claim
    contrasts: dict[Basis, tuple[Contrast, ...]]

    def status(self, basis: Basis) -> ClaimStatus:
        """Say whether the claim holds for every comparison, or for more than half of them."""
        votes = self.votes(basis)
        n, holds, fails = len(votes), votes.count("holds"), votes.count("does not hold")
        if not n:
            return "not measured"
        most = self.claim.needs == "most"
        if 2 * holds > n if most else holds == n:
            return "holds"
        return "does not hold" if (2 * fails >= n if most else fails) else "undecided"

    def votes(self, basis: Basis) -> list[ClaimStatus]:
        """Return what each comparison says."""
        return [
            contrast.status_against(self.claim.min_difference) for contrast in self.contrasts[basis]
        ]

    def least(self, basis: Basis) -> Contrast:
        """Return the comparison that speaks most against the claim."""
        return min(self.contrasts[basis], key=lambda contrast: contrast.difference)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {
            "claim": self.claim.text,
            **{basis: self.status(basis) for basis in BASES},
            "contrasts": [
                {
                    "basis": basis,
                    "row": contrast.row,
                    "left": contrast.left,
                    "right": contrast.right or "published",
                    "difference": contrast.difference,
                    "interval": [contrast.interval.low, contrast.interval.high],
                    "samples": contrast.samples,
                    "judgement": contrast.status_against(self.claim.min_difference),
                }
                for basis in BASES
                for contrast in self.contrasts[basis]
            ],
        }


def evaluate_claims(evidence: ReproductionOutcomes) -> list[ClaimFinding]:
    """Return what becomes of each claim for which the item has rows."""
    item = evidence.item
    found = [
        (claim, [row for row in item.rows if any(fnmatchcase(row.label, p) for p in claim.rows)])
        for claim in item.claims
    ]
    return [_finding(evidence, claim, rows) for claim, rows in found if rows]


def _finding(evidence: ReproductionOutcomes, claim: Claim, rows: Sequence[Row]) -> ClaimFinding:
    columns = {column.name: column for column in evidence.item.columns}
    places = [(row, columns[a], columns.get(b)) for row in rows for a, b in claim.pairs]
    contrasts = {
        basis: tuple(_known(_contrast(evidence, basis, *place) for place in places))
        for basis in BASES
    }
    return ClaimFinding(claim, contrasts)


def _known(contrasts: Iterable[Contrast | None]) -> Iterator[Contrast]:
    return (contrast for contrast in contrasts if contrast is not None)


def _contrast(
    evidence: ReproductionOutcomes, basis: Basis, row: Row, left: Column, right: Column | None
) -> Contrast | None:
    """Return a comparison; None where nothing was measured, or a number would be held against itself."""
    published = evidence.number(row, right or left)
    if basis == "paper":
        d = evidence.number(row, left) - published
        point = Interval(d, d)
        told = right is not None and not isnan(d)
        return Contrast(row.label, left.name, right.name, d, point, 0) if told and right else None
    (data,) = evidence.item.datasets
    ours = evidence.share(basis, row, left, data)
    if right is None:
        return _against_published(published, ours, row, left)
    return _paired(ours, evidence.share(basis, row, right, data), row, (left, right))


def _against_published(
    published: float, ours: SampleMask, row: Row, column: Column
) -> Contrast | None:
    """Hold our share against a number that comes without samples: the interval is that of ours."""
    rate = rate_of(ours)
    if not rate.trials or isnan(published):
        return None
    interval = Interval(rate.low - published, rate.high - published)
    return Contrast(row.label, column.name, "", rate.value - published, interval, rate.trials)


def _paired(
    left: SampleMask, right: SampleMask, row: Row, columns: tuple[Column, Column]
) -> Contrast | None:
    """Compare on the samples that both saw, sample by sample."""
    both = pd.concat([left, right], axis=1, join="inner")
    if both.empty:
        return None
    pairs = PairedOutcomes.of(both.iloc[:, 0].tolist(), both.iloc[:, 1].tolist())
    first, second = (column.name for column in columns)
    return Contrast(row.label, first, second, pairs.difference, tango(pairs), pairs.total)


ExpectationBasis = Literal["paper", "ours"]

EXPECTATION_BASES: dict[ExpectationBasis, str] = {"paper": "In the paper", "ours": "Ours"}


@dataclass(frozen=True)
class ExpectedValue:
    """One number or difference that an expectation is about.

    Args:
        row: of the table.
        column: whose number.
        value: the number, in per cent or points for shares.
        interval: 95 %; a point for the paper's numbers and for amounts.
    """

    row: str
    column: str
    value: float
    interval: Interval

    def status_against(self, expected: Expectation) -> ClaimStatus:
        """Say whether it lies between the limits: undecided if its interval reaches over one."""
        low = -inf if expected.at_least is None else expected.at_least
        high = inf if expected.at_most is None else expected.at_most
        if low <= self.interval.low and self.interval.high <= high:
            return "holds"
        outside = self.interval.high < low or self.interval.low > high
        return "does not hold" if outside else "undecided"


@dataclass(frozen=True)
class ExpectationFinding:
    """An expectation, and the numbers that decide on it."""

    expected: Expectation
    seen: Mapping[ExpectationBasis, tuple[ExpectedValue, ...]]

    def status(self, basis: ExpectationBasis) -> ClaimStatus:
        """Say whether every number is as expected."""
        votes = [each.status_against(self.expected) for each in self.seen[basis]]
        if not votes:
            return "not measured"
        order: tuple[ClaimStatus, ...] = ("does not hold", "undecided", "holds")
        return next(verdict for verdict in order if verdict in votes)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        told = [
            {
                "basis": basis,
                "row": each.row,
                "column": each.column,
                "value": each.value,
                "interval": [each.interval.low, each.interval.high],
                "judgement": each.status_against(self.expected),
            }
            for basis, found in self.seen.items()
            for each in found
        ]
        verdicts = {str(basis): self.status(basis) for basis in EXPECTATION_BASES}
        return {"expected": self.expected.text, **verdicts, "numbers": told}


def evaluate_expectations(
    expectations: Sequence[Expectation], entries: Sequence[ComparedNumber]
) -> list[ExpectationFinding]:
    """Return what becomes of each expectation for which there are rows."""
    found = [
        ExpectationFinding(
            e, {basis: tuple(_expected_values(e, entries, basis)) for basis in EXPECTATION_BASES}
        )
        for e in expectations
    ]
    return [finding for finding in found if any(finding.seen.values())]


def expectations_table(findings: Sequence[ExpectationFinding], name: str) -> Table:
    """Return what became of each expectation."""
    rows = tuple(
        (
            TableCell(f.expected.text, tone="note"),
            *(_status_cell(f, basis) for basis in EXPECTATION_BASES),
            _deciding_cell(f),
        )
        for f in findings
    )
    facts = pd.DataFrame(
        {"expected": f.expected.text, **{basis: f.status(basis) for basis in EXPECTATION_BASES}}
        for f in findings
    )
    caption = (
        "It holds where the whole 95 % interval lies between the limits, does not hold where it lies outside, and is "
        "undecided otherwise. Differences on the same samples are paired. Decided by: the first of our numbers that gives the "
        "verdict; the JSON has all."
    )
    heading = ("Expected", *EXPECTATION_BASES.values(), "Decided by")
    return Table(name, "What is expected", caption, facts, heading, rows)


def _expected_values(
    expected: Expectation, entries: Sequence[ComparedNumber], basis: ExpectationBasis
) -> Iterator[ExpectedValue]:
    by_place = {(entry.row, entry.column): entry for entry in entries}
    for entry in entries:
        fits = any(fnmatchcase(entry.row, pattern) for pattern in expected.rows)
        if not fits or entry.column not in expected.columns:
            continue
        other = by_place.get((entry.row, expected.minus))
        found = _measured_value(entry, other) if basis == "ours" else _published_value(entry, other)
        if found and (other or not expected.minus):
            yield ExpectedValue(entry.row, entry.column, *found)


def _published_value(
    entry: ComparedNumber, other: ComparedNumber | None
) -> tuple[float, Interval] | None:
    scale = 1 if entry.amount else 100
    value = scale * (entry.published - (other.published if other else 0))
    return None if isnan(value) else (value, Interval(value, value))


def _measured_value(
    entry: ComparedNumber, other: ComparedNumber | None
) -> tuple[float, Interval] | None:
    if entry.ours is None or (other is not None and other.ours is None):
        return None
    subtracted = other.ours if other else None
    value = entry.ours.value - (subtracted.value if subtracted else 0)
    if entry.ours.rate is None:
        return value, Interval(value, value)
    interval = _difference_interval(entry.ours, subtracted)
    return 100 * value, Interval(100 * interval.low, 100 * interval.high)


def _difference_interval(left: MeasuredNumber, right: MeasuredNumber | None) -> Interval:
    """Return the interval of a share, or of a difference: paired where the trials are known one by one.

    References:
        Newcombe, Interval estimation for the difference between independent proportions, Statistics in
        Medicine 1998, method 10, for shares of different trials.
    """
    a, b = left.rate, right.rate if right else None
    assert a is not None
    if right is None or b is None:
        return Interval(a.low, a.high)
    if left.counted is not None and right.counted is not None and left.trials == right.trials:
        return tango(_paired_outcomes(left, right))
    d = a.value - b.value
    return Interval(
        d - hypot(a.value - a.low, b.high - b.value), d + hypot(a.high - a.value, b.value - b.low)
    )


def _paired_outcomes(left: MeasuredNumber, right: MeasuredNumber) -> PairedOutcomes:
    held = np.zeros((2, left.trials), dtype=bool)
    held[0, list(left.counted or ())] = True
    held[1, list(right.counted or ())] = True
    return PairedOutcomes.of(held[0].tolist(), held[1].tolist())


def _status_cell(finding: ExpectationFinding, basis: ExpectationBasis) -> TableCell:
    seen = finding.seen[basis]
    if not seen:
        return BLANK
    status = finding.status(basis)
    votes = [each.status_against(finding.expected) for each in seen]
    count = f"{votes.count('holds')} of {len(votes)}" if len(votes) > 1 else ""
    return TableCell(status, count, tone=STATUS_TONES[status])


def _deciding_cell(finding: ExpectationFinding) -> TableCell:
    """Return the first of our numbers that makes the verdict what it is."""
    status = finding.status("ours")
    seen = [
        each for each in finding.seen["ours"] if each.status_against(finding.expected) == status
    ]
    return TableCell(_value_text(seen[0]) if seen else "—", tone="note")


def _value_text(seen: ExpectedValue) -> str:
    low, high = (_signed(end) for end in (seen.interval.low, seen.interval.high))
    ends = "" if low == high else f" ({low} to {high})"
    return f"{_signed(seen.value)}{ends} for {seen.column}, {seen.row}"


def _signed(value: float) -> str:
    return format_number(value).replace("-", "−")
