"""Draws images in rows and columns, named on the left and above, with words beneath."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustbench_inv.reporting.canvas import INK, MUTED, Picture, render, styled
from robustbench_inv.reporting.exports import slug
from robustbench_inv.results.measurement import Grid

__all__ = ["draw_grid"]

LARGEST, WIDEST = 0.82, 11.0
"""Inches: the side of an image where there is room, and all images abreast."""

MARGIN = 1.15
"""Inches for the names of the rows."""

GAP, APART = 0.06, 0.35
"""Between images, and between groups, in sides."""

WORDS = 16
"""Letters of a row's name that fit into the margin; longer names take several lines."""

LINE = 0.19
"""Inches of a line of words."""


def draw_grid(grid: Grid, prefix: str = "") -> Picture:
    """Return the picture of a grid.

    Args:
        grid: what is shown.
        prefix: of its name, to tell it from grids of other data.
    """
    layout = _Layout.of(grid)
    with styled():
        figure = Figure(figsize=(layout.width, layout.height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
        axes.set_axis_off()
        _draw_images(axes, grid, layout)
        _write(axes, grid, layout)
        svg = render(figure)
    _, columns, *_ = grid.images.shape
    alt = f"{len(grid.rows)} rows ({', '.join(grid.rows)}) of {columns} images."
    name = slug(f"{prefix}-{grid.name}" if prefix else grid.name)
    return Picture(name, grid.title, grid.caption, alt, svg)


@dataclass(frozen=True)
class _Layout:
    """Where everything stands, in inches from the upper left: left edges of columns, upper edges of rows."""

    side: float
    left: tuple[float, ...]
    top: tuple[float, ...]
    width: float
    height: float

    @classmethod
    def of(cls, grid: Grid) -> "_Layout":
        sizes = [count for _, count in grid.groups]
        side = min(LARGEST, (WIDEST - MARGIN) / (sum(sizes) * (1 + GAP) + APART * len(sizes)))
        group = [number for number, size in enumerate(sizes) for _ in range(size)]
        left = [MARGIN + side * (i * (1 + GAP) + APART * g) for i, g in enumerate(group)]
        top, height = [], LINE * (1 + bool(grid.heads)) + 0.08
        for row in range(len(grid.rows)):
            top.append(height)
            height += side * (1 + GAP) + (LINE if _words(grid, row) else 0)
        return cls(side, tuple(left), tuple(top), left[-1] + side + 0.05, height + 0.05)


def _words(grid: Grid, row: int) -> Sequence[str]:
    return grid.words[row] if row < len(grid.words) else ()


def _draw_images(axes: Axes, grid: Grid, layout: _Layout) -> None:
    for y, row in zip(layout.top, grid.images, strict=True):
        for x, image in zip(layout.left, row, strict=True):
            box = (x, x + layout.side, y + layout.side, y)
            shown = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
            axes.imshow(shown, extent=box, aspect="auto", interpolation="none")
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))


def _write(axes: Axes, grid: Grid, layout: _Layout) -> None:
    half, first = layout.side / 2, 0
    small: dict[str, Any] = {"fontsize": 8, "ha": "center"}
    names: dict[str, Any] = {"fontsize": 8.5, "ha": "right", "va": "center"}
    for title, count in grid.groups:
        axes.text(layout.left[first], LINE * 0.8, title, color=INK, fontweight="bold")
        first += count
    for x, head in zip(layout.left, grid.heads, strict=False):
        axes.text(x + half, LINE * 1.85, head, color=INK, **small)
    for number, (y, name) in enumerate(zip(layout.top, grid.rows, strict=True)):
        axes.text(MARGIN - 0.1, y + half, fill(name, WORDS), color=MUTED, **names)
        for x, word in zip(layout.left, _words(grid, number), strict=False):
            axes.text(x + half, y + layout.side + LINE * 0.75, word, color=MUTED, **small)
