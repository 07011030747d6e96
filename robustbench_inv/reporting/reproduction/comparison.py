"""Published numbers beside ours, for every row and column of a paper's table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isnan, nan
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Column, Reproduction, Row
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes, rate_of
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    Tone,
    format_number,
    slug,
)
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.results.summary import Rate

__all__ = [
    "ComparedAccuracy",
    "ComparedNumber",
    "NumberBand",
    "compare_accuracies",
    "compare_numbers",
    "find_datasets",
    "needs_remark",
    "number_bands",
    "numbers_table",
]


REMARK_DIFFERENCE = 0.1
"""A difference from the published share above which a remark is due."""


def needs_remark(difference: float) -> bool:
    """Is a remark due? Not where rounding alone lifts the difference above FAR, nor where there is none (nan)."""
    return abs(difference) > REMARK_DIFFERENCE + 1e-9


@dataclass(frozen=True)
class ComparedAccuracy:
    """One number of the paper's table and what we have for it.

    Args:
        row: which attack, at which eps.
        column: which model.
        model: the model that was attacked as published.
        published: the paper's share; nan where it gives none.
        ours: the share as published; no trials if that was not run.
        adaptive: the share under everything that counts; None for a row that has no such number.
        remark: why the numbers differ; empty if nothing was said.
    """

    row: Row
    column: Column
    model: str
    published: float
    ours: Rate
    adaptive: Rate | None
    remark: str

    @property
    def place(self) -> str:
        """Where it stands in the table."""
        return f"{self.row.label}, {self.column.name}"

    @property
    def difference(self) -> float:
        """Ours minus published; nan if one of them is missing."""
        return self.ours.value - self.published

    @property
    def far(self) -> bool:
        """Do the numbers differ by more than 10 points?"""
        return needs_remark(self.difference)

    @property
    def unexplained(self) -> bool:
        """Do they, and nobody said why?"""
        return self.far and not self.remark

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints; shares are fractions."""
        known, compared = bool(self.ours.trials), not isnan(self.difference)
        return {
            "row": self.row.label,
            "attack": self.row.name,
            "eps": self.row.eps,
            "tells": self.row.metric,
            "column": self.column.name,
            "model": self.model,
            "published": None if isnan(self.published) else self.published,
            "ours": self.ours.to_json() if known else None,
            "difference": self.difference if compared else None,
            "interval": [self.ours.low, self.ours.high] if known else None,
            "adaptive": self.adaptive.to_json() if self.adaptive else None,
            "remark": self.remark or None,
            "explained": bool(self.remark) if self.far else None,
        }


def compare_accuracies(evidence: ReproductionOutcomes) -> list[ComparedAccuracy]:
    """Return the entries of the table, row by row; every number follows from the outcomes alone."""
    item = evidence.item
    return [
        _compared_accuracy(evidence, row, column) for row in item.rows for column in item.columns
    ]


def find_datasets(
    item: Reproduction, outcomes: pd.DataFrame, dataset: str | None = None
) -> dict[str, str]:
    """Return on which data set each of the item's own was evaluated, as the outcomes say.

    Args:
        item: what is reproduced.
        outcomes: what was measured.
        dataset: the one that is meant, if there are records on several.

    Raises:
        BadResults: if there is none, or if there are several and none is named.
    """
    if dataset is not None:
        return item.places(dataset)
    places: dict[str, str] = {}
    known = set(map(str, outcomes.index.get_level_values("dataset")))
    for data in item.datasets:
        others = known.difference(item.datasets) | {data}
        found = sorted(name for name in known & others if name.startswith(data))
        if len(found) > 1:
            raise BadResults(
                "records on several data sets", got=found, remedy="name one: --dataset"
            )
        places |= zip([data] * len(found), found, strict=True)
    if not places:
        raise BadResults(
            f"no records of {item.name}", got=sorted(known), expected=" or ".join(item.datasets)
        )
    return places


def _compared_accuracy(
    evidence: ReproductionOutcomes, row: Row, column: Column
) -> ComparedAccuracy:
    item, (data,) = evidence.item, evidence.item.datasets
    worst = evidence.share("adaptive", row, column, data)
    return ComparedAccuracy(
        row=row,
        column=column,
        model=column.model(item.trial(row.trial).side, data),
        published=evidence.number(row, column),
        ours=rate_of(evidence.share("published", row, column, data)),
        adaptive=rate_of(worst) if len(worst) else None,
        remark=item.remark(row, column),
    )


SHARES_CAPTION = "Shares in % [95 % Wilson interval]; other numbers as they are."
COMPARISON_CAPTION = (
    " Paper: the published number. Difference: ours minus the paper's, in points for shares. Rows without a published number are "
    "ours, beyond the paper."
)


