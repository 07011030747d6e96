"""Figures of experiments: decision planes through adversarial spheres, and histograms of scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isnan
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from robustbench_inv.reporting.canvas import (
    COLOURS,
    DASHES,
    INK,
    MARKERS,
    MUTED,
    ReportFigure,
    grid,
    render,
    styled,
)
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    Tone,
    format_number,
    slug,
)
from robustbench_inv.results.experiment_result import (
    Histogram,
    HistogramPanels,
    LinePanel,
    LinePanels,
    LogitRow,
    LogitSheet,
)

__all__ = [
    "DecisionPlane",
    "DecisionPlanes",
    "draw_decision_planes",
    "draw_histograms",
    "draw_lines",
    "logit_table",
]


@dataclass(frozen=True)
class DecisionPlane:
    """A plane through the centre of the spheres, on which several classifiers decide.

    Args:
        name: ``data`` or ``metamer``.
        points: marked points (x, y) by name.
        extent: the decisions reach from −extent to extent both ways.
        decisions: classes (k, k) by classifier, rows from the lowest y on.
        right: by classifier, which share of each circle, from the inner one on, it judges rightly.
    """

    name: str
    points: dict[str, tuple[float, float]]
    extent: float
    decisions: dict[str, NDArray[np.int64]]
    right: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class DecisionPlanes:
    """The planes of one network.

    Args:
        dataset: the spheres.
        model: the network's name.
        radii: of the spheres, which are circles in every plane.
        planes: in the order in which they are shown.
    """

    dataset: str
    model: str
    radii: tuple[float, ...]
    planes: tuple[DecisionPlane, ...]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "DecisionPlanes":
        """Read what was measured: the fields of ``DecisionPlanes``, grids as strings with a digit for each point."""
        planes = tuple(map(_plane_from_json, found["planes"]))
        return cls(str(found["dataset"]), str(found["model"]), tuple(found["radii"]), planes)


def _plane_from_json(found: Mapping[str, Any]) -> DecisionPlane:
    return DecisionPlane(
        name=found["name"],
        points={name: (float(x), float(y)) for name, (x, y) in found["points"].items()},
        extent=float(found["extent"]),
        decisions={
            name: np.array([[int(digit) for digit in row] for row in rows])
            for name, rows in found["decisions"].items()
        },
        right={name: tuple(shares) for name, shares in found["right"].items()},
    )


INNER_COLOUR, OUTER_COLOUR = COLOURS[5], COLOURS[4]
"""The classes' colours, as in the other figures of the spheres."""

PLANE_SIDE = 2.6
"""Inches of one panel."""

PLANE_TITLES = {
    "data": "plane of two data points",
    "metamer": "plane of x and its metamer",
    "metamer, wide": "the same plane, wide",
}


def draw_decision_planes(planes: DecisionPlanes) -> ReportFigure:
    """Return the planes side by side, a row for each classifier.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, figure 3.
    """
    names = list(planes.planes[0].decisions)
    with styled():
        size = (PLANE_SIDE * len(planes.planes), PLANE_SIDE * len(names) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(names), len(planes.planes), squeeze=False)
        for row, name in zip(grid, names, strict=True):
            for axes, plane in zip(row, planes.planes, strict=True):
                _draw_plane(axes, plane, name, planes.radii)
            row[0].set_ylabel(f"classifier of the {name}")
        for axes, plane in zip(grid[0], planes.planes, strict=True):
            axes.set_title(PLANE_TITLES.get(plane.name, plane.name))
        figure.legend(handles=_plane_legend(), loc="outside lower center", ncols=2)
        svg = render(figure)
    return ReportFigure(
        slug(f"planes-{planes.model}"),
        f"Decisions on planes through the centre of the spheres: {planes.model}",
        "The spheres are circles in these planes. Where a circle leaves the area of its own colour, the "
        "classifier is wrong. Logits and nuisances are the two parts of one invertible code.",
        " ".join(
            _describe_plane(plane, name) for plane in _distinct_planes(planes) for name in names
        ),
        svg,
    )


def _draw_plane(axes: Axes, plane: DecisionPlane, name: str, radii: tuple[float, ...]) -> None:
    decided, e = plane.decisions[name], plane.extent
    style: dict[str, Any] = {
        "extent": (-e, e, -e, e),
        "origin": "lower",
        "interpolation": "nearest",
    }
    axes.imshow(
        decided,
        cmap=ListedColormap([INNER_COLOUR, OUTER_COLOUR]),
        vmin=0,
        vmax=1,
        alpha=0.3,
        **style,
    )
    if np.ptp(decided):
        axes.contour(decided, levels=[0.5], colors=INK, linewidths=0.8, extent=(-e, e, -e, e))
    for radius, colour in zip(radii, (INNER_COLOUR, OUTER_COLOUR), strict=True):
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=colour, linewidth=2))
    for marker, (label, point) in zip(MARKERS, plane.points.items(), strict=False):
        _mark_point(axes, marker, label, point, radii[-1] if np.hypot(*point) > e else None)
    axes.grid(visible=False)
    axes.locator_params(nbins=3)


