"""The tables of a reproduction: published beside ours, claims, and every comparison behind them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isnan
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Row, RowMetric
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.reproduction.claims import (
    BASES,
    STATUS_TONES,
    Basis,
    ClaimFinding,
    Contrast,
)
from robustbench_inv.reporting.reproduction.comparison import ComparedAccuracy
from robustbench_inv.reporting.statistics import Interval, wilson
from robustbench_inv.reporting.table_formats import BLANK, Table, TableCell, Tone, rate_cell
from robustbench_inv.results.summary import Rate

__all__ = ["AccuracyBand", "accuracy_bands", "claims_table", "comparison_table", "contrasts_table"]


MEANINGS: dict[RowMetric, str] = {
    "robust": "Accuracy: shown inputs that are decided correctly, of all.",
    "success": "Success: attacked inputs on which the attack reaches its goal.",
    "detected": "Detected: of those on which the attack as published reaches its goal, what it shows is rejected; adaptive: "
    "no attack that counts finds anything that is wrong and accepted.",
    "undetected": "Fooled: attacked inputs on which the goal is reached by something that is accepted.",
}

NAMES: dict[RowMetric, str] = {
    "robust": "accuracy",
    "success": "success",
    "detected": "detected",
    "undetected": "fooled",
}

HEADINGS: dict[Basis, str] = {
    "paper": "In the paper",
    "published": "As published",
    "adaptive": "Adaptive",
}


@dataclass(frozen=True)
class AccuracyBand:
    """One row of the paper's table with its lines: published, ours, difference, adaptive.

    Args:
        row: which attack, at which eps.
        lines: name of each line, and what it says of each column.
    """

    row: Row
    lines: tuple[tuple[str, tuple[TableCell, ...]], ...]

    @property
    def name(self) -> str:
        """What stands before the lines."""
        return self.row.name

    @property
    def note(self) -> str:
        """What stands beneath the name."""
        budget = f"ε = {self.row.eps:g}" if self.row.eps else ""
        return budget if self.row.metric == "robust" else NAMES[self.row.metric]


def accuracy_bands(entries: Sequence[ComparedAccuracy]) -> list[AccuracyBand]:
    """Return the rows as a reader sees them."""
    grouped = groupby(entries, key=lambda entry: entry.row)
    return [AccuracyBand(row, tuple(_accuracy_lines(list(group)))) for row, group in grouped]


def comparison_table(entries: Sequence[ComparedAccuracy]) -> Table:
    """Return the paper's table with ours beside it."""
    columns = tuple(dict.fromkeys(entry.column.name for entry in entries))
    rows = [
        (
            TableCell(band.row.label if first else "", tone="name"),
            TableCell(name, tone="name"),
            *shown,
        )
        for band in accuracy_bands(entries)
        for first, name, shown in _numbered(band)
    ]
    told = dict.fromkeys(entry.row.metric for entry in entries)
    caption = (
        f"{' '.join(MEANINGS[each] for each in told)} In % [95 % Wilson interval]. Paper: the published number. As published: "
        "the same attack on our network. Difference: ours as published minus the paper's, in points. Adaptive: what is "
        "left when, for each sample, the strongest of everything counts that was run on this network at this budget."
    )
    frame = pd.DataFrame(_accuracy_fact(entry) for entry in entries)
    heading = ("Attack", " / ".join(NAMES[each] for each in told).capitalize(), *columns)
    return Table("comparison", "Published and reproduced", caption, frame, heading, tuple(rows))


def claims_table(findings: Sequence[ClaimFinding]) -> Table:
    """Return what became of each claim."""
    rows = [
        (
            TableCell(finding.claim.text, tone="note"),
            *(_status_cell(finding, basis) for basis in BASES),
        )
        for finding in findings
    ]
    facts = [
        {"claim": f.claim.text, **{basis: f.status(basis) for basis in BASES}} for f in findings
    ]
    caption = (
        "Each comparison is of paired differences on the same samples: it holds where the 95 % Tango interval "
        "lies above the claimed difference, does not hold where it lies below, and is undecided otherwise (not "
        "adjusted for the number of comparisons). Below the verdict: how many comparisons hold, and the one that "
        "speaks most against the claim."
    )
    heading = ("Claim", *(HEADINGS[basis] for basis in BASES))
    return Table(
        "claims",
        "Held against three sets of numbers",
        caption,
        pd.DataFrame(facts),
        heading,
        tuple(rows),
    )


