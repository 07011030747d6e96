"""The figures of a report: accuracy against eps, both failures on spheres by class, distances, risk, shown images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustbench_inv.reporting.canvas import (
    COLOURS,
    DASHES,
    MARKERS,
    MUTED,
    Picture,
    grid,
    label_axes,
    render,
    shorten,
    styled,
)
from robustbench_inv.reporting.cells import CellResult, Panel, norm_sign, panels, worst_of_all
from robustbench_inv.reporting.curves import (
    Curve,
    cell_curve,
    fallen_curve,
    held_curve,
    worst_curve,
)
from robustbench_inv.reporting.definitions import FigureKind
from robustbench_inv.reporting.exports import number, slug
from robustbench_inv.reporting.facts import IntervalOf, distances_of
from robustbench_inv.reporting.images import draw_images
from robustbench_inv.reporting.risk_figures import draw_risk
from robustbench_inv.reporting.statistics import median_of, wilson

__all__ = ["FIGURES", "Plot", "draw_curve", "draw_figures"]

CLASS_COLOURS = (COLOURS[5], COLOURS[4], COLOURS[3], COLOURS[7])
"""Classes; curves split by class are drawn for data sets with no more of them."""


@dataclass(frozen=True)
class Plot:
    """What figures are drawn from.

    Args:
        cells: the selected cells.
        interval: of every share.
        columns: of a grid of images.
        everything: all cells of the report, which decide on colours; by default ``cells``.
        ranked: attacks, the strongest first.
    """

    cells: tuple[CellResult, ...]
    interval: IntervalOf = wilson
    columns: int = 8
    everything: tuple[CellResult, ...] = ()
    ranked: tuple[str, ...] = ()

    def only(self, cells: tuple[CellResult, ...]) -> "Plot":
        """Return the plot of some of the cells, with the same colours."""
        return replace(self, cells=cells, everything=self.everything or self.cells)

    def colour(self, model: str) -> str:
        """Return the model's colour, the same in every figure of the report."""
        models = list(dict.fromkeys(cell.model for cell in self.everything or self.cells))
        return COLOURS[models.index(model) % len(COLOURS)]

    def style(self, attack: str) -> dict[str, Any]:
        """Return the attack's marker and dashes; the strongest attack has a full line."""
        i = self.ranked.index(attack)
        return {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}

    def ranking(self, cells: Sequence[CellResult]) -> "Plot":
        """Return the plot with the attacks of some cells ranked, the one that leaves least first."""
        left: dict[str, list[float]] = {}
        for cell in cells:
            left.setdefault(cell.attack, []).extend(r.value for r in cell.summary.robust_accuracy)
        return replace(self, ranked=tuple(sorted(left, key=lambda attack: fmean(left[attack]))))


def draw_figures(kind: FigureKind, plot: Plot) -> list[Picture]:
    """Return the figures of one kind; none where the cells hold nothing of it."""
    with styled():
        return list(FIGURES[kind](plot))


def draw_curve(axes: Axes, curve: Curve, colour: str, style: Mapping[str, Any]) -> None:
    """Draw a line on its band, up to the axes' end; a stepped one is known everywhere and needs no markers."""
    band: dict[str, Any] = {"color": colour, "alpha": 0.14, "linewidth": 0}
    if not curve.stepped:
        axes.plot(curve.x, curve.y, color=colour, **style)
        axes.fill_between(curve.x, curve.low, curve.high, **band)
        return
    x = np.array([*curve.x, max(axes.get_xlim()[1], curve.x[-1])])
    y, low, high = (np.array([*v, v[-1]]) for v in (curve.y, curve.low, curve.high))
    axes.step(x, y, where="post", color=colour, **{**style, "marker": None})
    axes.fill_between(x, low, high, step="post", **band)


