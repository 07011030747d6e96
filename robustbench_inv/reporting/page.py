"""The content of a report page: headline numbers, sections, checks, provenance."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from robustbench_inv.reporting.canvas import ReportFigure
from robustbench_inv.reporting.definitions import Definition, Section
from robustbench_inv.reporting.facts import IntervalOf
from robustbench_inv.reporting.figures import FigureContext, draw_figures
from robustbench_inv.reporting.provenance import (
    FailedSamples,
    ProvenanceFacts,
    collect_provenance,
    collect_verdicts,
    list_failures,
)
from robustbench_inv.reporting.run_results import (
    CellGroup,
    RunResult,
    WorstCase,
    group_cells,
    worst_cases,
)
from robustbench_inv.reporting.statistics import INTERVALS, Median, median_of
from robustbench_inv.reporting.table_formats import (
    Table,
    TableCell,
    dataset_title,
    format_number,
    median_cell,
    norm_symbol,
    rate_cell,
)
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.summary import Rate

__all__ = [
    "FilledSection",
    "Headline",
    "HeadlineRow",
    "ReportPage",
    "build_headlines",
    "build_page",
]


@dataclass(frozen=True)
class HeadlineRow:
    """One model's line: clean accuracy and result."""

    model: str
    clean: TableCell
    result: TableCell


@dataclass(frozen=True)
class Headline:
    """The main result of a group of cells.

    Args:
        group: data set, norm, goal and oracle.
        caption: what ``result`` means.
        rows: one for each model.
    """

    group: CellGroup
    caption: str
    rows: tuple[HeadlineRow, ...]


def build_headlines(cells: Sequence[FinishedCell], interval: IntervalOf) -> list[Headline]:
    """Return one headline for each group of cells.

    For a sweep the result is that at the smallest eps where the accuracy of some model is below one half.
    Models that misclassify half of the clean inputs do not count for this choice.
    """
    return [
        _headline(panel, worst_cases(group), interval)
        for panel, group in group_cells(cells).items()
    ]


def _headline(panel: CellGroup, found: Sequence[WorstCase], interval: IntervalOf) -> Headline:
    eps = _headline_eps(found)
    chosen = list({worst.model: worst for worst in reversed(found) if worst.eps == eps}.values())
    chosen.reverse()
    measurable = _medians_exist(chosen)
    rows = tuple(_headline_row(worst, measurable, interval) for worst in chosen)
    return Headline(panel, _headline_caption(panel, chosen), rows)


def _headline_eps(found: Sequence[WorstCase]) -> float:
    below = [worst.eps for worst in found if worst.rate.value < 0.5 <= worst.clean.value]
    return min(below) if below else max(worst.eps for worst in found)


def _headline_caption(panel: CellGroup, chosen: Sequence[WorstCase]) -> str:
    sign, eps = norm_symbol(panel.norm), chosen[0].eps
    samples = " to ".join(f"{n:,}" for n in sorted({len(worst.ids) for worst in chosen}))
    attacks = len({cell.attack_label for worst in chosen for cell in worst.cells})
    by = f"worst case over {attacks} attacks" if attacks > 1 else chosen[0].cells[0].attack_label
    if panel.no_class:
        return f"rejected, % of {samples} out-of-distribution inputs, by {by}"
    if panel.keeps:
        return f"prediction unchanged although the class changed, % of {samples} samples, by {by}"
    if eps == inf and not _medians_exist(chosen):
        return f"misclassified at any {sign} distance, % of {samples} samples, by {by}"
    if eps == inf:
        return f"median {sign} distance to a misclassified input, {samples} samples, by {by}"
    return f"robust accuracy in % at {sign} ≤ {format_number(eps)}, {samples} samples, {by}"


def _headline_row(worst: WorstCase, measurable: bool, interval: IntervalOf) -> HeadlineRow:
    clean, rate = rate_cell(worst.clean, interval(worst.clean)), worst.rate
    if worst.eps == inf and measurable:
        return HeadlineRow(worst.model, clean, median_cell(_median_distance(worst)))
    if worst.eps == inf and not worst.group.no_class:
        rate = Rate(rate.trials - rate.successes, rate.trials)
    return HeadlineRow(worst.model, clean, rate_cell(rate, interval(rate)))


