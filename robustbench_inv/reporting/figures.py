"""The figures of a report: accuracy curves, failures by class, distances."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustbench_inv.arguments import format_eps
from robustbench_inv.reporting.canvas import (
    COLOURS,
    DASHES,
    MARKERS,
    MUTED,
    ReportFigure,
    grid,
    label_axes,
    render,
    shorten,
    styled,
)
from robustbench_inv.reporting.curves import (
    CERTIFIED_TEXT,
    broken_curve,
    cell_curve,
    draw_certified,
    draw_curve,
    robust_curve,
    worst_curve,
)
from robustbench_inv.reporting.definitions import FigureKind
from robustbench_inv.reporting.facts import IntervalOf
from robustbench_inv.reporting.image_figures import draw_attack_images
from robustbench_inv.reporting.rejection_report import draw_risk
from robustbench_inv.reporting.run_results import (
    CellGroup,
    group_cells,
    most_attacked,
    worst_cases,
)
from robustbench_inv.reporting.statistics import median_of, wilson
from robustbench_inv.reporting.table_formats import (
    dataset_title,
    format_number,
    norm_symbol,
    slug,
)
from robustbench_inv.reporting.two_failures import draw_two_failures
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import distances_by_norm
from robustbench_inv.results.summary import Distances, largest_finite, share_of

__all__ = [
    "FIGURES",
    "FigureContext",
    "draw_figures",
]


CLASS_COLOURS = (COLOURS[5], COLOURS[4], COLOURS[3], COLOURS[7])
"""Classes; curves split by class are drawn for data sets with no more of them."""


@dataclass(frozen=True)
class FigureContext:
    """The data of figures.

    Args:
        cells: the selected cells.
        interval: of every share.
        columns: of a grid of images.
        all_cells: all cells of the report, which decide on colours; by default ``cells``.
        ranked: attacks, the strongest first.
    """

    cells: tuple[FinishedCell, ...]
    interval: IntervalOf = wilson
    columns: int = 8
    all_cells: tuple[FinishedCell, ...] = ()
    ranked: tuple[str, ...] = ()

    def only(self, cells: tuple[FinishedCell, ...]) -> "FigureContext":
        """Return the plot of some of the cells, with the same colours."""
        return replace(self, cells=cells, all_cells=self.all_cells or self.cells)

    def colour(self, model: str) -> str:
        """Return the model's colour, the same in every figure of the report."""
        models = list(dict.fromkeys(cell.model_label for cell in self.all_cells or self.cells))
        return COLOURS[models.index(model) % len(COLOURS)]

    @property
    def one_model(self) -> bool:
        """Is the report about a single model, so that each attack can have a colour of its own?"""
        return len({cell.model_label for cell in self.all_cells or self.cells}) == 1

    def line_colour(self, cell: FinishedCell) -> str:
        """Return the colour of a cell's line: the model's, or of a single model the attack's."""
        if not self.one_model:
            return self.colour(cell.model_label)
        return COLOURS[self.ranked.index(cell.attack_label) % len(COLOURS)]

    def style(self, attack: str) -> dict[str, Any]:
        """Return the attack's marker and dashes; the strongest attack has a full line."""
        i = self.ranked.index(attack)
        return {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}

    def ranking(self, cells: Sequence[FinishedCell]) -> "FigureContext":
        """Return the plot with the attacks of some cells ranked, the one that leaves least first."""
        left: dict[str, list[float]] = {}
        for cell in cells:
            left.setdefault(cell.attack_label, []).extend(
                r.value for r in cell.summary.robust_accuracy
            )
        return replace(self, ranked=tuple(sorted(left, key=lambda attack: fmean(left[attack]))))


def draw_figures(kind: FigureKind, plot: FigureContext) -> list[ReportFigure]:
    """Return the figures of one kind; none where the cells hold nothing of it."""
    with styled():
        return list(FIGURES[kind](plot))


