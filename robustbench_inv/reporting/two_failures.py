"""Both ways to fail of each model: how far the closest changed prediction is, and the closest missed change of the class."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from math import inf, isfinite
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from robustbench_inv.arguments import format_eps
from robustbench_inv.reporting.canvas import COLOURS, MUTED, ReportFigure, grid, render, shorten
from robustbench_inv.reporting.facts import IntervalOf, rate_facts
from robustbench_inv.reporting.run_results import WorstCase, main_cases
from robustbench_inv.reporting.statistics import Median, median_of
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    dataset_title,
    format_number,
    median_cell,
    norm_symbol,
    rate_cell,
    slug,
)
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import distances_by_norm
from robustbench_inv.results.summary import Distances, Rate

__all__ = ["TwoFailures", "draw_two_failures", "label_points", "two_failures_tables"]

NORMS = ("l2", "linf")
"""Norms of the distances, in the order of the panels."""

DIGITS = 8
"""Digits of a cell's digest in the table."""


@dataclass(frozen=True)
class TwoFailures:
    """The two distances of one model, by norm, and its rates at one budget.

    Args:
        model: its label.
        clean: clean accuracy.
        changed: distances of the attacked samples to the closest changed prediction, inf for none.
        missed: distances of the attacked samples to the closest missed change of the class, inf for none.
        robust: by norm, the largest eps of the fixed-budget attacks and the worst-case robust accuracy there.
        sources: for each part of the row, such as ``changed l2``, its number of samples and the cells it is from.
    """

    model: str
    clean: Rate
    changed: Mapping[str, Distances]
    missed: Mapping[str, Distances]
    robust: Mapping[str, tuple[float, Rate]]
    sources: Mapping[str, tuple[int, Sequence[FinishedCell]]]

    def missed_within(self, norm: str, eps: float = inf) -> Rate:
        """Return the share of samples with a missed change of the class within a distance."""
        found = self.missed[norm]
        return Rate(sum(d <= eps and isfinite(d) for d in found), len(found))


def both_ways(cells: Sequence[FinishedCell]) -> dict[tuple[str, str], list[TwoFailures]]:
    """Return the models that were attacked in both ways, by data set and oracle."""
    searched = [c for c in cells if c.kind == "invariance" and c.threat.wants_same_prediction]
    searched = [cell for cell in searched if not cell.epsilons]
    found: dict[tuple[str, str], list[TwoFailures]] = {}
    for model, data, oracle in dict.fromkeys(map(_place, searched)):
        here = [c for c in cells if (c.model_label, c.dataset.name) == (model, data)]
        mine = [c for c in searched if _place(c) == (model, data, oracle)]
        most = max(mine, key=lambda cell: len(cell.records))
        missed = distances_by_norm(most)
        nearest = {norm: changed for norm in NORMS if (changed := _changed(here, norm))}
        if missed and nearest:
            worst = {norm: case for norm in NORMS if (case := _robust(here, norm))}
            sources = {
                **{f"changed {norm}": (len(d), used) for norm, (d, used) in nearest.items()},
                **{f"robust {norm}": (c.rate.trials, c.cells) for norm, c in worst.items()},
                "missed": (len(most.records), [most]),
            }
            each = TwoFailures(
                model,
                here[0].summary.clean_accuracy,
                {norm: distances for norm, (distances, _) in nearest.items()},
                missed,
                {norm: (case.eps, case.rate) for norm, case in worst.items()},
                sources,
            )
            found.setdefault((data, oracle), []).append(each)
    return found


def _place(cell: FinishedCell) -> tuple[str, str, str]:
    return cell.model_label, cell.dataset.name, cell.oracle_source or ""