def _medians_exist(chosen: Sequence[WorstCase]) -> bool:
    """Is half of every model's samples broken, so that medians can be compared?"""
    medians = [_median_distance(worst) for worst in chosen]
    panel = chosen[0].group
    return not (panel.keeps or panel.no_class) and all(
        m is not None and m.value < inf for m in medians
    )


def _median_distance(worst: WorstCase) -> Median | None:
    return median_of([float(d) for d in worst.broken_at if d > 0])


@dataclass(frozen=True)
class FilledSection:
    """A section with the tables and figures of its cells."""

    section: Section
    tables: tuple[Table, ...]
    pictures: tuple[ReportFigure, ...]


@dataclass(frozen=True)
class ReportPage:
    """The content of the template.

    Args:
        definition: title, text, interval.
        overview: models, attacks, data sets and number of samples.
        headlines: the main results.
        colours: of each model, the same as in the figures.
        sections: without empty ones.
        pending: unfinished cells: what, samples done, samples planned.
        verdicts: of the checks, by grade, worst first.
        failures: samples without a valid adversarial input.
        facts: provenance.
    """

    definition: Definition
    overview: tuple[tuple[str, str], ...]
    headlines: tuple[Headline, ...]
    colours: dict[str, str]
    sections: tuple[FilledSection, ...]
    pending: tuple[tuple[str, int, int], ...]
    verdicts: dict[str, list[dict[str, Any]]]
    failures: tuple[FailedSamples, ...]
    facts: tuple[ProvenanceFacts, ...]

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for filled in self.sections for table in filled.tables]

    @property
    def pictures(self) -> list[ReportFigure]:
        """The figures of all sections."""
        return [picture for filled in self.sections for picture in filled.pictures]


def build_page(definition: Definition, runs: Sequence[RunResult]) -> ReportPage:
    """Fill a definition.

    Args:
        definition: title, sections, interval.
        runs: the results, already restricted to the selected cells.
    """
    cells = [cell for run in runs for cell in run.cells]
    interval = INTERVALS[definition.interval]
    plot = FigureContext(tuple(cells), interval, definition.images)
    return ReportPage(
        definition=definition,
        overview=_overview(cells),
        headlines=tuple(build_headlines(cells, interval)),
        colours={cell.model_label: plot.colour(cell.model_label) for cell in cells},
        sections=tuple(_fill_sections(definition, plot)),
        pending=tuple(each for run in runs for each in run.pending),
        verdicts=collect_verdicts(runs),
        failures=tuple(list_failures(cells)),
        facts=tuple(collect_provenance(runs)),
    )


def _fill_sections(definition: Definition, plot: FigureContext) -> Iterator[FilledSection]:
    names: Counter[str] = Counter()
    for section in definition.sections:
        chosen = plot.only(tuple(c for c in plot.cells if section.select.matches_cell(c)))
        tables = [
            replace(table, name=_unique(table.name, names))
            for kind in section.tables
            for table in build_tables(kind, chosen.cells, plot.interval)
        ]
        pictures = [
            replace(picture, name=_unique(picture.name, names))
            for kind in section.figures
            for picture in draw_figures(kind, chosen)
        ]
        if tables or pictures:
            yield FilledSection(section, tuple(tables), tuple(pictures))


def _unique(name: str, names: Counter[str]) -> str:
    """Return the name, numbered if an earlier section used it."""
    names[name] += 1
    return name if names[name] == 1 else f"{name}-{names[name]}"


def _overview(cells: Sequence[FinishedCell]) -> tuple[tuple[str, str], ...]:
    named = {
        "models": [cell.model_label for cell in cells],
        "attacks": [cell.attack_label for cell in cells],
        "data sets": [dataset_title(cell.dataset.name) for cell in cells],
    }
    records = sum(len(cell.records) for cell in cells)
    counts = [(name, ", ".join(dict.fromkeys(values))) for name, values in named.items()]
    return (*counts, ("samples", f"{records:,} attacked samples in {len(cells)} cells"))