def _mark_point(
    axes: Axes, marker: str, label: str, point: tuple[float, float], edge: float | None
) -> None:
    """Mark a point; one that lies outside the picture at this distance in its direction, hollow."""
    far = float(np.hypot(*point))
    x, y = point if edge is None else (point[0] * edge / far, point[1] * edge / far)
    axes.plot(x, y, marker, color=INK, markersize=5, fillstyle="full" if edge is None else "none")
    text = label if edge is None else f"to {label}, at {far:.0f}"
    above = y < axes.get_ylim()[1] / 2
    place: dict[str, Any] = {
        "ha": "center",
        "va": "bottom" if above else "top",
        "textcoords": "offset points",
    }
    axes.annotate(text, (x, y), (0, 6 if above else -6), color=INK, **place)


def _plane_legend() -> list[Line2D | Patch]:
    entries: list[Line2D | Patch] = []
    for name, colour in (("inner", INNER_COLOUR), ("outer", OUTER_COLOUR)):
        entries.append(Line2D([], [], color=colour, linewidth=2, label=f"{name} sphere"))
        entries.append(Patch(facecolor=colour, alpha=0.3, label=f"decided: {name}"))
    return entries


def _distinct_planes(planes: DecisionPlanes) -> list[DecisionPlane]:
    """Return the planes without further looks at the same one."""
    return list({str(plane.points): plane for plane in reversed(planes.planes)}.values())[::-1]


def _describe_plane(plane: DecisionPlane, name: str) -> str:
    inner, outer = (f"{100 * share:.1f} %" for share in plane.right[name])
    return (
        f"{PLANE_TITLES.get(plane.name, plane.name).capitalize()}: the {name} classify {inner} of the inner "
        f"and {outer} of the outer circle correctly."
    )


HISTOGRAM_COLUMNS, HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 5, 2.15, 1.75
"""Panels side by side, and inches of each: together as wide as the page."""


def draw_histograms(spread: HistogramPanels, suffix: str = "") -> ReportFigure:
    """Return all panels in one figure.

    Args:
        spread: what was counted.
        suffix: distinguishes figures of several data sets.
    """
    first = spread.panels[0]
    with styled():
        figure, axes = grid(
            len(spread.panels), HISTOGRAM_COLUMNS, HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT
        )
        for ax, panel in zip(axes, spread.panels, strict=True):
            _draw_histogram(ax, panel)
        for ax in axes[-HISTOGRAM_COLUMNS:]:
            ax.set_xlabel(spread.axis)
        names = (*first.counts, *first.limits)
        figure.legend(_histogram_legend(first), names, loc="outside lower center", ncols=len(names))
        svg = render(figure)
    sentences = " ".join(_describe_histogram(panel) for panel in spread.panels)
    return ReportFigure(
        slug(f"{spread.name}-{suffix}"), spread.title, spread.caption, sentences, svg
    )


def _draw_histogram(axes: Axes, panel: Histogram) -> None:
    for colour, counts in zip(COLOURS, panel.counts.values(), strict=False):
        heights = np.array(counts) / max(1, *counts)
        style: dict[str, Any] = {"color": colour, "linewidth": 1}
        axes.stairs(heights, panel.edges, fill=True, alpha=0.35, **style)
        axes.stairs(heights, panel.edges, **style)
    for dashes, at in zip(DASHES, panel.limits.values(), strict=False):
        axes.axvline(at, color=INK, linestyle=dashes, linewidth=0.9)
    axes.set_title(panel.title, fontsize=8.5)
    axes.set_title(panel.note, fontsize=7.5, fontweight="normal", color=MUTED, loc="right")
    axes.set_yticks([])
    axes.set_ylim(0, 1.05)
    axes.set_xlim(panel.edges[0], panel.edges[-1])
    axes.locator_params(axis="x", nbins=4)


def _histogram_legend(panel: Histogram) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(color=colour, alpha=0.5) for colour, _ in zip(COLOURS, panel.counts, strict=False)
    ]
    for dashes, _ in zip(DASHES, panel.limits, strict=False):
        style: dict[str, Any] = {"linestyle": dashes, "linewidth": 0.9}
        handles.append(Line2D([], [], color=INK, **style))
    return handles


