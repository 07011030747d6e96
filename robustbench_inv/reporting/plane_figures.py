"""Draws who decides what on planes through the centre of the spheres."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch

from robustbench_inv.reporting.canvas import COLOURS, INK, MARKERS, Picture, render, styled
from robustbench_inv.reporting.decision_planes import Plane, Planes
from robustbench_inv.reporting.exports import slug

__all__ = ["draw_planes"]

INNER, OUTER = COLOURS[5], COLOURS[4]
"""The classes' colours, as in the other figures of the spheres."""

SIDE = 2.6
"""Inches of one panel."""

TITLES = {
    "data": "plane of two data points",
    "metamer": "plane of x and its metamer",
    "metamer from afar": "the same from afar",
}


def draw_planes(planes: Planes) -> Picture:
    """Return the planes side by side, a row for each classifier.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, figure 3.
    """
    names = list(planes.planes[0].decisions)
    with styled():
        size = (SIDE * len(planes.planes), SIDE * len(names) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(names), len(planes.planes), squeeze=False)
        for row, name in zip(grid, names, strict=True):
            for axes, plane in zip(row, planes.planes, strict=True):
                _draw(axes, plane, name, planes.radii)
            row[0].set_ylabel(f"classifier of the {name}")
        for axes, plane in zip(grid[0], planes.planes, strict=True):
            axes.set_title(TITLES.get(plane.name, plane.name))
        figure.legend(handles=_legend(), loc="outside lower center", ncols=2)
        svg = render(figure)
    return Picture(
        slug(f"planes-{planes.model}"),
        f"Decisions on planes through the centre of the spheres: {planes.model}",
        "The spheres are circles in these planes. Where a circle leaves the area of its own colour, the "
        "classifier is wrong. Logits and nuisances are the two parts of one invertible code.",
        " ".join(_describe(plane, name) for plane in _different(planes) for name in names),
        svg,
    )


def _draw(axes: Axes, plane: Plane, name: str, radii: tuple[float, ...]) -> None:
    decided, e = plane.decisions[name], plane.extent
    style: dict[str, Any] = {
        "extent": (-e, e, -e, e),
        "origin": "lower",
        "interpolation": "nearest",
    }
    axes.imshow(decided, cmap=ListedColormap([INNER, OUTER]), vmin=0, vmax=1, alpha=0.3, **style)
    if np.ptp(decided):
        axes.contour(decided, levels=[0.5], colors=INK, linewidths=0.8, extent=(-e, e, -e, e))
    for radius, colour in zip(radii, (INNER, OUTER), strict=True):
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=colour, linewidth=2))
    for marker, (label, point) in zip(MARKERS, plane.points.items(), strict=False):
        _mark(axes, marker, label, point, radii[-1] if np.hypot(*point) > e else None)
    axes.grid(visible=False)
    axes.locator_params(nbins=3)


def _mark(
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


def _legend() -> list[Line2D | Patch]:
    entries: list[Line2D | Patch] = []
    for name, colour in (("inner", INNER), ("outer", OUTER)):
        entries.append(Line2D([], [], color=colour, linewidth=2, label=f"{name} sphere"))
        entries.append(Patch(facecolor=colour, alpha=0.3, label=f"decided: {name}"))
    return entries


def _different(planes: Planes) -> list[Plane]:
    """Return the planes without further looks at the same one."""
    return list({str(plane.points): plane for plane in reversed(planes.planes)}.values())[::-1]


def _describe(plane: Plane, name: str) -> str:
    inner, outer = (f"{100 * share:.1f} %" for share in plane.right[name])
    return (
        f"{TITLES.get(plane.name, plane.name).capitalize()}: the {name} are right on {inner} of the inner "
        f"and {outer} of the outer circle."
    )
