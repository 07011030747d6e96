"""Sheets of logits as tables: the answer of each row stands out."""

from math import isnan

import pandas as pd

from robustbench_inv.reporting.exports import EMPTY, Shown, Table, Tone, slug
from robustbench_inv.results.measurement import Line, Sheet

__all__ = ["sheet_table"]


def sheet_table(sheet: Sheet, prefix: str = "") -> Table:
    """Return the table of a sheet.

    Args:
        sheet: numbers in rows.
        prefix: of its name, to tell it from sheets of other data.
    """
    name = slug(f"{prefix}-{sheet.name}" if prefix else sheet.name)
    rows = tuple((Shown(line.name, tone="name"), *_cells(line)) for line in sheet.lines)
    frame = pd.DataFrame(
        {"row": line.name, "column": head, "value": value, "accepted": line.accepted}
        for line in sheet.lines
        for head, value in zip(sheet.heads, line.values, strict=True)
    )
    return Table(name, sheet.title, sheet.caption, frame, ("", *sheet.heads), rows)


def _cells(line: Line) -> list[Shown]:
    best = max((v for v in line.values if not isnan(v)), default=0.0)
    return [_cell(value, line, best=value == best) for value in line.values]


def _cell(value: float, line: Line, *, best: bool) -> Shown:
    """Return a number; of an answer the largest is told: accepted and right, rejected, or accepted and wrong."""
    if isnan(value):
        return EMPTY
    text = f"{value:.1f}".replace("-", "−")
    if not best or line.accepted is None:
        return Shown(text)
    tone: Tone = "warn" if not line.accepted else "fail" if line.wrong else "pass"
    return Shown(text, tone=tone)