def _describe_histogram(panel: Histogram) -> str:
    limits = ", ".join(f"{name} {format_number(at)}" for name, at in panel.limits.items())
    return f"{panel.title}: {limits}; {panel.note}." if panel.note else f"{panel.title}: {limits}."


LINE_COLUMNS, LINE_WIDTH, LINE_HEIGHT = 3, 3.6, 2.6
"""Panels of lines side by side, and inches of each."""

FEW_DECADES = 100
"""Below this ratio of its ends a logarithmic axis has ticks at 2 and 5 as well."""

LEGEND_COLUMNS, LEGEND_ROW = 2, 0.18
"""Names beside each other in the legend below each panel, and inches of a row of names."""


def draw_lines(found: LinePanels, suffix: str = "") -> ReportFigure:
    """Return all panels of lines in one figure.

    Args:
        found: the lines.
        suffix: distinguishes figures of several data sets.
    """
    names = list(dict.fromkeys(name for panel in found.panels for name in panel.lines))
    with styled():
        figure, axes = grid(len(found.panels), LINE_COLUMNS, LINE_WIDTH, LINE_HEIGHT)
        for ax, panel in zip(axes, found.panels, strict=True):
            _draw_line_panel(ax, panel, found, names)
        if not found.thin:
            handles = [Line2D([], [], **_line_style(names, name)) for name in names]
            columns = min(len(found.panels), LINE_COLUMNS) * LEGEND_COLUMNS
            rows = ceil(len(names) / columns)
            figure.set_figheight(figure.get_figheight() + (rows - 1) * LEGEND_ROW)
            figure.legend(handles, names, loc="outside lower center", ncols=columns)
        svg = render(figure)
    sentences = "" if found.thin else " ".join(map(_describe_lines, found.panels))
    return ReportFigure(
        slug(f"{found.name}-{suffix}"), found.title, found.caption, sentences or found.title, svg
    )


def _line_style(names: list[str], name: str) -> dict[str, Any]:
    place = names.index(name)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
    }


def _draw_line_panel(axes: Axes, panel: LinePanel, found: LinePanels, names: list[str]) -> None:
    for name, (x, y) in panel.lines.items():
        thin: dict[str, Any] = {"color": COLOURS[0], "linewidth": 0.6, "alpha": 0.6}
        values = np.array(y)
        values[(values <= 0) & found.log] = np.nan
        marker = "o" if len(x) <= 20 and not found.thin else None
        style = thin if found.thin else _line_style(names, name)
        axes.plot(x, values, marker=marker, markersize=2.6, **style)
    axes.set_title(panel.title)
    axes.set_xlabel(found.x)
    axes.set_ylabel(found.y)
    if found.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < FEW_DECADES * low:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _describe_lines(panel: LinePanel) -> str:
    ends = (
        f"{name} from {format_number(y[0])} at {format_number(x[0])} to {format_number(y[-1])} at {format_number(x[-1])}"
        for name, (x, y) in panel.lines.items()
        if len(x)
    )
    return f"{panel.title}: {'; '.join(ends)}."


def logit_table(sheet: LogitSheet, prefix: str = "") -> Table:
    """Return a sheet of logits as a table.

    Args:
        sheet: logits in rows.
        prefix: prefix of the table's name, if the report has several data sets.
    """
    name = slug(f"{prefix}-{sheet.name}" if prefix else sheet.name)
    rows = tuple((TableCell(line.name, tone="name"), *_logit_cells(line)) for line in sheet.lines)
    frame = pd.DataFrame(
        {"row": line.name, "column": head, "value": value, "accepted": line.accepted}
        for line in sheet.lines
        for head, value in zip(sheet.heads, line.values, strict=True)
    )
    return Table(name, sheet.title, sheet.caption, frame, ("image", *sheet.heads), rows)


def _logit_cells(line: LogitRow) -> list[TableCell]:
    best = max((v for v in line.values if not isnan(v)), default=0.0)
    return [_logit_cell(value, line, best=value == best) for value in line.values]


def _logit_cell(value: float, line: LogitRow, *, best: bool) -> TableCell:
    """Return a logit; the largest logit of an answer is marked: accepted and correct, rejected, or accepted and wrong."""
    if isnan(value):
        return BLANK
    text = f"{value:.1f}".replace("-", "−")
    if not best or line.accepted is None:
        return TableCell(text)
    tone: Tone = "warn" if not line.accepted else "fail" if line.wrong else "pass"
    return TableCell(text, tone=tone)
