"""The tables of a reproduction: published numbers beside ours, claims, and every comparison behind them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isnan
from statistics import stdev
from typing import Any

import pandas as pd

from robustbench_inv.arguments import format_eps
from robustbench_inv.catalogue.reproduction import RowMetric
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.reproduction.claims import (
    BASES,
    Basis,
    ClaimFinding,
    ClaimStatus,
    Comparison,
)
from robustbench_inv.reporting.reproduction.comparison import ComparedNumber
from robustbench_inv.reporting.statistics import Interval, wilson
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    Tone,
    format_number,
    slug,
)
from robustbench_inv.results.experiment_result import MeasuredNumber
from robustbench_inv.results.summary import Rate

__all__ = [
    "ATTACK_FORMAT",
    "EXPERIMENT_FORMAT",
    "NumberBand",
    "NumberFormat",
    "claims_table",
    "comparisons_table",
    "number_bands",
    "numbers_table",
]

METRIC_NAMES: dict[str, str] = {
    "robust": "",
    "success": "attack success",
    "detected": "detected",
    "undetected": "undetected",
}

METRIC_MEANINGS: dict[RowMetric, str] = {
    "robust": "Accuracy: share of all samples that are correctly classified under attack.",
    "success": "Attack success: share of attacked samples on which the attack reaches its goal.",
    "detected": "Detected: share of the samples broken by the published attack whose adversarial example the model "
    "rejects; adaptive: share for which no attack finds an adversarial example that the model accepts.",
    "undetected": "Undetected: share of attacked samples with an adversarial example that the model accepts.",
}

LINE_MEANINGS = {
    "paper": "Paper: the published number.",
    "difference": "Difference: ours minus the paper's, in percentage points for shares.",
    "adaptive": "Adaptive: the worst case over all attacks that were run on this network at this budget; for each "
    "sample the strongest attack counts.",
}

BASIS_HEADINGS: dict[Basis, str] = {"paper": "Paper", "published": "Ours", "adaptive": "Adaptive"}

STATUS_TONES: dict[ClaimStatus, Tone] = {
    "holds": "pass",
    "undecided": "warn",
    "does not hold": "fail",
}


@dataclass(frozen=True)
class NumberFormat:
    """How the tables of an item show numbers.

    Args:
        decimals: of per cent in the table of numbers.
        compared: returns the text of a compared value, in percentage points for shares.
    """

    decimals: int
    compared: Callable[[float], str]


ATTACK_FORMAT = NumberFormat(1, lambda value: f"{value:+.1f}")
"""For shares of attacked samples."""

EXPERIMENT_FORMAT = NumberFormat(2, format_number)
"""For numbers of experiments, which may be amounts."""


@dataclass(frozen=True)
class NumberBand:
    """One row of the paper's table with its lines.

    Args:
        label: of the row, unique.
        name: heading of the band.
        note: second line of the heading: the budget or the metric.
        lines: (``paper``, ``ours``, ``difference`` or ``adaptive``; one cell for each column).
    """

    label: str
    name: str
    note: str
    lines: tuple[tuple[str, tuple[TableCell, ...]], ...]


def number_bands(numbers: Sequence[ComparedNumber], style: NumberFormat) -> list[NumberBand]:
    """Return one band for each row; rows without a published number have our line alone."""
    bands = []
    for row, group in groupby(numbers, key=lambda number: number.row):
        budget = f"ε = {format_eps(row.eps)}" if row.eps else ""
        note = METRIC_NAMES.get(row.metric) or budget
        lines = tuple(_lines(list(group), style))
        bands.append(NumberBand(row.label, row.name, note, lines))
    return bands


def numbers_table(
    numbers: Sequence[ComparedNumber], style: NumberFormat, dataset: str = ""
) -> Table:
    """Return the paper's table with our numbers beside the published ones.

    Args:
        numbers: row by row.
        style: how to show them.
        dataset: suffix of the table's name, if the report has several data sets.
    """
    columns = tuple(dict.fromkeys(number.column for number in numbers))
    bands = number_bands(numbers, style)
    rows = tuple(
        (TableCell(label, tone="name"), TableCell(line, tone="name"), *cells)
        for band in bands
        for label, (line, cells) in zip(_once(band.label), band.lines, strict=False)
    )
    is_compared = any(not isnan(number.published) for number in numbers)
    title = "Published and reproduced" if is_compared else "Measured"
    frame = pd.DataFrame(map(_number_fact, numbers))
    heading = ("Row", "Numbers", *columns)
    return Table(
        slug(f"numbers-{dataset}"),
        _title(title, dataset),
        _numbers_caption(numbers, bands),
        frame,
        heading,
        rows,
    )


def claims_table(findings: Sequence[ClaimFinding], style: NumberFormat, dataset: str = "") -> Table:
    """Return the verdict on each claim, on the paper's numbers and on ours."""
    bases = _measured_bases(findings)
    rows = tuple(
        (
            TableCell(finding.text, finding.limits.text, tone="note"),
            *(_status_cell(finding, basis, style) for basis in bases),
        )
        for finding in findings
    )
    facts = [{"claim": f.text, **{basis: f.status(basis) for basis in bases}} for f in findings]
    caption = (
        "A claim holds if the whole 95 % interval meets its limit, does not hold if the interval lies beyond the limit, "
        "and is undecided otherwise. Comparisons are paired where both numbers come from the same samples; intervals are "
        "not adjusted for the number of comparisons. Limits are in per cent or percentage points for shares. Beside each "
        "verdict: how many comparisons hold, and the decisive one."
    )
    heading = ("Claim", *(BASIS_HEADINGS[basis] for basis in bases))
    return Table(
        slug(f"claims-{dataset}"),
        _title("Verdicts on the claims", dataset),
        caption,
        pd.DataFrame(facts),
        heading,
        rows,
    )