def _curves(plot: Plot) -> Iterable[Picture]:
    for panel, group in panels(plot.cells).items():
        if not any(cell.epsilons for cell in group):
            continue  # without a sweep the distances say it all
        plot = plot.ranking(group)
        models = {m: list(cells) for m, cells in groupby(group, key=lambda c: c.model)}
        first = 1 if len(models) > 1 else 0
        figure, axes = grid(len(models) + first, 4)
        for ax in axes:
            ax.set_xlim(0, _limit(group))
        if first:
            _draw_worst(axes[0], models, plot)
        for ax, (model, cells) in zip(axes[first:], models.items(), strict=False):
            _draw_attacks(ax, model, cells, plot)
        for i, ax in enumerate(axes):
            ax.set_xlabel(_distance_label(panel))
            ax.set_ylabel("accuracy in %" if i % 4 == 0 else "")
        _attack_legend(figure, group, plot)
        yield Picture(
            slug(f"curves-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Accuracy against {_distance_label(panel)}: {panel.title}",
            "Accuracy that is left as the budget grows, with its 95 % interval. One colour for each "
            "model; lines with markers were measured at the marked eps, lines with steps at every distance.",
            _describe_worst(group),
            render(figure),
        )


def _draw_worst(axes: Axes, models: dict[str, list[CellResult]], plot: Plot) -> None:
    label_axes(axes, "Worst of all attacks")
    for model, cells in models.items():
        found = worst_of_all(cells)
        same = [worst for worst in found if worst.ids == found[0].ids]
        draw_curve(
            axes,
            worst_curve(same, plot.interval),
            plot.colour(model),
            {"label": shorten(model), "marker": "o"},
        )
    if len(models) <= len(COLOURS):  # more would share colours, and cover the curves
        axes.legend(handlelength=1.4)


def _draw_attacks(axes: Axes, model: str, cells: Sequence[CellResult], plot: Plot) -> None:
    label_axes(axes, shorten(model))
    for cell in cells:
        curve = cell_curve(cell, plot.interval)
        draw_curve(axes, curve, plot.colour(model), plot.style(cell.attack))


def _classes(plot: Plot) -> Iterable[Picture]:
    few = [c for c in plot.cells if int(c.info["dataset"]["num_classes"]) <= len(CLASS_COLOURS)]
    for dataset in dict.fromkeys(c.panel.dataset for c in few):
        cells = [c for c in few if c.panel.dataset == dataset and c.kind != "budget"]
        cells.sort(
            key=lambda c: (list(dict.fromkeys(d.model for d in few)).index(c.model), c.panel.keeps)
        )
        if not cells:
            continue
        figure, axes = grid(len(cells), len({c.attack for c in cells}))
        for ax, cell in zip(axes, cells, strict=True):
            ax.set_xlim(0, _limit(cells))
            _draw_classes(ax, cell, plot)
        axes[0].set_ylabel("accuracy in %")
        axes[0].legend(handlelength=1.4)
        yield Picture(
            slug(f"classes-{dataset}"),
            f"Two ways to fail, by class: {cells[0].panel.data}",
            "Accuracy that is left as the change grows, split by the class of the clean input. "
            "Perturbation attacks change the decision and keep the class; invariance attacks change the "
            "class and keep the decision.",
            " ".join(_describe_classes(cell) for cell in cells),
            render(figure),
        )


def _draw_classes(axes: Axes, cell: CellResult, plot: Plot) -> None:
    distance = f"{norm_sign(cell.panel.norm)} distance"
    label_axes(axes, f"{shorten(cell.attack)}\n{shorten(cell.model)}", distance)
    for colour, (label, broken_at) in zip(CLASS_COLOURS, _by_class(cell).items(), strict=False):
        curve = held_curve(broken_at, plot.interval)
        draw_curve(axes, curve, colour, {"label": _class_name(cell.panel, label)})


def _distances(plot: Plot) -> Iterable[Picture]:
    chosen = [c for c in plot.cells if c.kind == "minimal" and any(np.isfinite(distances_of(c)))]
    for panel, group in panels(chosen).items():
        figure, (axes, *_) = grid(1, 1, width=4.6, height=2.9)
        label_axes(axes, "", f"{norm_sign(panel.norm)} distance", "fell within, % of attacked")
        axes.set_xlim(0, _limit(group))
        plot = plot.ranking(group)
        for cell in group:
            d, colour = distances_of(cell), plot.colour(cell.model)
            style = {
                **plot.style(cell.attack),
                "label": f"{shorten(cell.model)}, {shorten(cell.attack)}",
            }
            draw_curve(axes, fallen_curve(d, plot.interval), colour, style)
            middle = median_of(d)
            if middle and middle.value < inf:
                axes.plot([middle.value], [50], "o", color=colour, markersize=6)
        axes.legend(handlelength=1.8)
        yield Picture(
            slug(f"distances-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Distance to failure: {panel.title}",
            "Share of the attacked samples for which a success was found within each distance, with its "
            "95 % interval; the dot marks the median.",
            " ".join(_describe_median(cell) for cell in group),
            render(figure),
        )


def _images(plot: Plot) -> Iterable[Picture]:
    return draw_images(plot.cells, plot.columns)


def _risk(plot: Plot) -> Iterable[Picture]:
    return draw_risk(plot.cells, plot.colour, plot.interval)


FIGURES: dict[FigureKind, Callable[[Plot], Iterable[Picture]]] = {
    "curves": _curves,
    "classes": _classes,
    "distances": _distances,
    "risk": _risk,
    "images": _images,
}
"""How each kind of figure is drawn."""


def _attack_legend(figure: Figure, cells: Sequence[CellResult], plot: Plot) -> None:
    names = list(dict.fromkeys(cell.attack for cell in cells))
    lines = [Line2D([], [], color=MUTED, **plot.style(name)) for name in names]
    figure.legend(
        lines, [*map(shorten, names)], loc="outside lower center", ncols=4, handlelength=2.6
    )


def _limit(cells: Iterable[CellResult]) -> float:
    """Where the eps axis ends: at the largest eps of a sweep, else a little beyond the last distance."""
    cells = list(cells)
    swept = max((eps for cell in cells for eps in cell.epsilons), default=0.0)
    far = max((float(v) for c in cells for v in c.fell_at if v < inf), default=0.0)
    return swept or 1.04 * far or 1.0


def _distance_label(panel: Panel) -> str:
    return f"ε in {norm_sign(panel.norm)}"


def _by_class(cell: CellResult) -> dict[int, Any]:
    labels = np.array([r.label for r in cell.records])
    return {int(k): cell.fell_at[labels == k] for k in np.unique(labels)}


def _class_name(panel: Panel, label: int) -> str:
    names = ("inner sphere", "outer sphere") if panel.dataset.startswith("spheres") else ()
    return names[label] if label < len(names) else f"class {label}"


def _describe_worst(cells: Sequence[CellResult]) -> str:
    said = [
        f"{worst.model}: {100 * worst.rate.value:.1f} % left at "
        + ("any distance." if worst.eps == inf else f"{number(worst.eps)}.")
        for worst in worst_of_all(cells)
    ]
    return "Worst of all attacks. " + " ".join(said)


def _describe_classes(cell: CellResult) -> str:
    said = [
        f"{100 * float(np.mean(broken_at < inf)):.1f} % of the {_class_name(cell.panel, label)}"
        for label, broken_at in _by_class(cell).items()
    ]
    return f"{cell.attack} on {cell.model} breaks {', '.join(said)}."


def _describe_median(cell: CellResult) -> str:
    middle = median_of(distances_of(cell))
    value = number(middle.value) if middle else "unknown"
    return f"{cell.attack} on {cell.model}: median {value}."
