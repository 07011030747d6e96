"""Draws what models that reject risk: wrong answers among those given, as fewer and surer inputs are answered."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from robustbench_inv.reporting.canvas import (
    DASHES,
    INK,
    MARKERS,
    Picture,
    grid,
    render,
    shorten,
)
from robustbench_inv.reporting.cells import CellResult
from robustbench_inv.reporting.exports import number, slug
from robustbench_inv.reporting.facts import IntervalOf
from robustbench_inv.reporting.rejection import rejecting_by_data
from robustbench_inv.reporting.scores import Answered, answered_clean, answered_shown, scored
from robustbench_inv.results.summary import Rate

__all__ = ["draw_risk"]

ABREAST, WIDTH, HEIGHT = 3, 3.6, 2.8
"""Panels side by side, and inches of each: together as wide as the page."""

POINTS = 240
"""Coverages at which a curve is drawn; more cannot be told apart on paper."""

SETTLED = 0.1
"""Coverage from which a curve is steady enough to decide how high the axes reach."""

CAPTION = (
    "Wrong answers among those given, with their 95 % interval, when only the surest inputs are answered, ranked by the score "
    "counted from the threshold of the class decided for. The dot is the model as it is, at its own threshold. A score that "
    "knows its errors gives a curve that falls to 0 on the left. AURC: the mean over all coverages. Attacked: whatever an "
    "attack showed last, its failures included."
)


@dataclass(frozen=True)
class Line:
    """One curve: what is answered, how the legend calls it, and how it is drawn."""

    answered: Answered
    label: str
    colour: str
    style: int = 0

    @property
    def area(self) -> str:
        """The area under it, in per cent."""
        return f"{number(100 * self.answered.curve.area)} %"


def draw_risk(
    cells: Sequence[CellResult], colour: Callable[[str], str], interval: IntervalOf
) -> Iterable[Picture]:
    """Yield one figure for each data set: clean inputs of all models that reject, then each model attacked.

    Args:
        cells: of any models; those without a score and a rejection are left out.
        colour: of a model.
        interval: of a share.

    References:
        Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    """
    for dataset, group in rejecting_by_data([c for c in cells if scored(c)]).items():
        panels = {"Clean inputs": _clean(group, colour), **_attacked(group, colour)}
        figure, axes = grid(len(panels), ABREAST, WIDTH, HEIGHT)
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            _draw(ax, title, lines, interval)
        for ax in axes[::ABREAST]:
            ax.set_ylabel("wrong of answered, %")
        title = f"Risk and coverage: {group[0].panel.data}"
        said = (f"{name}: {_told(line)}" for name, lines in panels.items() for line in lines)
        yield Picture(slug(f"risk-{dataset}"), title, CAPTION, " ".join(said), render(figure))


def _clean(group: Sequence[CellResult], colour: Callable[[str], str]) -> list[Line]:
    """Return the curve of each model, from the cell that saw most inputs."""
    widest: dict[str, CellResult] = {}
    for cell in group:
        if cell.model not in widest or len(cell.records) > len(widest[cell.model].records):
            widest[cell.model] = cell
    return [Line(answered_clean(c), c.model, colour(name)) for name, c in widest.items()]


def _attacked(group: Sequence[CellResult], colour: Callable[[str], str]) -> dict[str, list[Line]]:
    """Return the curves of each model under the attacks that want a wrong decision."""
    found: dict[str, list[Line]] = {}
    for cell in group:
        if cell.panel.goal.startswith("misclassify"):
            lines = found.setdefault(f"{shorten(cell.model, 26)}, attacked", [])
            knows = " (knows)" if cell.panel.goal == "misclassify-accepted" else ""
            label = f"{cell.attack}{knows}"
            lines.append(Line(answered_shown(cell), label, colour(cell.model), len(lines)))
    return found


def _draw(axes: Axes, title: str, lines: Sequence[Line], interval: IntervalOf) -> None:
    tops = [_draw_line(axes, line, interval) for line in lines]
    axes.set_title(title)
    axes.set_xlabel("answered, % of inputs")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, min(101.0, 1.15 * max([*tops, 0.1])))
    axes.legend(handlelength=1.4, loc="best").set_in_layout(False)


def _draw_line(axes: Axes, line: Line, interval: IntervalOf) -> float:
    """Draw a curve, its band and the model's own threshold; return how high the axes must reach to show it."""
    curve, place = line.answered.curve, line.answered
    n = len(curve.risk)
    counts = np.unique(np.linspace(1, n, min(n, POINTS)).round().astype(int))
    rates = [Rate(round(float(curve.risk[k - 1]) * k), int(k)) for k in counts]
    bounds = [interval(rate) for rate in rates]
    x, high = 100 * counts / n, [100 * b.high for b in bounds]
    axes.fill_between(x, [100 * b.low for b in bounds], high, color=line.colour, alpha=0.14, lw=0)
    axes.plot(
        x,
        [100 * rate.value for rate in rates],
        color=line.colour,
        linestyle=DASHES[line.style % len(DASHES)],
        label=f"{shorten(line.label, 28)}: AURC {line.area}",
    )
    if place.risk.trials:
        mark = MARKERS[line.style % len(MARKERS)]
        at = 100 * place.coverage.value, 100 * place.risk.value
        axes.plot(*at, mark, color=line.colour, markeredgecolor=INK, markersize=5, zorder=3)
    settled = [100 * rate.value for rate in rates if rate.trials >= SETTLED * n]
    return max([*settled, high[-1]])


def _told(line: Line) -> str:
    place = line.answered
    own = "nothing is answered" if not place.risk.trials else f"{place.risk.value:.2%} wrong"
    return f"{line.label}, AURC {line.area}; {place.coverage.value:.1%} answered, {own}."
