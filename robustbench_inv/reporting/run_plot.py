"""The plot of a run in Python: accuracy against eps, or failures against distance, one panel for each threat."""

from collections.abc import Sequence
from itertools import groupby
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.canvas import PAPER, label_axes, render, shorten, styled
from robustbench_inv.reporting.curves import broken_curve, cell_curve, draw_certified, draw_curve
from robustbench_inv.reporting.figures import FigureContext
from robustbench_inv.reporting.run_results import CellGroup, group_cells, main_cases
from robustbench_inv.reporting.table_formats import norm_symbol
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.summary import largest_finite

__all__ = ["RunPlot", "plot_cells"]

COLUMNS, WIDTH, HEIGHT = 3, 4.2, 3.2
"""Panels in a row, and their size in inches."""

TITLE_LENGTH = 48
"""Characters of a panel's title."""


class RunPlot(Figure):
    """A figure of matplotlib, which notebooks show as SVG."""

    def _repr_svg_(self) -> str:
        with styled():
            return render(self)


def plot_cells(cells: Sequence[FinishedCell]) -> RunPlot:
    """Return one panel for each data set, norm and goal, with a curve for each model and attack.

    Curves of attacks on the prediction are accuracies, those of invariance attacks the share of failures within each
    distance; the bands are 95 % intervals. Fixed inputs such as noise have no budget, and no curve.

    Raises:
        BadResults: if no cell has a curve.
    """
    searched = [cell for cell in cells if cell.kind != "fixed-input" and cell.records]
    groups = group_cells(searched)
    if not groups:
        raise BadResults("nothing to plot", expected="a cell of an attack that searches inputs")
    columns = min(COLUMNS, len(groups))
    rows = ceil(len(groups) / columns)
    with styled():
        size = (WIDTH * columns, HEIGHT * rows)
        figure = RunPlot(figsize=size, layout="constrained", facecolor=PAPER)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in axes[len(groups) :]:
            unused.remove()
        for ax, (group, members) in zip(axes, groups.items(), strict=False):
            plot = FigureContext(tuple(members), all_cells=tuple(cells)).ranking(members)
            _draw_group(ax, group, plot)
    return figure


def _draw_group(axes: Axes, group: CellGroup, plot: FigureContext) -> None:
    quantity = "failures, % of attacked" if group.keeps else "accuracy in %"
    symbol = norm_symbol(group.norm)
    label = f"{symbol} distance" if group.keeps else f"ε in {symbol}"
    label_axes(axes, shorten(group.title, TITLE_LENGTH), label, quantity)
    axes.set_xlim(0, _limit(plot.cells, within=not group.keeps))
    for cell in plot.cells:
        curve = (
            broken_curve(cell.attacked_distances, plot.interval)
            if group.keeps
            else cell_curve(cell, plot.interval)
        )
        name = f"{shorten(cell.model_label)}, {shorten(cell.attack_label)}"
        style = plot.style(cell.attack_label) | {"label": name}
        draw_curve(axes, curve, plot.colour(cell.model_label), style)
    if any(cell.certificates for cell in plot.cells):
        for model, cases in groupby(main_cases(plot.cells), key=lambda worst: worst.model):
            draw_certified(axes, list(cases), plot.interval, plot.colour(model))
    axes.legend(handlelength=1.8)


def _limit(cells: Sequence[FinishedCell], *, within: bool) -> float:
    """Return where the axis ends: at the largest eps, else a little beyond the largest distance."""
    swept = max((eps for cell in cells for eps in cell.epsilons if within), default=0.0)
    return swept or 1.04 * largest_finite(c.failure_distance for c in cells) or 1.0