def _changed(
    cells: Sequence[FinishedCell], norm: str
) -> tuple[list[float], list[FinishedCell]] | None:
    """Return the smallest distances on the samples of the minimum-norm attacks, and the cells that have them.

    Adversarial examples of other attacks count too.
    """
    mine = [c for c in _sensitive(cells, norm) if c.kind == "minimum-norm" and not c.epsilons]
    if not mine:
        return None
    case = main_cases(mine, _sensitive(cells))[0]
    return case.distances.tolist(), [*case.cells, *case.others]


def _robust(cells: Sequence[FinishedCell], norm: str) -> WorstCase | None:
    """Return the worst case of all fixed-budget attacks at the largest eps."""
    mine = [c for c in _sensitive(cells, norm) if c.kind == "fixed-budget"]
    return max(main_cases(mine), key=lambda case: case.eps) if mine else None


def _sensitive(cells: Sequence[FinishedCell], norm: str | None = None) -> list[FinishedCell]:
    """Return the cells that search for changed predictions, in one norm or in any."""
    goals = "misclassify", "misclassify-accepted"
    mine = (c for c in cells if c.goal in goals and not c.uses_substitute)
    return [c for c in mine if norm in (None, c.norm)]


CAPTION = (
    "Medians [95 % interval] over the attacked samples, which are classified correctly before: the l2 or linf distance "
    "to the closest input whose prediction changes though its class stays (small: too sensitive), and to the closest "
    "input whose class changes by the oracle {oracle} though the prediction stays (small: too invariant). Both are upper "
    "bounds; ∞ where fewer than half of the samples have such an input. Robust: worst-case accuracy within the budget. "
    "Missed: samples with a missed change of the class within the budget, found on the paths of a search without budget, "
    "and at any distance. Rates in %. Samples and cells: the number of samples behind each part of the row, and the first "
    "digits of the folders in the run that it is from."
)