def _accuracy_curves(plot: FigureContext) -> Iterable[ReportFigure]:
    for panel, group in group_cells(plot.cells).items():
        if not any(cell.epsilons for cell in group):
            continue  # without a sweep the distances say it all
        plot = plot.ranking(group)
        models = {m: list(cells) for m, cells in groupby(group, key=lambda c: c.model_label)}
        first = 1 if len(models) > 1 else 0
        size = () if first else (6.4, 2.9)  # a single panel has the legend beside it
        figure, axes = grid(len(models) + first, 4, *size)
        for ax in axes:
            ax.set_xlim(0, _eps_limit(group))
        if first:
            _draw_worst_cases(axes[0], models, plot)
        for ax, (model, cells) in zip(axes[first:], models.items(), strict=False):
            _draw_attacks(ax, model, cells, plot)
        for i, ax in enumerate(axes):
            ax.set_xlabel(_distance_label(panel))
            quantity = "without failure in %" if panel.keeps else "accuracy in %"
            ax.set_ylabel(quantity if i % 4 == 0 else "")
        _attack_legend(figure, group, plot)
        yield ReportFigure(
            slug(f"curves-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"{'Failures' if panel.keeps else 'Accuracy'} against {_distance_label(panel)}: {panel.title}",
            f"{'Share of samples without an invariance failure' if panel.keeps else 'Robust accuracy'} against the "
            "budget, with its 95 % interval. One colour for each "
            f"{'attack' if plot.one_model else 'model'}; lines with markers were measured at the marked eps, lines "
            "with steps at every distance."
            + (CERTIFIED_TEXT if any(c.certificates for c in group) else ""),
            _describe_worst_cases(group),
            render(figure),
        )


def _draw_worst_cases(
    axes: Axes, models: dict[str, list[FinishedCell]], plot: FigureContext
) -> None:
    label_axes(axes, "Worst case over attacks")
    for model, cells in models.items():
        found, colour = most_attacked(worst_cases(cells)), plot.colour(model)
        style = {"label": shorten(model), "marker": "o"}
        draw_curve(axes, worst_curve(found, plot.interval), colour, style)
        draw_certified(axes, found, plot.interval, colour)
    if len(models) <= len(COLOURS):  # more would share colours, and cover the curves
        axes.legend(handlelength=1.4)


def _draw_attacks(
    axes: Axes, model: str, cells: Sequence[FinishedCell], plot: FigureContext
) -> None:
    label_axes(axes, shorten(model))
    for cell in cells:
        curve = cell_curve(cell, plot.interval)
        draw_curve(axes, curve, plot.line_colour(cell), plot.style(cell.attack_label))
    draw_certified(axes, most_attacked(worst_cases(cells)), plot.interval, plot.colour(model))


def _class_curves(plot: FigureContext) -> Iterable[ReportFigure]:
    few = [c for c in plot.cells if c.dataset.num_classes <= len(CLASS_COLOURS)]
    for dataset in dict.fromkeys(c.dataset.name for c in few):
        cells = [c for c in few if c.dataset.name == dataset and c.kind != "fixed-budget"]
        cells.sort(
            key=lambda c: (
                list(dict.fromkeys(d.model_label for d in few)).index(c.model_label),
                c.threat.wants_same_prediction,
            )
        )
        if not cells:
            continue
        figure, axes = grid(len(cells), len({c.attack_label for c in cells}))
        for ax, cell in zip(axes, cells, strict=True):
            ax.set_xlim(0, _eps_limit(cells))
            _draw_classes(ax, cell, plot)
        axes[0].set_ylabel("accuracy in %")
        axes[0].legend(handlelength=1.4)
        yield ReportFigure(
            slug(f"classes-{dataset}"),
            f"Two ways to fail, by class: {dataset_title(cells[0].dataset.name)}",
            "Accuracy against the distance, by the class of the clean input. "
            "Perturbation attacks change the decision and keep the class; invariance attacks change the "
            "class and keep the decision.",
            " ".join(_describe_classes(cell) for cell in cells),
            render(figure),
        )


def _draw_classes(axes: Axes, cell: FinishedCell, plot: FigureContext) -> None:
    distance = f"{norm_symbol(cell.norm)} distance"
    label_axes(axes, f"{shorten(cell.attack_label)}\n{shorten(cell.model_label)}", distance)
    for colour, (label, broken_at) in zip(CLASS_COLOURS, _by_class(cell).items(), strict=False):
        curve = robust_curve(broken_at, plot.interval)
        draw_curve(axes, curve, colour, {"label": _class_name(CellGroup.of(cell), label)})


def _distances(plot: FigureContext) -> Iterable[ReportFigure]:
    kinds = "minimum-norm", "invariance"
    chosen = [cell for cell in plot.cells if cell.kind in kinds and cell.minimizes_distance]
    for panel, group in group_cells(chosen).items():
        if not any(cell.summary.attack_success_rate.successes for cell in group):
            continue
        found = [(cell, distances_by_norm(cell)) for cell in group]
        norms = list(dict.fromkeys(name for _, each in found for name in each))
        height = max(2.9, 0.5 + 0.17 * len(group))
        figure, axes = grid(len(norms), 3, width=4.6 + 1.9 / len(norms), height=height)
        plot = plot.ranking(group)
        for ax, name in zip(axes, norms, strict=True):
            label_axes(ax, "", f"{norm_symbol(name)} distance", "broken within, % of attacked")
            _draw_distances(ax, [(cell, each[name]) for cell, each in found if name in each], plot)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        yield ReportFigure(
            slug(f"distances-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Distance to failure: {panel.title}",
            "Share of the attacked samples that have an adversarial example within each distance, with its "
            "95 % interval; the dot marks the median.",
            " ".join(_describe_median(cell) for cell in group),
            render(figure),
        )


def _draw_distances(
    axes: Axes, found: Sequence[tuple[FinishedCell, Distances]], plot: FigureContext
) -> None:
    axes.set_xlim(0, 1.04 * largest_finite((each for _, each in found), 1.0))
    for cell, distances in found:
        named = "" if plot.one_model else f"{shorten(cell.model_label, 20)}, "
        label = f"{named}{shorten(cell.attack_label)}"
        style, colour = plot.style(cell.attack_label) | {"label": label}, plot.line_colour(cell)
        draw_curve(axes, broken_curve(distances, plot.interval), colour, style)
        middle = median_of(distances)
        if middle and middle.value < inf:
            axes.plot([middle.value], [50], "o", color=colour, markersize=6)


FIGURES: dict[FigureKind, Callable[[FigureContext], Iterable[ReportFigure]]] = {
    "curves": _accuracy_curves,
    "classes": _class_curves,
    "distances": _distances,
    "two-failures": lambda plot: draw_two_failures(plot.cells),
    "risk": lambda plot: draw_risk(plot.cells, plot.colour, plot.interval),
    "images": lambda plot: draw_attack_images(plot.cells, plot.columns),
}
"""How each kind of figure is drawn."""


def _attack_legend(figure: Figure, cells: Sequence[FinishedCell], plot: FigureContext) -> None:
    colours = {c.attack_label: plot.line_colour(c) if plot.one_model else MUTED for c in cells}
    names = [name for name in plot.ranked if name in colours]
    lines = [Line2D([], [], color=colours[name], **plot.style(name)) for name in names]
    labels = [*map(shorten, names)]
    if len(figure.axes) == 1:
        figure.legend(lines, labels, loc="outside right upper", handlelength=2.8)
    else:
        figure.legend(lines, labels, loc="outside lower center", ncols=4, handlelength=2.8)


def _eps_limit(cells: Iterable[FinishedCell]) -> float:
    """Where the eps axis ends: at the largest eps of a sweep, else a little beyond the last distance."""
    cells = list(cells)
    swept = max((eps for cell in cells for eps in cell.epsilons), default=0.0)
    return swept or 1.04 * largest_finite(c.failure_distance for c in cells) or 1.0


def _distance_label(panel: CellGroup) -> str:
    return f"ε in {norm_symbol(panel.norm)}"


def _by_class(cell: FinishedCell) -> dict[int, Any]:
    labels = cell.records.columns.label
    return {int(k): cell.failure_distance[labels == k] for k in np.unique(labels)}


def _class_name(panel: CellGroup, label: int) -> str:
    names = ("inner sphere", "outer sphere") if panel.dataset.startswith("spheres") else ()
    return names[label] if label < len(names) else f"class {label}"


def _describe_worst_cases(cells: Sequence[FinishedCell]) -> str:
    sentences = [
        f"{worst.model}: {100 * worst.rate.value:.1f} % of {len(worst.ids):,} robust at "
        + ("any distance." if worst.eps == inf else f"{format_eps(worst.eps)}.")
        for worst in worst_cases(cells)
    ]
    return "Worst case over attacks. " + " ".join(sentences)


def _describe_classes(cell: FinishedCell) -> str:
    """Return the share of broken samples of each class, of the attacked ones as in the table of distances."""
    sentences, found = [], cell.records.columns
    for label in np.unique(found.label).tolist():
        rate = share_of(found.is_broken, found.was_attacked & (found.label == label))
        share = f"{100 * rate.value:.1f} % of {rate.trials:,}" if rate.trials else "none of 0"
        sentences.append(f"{share} attacked ({_class_name(CellGroup.of(cell), label)})")
    return f"{cell.attack_label} on {cell.model_label} breaks {', '.join(sentences)}."


def _describe_median(cell: FinishedCell) -> str:
    middle = median_of(cell.attacked_distances)
    value = format_number(middle.value) if middle else "unknown"
    return f"{cell.attack_label} on {cell.model_label}: median {value}."
