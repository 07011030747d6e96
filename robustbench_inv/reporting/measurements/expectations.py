"""What is expected of measured numbers, held against the paper's and ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import hypot, inf, isnan
from typing import Any, Literal

import numpy as np
import pandas as pd

from robustbench_inv.catalogue.measurement import Expectation
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, number
from robustbench_inv.reporting.measurements.comparison import Entry
from robustbench_inv.reporting.reproduction.claims import Judgement
from robustbench_inv.reporting.reproduction.tables import TONES
from robustbench_inv.reporting.statistics import Interval, Pairs, tango
from robustbench_inv.results.measurement import Number

__all__ = ["Finding", "Seen", "expectations_table", "judge_expectations"]

Basis = Literal["paper", "ours"]

BASES: dict[Basis, str] = {"paper": "In the paper", "ours": "Ours"}


@dataclass(frozen=True)
class Seen:
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

    def judged(self, expected: Expectation) -> Judgement:
        """Say whether it lies between the limits: undecided if its interval reaches over one."""
        low = -inf if expected.at_least is None else expected.at_least
        high = inf if expected.at_most is None else expected.at_most
        if low <= self.interval.low and self.interval.high <= high:
            return "holds"
        outside = self.interval.high < low or self.interval.low > high
        return "does not hold" if outside else "undecided"


@dataclass(frozen=True)
class Finding:
    """An expectation, and the numbers that decide on it."""

    expected: Expectation
    seen: Mapping[Basis, tuple[Seen, ...]]

    def judgement(self, basis: Basis) -> Judgement:
        """Say whether every number is as expected."""
        votes = [each.judged(self.expected) for each in self.seen[basis]]
        if not votes:
            return "not measured"
        order: tuple[Judgement, ...] = ("does not hold", "undecided", "holds")
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
                "judgement": each.judged(self.expected),
            }
            for basis, found in self.seen.items()
            for each in found
        ]
        verdicts = {str(basis): self.judgement(basis) for basis in BASES}
        return {"expected": self.expected.text, **verdicts, "numbers": told}


def judge_expectations(
    expectations: Sequence[Expectation], entries: Sequence[Entry]
) -> list[Finding]:
    """Return what becomes of each expectation for which there are rows."""
    found = [
        Finding(e, {basis: tuple(_seen(e, entries, basis)) for basis in BASES})
        for e in expectations
    ]
    return [finding for finding in found if any(finding.seen.values())]


def expectations_table(findings: Sequence[Finding], name: str) -> Table:
    """Return what became of each expectation."""
    rows = tuple(
        (
            Shown(f.expected.text, tone="note"),
            *(_judged(f, basis) for basis in BASES),
            _deciding(f),
        )
        for f in findings
    )
    facts = pd.DataFrame(
        {"expected": f.expected.text, **{basis: f.judgement(basis) for basis in BASES}}
        for f in findings
    )
    caption = (
        "It holds where the whole 95 % interval lies between the limits, does not hold where it lies outside, and is "
        "undecided otherwise. Differences on the same samples are paired. Decided by: the first of our numbers that gives the "
        "verdict; the JSON has all."
    )
    heading = ("Expected", *BASES.values(), "Decided by")
    return Table(name, "What is expected", caption, facts, heading, rows)


def _seen(expected: Expectation, entries: Sequence[Entry], basis: Basis) -> Iterator[Seen]:
    by_place = {(entry.row, entry.column): entry for entry in entries}
    for entry in entries:
        fits = any(fnmatchcase(entry.row, pattern) for pattern in expected.rows)
        if not fits or entry.column not in expected.columns:
            continue
        other = by_place.get((entry.row, expected.minus))
        found = _measured(entry, other) if basis == "ours" else _published(entry, other)
        if found and (other or not expected.minus):
            yield Seen(entry.row, entry.column, *found)


def _published(entry: Entry, other: Entry | None) -> tuple[float, Interval] | None:
    scale = 1 if entry.amount else 100
    value = scale * (entry.published - (other.published if other else 0))
    return None if isnan(value) else (value, Interval(value, value))


def _measured(entry: Entry, other: Entry | None) -> tuple[float, Interval] | None:
    if entry.ours is None or (other is not None and other.ours is None):
        return None
    subtracted = other.ours if other else None
    value = entry.ours.value - (subtracted.value if subtracted else 0)
    if entry.ours.rate is None:
        return value, Interval(value, value)
    interval = _interval(entry.ours, subtracted)
    return 100 * value, Interval(100 * interval.low, 100 * interval.high)


def _interval(left: Number, right: Number | None) -> Interval:
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
        return tango(_pairs(left, right))
    d = a.value - b.value
    return Interval(
        d - hypot(a.value - a.low, b.high - b.value), d + hypot(a.high - a.value, b.value - b.low)
    )


def _pairs(left: Number, right: Number) -> Pairs:
    held = np.zeros((2, left.trials), dtype=bool)
    held[0, list(left.counted or ())] = True
    held[1, list(right.counted or ())] = True
    return Pairs.of(held[0].tolist(), held[1].tolist())


def _judged(finding: Finding, basis: Basis) -> Shown:
    seen = finding.seen[basis]
    if not seen:
        return EMPTY
    judgement = finding.judgement(basis)
    votes = [each.judged(finding.expected) for each in seen]
    count = f"{votes.count('holds')} of {len(votes)}" if len(votes) > 1 else ""
    return Shown(judgement, count, tone=TONES[judgement])


def _deciding(finding: Finding) -> Shown:
    """Return the first of our numbers that makes the verdict what it is."""
    judgement = finding.judgement("ours")
    seen = [each for each in finding.seen["ours"] if each.judged(finding.expected) == judgement]
    return Shown(_told(seen[0]) if seen else "—", tone="note")


def _told(seen: Seen) -> str:
    low, high = (_signed(end) for end in (seen.interval.low, seen.interval.high))
    ends = "" if low == high else f" ({low} to {high})"
    return f"{_signed(seen.value)}{ends} for {seen.column}, {seen.row}"


def _signed(value: float) -> str:
    return number(value).replace("-", "−")
