"""How figures look: one style, colours that colour-blind readers can tell apart, and SVG that is the same each time."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from math import ceil
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from robustbench_inv.arguments import printable

__all__ = [
    "COLOURS",
    "DASHES",
    "INK",
    "MARKERS",
    "MUTED",
    "PAPER",
    "RULE",
    "ReportFigure",
    "grid",
    "inline_svg",
    "label_axes",
    "render",
    "shorten",
    "styled",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6A00", "#8C8C8C")
"""Okabe and Ito's palette (2008), its yellow and black replaced: both vanish on one of our two papers."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)), (0, (3, 1.2)))

INK, MUTED, RULE, PAPER = "#1b1f24", "#5b6470", "#d9dee4", "#ffffff"
"""Text, lesser text, lines and background; a page with its own theme replaces exactly these."""

WIDTH, HEIGHT = 2.75, 2.35
"""Inches of one panel."""

_STYLE: Any = {
    "svg.hashsalt": "robustbench-inv",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class ReportFigure:
    """A finished figure.

    Args:
        name: for file names.
        title: a few words.
        caption: the content, and how to read it.
        alt: the same for readers who do not see it, with the main figures.
        svg: a complete SVG document.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the house style, and leave matplotlib's settings as they were."""
    with mpl.rc_context(_STYLE):
        yield


def render(figure: Figure) -> str:
    """Return a figure as an SVG document without date and control characters, the same for the same content."""
    FigureCanvasSVG(figure)
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return printable(out.getvalue())


def inline_svg(svg: str, prefix: str) -> str:
    """Return a document as an HTML element in the colours of the page.

    Args:
        svg: what ``render`` returned.
        prefix: makes its ids differ from those of every other figure on the page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' * (m[1] in used), body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", body)
    named = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
    for colour, name in named.items():
        body = body.replace(f": {colour}", f": {name}")
    return re.sub(r'(<svg [^>]*?)(width="[\d.]+)pt" height="[\d.]+pt"', _on_screen, body, count=1)


def grid(
    count: int, columns: int, width: float = WIDTH, height: float = HEIGHT
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many axes in rows of ``columns``; width and height of each in inches."""
    columns = min(count, columns)
    rows = ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def label_axes(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Write an axes' title and labels; accuracies run from 0 to 100 %."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(-2, 102)
    axes.set_yticks([0, 25, 50, 75, 100])


WORD_JOINER = "\u2060"
"""An invisible character."""


def shorten(name: str, most: int = 30) -> str:
    """Return a name that fits above or beside axes; its middle is cut, since parameters are at its end.

    Example:
        >>> shorten("mnist-cnn"), shorten("thesis/experiments/model.py:build", 20)
        ('mnist-cnn', 'thesis/e…el.py:build')
    """
    if name.startswith("_"):  # matplotlib leaves such names out of legends
        name = f"{WORD_JOINER}{name}"
    if len(name) <= most:
        return name
    return f"{name[: most * 2 // 5]}…{name[most * 2 // 5 + 1 - most :]}"


def _on_screen(found: re.Match[str]) -> str:
    """Replace points by pixels, a little larger than on paper, and leave the height to the browser."""
    points = float(found[2].removeprefix('width="'))
    return f'{found[1]}width="{1.4 * points:.0f}"'