def two_failures_tables(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each data set and oracle: one row for each model that was attacked in both ways.

    Args:
        cells: of any kind.
        interval: of every share.
    """
    for (data, oracle), models in both_ways(cells).items():
        ranked = sorted(models, key=_rank)
        yield Table(
            slug(f"both-failures-{data}"),
            f"Both ways to fail: {dataset_title(data)}",
            CAPTION.format(oracle=oracle or "of the data set"),
            pd.DataFrame([_facts(each, interval) for each in ranked]),
            ("Model", "Clean", "Attacked", *_headings(ranked)),
            tuple(tuple(_row(each, ranked, interval)) for each in ranked),
        )


def _rank(model: TwoFailures) -> tuple[float, str]:
    """Return the order in the table: the largest smaller distance first."""
    middle = [_median(each.get(NORMS[0])) for each in (model.changed, model.missed)]
    return -min(m.value if m else 0.0 for m in middle), model.model


def _median(values: Distances | None) -> Median | None:
    return None if values is None else median_of(values)


def _headings(models: Sequence[TwoFailures]) -> list[str]:
    signs = {norm: norm_symbol(norm) for norm in NORMS}
    distances = [f"{way} {signs[norm]}" for norm in NORMS for way in ("Changed", "Missed")]
    rates = [
        f"{way} {signs[norm]} ≤ {format_eps(eps)}"
        for norm, eps in _budgets(models).items()
        for way in ("Robust", "Missed")
    ]
    return [*distances, *rates, "Missed, any distance", "Samples and cells"]


def _budgets(models: Sequence[TwoFailures]) -> dict[str, float]:
    """Return the largest eps of each norm in which some model was attacked inside a ball."""
    found = [(norm, eps) for each in models for norm, (eps, _) in each.robust.items()]
    return {
        norm: max(eps for n, eps in found if n == norm) for norm in NORMS if norm in dict(found)
    }


def _row(
    model: TwoFailures, models: Sequence[TwoFailures], interval: IntervalOf
) -> Iterable[TableCell]:
    yield TableCell(model.model, tone="name")
    yield rate_cell(model.clean, interval(model.clean))
    yield TableCell(f"{len(next(iter(model.missed.values()))):,}")
    for norm in NORMS:
        for way in (model.changed, model.missed):
            yield median_cell(_median(way.get(norm)))
    for norm, eps in _budgets(models).items():
        level, rate = model.robust.get(norm, (None, Rate(0, 0)))
        yield rate_cell(rate, interval(rate)) if level == eps else BLANK
        found = model.missed_within(norm, eps) if norm in model.missed else Rate(0, 0)
        yield rate_cell(found, interval(found))
    every = model.missed_within(next(iter(model.missed)))
    yield rate_cell(every, interval(every))
    yield TableCell("; ".join(starmap(_source, model.sources.items())))


def _source(part: str, source: tuple[int, Sequence[FinishedCell]]) -> str:
    """Return what a part of a row is from: ``changed l2: 50 samples, 1ea25084``."""
    count, cells = source
    digests = ", ".join(cell.digest[:DIGITS] for cell in cells)
    return f"{part}: {count:,} samples, {digests}"


def _facts(model: TwoFailures, interval: IntervalOf) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": model.model}
    for part, (count, cells) in model.sources.items():
        name = part.replace(" ", "_")
        facts[f"{name}_samples"] = count
        facts[f"{name}_cells"] = " ".join(cell.digest for cell in cells)
    rates = {"clean_accuracy": model.clean, "missed": model.missed_within(next(iter(model.missed)))}
    for norm in NORMS:
        for name, way in (("changed", model.changed), ("missed", model.missed)):
            middle = _median(way.get(norm))
            known = middle.interval if middle else None
            facts[f"{name}_{norm}_median"] = middle.value if middle else None
            facts[f"{name}_{norm}_low"] = known.low if known else None
            facts[f"{name}_{norm}_high"] = known.high if known else None
        if norm in model.robust:
            eps, rates[f"robust_{norm}"] = model.robust[norm]
            facts[f"eps_{norm}"] = eps
            if norm in model.missed:
                rates[f"missed_{norm}"] = model.missed_within(norm, eps)
    return {**facts, **rate_facts(rates, interval)}


Points = Mapping[str, tuple[float, float]]
"""Coordinates by name."""

PANEL = 5.2, 4.6
"""Width and height of a panel in inches."""


def draw_two_failures(cells: Sequence[FinishedCell]) -> Iterable[ReportFigure]:
    """Yield a figure for each data set and oracle: one panel for each norm, and one for the rates at the budget."""
    for (data, oracle), models in both_ways(cells).items():
        budgets = _budgets(models)
        panels = [norm for norm in NORMS if any(norm in m.changed for m in models)]
        figure, axes = grid(len(panels) + len(budgets), 2, *PANEL)
        points = [
            *(_draw_medians(ax, models, norm) for ax, norm in zip(axes, panels, strict=False)),
            *(
                _draw_rates(ax, models, norm, eps)
                for ax, (norm, eps) in zip(axes[len(panels) :], budgets.items(), strict=True)
            ),
        ]
        for ax, each in zip(axes, points, strict=True):
            label_points(ax, each)
        judge = f" Oracle: {oracle}." if oracle else ""
        yield ReportFigure(
            slug(f"both-failures-{data}"),
            f"Both ways to fail: {dataset_title(data)}",
            "Each point is a model, with 95 % intervals. Across: median distance to the closest input whose prediction "
            "changes. Up: median distance to the closest input whose class changes while the prediction stays. Right "
            "and up is better; a search can only overestimate both." + judge,
            "; ".join(map(_describe, models)),
            render(figure),
        )


def _describe(model: TwoFailures) -> str:
    found = []
    for norm in NORMS:
        middle = [_median(each.get(norm)) for each in (model.changed, model.missed)]
        text = [format_number(m.value) if m else "unknown" for m in middle]
        found.append(
            f"{norm_symbol(norm)} {text[0]} to a changed prediction, {text[1]} to a missed class"
        )
    return f"{model.model}: {', '.join(found)}"


def _draw_medians(axes: Axes, models: Sequence[TwoFailures], norm: str) -> Points:
    points = {}
    for each in models:
        x, y = _median(each.changed.get(norm)), _median(each.missed.get(norm))
        if x and y and isfinite(x.value) and isfinite(y.value):
            points[each.model] = (x.value, y.value)
            _draw_cross(axes, x, y)
    sign = norm_symbol(norm)
    axes.set_xlabel(f"median {sign} distance to a changed prediction")
    axes.set_ylabel(f"median {sign} distance to a missed change of class")
    return _drawn(axes, points)


def _draw_cross(axes: Axes, x: Median, y: Median) -> None:
    style: dict[str, Any] = {"color": MUTED, "linewidth": 0.7, "alpha": 0.6}
    if x.interval and isfinite(x.interval.high):
        axes.plot([x.interval.low, x.interval.high], [y.value, y.value], **style)
    if y.interval and isfinite(y.interval.high):
        axes.plot([x.value, x.value], [y.interval.low, y.interval.high], **style)


def _draw_rates(axes: Axes, models: Sequence[TwoFailures], norm: str, eps: float) -> Points:
    points = {
        each.model: (
            100 * each.robust[norm][1].value,
            100 * (1 - each.missed_within(norm, eps).value),
        )
        for each in models
        if norm in each.robust and norm in each.missed and each.robust[norm][0] == eps
    }
    within = f"within {norm_symbol(norm)} {format_eps(eps)}, %"
    axes.set_xlabel(f"robust accuracy {within}")
    axes.set_ylabel(f"no missed change of class {within}")
    drawn = _drawn(axes, points)
    axes.set_xlim(-4, 104)
    axes.set_ylim(-4, 104)
    return drawn


def _drawn(axes: Axes, points: Points) -> Points:
    """Draw the points and fix the limits."""
    for x, y in points.values():
        axes.plot([x], [y], "o", color=COLOURS[0], markersize=5)
    axes.margins(0.12)
    return points


REACH = (6, 14, 24, 36, 50, 66)
"""Distances of a label from its point that are tried, in points."""

DIRECTIONS = (
    (1, 0.3),
    (-1, 0.3),
    (1, -0.8),
    (-1, -0.8),
    (0.3, 1),
    (-0.3, 1),
    (0.3, -1.2),
    (-0.3, -1.2),
)


def label_points(axes: Axes, points: Points) -> None:
    """Write each point's name beside it, where it covers neither another name nor a point; a name without room is left out.

    Args:
        axes: with final limits.
        points: coordinates by name.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    dots: Any = axes.transData.transform(list(points.values())) if points else []
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    for name, at in sorted(points.items(), key=lambda each: each[1]):
        if placed := _place_label(axes, shorten(name, 24), at, taken):
            taken.append(placed)


def _place_label(
    axes: Axes, text: str, at: tuple[float, float], taken: Sequence[Bbox]
) -> Bbox | None:
    """Write a label at the first free place around a point, and return the box it covers; None without a free place."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5}
    frame, figure = axes.get_window_extent(), axes.get_figure(root=True)
    assert figure is not None
    measured = axes.annotate(text, at, (0, 0), ha="left", **style)
    measured.get_window_extent()  # computes the position
    box = Text.get_window_extent(measured)
    measured.remove()
    scale = figure.dpi / 72
    for reach, (dx, dy) in product(REACH, DIRECTIONS):
        left = reach * dx * scale - (0 if dx > 0 else box.width)
        place = box.translated(left, reach * dy * scale)
        inside = (
            frame.x0 <= place.x0
            and place.x1 <= frame.x1
            and frame.y0 <= place.y0
            and place.y1 <= frame.y1
        )
        if inside and not any(place.overlaps(other) for other in taken):
            arrow = (
                {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if reach > REACH[0] else None
            )
            side = "left" if dx > 0 else "right"
            axes.annotate(text, at, (reach * dx, reach * dy), ha=side, arrowprops=arrow, **style)
            return place
    return None
