"""Published numbers beside measured ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isnan, nan
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, Tone, number, slug
from robustbench_inv.reporting.reproduction.comparison import is_far
from robustbench_inv.results.measurement import Measured, Number

__all__ = ["Band", "Entry", "bands", "compare", "numbers_table"]

SHARES = "Shares in % [95 % Wilson interval]; other numbers as they are."
BESIDE = (
    " Paper: the published number. Difference: ours minus the paper's, in points for shares. Rows without a published number are "
    "ours, beyond the paper."
)


@dataclass(frozen=True)
class Entry:
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
    ours: Number | None
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
        return is_far(self.difference / (self.published if self.amount else 1))

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
class Band:
    """One row of the table with its lines: published, ours, difference; or ours alone.

    Args:
        name: of the row.
        lines: name of each line, and what it says of each column.
    """

    name: str
    lines: tuple[tuple[str, tuple[Shown, ...]], ...]

    note = ""


def compare(item: Reproduction, measured: Measured) -> list[Entry]:
    """Return every number, row by row: first the published rows, then what was measured besides."""
    found = {(each.row, each.column): each for each in measured.numbers}
    rows = dict.fromkeys((*item.published, *(each.row for each in measured.numbers)))
    amounts = {each.row for each in measured.numbers if not each.trials}
    return [
        _entry(item, (row, place), column.name, found.get((row, column.name)), row in amounts)
        for row in rows
        for place, column in enumerate(item.columns)
    ]


def bands(entries: Sequence[Entry]) -> list[Band]:
    """Return the rows as a reader sees them."""
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.row, []).append(entry)
    return [Band(name, tuple(_lines(row))) for name, row in rows.items()]


def numbers_table(entries: Sequence[Entry], data: str) -> Table:
    """Return the table with published numbers beside ours.

    Args:
        entries: as ``compare`` returns them.
        data: of which data set.
    """
    columns = tuple(dict.fromkeys(entry.column for entry in entries))
    rows = tuple(
        (Shown("" if number else band.name, tone="name"), Shown(line, tone="name"), *shown)
        for band in bands(entries)
        for number, (line, shown) in enumerate(band.lines)
    )
    published = any(not isnan(entry.published) for entry in entries)
    title, caption = ("Published and ours", SHARES + BESIDE) if published else ("Measured", SHARES)
    frame = pd.DataFrame(entry.to_json() for entry in entries)
    heading = ("Measured", "Numbers", *columns)
    return Table(slug(f"numbers-{data}"), title, caption, frame, heading, rows)


def _entry(
    item: Reproduction, at: tuple[str, int], column: str, ours: Number | None, amount: bool
) -> Entry:
    row, place = at
    published = item.published[row][place] if row in item.published else nan
    published /= 1 if amount else 100
    remarks = [
        remark.text
        for remark in item.remarks
        if fnmatchcase(row, remark.rows) and fnmatchcase(column, remark.columns)
    ]
    remark = " ".join(remarks) if ours or not isnan(published) else ""
    return Entry(row, column, published, ours, remark, amount)


def _lines(row: Sequence[Entry]) -> Iterator[tuple[str, tuple[Shown, ...]]]:
    if all(isnan(entry.published) for entry in row):
        yield "ours", tuple(_ours(entry) for entry in row)
        return
    yield "paper", tuple(_published(entry) for entry in row)
    yield "ours", tuple(_ours(entry) for entry in row)
    if any(entry.ours for entry in row):
        yield "difference", tuple(_difference(entry) for entry in row)


def _published(entry: Entry) -> Shown:
    if isnan(entry.published):
        return EMPTY
    return Shown(f"{(1 if entry.amount else 100) * entry.published:.2f}")


def _ours(entry: Entry) -> Shown:
    if entry.ours is None:
        return Shown("not reproduced") if entry.remark else EMPTY
    rate = entry.ours.rate
    if rate is None:
        return Shown(number(entry.ours.value))
    low, high = (f"{100 * end:.2f}" for end in (rate.low, rate.high))
    return Shown(f"{100 * entry.ours.value:.2f}", f"{low}–{high}", entry.ours.value)


def _difference(entry: Entry) -> Shown:
    if isnan(entry.difference):
        return EMPTY
    tone: Tone = "" if not entry.far else "warn" if entry.remark else "fail"
    points = round((1 if entry.amount else 100) * entry.difference, 2) + 0.0  # no −0
    return Shown(f"{points:+.2f}".replace("-", "−"), tone=tone)
