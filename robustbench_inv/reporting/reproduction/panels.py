"""The figure of a reproduction: accuracy against eps for every model, as published and adaptive."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustbench_inv.catalogue.reproduction import Column, Panel, Side
from robustbench_inv.reporting.canvas import MUTED, Picture, label_axes, render, styled
from robustbench_inv.reporting.cells import norm_sign
from robustbench_inv.reporting.curves import rates_curve
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, number, slug
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.figures import draw_curve, grid
from robustbench_inv.reporting.reproduction.comparison import Evidence, rate_of
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.results.summary import Rate

__all__ = ["Line", "curves_frame", "curves_table", "draw_panels", "trace_lines"]

ABREAST, WIDTH, HEIGHT = 3, 3.6, 2.6
"""Panels side by side, and inches of each: together as wide as the page."""

SIDES: dict[Side, str] = {"published": "as published", "adaptive": "adaptive"}

BOTH = (
    " Solid: the attack as published. Dashed: the strongest, for each sample, of everything that was run on the "
    "same network."
)

STYLES: dict[Side, dict[str, Any]] = {
    "published": {"linestyle": "-", "marker": "o", "markersize": 2.6},
    "adaptive": {"linestyle": (0, (3.2, 1.6)), "marker": None},
}


@dataclass(frozen=True)
class Line:
    """One line of the figure.

    Args:
        data: the item's data set.
        panel: where it is drawn.
        column: of which model.
        side: as published or adaptive.
        rates: what is left at each eps, ascending from 0.
    """

    data: str
    panel: Panel
    column: Column
    side: Side
    rates: Mapping[float, Rate]


def trace_lines(evidence: Evidence) -> list[Line]:
    """Return every line for which there are records, panel by panel."""
    item = evidence.item
    places = [
        (data, panel, column, side)
        for data in evidence.places
        for panel in item.panels
        for column in item.columns
        for side in SIDES
    ]
    lines = [Line(*place, _rates(evidence, *place)) for place in places]
    return [line for line in lines if all(rate.trials for rate in line.rates.values())]


def draw_panels(
    evidence: Evidence, lines: Sequence[Line], colours: Mapping[str, str]
) -> list[Picture]:
    """Return one picture for each data set.

    Args:
        evidence: what was measured.
        lines: as ``trace_lines`` returns them.
        colours: of the columns, by name.
    """
    with styled():
        return [
            _picture(evidence, data, list(group), colours)
            for data, group in groupby(lines, key=lambda line: line.data)
        ]


def curves_frame(evidence: Evidence, lines: Sequence[Line]) -> pd.DataFrame:
    """Return the points of every line, one a row."""
    return pd.DataFrame(
        {
            "dataset": evidence.places[line.data],
            "panel": line.panel.title,
            "column": line.column.name,
            "numbers": line.side,
            "eps": eps,
            "samples": rate.trials,
            **rate_facts({"accuracy": rate}, wilson),
        }
        for line in lines
        for eps, rate in line.rates.items()
    )


def curves_table(evidence: Evidence, lines: Sequence[Line]) -> Table:
    """Return where each line falls below one half."""
    caption = (
        "The smallest ε of the figure at which less than half is left; > where half holds throughout. "
        "The CSV has every point of the figure."
    )
    places = dict.fromkeys((line.data, line.panel, line.column) for line in lines)
    halves = {(line.data, line.panel, line.column, line.side): _half(line) for line in lines}
    rows = tuple(
        (
            Shown(evidence.places[data], tone="name"),
            Shown(panel.title, tone="name"),
            Shown(column.name, tone="name"),
            *(halves.get((data, panel, column, side), EMPTY) for side in SIDES),
        )
        for data, panel, column in places
    )
    heading = ("Data", "Panel", "Model", *(name.capitalize() for name in SIDES.values()))
    frame = curves_frame(evidence, lines)
    return Table("curves", "Where half has fallen", caption, frame, heading, rows)


def _rates(
    evidence: Evidence, data: str, panel: Panel, column: Column, side: Side
) -> dict[float, Rate]:
    levels = (0.0, *evidence.item.sweep(evidence.item.trial(panel.trial)))
    return {eps: rate_of(evidence.held(side, panel, column, data, eps)) for eps in levels}


def _picture(
    evidence: Evidence, data: str, lines: Sequence[Line], colours: Mapping[str, str]
) -> Picture:
    item, place = evidence.item, evidence.places[data]
    figure, axes = grid(len(item.panels), ABREAST, WIDTH, HEIGHT)
    for i, (ax, panel) in enumerate(zip(axes, item.panels, strict=True)):
        trial = item.trial(panel.trial)
        label_axes(ax, panel.title, f"ε in {_norm(item.threat(trial, data))}")
        ax.set_xlim(0, max(item.sweep(trial)))
        ax.set_ylabel("accuracy in %" if i % ABREAST == 0 else "")
        for line in (line for line in lines if line.panel == panel):
            curve = rates_curve(tuple(line.rates), list(line.rates.values()), wilson)
            draw_curve(ax, curve, colours[line.column.name], STYLES[line.side])
    sides = {line.side for line in lines}
    _legend(figure, colours, sides)
    return Picture(
        slug(f"panels-{place}"),
        f"Accuracy against ε: {place}",
        "Accuracy that is left as the budget grows, with its 95 % interval."
        + (BOTH if len(sides) > 1 else ""),
        " ".join(_described(lines)),
        render(figure),
    )


def _norm(threat: str) -> str:
    return norm_sign(threat.partition("=")[0])


def _legend(figure: Figure, colours: Mapping[str, str], sides: Collection[Side]) -> None:
    models = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    kinds = [
        Line2D([], [], color=MUTED, label=label, **{**STYLES[side], "marker": None})
        for side, label in SIDES.items()
        if len(sides) > 1
    ]
    figure.legend(handles=[*models, *kinds], loc="outside lower center", ncols=8, handlelength=2.2)


def _described(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        eps, rate = max(line.rates.items())
        told = f"{100 * rate.value:.1f} % left at {number(eps)}."
        yield f"{line.panel.title}, {line.column.name}, {SIDES[line.side]}: {told}"


def _half(line: Line) -> Shown:
    below = [eps for eps, rate in line.rates.items() if rate.value < 0.5]
    return Shown(number(min(below)) if below else f"> {number(max(line.rates))}")
