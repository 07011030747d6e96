"""Draws how scores are spread: small histograms side by side, with the thresholds that cut them."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from robustbench_inv.reporting.canvas import (
    COLOURS,
    DASHES,
    INK,
    MUTED,
    Picture,
    grid,
    render,
    styled,
)
from robustbench_inv.reporting.exports import number, slug
from robustbench_inv.results.histogram import Histogram, Spread

__all__ = ["draw_spread"]

ABREAST, WIDTH, HEIGHT = 5, 2.15, 1.75
"""Panels side by side, and inches of each: together as wide as the page."""


def draw_spread(spread: Spread, suffix: str = "") -> Picture:
    """Return all panels in one figure.

    Args:
        spread: what was counted.
        suffix: tells figures of several data sets apart.
    """
    first = spread.panels[0]
    with styled():
        figure, axes = grid(len(spread.panels), ABREAST, WIDTH, HEIGHT)
        for ax, panel in zip(axes, spread.panels, strict=True):
            _draw(ax, panel)
        for ax in axes[-ABREAST:]:
            ax.set_xlabel(spread.axis)
        names = (*first.counts, *first.limits)
        figure.legend(_legend(first), names, loc="outside lower center", ncols=len(names))
        svg = render(figure)
    said = " ".join(_told(panel) for panel in spread.panels)
    return Picture(slug(f"{spread.name}-{suffix}"), spread.title, spread.caption, said, svg)


def _draw(axes: Axes, panel: Histogram) -> None:
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


def _legend(panel: Histogram) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(color=colour, alpha=0.5) for colour, _ in zip(COLOURS, panel.counts, strict=False)
    ]
    for dashes, _ in zip(DASHES, panel.limits, strict=False):
        style: dict[str, Any] = {"linestyle": dashes, "linewidth": 0.9}
        handles.append(Line2D([], [], color=INK, **style))
    return handles


def _told(panel: Histogram) -> str:
    limits = ", ".join(f"{name} {number(at)}" for name, at in panel.limits.items())
    return f"{panel.title}: {limits}; {panel.note}." if panel.note else f"{panel.title}: {limits}."
