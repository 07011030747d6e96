"""The first screen of a report: for each model its verdict and both ways to fail, and a picture of these two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from robustbench_inv.checks.audit_verdict import Conclusion
from robustbench_inv.reporting.canvas import ReportFigure, render, styled
from robustbench_inv.reporting.headlines import Headline, HeadlineRow
from robustbench_inv.reporting.run_results import CellGroup
from robustbench_inv.reporting.table_formats import BLANK, TableCell, dataset_title, norm_symbol
from robustbench_inv.reporting.two_failures import label_points

__all__ = ["Glance", "GlanceColumn", "GlanceRow", "draw_both_failures", "take_glance"]

ROBUSTNESS, BLINDNESS = "Robustness to small changes", "Blindness to class changes"


@dataclass(frozen=True)
class GlanceColumn:
    """A kind of result.

    Args:
        title: what fails, in words.
        detail: norm, budget and unit.
        group: norm, goal and oracle; its data set is empty.
    """

    title: str
    detail: str
    group: CellGroup


@dataclass(frozen=True)
class GlanceRow:
    """One model on one data set.

    Args:
        model: its label.
        dataset: its data.
        conclusion: whether its numbers can be published; None without checks.
        clean: clean accuracy.
        results: for each column, and the strongest attack in words.
    """

    model: str
    dataset: str
    conclusion: Conclusion | None
    clean: TableCell
    results: tuple[tuple[TableCell, str], ...]


@dataclass(frozen=True)
class Glance:
    """The table of the first screen."""

    columns: tuple[GlanceColumn, ...]
    rows: tuple[GlanceRow, ...]


def take_glance(headlines: Sequence[Headline], conclusions: Sequence[Conclusion]) -> Glance:
    """Return one row for each model and data set, with a column for each kind of headline.

    Args:
        headlines: of all groups of cells.
        conclusions: about the same models.
    """
    columns = {_column(each): None for each in headlines}
    found: dict[tuple[str, str], dict[GlanceColumn, HeadlineRow]] = {}
    for headline in headlines:
        for row in headline.rows:
            found.setdefault((row.model, headline.group.dataset), {})[_column(headline)] = row
    about = {(each.model, each.dataset): each for each in conclusions}
    rows = (
        GlanceRow(
            model,
            dataset_title(dataset),
            about.get((model, dataset)),
            next(iter(results.values())).clean,
            tuple(_result(results.get(column)) for column in columns),
        )
        for (model, dataset), results in found.items()
    )
    return Glance(tuple(columns), tuple(rows))


def _result(row: HeadlineRow | None) -> tuple[TableCell, str]:
    return (BLANK, "") if row is None else (row.result, row.attack)


def _column(headline: Headline) -> GlanceColumn:
    group = headline.group
    title = ROBUSTNESS
    if group.no_class:
        title = "Inputs of no class"
    elif group.keeps:
        title = f"{BLINDNESS}, judged by {headline.judges}" if headline.judges else BLINDNESS
    elif group.fixed:
        title = "Fixed inputs"
    sign = norm_symbol(group.norm)
    detail = headline.measure if sign in headline.measure else f"{sign}: {headline.measure}"
    return GlanceColumn(title, detail, replace(group, dataset=""))


def draw_both_failures(glance: Glance, colours: Mapping[str, str]) -> ReportFigure | None:
    """Draw each model that was attacked in both ways: accuracy lost to small changes, and class changes missed.

    Args:
        glance: the table of the first screen.
        colours: of each model.
    """
    one, two = (_first(glance, title) for title in (ROBUSTNESS, BLINDNESS))
    if one is None or two is None:
        return None
    shown = [
        (row, row.results[one][0], row.results[two][0])
        for row in glance.rows
        if None not in (row.results[one][0].share, row.results[two][0].share)
    ]
    if not shown:
        return None
    with styled():
        figure = Figure(figsize=(4.6, 3.9), layout="constrained")
        axes = figure.subplots()
        points = {}
        for row, robust, blind in shown:
            assert robust.share is not None
            assert blind.share is not None
            x, y = points[row.model] = 100 * (1 - robust.share), 100 * blind.share
            axes.plot([x], [y], "o", color=colours[row.model], markersize=6)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 110)
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.set_xlabel("too sensitive: not robust to small changes, %")
        axes.set_ylabel("too invariant: change of class missed, %")
        label_points(axes, points)
        svg = render(figure)
    facts = "; ".join(f"{r.model}: {a.text} % robust, {b.text} % blind" for r, a, b in shown)
    columns = glance.columns
    caption = (
        f"Lower left is better. Across: 100 minus {columns[one].detail}. Up: {columns[two].detail}."
    )
    return ReportFigure("both-failures", "Two ways to fail", caption, facts, svg)


def _first(glance: Glance, title: str) -> int | None:
    """Return the first column of a title in which a model has a share."""
    for i, column in enumerate(glance.columns):
        shares = [row.results[i][0].share for row in glance.rows]
        if column.title.startswith(title) and any(share is not None for share in shares):
            return i
    return None