@dataclass(frozen=True)
class ComparedNumber:
    """One number of the table.

    Args:
        row: what was measured.
        column: of which model.
        published: the paper's share, or amount; nan if it has none.
        ours: what was measured; None if it was not.
        remark: why they differ; empty if nothing was said.
        amount: is the row about amounts rather than shares?
    """

    row: str
    column: str
    published: float
    ours: MeasuredNumber | None
    remark: str
    amount: bool = False

    @property
    def place(self) -> str:
        """Where it stands in the table."""
        return f"{self.row}, {self.column}"

    @property
    def difference(self) -> float:
        """Ours minus published; nan where one is missing."""
        return self.ours.value - self.published if self.ours else nan

    @property
    def far(self) -> bool:
        """Do the shares differ by more than 10 points, or the amounts by more than a tenth of the published one?"""
        return needs_remark(self.difference / (self.published if self.amount else 1))

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints and the CSV holds; shares are fractions."""
        rate = self.ours.rate if self.ours else None
        return {
            "row": self.row,
            "column": self.column,
            "published": None if isnan(self.published) else self.published,
            "value": self.ours.value if self.ours else None,
            "trials": self.ours.trials if self.ours else 0,
            "low": rate.low if rate else None,
            "high": rate.high if rate else None,
            "difference": None if isnan(self.difference) else self.difference,
            "remark": self.remark or None,
        }


@dataclass(frozen=True)
class NumberBand:
    """One row of the table with its lines: published, ours, difference; or ours alone.

    Args:
        name: of the row.
        lines: name of each line, and what it says of each column.
    """

    name: str
    lines: tuple[tuple[str, tuple[TableCell, ...]], ...]

    note = ""


def compare_numbers(item: Reproduction, measured: ExperimentResult) -> list[ComparedNumber]:
    """Return every number, row by row: first the published rows, then what was measured besides."""
    found = {(each.row, each.column): each for each in measured.numbers}
    rows = dict.fromkeys((*item.published, *(each.row for each in measured.numbers)))
    amounts = {each.row for each in measured.numbers if not each.trials}
    return [
        _compared_number(
            item, (row, place), column.name, found.get((row, column.name)), row in amounts
        )
        for row in rows
        for place, column in enumerate(item.columns)
    ]


def number_bands(entries: Sequence[ComparedNumber]) -> list[NumberBand]:
    """Return the rows as a reader sees them."""
    rows: dict[str, list[ComparedNumber]] = {}
    for entry in entries:
        rows.setdefault(entry.row, []).append(entry)
    return [NumberBand(name, tuple(_number_lines(row))) for name, row in rows.items()]


def numbers_table(entries: Sequence[ComparedNumber], data: str) -> Table:
    """Return the table with published numbers beside ours.

    Args:
        entries: as ``compare_numbers`` returns them.
        data: of which data set.
    """
    columns = tuple(dict.fromkeys(entry.column for entry in entries))
    rows = tuple(
        (
            TableCell("" if format_number else band.name, tone="name"),
            TableCell(line, tone="name"),
            *shown,
        )
        for band in number_bands(entries)
        for format_number, (line, shown) in enumerate(band.lines)
    )
    published = any(not isnan(entry.published) for entry in entries)
    title, caption = (
        ("Published and ours", SHARES_CAPTION + COMPARISON_CAPTION)
        if published
        else ("ExperimentResult", SHARES_CAPTION)
    )
    frame = pd.DataFrame(entry.to_json() for entry in entries)
    heading = ("ExperimentResult", "Numbers", *columns)
    return Table(slug(f"numbers-{data}"), title, caption, frame, heading, rows)


def _compared_number(
    item: Reproduction, at: tuple[str, int], column: str, ours: MeasuredNumber | None, amount: bool
) -> ComparedNumber:
    row, place = at
    published = item.published[row][place] if row in item.published else nan
    published /= 1 if amount else 100
    remarks = [
        remark.text
        for remark in item.remarks
        if fnmatchcase(row, remark.rows) and fnmatchcase(column, remark.columns)
    ]
    remark = " ".join(remarks) if ours or not isnan(published) else ""
    return ComparedNumber(row, column, published, ours, remark, amount)


def _number_lines(row: Sequence[ComparedNumber]) -> Iterator[tuple[str, tuple[TableCell, ...]]]:
    if all(isnan(entry.published) for entry in row):
        yield "ours", tuple(_our_cell(entry) for entry in row)
        return
    yield "paper", tuple(_published_cell(entry) for entry in row)
    yield "ours", tuple(_our_cell(entry) for entry in row)
    if any(entry.ours for entry in row):
        yield "difference", tuple(_difference_cell(entry) for entry in row)


def _published_cell(entry: ComparedNumber) -> TableCell:
    if isnan(entry.published):
        return BLANK
    return TableCell(f"{(1 if entry.amount else 100) * entry.published:.2f}")


def _our_cell(entry: ComparedNumber) -> TableCell:
    if entry.ours is None:
        return TableCell("not reproduced") if entry.remark else BLANK
    rate = entry.ours.rate
    if rate is None:
        return TableCell(format_number(entry.ours.value))
    low, high = (f"{100 * end:.2f}" for end in (rate.low, rate.high))
    return TableCell(f"{100 * entry.ours.value:.2f}", f"{low}–{high}", entry.ours.value)


def _difference_cell(entry: ComparedNumber) -> TableCell:
    if isnan(entry.difference):
        return BLANK
    tone: Tone = "" if not entry.far else "warn" if entry.remark else "fail"
    points = round((1 if entry.amount else 100) * entry.difference, 2) + 0.0  # no −0
    return TableCell(f"{points:+.2f}".replace("-", "−"), tone=tone)
