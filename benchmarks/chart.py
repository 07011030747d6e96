"""Draws the tables of the benchmark page as one picture: time of each attack relative to its peers, and both results.

The picture is drawn from the text of the page, so that both always agree.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

__all__ = ["draw_chart", "draw_invariance"]

Row = Mapping[str, str]
PEERS = {"foolbox": "#d95f02", "torchattacks": "#7570b3", "adversarial-library": "#1b9e77"}
"""Colour of each library; AutoAttack is that of torchattacks."""


class Bar(NamedTuple):
    """One comparison: model and budget, the other library, our time divided by its time, and both results as text."""

    label: str
    peer: str
    ratio: float
    result: str


def draw_chart(text: str, path: Path) -> None:
    """Draw the comparisons of a page.

    Args:
        text: the page.
        path: of the picture, an SVG.
    """
    panels = [panel for panel in (_fixed(text), _ensemble(text)) if panel[1]]
    heights = [len(bars) + 2 for _, bars in panels]
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8, 0.19 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axis, (title, bars) in zip(axes, panels, strict=True):
            _draw(axis, title, bars)
        axes[-1].set_xlabel("our time / its time (left of 1: ours is faster)")
        figure.savefig(path, metadata={"Date": None})


def draw_invariance(text: str, path: Path) -> None:
    """Draw failures and median distance of ``invariance-standard`` against its passes; nothing if the page has none.

    Args:
        text: the page.
        path: of the picture, an SVG.
    """
    rows = list(_table(text, "Failures against passes"))
    if not rows:
        return
    passes = [int(name) for name in rows[0] if name.isdigit()]
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        for axis, result in zip(
            figure.subplots(1, 2), dict.fromkeys(r["result"] for r in rows), strict=True
        ):
            for row in (row for row in rows if row["result"] == result):
                known = [(p, float(row[str(p)])) for p in passes if row[str(p)] != "∞"]
                axis.plot(*zip(*known, strict=True), marker="o", markersize=3, label=row["model"])
            axis.set_xlabel("forward and backward passes for each digit")
            axis.set_title(result, loc="left", fontweight="bold")
            axis.set_xlim(0)
            axis.set_ylim(0)
            axis.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _draw(axis: Axes, title: str, bars: list[Bar]) -> None:
    places = range(len(bars))
    axis.barh(places, [bar.ratio for bar in bars], color=[PEERS[bar.peer] for bar in bars])
    axis.set_yticks(places, [bar.label for bar in bars])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(0.005, 100)
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.axvline(1, color="black", linewidth=0.8)
    for place, bar in zip(places, bars, strict=True):
        right = max(bar.ratio, 1) * 1.1
        axis.text(right, place, f"{bar.ratio:g} · {bar.result}", va="center", fontsize=7)
    axis.set_title(title, loc="left", fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _fixed(text: str) -> tuple[str, list[Bar]]:
    bars, best = [], ""
    for row in _table(text, "PGD"):
        if row["attack"] == "ours":
            best = row["robust accuracy"]
        else:
            result = f"{best} against {row['robust accuracy']} robust"
            label = f"{row['model']}, linf {row['eps']}, {row['attack']}"
            bars.append(Bar(label, row["attack"], float(row["ours / its time"]), result))
    return "PGD, 40 steps", bars


def _ensemble(text: str) -> tuple[str, list[Bar]]:
    bars = []
    for row in _table(text, "The ensemble against AutoAttack"):
        result = (
            f"{row['robust, ours']} against {row['robust, AutoAttack']} of {row['samples']} robust"
        )
        label = f"{row['model']}, {row['budget']}"
        bars.append(Bar(label, "torchattacks", float(row["ours / its time"]), result))
    return "standard, against torchattacks' AutoAttack", bars


def _table(text: str, title: str) -> Iterator[Row]:
    """Yield the rows of the first table below a title."""
    below = re.search(rf"^##+ {re.escape(title)}$.*?(^\|.*?)(?:\n\n|\Z)", text, re.M | re.S)
    if below is None:
        return
    head, _, *rows = (_cells(line) for line in below[1].strip().splitlines())
    yield from (dict(zip(head, row, strict=True)) for row in rows)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
