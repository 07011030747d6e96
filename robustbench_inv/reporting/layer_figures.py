"""Figures and table of a hidden layer before and after regularization."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from robustbench_inv.reporting.canvas import COLOURS, MUTED, ReportFigure, render, styled
from robustbench_inv.reporting.table_formats import Table, TableCell, format_number, slug

__all__ = ["FloatArray", "LayerView", "RegularizationEffect", "draw_layers", "layer_table"]


FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LayerView:
    """One network's layer, seen under each of C hypotheses on n samples.

    Args:
        model: its name.
        digest: of everything that its outputs depend on.
        accuracy: on the samples.
        widths: kernel widths σ by name; ``median`` is the median distance of the layer's outputs.
        mmd2: for each width the MMD² between right and wrong guesses, (C,).
        chance: the same, if right and wrong were drawn by lot, (C,).
        plane: (C, n, 2) outputs on their two principal axes.
        explained: (C, 2) share of the variance along these.
    """

    model: str
    digest: str
    accuracy: float
    widths: dict[str, float]
    mmd2: dict[str, FloatArray]
    chance: dict[str, FloatArray]
    plane: FloatArray
    explained: FloatArray


@dataclass(frozen=True)
class RegularizationEffect:
    """The effect of a regulariser on pairs of networks.

    Args:
        dataset: what the samples are from.
        labels: (n,) their classes.
        pairs: the views before and after, by the pair's name.
    """

    dataset: str
    labels: NDArray[np.int64]
    pairs: dict[str, tuple[LayerView, LayerView]]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "RegularizationEffect":
        """Read what ``training.elimination_effect`` measured, plain values."""
        pairs = {
            name: (_view_from_json(pair["before"]), _view_from_json(pair["after"]))
            for name, pair in found["pairs"].items()
        }
        return cls(found["dataset"], np.array(found["labels"]), pairs)


def _view_from_json(found: Mapping[str, Any]) -> LayerView:
    view = {field.name: found[field.name] for field in fields(LayerView)}
    for key in ("mmd2", "chance"):
        view[key] = {name: np.array(terms) for name, terms in view[key].items()}
    return LayerView(**{**view, **{key: np.array(view[key]) for key in ("plane", "explained")}})


BEFORE, AFTER = COLOURS[1], COLOURS[0]
RIGHT, WRONG = COLOURS[1], COLOURS[5]
WIDTHS = ("median", "training")
"""Kernel widths in the order in which they are shown."""

DOTS_PER_INCH = 200
"""Of the points, which are an image inside the SVG: as paths, the grid of all hypotheses would take megabytes."""


def draw_layers(effect: RegularizationEffect, hypothesis: int = 1) -> list[ReportFigure]:
    """Return the terms, the plane of one hypothesis, and the planes of all.

    Args:
        effect: what was measured.
        hypothesis: the one whose plane is drawn large; the paper shows 1.
    """
    with styled():
        return [_mmd_figure(effect), _plane(effect, hypothesis), _planes(effect)]


def layer_table(effect: RegularizationEffect) -> Table:
    """Return the sums of the terms over all hypotheses, one row for each network."""
    facts = list(_facts(effect))
    rows = tuple(_row(fact) for fact in facts)
    title = f"MMD² between right and wrong guesses, summed over the hypotheses: {effect.dataset}"
    return Table(
        slug(f"mmd-{effect.dataset}"),
        title,
        f"On {len(effect.labels):,} held-out samples; in brackets what samples of one distribution would show. Width of the "
        "Gaussian kernel: the median distance of the layer's own outputs, or that of the training.",
        pd.DataFrame(facts),
        ("network", "regularised", "accuracy in %", "kernel width σ", "Σ MMD²"),
        rows,
    )


def _facts(effect: RegularizationEffect) -> Iterator[dict[str, Any]]:
    """Yield one mapping for each network and width."""
    for pair in effect.pairs.values():
        for view, state in zip(pair, ("no", "yes"), strict=True):
            for name, width in view.widths.items():
                yield {
                    "dataset": effect.dataset,
                    "model": view.model,
                    "regularised": state,
                    "accuracy": view.accuracy,
                    "width": name,
                    "sigma": width,
                    "mmd2": view.mmd2[name].sum(),
                    "chance": view.chance[name].sum(),
                }


def _row(fact: dict[str, Any]) -> tuple[TableCell, ...]:
    return (
        TableCell(fact["model"], tone="name"),
        TableCell(fact["regularised"], tone="note"),
        TableCell(f"{100 * fact['accuracy']:.1f}"),
        TableCell(format_number(fact["sigma"]), fact["width"]),
        TableCell(format_number(fact["mmd2"]), format_number(fact["chance"])),
    )


def _mmd_figure(effect: RegularizationEffect) -> ReportFigure:
    names = [name for name in WIDTHS if any(name in a.widths for _, a in effect.pairs.values())]
    figure = Figure(figsize=(3.6 * len(names), 2.3 * len(effect.pairs) + 0.3), layout="constrained")
    grid = figure.subplots(len(effect.pairs), len(names), squeeze=False, sharex=True, sharey=True)
    for row, (title, pair) in zip(grid, effect.pairs.items(), strict=True):
        for axes, name in zip(row, names, strict=True):
            _draw_mmd(axes, title, pair, name)
        row[0].set_ylabel("MMD²")
    grid[0, 0].set_ylim(
        bottom=0
    )  # at the end: a limit stops the shared axis from growing with its data
    for axes in grid[-1]:
        axes.set_xlabel("hypothesis k")
    figure.legend(handles=_mmd_legend(), loc="outside lower center", ncols=3)
    return ReportFigure(
        slug(f"terms-{effect.dataset}"),
        f"Right and wrong guesses apart, before and after information elimination: {effect.dataset}",
        "MMD² between the second fully connected layer's outputs h(x, k) of samples that are of class k and of "
        "those that are not, before and after regularisation. Dashes: what samples of one distribution show. Kernel "
        "width σ: the median distance of each layer's outputs, and that of the training.",
        _describe(effect),
        render(figure),
    )


def _draw_mmd(axes: Axes, title: str, pair: tuple[LayerView, LayerView], name: str) -> None:
    before, after = pair
    if name not in after.widths:
        return axes.set_visible(False)
    hypotheses = np.arange(len(after.explained))
    axes.vlines(hypotheses, before.mmd2[name], after.mmd2[name], color=MUTED, linewidth=0.8)
    for view, style in ((before, _HOLLOW), (after, _FULL)):
        axes.plot(hypotheses, view.mmd2[name], **style)
        axes.plot(hypotheses, view.chance[name], linestyle="", marker="_", color=style["color"])
    widths = " → ".join(dict.fromkeys(format_number(view.widths[name]) for view in pair))
    axes.set_title(f"{title}: σ {widths} ({name})")
    axes.set_xticks(hypotheses)
    return None


_HOLLOW: dict[str, Any] = {
    "linestyle": "",
    "marker": "o",
    "color": BEFORE,
    "markerfacecolor": "none",
}
_FULL: dict[str, Any] = {"linestyle": "", "marker": "o", "color": AFTER}


def _mmd_legend() -> list[Line2D]:
    chance: dict[str, Any] = {"linestyle": "", "marker": "_", "color": MUTED}
    named = {"before": _HOLLOW, "after": _FULL, "one distribution": chance}
    return [Line2D([], [], label=label, **style) for label, style in named.items()]


def _describe(effect: RegularizationEffect) -> str:
    sums = [
        f"{name}: sum over the hypotheses {format_number(a.mmd2['median'].sum())} before, "
        f"{format_number(b.mmd2['median'].sum())} after"
        for name, (a, b) in effect.pairs.items()
    ]
    return "; ".join(sums) + ", with the layer's own kernel width."


def _plane(effect: RegularizationEffect, hypothesis: int) -> ReportFigure:
    views = [view for pair in effect.pairs.values() for view in pair]
    figure = _figure_sheet(2.6 * len(views), 2.9)
    grid = figure.subplots(1, len(views))
    for axes, view in zip(grid, views, strict=True):
        _scatter(axes, view, effect, hypothesis, size=7)
        shares = (
            f"axis {i + 1}: {share:.0%}" for i, share in enumerate(view.explained[hypothesis])
        )
        axes.set_xlabel(", ".join(shares))
        axes.set_title(view.model)
    _point_legend(figure, str(hypothesis))
    return ReportFigure(
        slug(f"plane-{effect.dataset}"),
        f"The regularised layer under hypothesis {hypothesis}: {effect.dataset}",
        f"Outputs h(x, {hypothesis}) of held-out samples on their two principal axes, each network's own, in units of "
        "its median distance; beneath, the axes' shares of the variance.",
        f"Scatter plots of {len(effect.labels):,} samples for " + ", ".join(v.model for v in views),
        render(figure),
    )


def _planes(effect: RegularizationEffect) -> ReportFigure:
    views = [view for pair in effect.pairs.values() for view in pair]
    count = len(views[0].explained)
    figure = _figure_sheet(1.05 * count + 0.4, 1.08 * len(views) + 0.5)
    grid = figure.subplots(len(views), count, squeeze=False)
    for row, view in zip(grid, views, strict=True):
        for hypothesis, axes in enumerate(row):
            _scatter(axes, view, effect, hypothesis, size=2)
        row[0].set_ylabel(view.model)
    for hypothesis, axes in enumerate(grid[0]):
        axes.set_title(f"k = {hypothesis}")
    _point_legend(figure, "k")
    return ReportFigure(
        slug(f"planes-{effect.dataset}"),
        f"The regularised layer under every hypothesis: {effect.dataset}",
        "Outputs h(x, k) of held-out samples on their two principal axes, for each network and hypothesis its own.",
        f"A grid of {len(views)} by {count} scatter plots of {len(effect.labels):,} samples.",
        render(figure),
    )


def _figure_sheet(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)


def _scatter(
    axes: Axes, view: LayerView, effect: RegularizationEffect, hypothesis: int, size: float
) -> None:
    points = view.plane[hypothesis] / view.widths["median"]
    right = effect.labels == hypothesis
    for rows, colour in ((~right, WRONG), (right, RIGHT)):
        style: dict[str, Any] = {"s": size, "color": colour, "alpha": 0.6, "linewidths": 0}
        axes.scatter(*points[rows].T, rasterized=True, **style)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")


def _point_legend(figure: Figure, hypothesis: str) -> None:
    named = {f"true label is {hypothesis}": RIGHT, "is another": WRONG}
    style: dict[str, Any] = {"linestyle": "", "marker": "o"}
    handles = [Line2D([], [], label=label, color=c, **style) for label, c in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
