"""A table in four formats: CSV, Markdown, LaTeX, and the rows that HTML shows."""

import re
from dataclasses import dataclass, replace
from math import isfinite, isinf, isnan
from typing import Literal

import pandas as pd

from robustbench_inv.arguments import printable
from robustbench_inv.reporting.statistics import Interval, Median
from robustbench_inv.results.summary import Rate

__all__ = [
    "BLANK",
    "Table",
    "TableCell",
    "Tone",
    "dataset_title",
    "format_number",
    "median_cell",
    "norm_symbol",
    "plain_text",
    "rate_cell",
    "slug",
    "to_csv",
    "to_latex",
    "to_markdown",
]


MAX_FILE_NAME = 80
"""Characters of a file name; file systems end at 255 bytes, and readers long before."""

Tone = Literal["", "name", "note", "pass", "warn", "fail"]
"""The style of a cell: plain, name of a row, running text, pass, warning or failure."""


@dataclass(frozen=True)
class TableCell:
    """One cell of a table.

    Args:
        text: the number or word.
        detail: text in brackets after it: the interval.
        share: the number as a fraction of 1, for a bar in the background.
        tone: its style.
    """

    text: str
    detail: str = ""
    share: float | None = None
    tone: Tone = ""

    @property
    def plain(self) -> str:
        """Text and detail on one line."""
        return f"{self.text} [{self.detail}]" if self.detail else self.text

    def signed(self, sign: str) -> "TableCell":
        """Return the cell with a sign behind its text, if it is a share."""
        return self if self.share is None else replace(self, text=self.text + sign)


def norm_symbol(norm: str) -> str:
    """Return the mathematical symbol of a norm.

    Example:
        >>> norm_symbol("linf")
        'ℓ∞'
    """
    return {"l0": "ℓ0", "l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}.get(norm, norm)


def dataset_title(name: str) -> str:
    """Return a data set with its parameters as words.

    Example:
        >>> dataset_title("spheres:d=500,n=10")
        'spheres d=500 n=10'
    """
    return name.replace(":", " ").replace(",", " ")


BLANK = TableCell("—")
"""Nothing was measured here."""


@dataclass(frozen=True)
class Table:
    """A table: ``frame`` holds the numbers, one fact a row; ``rows`` are laid out for readers.

    Args:
        name: for file names, from letters, digits, dots and hyphens.
        title: a few words.
        caption: what the figures mean.
        frame: for programs.
        columns: headings of ``rows``.
        rows: for readers.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


def rate_cell(rate: Rate, interval: Interval) -> TableCell:
    """Return a share in per cent with its interval.

    Example:
        >>> rate_cell(Rate(9, 10), Interval(0.596, 0.982)).plain
        '90.0 [59.6–98.2]'
    """
    if not rate.trials:
        return BLANK
    detail = f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"
    return TableCell(f"{100 * rate.value:.1f}", detail, rate.value)


def median_cell(median: Median | None) -> TableCell:
    """Return a median with its interval; ∞ where half of the samples never fell."""
    if median is None:
        return BLANK
    interval = median.interval
    known = interval is not None and isfinite(interval.low)
    detail = (
        f"{format_number(interval.low)}–{format_number(interval.high)}"
        if interval and known
        else ""
    )
    return TableCell(format_number(median.value), detail)


LARGE = 1e9
"""From here on numbers have an exponent."""


def format_number(value: float) -> str:
    """Return a number with three significant digits, without a needless exponent or zero.

    Example:
        >>> [format_number(v) for v in (0.1, 1.23456, 1234.5, 6.5e37, float("inf"))]
        ['0.1', '1.23', '1,234', '6.5e+37', '∞']
    """
    if isnan(value):
        return "—"
    if isinf(value):
        return "∞" if value > 0 else "−∞"
    if 1e3 <= abs(value) < LARGE:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def slug(text: str) -> str:
    """Return a text as part of a file name, cut where a name would become unwieldy.

    Example:
        >>> slug("spheres:d=500,n=10")
        'spheres-d-500-n-10'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:MAX_FILE_NAME].rstrip("-.")


def to_csv(table: Table) -> str:
    """Return the numbers, one fact a row, with full precision; absent is empty. No text is a formula."""
    frame = table.frame.rename(columns=lambda name: plain_text(str(name)))
    for column in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        frame[column] = frame[column].map(lambda v: plain_text(v) if isinstance(v, str) else v)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def plain_text(text: str) -> str:
    """Return a text that a spreadsheet shows as it is; one that would be a formula gets an apostrophe in front.

    Example:
        >>> [plain_text(text) for text in ("=1+1", "@x", "-0.5", "pgd")]
        ["'=1+1", "'@x", '-0.5', 'pgd']
    """
    shown = printable(text)
    if not shown.lstrip().startswith(("=", "+", "-", "@")) and not shown.startswith(("\t", "\n")):
        return shown
    return shown if _AMOUNT.fullmatch(shown) else f"'{shown}"


_AMOUNT = re.compile(
    r"[-+]?(?:inf|nan|\d[\d.,]*(?:e[-+]?\d+)?)%?(?: \[[-+–\d.,% to]*\])?", re.IGNORECASE
)
"""A number, with its interval in brackets where it has one."""


def to_markdown(table: Table) -> str:
    """Return the laid-out rows as a Markdown table under its title."""
    rule = ["---" if column in _text_columns(table) else "---:" for column in table.columns]
    body = [[cell.plain for cell in row] for row in table.rows]
    lines = [_markdown_line(cells) for cells in (list(table.columns), *body)]
    lines.insert(1, f"| {' | '.join(rule)} |")
    title, caption = _markdown(table.title), _markdown(table.caption)
    return f"**{title}.** {caption}\n\n" + "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """Return the laid-out rows as a LaTeX table with the rules of the package booktabs."""
    align = "".join("l" if column in _text_columns(table) else "r" for column in table.columns)
    body = [" & ".join(_latex(cell.plain) for cell in row) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_latex(table.title)}. {_latex(table.caption)}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{{align}}}",
        r"    \toprule",
        "    " + " & ".join(map(_latex, table.columns)) + r" \\",
        r"    \midrule",
        *("    " + line for line in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _text_columns(table: Table) -> set[str]:
    """The columns of words, which are set flush left."""
    words = {"name", "note"}
    first = table.rows[0] if table.rows else ()
    return {c for c, cell in zip(table.columns, first, strict=False) if cell.tone in words}


def _markdown_line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_markdown, cells)) + " |"


def _markdown(text: str) -> str:
    """Return a text on one line, in which no cell ends, no HTML begins and no link."""
    line = plain_text(" ".join(text.split()))
    return line.replace("|", r"\|").replace("<", "&lt;").replace("](", r"]\(")


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "ℓ": r"$\ell$",
    "∞": r"$\infty$",
    "≤": r"$\le$",
    "…": r"\dots{}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "ε": r"$\varepsilon$",
    "Δ": r"$\Delta$",
    "\u00a0": "~",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in printable(text))