def comparisons_table(
    findings: Sequence[ClaimFinding], style: NumberFormat, dataset: str = ""
) -> Table:
    """Return every comparison of our numbers behind the claims."""
    compared = [
        (finding, basis, comparison)
        for finding in findings
        for basis in BASES[1:]
        for comparison in finding.comparisons[basis]
    ]
    heading = ("Claim", "Numbers", "Compared", "Row", "Samples", "Difference", "Verdict")
    rows = tuple(_comparison_row(*each, style) for each in compared)
    frame = pd.DataFrame(_comparison_fact(*each) for each in compared)
    caption = "Values and differences [95 % interval], in per cent or percentage points for shares."
    return Table(
        slug(f"comparisons-{dataset}"),
        _title("Every comparison", dataset),
        caption,
        frame,
        heading,
        rows,
    )


def _title(text: str, dataset: str) -> str:
    """Return a title that names the data set, if a report has several."""
    return f"{text}: {dataset}" if dataset else text


def _once(label: str) -> Iterator[str]:
    """Yield a label for the first line of a band, and nothing for the others."""
    yield label
    while True:
        yield ""


def _lines(
    numbers: Sequence[ComparedNumber], style: NumberFormat
) -> Iterator[tuple[str, tuple[TableCell, ...]]]:
    is_compared = any(not isnan(number.published) for number in numbers)
    if is_compared:
        yield "paper", tuple(_published_cell(number, style) for number in numbers)
    yield "ours", tuple(_our_cell(number, style) for number in numbers)
    if is_compared and any(number.ours for number in numbers):
        yield "difference", tuple(_difference_cell(number, style) for number in numbers)
    if any(number.adaptive for number in numbers):
        yield "adaptive", tuple(_adaptive_cell(number, style) for number in numbers)


def _numbers_caption(numbers: Sequence[ComparedNumber], bands: Sequence[NumberBand]) -> str:
    metrics = {number.row.metric for number in numbers}
    lines = {line for band in bands for line, _ in band.lines}
    texts = [text for metric, text in METRIC_MEANINGS.items() if metric in metrics]
    amounts = any(number.row.is_amount for number in numbers)
    texts += ["Shares in % [95 % Wilson interval]" + ("; amounts as they are." if amounts else ".")]
    if any(number.ours and number.ours.trainings for number in numbers):
        texts.append("Means of n trainings with their standard deviation (SD).")
    return " ".join(texts + [text for line, text in LINE_MEANINGS.items() if line in lines])


def _share_cell(value: float, rate: Rate, style: NumberFormat) -> TableCell:
    text, low, high = (
        f"{100 * share:.{style.decimals}f}" for share in (value, rate.low, rate.high)
    )
    return TableCell(text, f"{low}–{high}", value)


def _published_cell(number: ComparedNumber, style: NumberFormat) -> TableCell:
    if isnan(number.published):
        return BLANK
    scale = 1 if number.row.is_amount else 100
    return TableCell(f"{scale * number.published:.{style.decimals}f}")


def _our_cell(number: ComparedNumber, style: NumberFormat) -> TableCell:
    if number.ours is None:
        return TableCell("not reproduced") if number.remark else BLANK
    if number.ours.trainings:
        return _mean_cell(number.ours, style)
    if number.ours.rate is None:
        return TableCell(format_number(number.ours.value))
    return _share_cell(number.ours.value, number.ours.rate, style)


