"""What a paper claims, held against its own numbers, ours as published, and ours under the strongest attacks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isnan
from typing import Any, Literal

import pandas as pd

from robustbench_inv.catalogue.reproduction import Claim, Column, Row
from robustbench_inv.reporting.reproduction.evidence import Evidence, Held, rate_of
from robustbench_inv.reporting.statistics import Interval, Pairs, tango

__all__ = ["BASES", "Basis", "Contrast", "Finding", "Judgement", "judge"]

Basis = Literal["paper", "published", "adaptive"]
"""Which numbers a claim is held against: the paper's own, ours as published, ours adaptive."""

BASES: tuple[Basis, ...] = ("paper", "published", "adaptive")

Judgement = Literal["holds", "does not hold", "undecided", "not measured"]


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

    def judged(self, by: float) -> Judgement:
        """Say whether the difference is above ``by`` points: undecided if the interval holds that."""
        if self.interval.low > by / 100:
            return "holds"
        return "does not hold" if self.interval.high < by / 100 else "undecided"

    @property
    def title(self) -> str:
        """What was compared."""
        return f"{self.left} − {self.right or 'published'}, {self.row}"


@dataclass(frozen=True)
class Finding:
    """A claim, and the comparisons that decide on it, by basis."""

    claim: Claim
    contrasts: dict[Basis, tuple[Contrast, ...]]

    def judgement(self, basis: Basis) -> Judgement:
        """Say whether the claim holds for every comparison, or for more than half of them."""
        votes = self.votes(basis)
        n, holds, fails = len(votes), votes.count("holds"), votes.count("does not hold")
        if not n:
            return "not measured"
        most = self.claim.needs == "most"
        if 2 * holds > n if most else holds == n:
            return "holds"
        return "does not hold" if (2 * fails >= n if most else fails) else "undecided"

    def votes(self, basis: Basis) -> list[Judgement]:
        """Return what each comparison says."""
        return [contrast.judged(self.claim.by) for contrast in self.contrasts[basis]]

    def least(self, basis: Basis) -> Contrast:
        """Return the comparison that speaks most against the claim."""
        return min(self.contrasts[basis], key=lambda contrast: contrast.difference)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {
            "claim": self.claim.text,
            **{basis: self.judgement(basis) for basis in BASES},
            "contrasts": [
                {
                    "basis": basis,
                    "row": contrast.row,
                    "left": contrast.left,
                    "right": contrast.right or "published",
                    "difference": contrast.difference,
                    "interval": [contrast.interval.low, contrast.interval.high],
                    "samples": contrast.samples,
                    "judgement": contrast.judged(self.claim.by),
                }
                for basis in BASES
                for contrast in self.contrasts[basis]
            ],
        }


def judge(evidence: Evidence) -> list[Finding]:
    """Return what becomes of each claim for which the item has rows."""
    item = evidence.item
    found = [
        (claim, [row for row in item.rows if any(fnmatchcase(row.label, p) for p in claim.rows)])
        for claim in item.claims
    ]
    return [_finding(evidence, claim, rows) for claim, rows in found if rows]


def _finding(evidence: Evidence, claim: Claim, rows: Sequence[Row]) -> Finding:
    columns = {column.name: column for column in evidence.item.columns}
    places = [(row, columns[a], columns.get(b)) for row in rows for a, b in claim.pairs]
    contrasts = {
        basis: tuple(_present(_contrast(evidence, basis, *place) for place in places))
        for basis in BASES
    }
    return Finding(claim, contrasts)


def _present(contrasts: Iterable[Contrast | None]) -> Iterator[Contrast]:
    return (contrast for contrast in contrasts if contrast is not None)


def _contrast(
    evidence: Evidence, basis: Basis, row: Row, left: Column, right: Column | None
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
        return _against(published, ours, row, left)
    return _paired(ours, evidence.share(basis, row, right, data), row, (left, right))


def _against(published: float, ours: Held, row: Row, column: Column) -> Contrast | None:
    """Hold our share against a number that comes without samples: the interval is that of ours."""
    rate = rate_of(ours)
    if not rate.trials or isnan(published):
        return None
    interval = Interval(rate.low - published, rate.high - published)
    return Contrast(row.label, column.name, "", rate.value - published, interval, rate.trials)


def _paired(left: Held, right: Held, row: Row, columns: tuple[Column, Column]) -> Contrast | None:
    """Compare on the samples that both saw, sample by sample."""
    both = pd.concat([left, right], axis=1, join="inner")
    if both.empty:
        return None
    pairs = Pairs.of(both.iloc[:, 0].tolist(), both.iloc[:, 1].tolist())
    first, second = (column.name for column in columns)
    return Contrast(row.label, first, second, pairs.difference, tango(pairs), pairs.total)