def contrasts_table(findings: Sequence[ClaimFinding]) -> Table:
    """Return every comparison behind the claims, as measured."""
    measured: list[Basis] = ["published", "adaptive"]
    found = [
        (finding, basis, contrast)
        for finding in findings
        for basis in measured
        for contrast in finding.contrasts[basis]
    ]
    heading = ("Claim", "Numbers", "Compared", "Row", "Samples", "Difference", "Verdict")
    rows = tuple(_contrast_row(*each) for each in found)
    frame = pd.DataFrame(_contrast_fact(*each) for each in found)
    caption = "Left minus right in points [95 % interval], on the same samples."
    return Table("contrasts", "Every comparison", caption, frame, heading, rows)


def _accuracy_lines(
    group: Sequence[ComparedAccuracy],
) -> Iterator[tuple[str, tuple[TableCell, ...]]]:
    yield "paper", tuple(_published_cell(entry) for entry in group)
    yield "ours, as published", tuple(_rate_or_blank(entry.ours) for entry in group)
    yield "difference", tuple(_difference_cell(entry) for entry in group)
    if any(entry.adaptive for entry in group):
        yield "ours, adaptive", tuple(_rate_or_blank(entry.adaptive) for entry in group)


def _numbered(band: AccuracyBand) -> Iterator[tuple[bool, str, tuple[TableCell, ...]]]:
    for number, (name, shown) in enumerate(band.lines):
        yield number == 0, name, shown


def _rate_or_blank(rate: Rate | None) -> TableCell:
    return rate_cell(rate, wilson(rate)) if rate else BLANK


def _published_cell(entry: ComparedAccuracy) -> TableCell:
    return BLANK if isnan(entry.published) else TableCell(f"{100 * entry.published:.1f}")


def _difference_cell(entry: ComparedAccuracy) -> TableCell:
    if isnan(entry.difference):
        return BLANK
    tone: Tone = "fail" if entry.unexplained else "warn" if entry.far else ""
    return TableCell(f"{100 * entry.difference:+.1f}".replace("-", "−"), tone=tone)


def _accuracy_fact(entry: ComparedAccuracy) -> dict[str, Any]:
    return {
        "row": entry.row.label,
        "attack": entry.row.name,
        "eps": entry.row.eps,
        "tells": entry.row.metric,
        "column": entry.column.name,
        "model": entry.model,
        "published": entry.published,
        "samples": entry.ours.trials,
        **rate_facts({"as_published": entry.ours}, wilson),
        "difference": entry.difference,
        "adaptive_samples": entry.adaptive.trials if entry.adaptive else 0,
        **rate_facts({"adaptive": entry.adaptive}, wilson),
        "remark": entry.remark,
    }


def _status_cell(finding: ClaimFinding, basis: Basis) -> TableCell:
    status, votes = finding.status(basis), finding.votes(basis)
    if not votes:
        return BLANK
    least = finding.least(basis)
    detail = (
        f"{votes.count('holds')} of {len(votes)}; {_difference_text(least, basis)} for {least.title}"
        if len(votes) > 1
        else f"{_difference_text(least, basis)} for {least.title}"
    )
    return TableCell(status, detail, tone=STATUS_TONES[status])


def _difference_text(contrast: Contrast, basis: Basis) -> str:
    shown = _signed(contrast.difference)
    return shown if basis == "paper" else f"{shown} ({_interval_text(contrast.interval)})"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _interval_text(interval: Interval) -> str:
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def _contrast_row(finding: ClaimFinding, basis: Basis, contrast: Contrast) -> tuple[TableCell, ...]:
    status = contrast.status_against(finding.claim.min_difference)
    return (
        TableCell(finding.claim.text, tone="note"),
        TableCell(HEADINGS[basis].lower(), tone="name"),
        TableCell(f"{contrast.left} − {contrast.right or 'published'}", tone="name"),
        TableCell(contrast.row, tone="name"),
        TableCell(f"{contrast.samples:,}"),
        TableCell(_signed(contrast.difference), _interval_text(contrast.interval)),
        TableCell(status, tone=STATUS_TONES[status]),
    )


def _contrast_fact(finding: ClaimFinding, basis: Basis, contrast: Contrast) -> dict[str, Any]:
    return {
        "claim": finding.claim.text,
        "numbers": basis,
        "left": contrast.left,
        "right": contrast.right or "published",
        "row": contrast.row,
        "samples": contrast.samples,
        "difference": contrast.difference,
        "difference_low": contrast.interval.low,
        "difference_high": contrast.interval.high,
        "by": finding.claim.min_difference / 100,
        "judgement": contrast.status_against(finding.claim.min_difference),
    }