def _mean_cell(mean: MeasuredNumber, style: NumberFormat) -> TableCell:
    deviation = _deviation(mean)
    spread = "" if deviation is None else f"SD {100 * deviation:.{style.decimals}f}, "
    text = f"{100 * mean.value:.{style.decimals}f}"
    return TableCell(text, f"{spread}n = {len(mean.trainings)}", mean.value)


def _deviation(mean: MeasuredNumber) -> float | None:
    """Return the standard deviation over trainings; None of a single one, and of other numbers."""
    return stdev(mean.trainings) if len(mean.trainings) > 1 else None


def _adaptive_cell(number: ComparedNumber, style: NumberFormat) -> TableCell:
    rate = number.adaptive
    return _share_cell(rate.value, rate, style) if rate else BLANK


def _difference_cell(number: ComparedNumber, style: NumberFormat) -> TableCell:
    if isnan(number.difference):
        return BLANK
    tone: Tone = "fail" if number.lacks_remark else "warn" if number.needs_remark else ""
    scale = 1 if number.row.is_amount else 100
    points = round(scale * number.difference, style.decimals) + 0.0  # no −0
    return TableCell(_with_minus(f"{points:+.{style.decimals}f}"), tone=tone)


def _with_minus(text: str) -> str:
    return text.replace("-", "−")


def _number_fact(number: ComparedNumber) -> dict[str, Any]:
    rate = number.ours.rate if number.ours else None
    shares = rate_facts({"ours": rate, "adaptive": number.adaptive}, wilson)
    value = {"ours": number.ours.value} if number.ours else {}  # not the rounded share
    deviation = _deviation(number.ours) if number.ours else None
    spread = {} if deviation is None else {"sd": deviation}
    return {
        "row": number.row.label,
        "attack": number.row.name,
        "eps": number.row.eps,
        "metric": number.row.metric,
        "column": number.column,
        "model": number.model,
        "published": number.published,
        "samples": rate.trials if rate else 0,
        **shares,
        **value,
        **spread,
        "difference": number.difference,
        "far": number.needs_remark,
        "adaptive_samples": number.adaptive.trials if number.adaptive else 0,
        "remark": number.remark,
    }


def _measured_bases(findings: Sequence[ClaimFinding]) -> list[Basis]:
    """Return the paper's and our basis, and the adaptive one if anything was compared on it."""
    adaptive = any(finding.comparisons["adaptive"] for finding in findings)
    return list(BASES if adaptive else BASES[:2])


def _status_cell(finding: ClaimFinding, basis: Basis, style: NumberFormat) -> TableCell:
    status, votes = finding.status(basis), finding.votes(basis)
    if not votes:
        return BLANK
    decisive = finding.decisive(basis)
    value = f"{_comparison_text(decisive, style)} for {decisive.title}"
    detail = f"{votes.count('holds')} of {len(votes)}; {value}" if len(votes) > 1 else value
    return TableCell(status, detail, tone=STATUS_TONES[status])


def _comparison_text(comparison: Comparison, style: NumberFormat) -> str:
    value = _value_text(comparison, comparison.value, style)
    interval = _interval_text(comparison, style)
    return f"{value} ({interval})" if interval else value


def _value_text(comparison: Comparison, value: float, style: NumberFormat) -> str:
    return _with_minus(style.compared(comparison.scale * value))


def _interval_text(comparison: Comparison, style: NumberFormat) -> str:
    """Return both ends; empty for a point."""
    interval: Interval = comparison.interval
    if interval.low == interval.high:
        return ""
    low, high = (_value_text(comparison, end, style) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def _comparison_row(
    finding: ClaimFinding, basis: Basis, comparison: Comparison, style: NumberFormat
) -> tuple[TableCell, ...]:
    status = finding.limits.status(comparison)
    value = _value_text(comparison, comparison.value, style)
    return (
        TableCell(finding.text, tone="note"),
        TableCell(BASIS_HEADINGS[basis].lower(), tone="name"),
        TableCell(comparison.columns, tone="name"),
        TableCell(comparison.row, tone="name"),
        TableCell(f"{comparison.samples:,}" if comparison.samples else "—"),
        TableCell(value, _interval_text(comparison, style)),
        TableCell(status, tone=STATUS_TONES[status]),
    )


def _comparison_fact(finding: ClaimFinding, basis: Basis, comparison: Comparison) -> dict[str, Any]:
    return {
        "claim": finding.text,
        "numbers": basis,
        "left": comparison.left,
        "right": comparison.right,
        "row": comparison.row,
        "samples": comparison.samples,
        "difference": comparison.value,
        "difference_low": comparison.interval.low,
        "difference_high": comparison.interval.high,
        "at_least": finding.limits.at_least / comparison.scale,
        "at_most": finding.limits.at_most / comparison.scale,
        "status": finding.limits.status(comparison),
    }
