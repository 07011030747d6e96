"""The tables of a reproduction: published beside ours, what was claimed, and every comparison behind it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isnan
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Row, Told
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, Tone, show_rate
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.reproduction.claims import BASES, Basis, Contrast, Finding, Judgement
from robustbench_inv.reporting.reproduction.comparison import Entry
from robustbench_inv.reporting.statistics import Interval, wilson
from robustbench_inv.results.summary import Rate

__all__ = ["Band", "bands", "claims_table", "comparison_table", "contrasts_table"]

MEANINGS: dict[Told, str] = {
    "held": "Accuracy: shown inputs that are decided correctly, of all.",
    "reached": "Success: attacked inputs on which the attack reaches its goal.",
    "detected": "Detected: of those on which the attack as published reaches its goal, what it shows is rejected; adaptive: "
    "no attack that counts finds anything that is wrong and accepted.",
    "fooled": "Fooled: attacked inputs on which the goal is reached by something that is accepted.",
}

NAMES: dict[Told, str] = {
    "held": "accuracy",
    "reached": "success",
    "detected": "detected",
    "fooled": "fooled",
}

HEADINGS: dict[Basis, str] = {
    "paper": "In the paper",
    "published": "As published",
    "adaptive": "Adaptive",
}

TONES: dict[Judgement, Tone] = {"holds": "pass", "undecided": "warn", "does not hold": "fail"}


@dataclass(frozen=True)
class Band:
    """One row of the paper's table with its lines: published, ours, difference, adaptive.

    Args:
        row: which attack, at which eps.
        lines: name of each line, and what it says of each column.
    """

    row: Row
    lines: tuple[tuple[str, tuple[Shown, ...]], ...]

    @property
    def name(self) -> str:
        """What stands before the lines."""
        return self.row.name

    @property
    def note(self) -> str:
        """What stands beneath the name."""
        budget = f"ε = {self.row.eps:g}" if self.row.eps else ""
        return budget if self.row.tells == "held" else NAMES[self.row.tells]


def bands(entries: Sequence[Entry]) -> list[Band]:
    """Return the rows as a reader sees them."""
    grouped = groupby(entries, key=lambda entry: entry.row)
    return [Band(row, tuple(_lines(list(group)))) for row, group in grouped]


def comparison_table(entries: Sequence[Entry]) -> Table:
    """Return the paper's table with ours beside it."""
    columns = tuple(dict.fromkeys(entry.column.name for entry in entries))
    rows = [
        (Shown(band.row.label if first else "", tone="name"), Shown(name, tone="name"), *shown)
        for band in bands(entries)
        for first, name, shown in _numbered(band)
    ]
    told = dict.fromkeys(entry.row.tells for entry in entries)
    caption = (
        f"{' '.join(MEANINGS[each] for each in told)} In % [95 % Wilson interval]. Paper: the published number. As published: "
        "the same attack on our network. Difference: ours as published minus the paper's, in points. Adaptive: what is "
        "left when, for each sample, the strongest of everything counts that was run on this network at this budget."
    )
    frame = pd.DataFrame(_fact(entry) for entry in entries)
    heading = ("Attack", " / ".join(NAMES[each] for each in told).capitalize(), *columns)
    return Table("comparison", "Published and reproduced", caption, frame, heading, tuple(rows))


def claims_table(findings: Sequence[Finding]) -> Table:
    """Return what became of each claim."""
    rows = [
        (Shown(finding.claim.text, tone="note"), *(_judged(finding, basis) for basis in BASES))
        for finding in findings
    ]
    facts = [
        {"claim": f.claim.text, **{basis: f.judgement(basis) for basis in BASES}} for f in findings
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


def contrasts_table(findings: Sequence[Finding]) -> Table:
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


def _lines(group: Sequence[Entry]) -> Iterator[tuple[str, tuple[Shown, ...]]]:
    yield "paper", tuple(_published(entry) for entry in group)
    yield "ours, as published", tuple(_share(entry.ours) for entry in group)
    yield "difference", tuple(_difference(entry) for entry in group)
    if any(entry.adaptive for entry in group):
        yield "ours, adaptive", tuple(_share(entry.adaptive) for entry in group)


def _numbered(band: Band) -> Iterator[tuple[bool, str, tuple[Shown, ...]]]:
    for number, (name, shown) in enumerate(band.lines):
        yield number == 0, name, shown


def _share(rate: Rate | None) -> Shown:
    return show_rate(rate, wilson(rate)) if rate else EMPTY


def _published(entry: Entry) -> Shown:
    return EMPTY if isnan(entry.published) else Shown(f"{100 * entry.published:.1f}")


def _difference(entry: Entry) -> Shown:
    if isnan(entry.difference):
        return EMPTY
    tone: Tone = "fail" if entry.unexplained else "warn" if entry.far else ""
    return Shown(f"{100 * entry.difference:+.1f}".replace("-", "−"), tone=tone)


def _fact(entry: Entry) -> dict[str, Any]:
    return {
        "row": entry.row.label,
        "attack": entry.row.name,
        "eps": entry.row.eps,
        "tells": entry.row.tells,
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


def _judged(finding: Finding, basis: Basis) -> Shown:
    judgement, votes = finding.judgement(basis), finding.votes(basis)
    if not votes:
        return EMPTY
    least = finding.least(basis)
    detail = (
        f"{votes.count('holds')} of {len(votes)}; {_points(least, basis)} for {least.title}"
        if len(votes) > 1
        else f"{_points(least, basis)} for {least.title}"
    )
    return Shown(judgement, detail, tone=TONES[judgement])


def _points(contrast: Contrast, basis: Basis) -> str:
    shown = _signed(contrast.difference)
    return shown if basis == "paper" else f"{shown} ({_ends(contrast.interval)})"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _ends(interval: Interval) -> str:
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def _contrast_row(finding: Finding, basis: Basis, contrast: Contrast) -> tuple[Shown, ...]:
    judgement = contrast.judged(finding.claim.by)
    return (
        Shown(finding.claim.text, tone="note"),
        Shown(HEADINGS[basis].lower(), tone="name"),
        Shown(f"{contrast.left} − {contrast.right or 'published'}", tone="name"),
        Shown(contrast.row, tone="name"),
        Shown(f"{contrast.samples:,}"),
        Shown(_signed(contrast.difference), _ends(contrast.interval)),
        Shown(judgement, tone=TONES[judgement]),
    )


def _contrast_fact(finding: Finding, basis: Basis, contrast: Contrast) -> dict[str, Any]:
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
        "by": finding.claim.by / 100,
        "judgement": contrast.judged(finding.claim.by),
    }
