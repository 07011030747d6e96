"""The content of a report page: headline numbers, sections, checks, provenance."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from robustbench_inv.arguments import format_eps
from robustbench_inv.checks.audit_verdict import Conclusion, conclude, mark_of
from robustbench_inv.checks.verdict import Verdict
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
from robustbench_inv.reporting.rejection_report import GOAL_TEXTS
from robustbench_inv.reporting.run_results import (
    CellGroup,
    RunResult,
    WorstCase,
    group_cells,
    most_attacked,
    worst_cases,
)
from robustbench_inv.reporting.statistics import INTERVALS, median_of
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    dataset_title,
    median_cell,
    norm_symbol,
    rate_cell,
)
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.cell import FinishedCell

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
    """Return one headline for each group of cells, with a row for each model.

    For a sweep the result is that at the smallest eps where the accuracy of some model is below one half.
    Models that misclassify half of the clean inputs do not count for this choice. Of invariance attacks it is that at
    the largest eps.
    """
    groups = ((panel, worst_cases(group)) for panel, group in group_cells(cells).items())
    return [_headline(panel, found, interval) for panel, found in groups if found]


def _headline(panel: CellGroup, found: Sequence[WorstCase], interval: IntervalOf) -> Headline:
    eps = _headline_eps(panel, found)
    by_model: dict[str, list[WorstCase]] = {}
    for worst in found:
        by_model.setdefault(worst.model, []).append(worst)
    at_eps = {model: [w for w in mine if w.eps == eps] for model, mine in by_model.items()}
    chosen = {model: most_attacked(here)[0] for model, here in at_eps.items() if here}
    measure = _measure(panel, list(chosen.values()))
    rows = []
    for model, mine in by_model.items():
        worst = chosen.get(model) or most_attacked(mine)[0]
        result = measure.show(worst, interval) if model in chosen else BLANK
        rows.append(HeadlineRow(model, rate_cell(worst.clean, interval(worst.clean)), result))
    return Headline(panel, _headline_caption(measure, list(chosen.values())), tuple(rows))


def _headline_eps(panel: CellGroup, found: Sequence[WorstCase]) -> float:
    below = [worst.eps for worst in found if worst.rate.value < 0.5 <= worst.clean.value]
    return min(below) if below and not panel.keeps else max(worst.eps for worst in found)


@dataclass(frozen=True)
class _Measure:
    """The quantity of a headline: what it is, the inputs that it is a share of, and how it is shown."""

    text: str
    inputs: str
    show: Callable[[WorstCase, IntervalOf], TableCell]


ATTACKED, OOD_INPUTS = "attacked samples", "out-of-distribution inputs"
"""Inputs of a share that leaves out samples which are misclassified without an attack."""


def _measure(panel: CellGroup, chosen: Sequence[WorstCase]) -> _Measure:
    sign, eps = norm_symbol(panel.norm), chosen[0].eps
    within = "" if eps == inf else f" at {sign} ≤ {format_eps(eps)}"
    reached = GOAL_TEXTS.get(panel.goal, f"goal {panel.goal} reached")
    if panel.no_class:
        return _Measure("rejected, % of", OOD_INPUTS, _show_withstood)
    if panel.keeps:
        text = f"prediction unchanged although the class changed{within}, % of"
        return _Measure(text, ATTACKED, _show_success)
    if panel.fixed:
        return _Measure("correct predictions on fixed inputs, % of", "samples", _show_rate)
    if eps < inf:
        return _Measure(f"robust accuracy{within}, % of", "samples", _show_rate)
    if all(_has_median(worst) for worst in chosen):
        text = f"median {sign} distance to an input that is {reached}, over"
        return _Measure(text, ATTACKED, _show_median)
    return _Measure(f"{reached} at any {sign} distance, % of", ATTACKED, _show_success)


def _headline_caption(measure: _Measure, chosen: Sequence[WorstCase]) -> str:
    attacked = measure.inputs in (ATTACKED, OOD_INPUTS)
    counts = {w.success_rate.trials if attacked else w.rate.trials for w in chosen}
    count = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    attacks = list(dict.fromkeys(name for worst in chosen for name in worst.attacks))
    by = f"worst case over {len(attacks)} attacks" if len(attacks) > 1 else attacks[0]
    inputs = measure.inputs.removesuffix("s") if count == "1" else measure.inputs
    return f"{measure.text} {count} {inputs}, by {by}"


def _show_rate(worst: WorstCase, interval: IntervalOf) -> TableCell:
    return rate_cell(worst.rate, interval(worst.rate))


def _show_withstood(worst: WorstCase, interval: IntervalOf) -> TableCell:
    return rate_cell(worst.withstood_rate, interval(worst.withstood_rate))


def _show_success(worst: WorstCase, interval: IntervalOf) -> TableCell:
    return rate_cell(worst.success_rate, interval(worst.success_rate))


def _show_median(worst: WorstCase, _: IntervalOf) -> TableCell:
    return median_cell(median_of(worst.distances))


def _has_median(worst: WorstCase) -> bool:
    """Is half of the attacked samples broken, so that medians can be compared?"""
    median = median_of(worst.distances)
    return median is not None and median.value < inf


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
        conclusions: whether the numbers of each model can be published.
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
    conclusions: tuple[Conclusion, ...]
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
    verdicts = [Verdict.from_json(value) for run in runs for value in run.checks]
    marks = _Marks(cells, verdicts)
    return ReportPage(
        definition=definition,
        overview=_overview(cells),
        headlines=tuple(marks.on_headline(each) for each in build_headlines(cells, interval)),
        colours={cell.model_label: plot.colour(cell.model_label) for cell in cells},
        sections=tuple(
            replace(filled, tables=tuple(map(marks.on_table, filled.tables)))
            for filled in _fill_sections(definition, plot)
        ),
        pending=tuple(each for run in runs for each in run.pending),
        conclusions=tuple(conclude(cells, verdicts)),
        verdicts=collect_verdicts(runs),
        failures=tuple(list_failures(cells)),
        facts=tuple(collect_provenance(runs)),
    )


@dataclass(frozen=True)
class _Marks:
    """Puts a sign beside each number that a failing or warning check concerns."""

    cells: Sequence[FinishedCell]
    verdicts: Sequence[Verdict]

    def on_headline(self, headline: Headline) -> Headline:
        """Return a headline with marked results."""
        rows = (
            replace(row, result=_marked(row.result, self._mark(row.model))) for row in headline.rows
        )
        return replace(headline, rows=tuple(rows))

    def on_table(self, table: Table) -> Table:
        """Return a table whose shares are marked; its first cells name the model, and perhaps the attack."""
        return replace(table, rows=tuple(map(self._on_row, table.rows)))

    def _on_row(self, row: tuple[TableCell, ...]) -> tuple[TableCell, ...]:
        mark = self._mark(*(cell.text for cell in row[:2] if cell.tone == "name"))
        return tuple(cell if cell.share is None else _marked(cell, mark) for cell in row)

    def _mark(self, model: str = "", attack: str = "") -> str:
        named = [cell for cell in self.cells if cell.model_label == model]
        about = [cell for cell in named if cell.attack_label == attack] or named
        return mark_of(v.verdict for v in self.verdicts for cell in about if v.concerns(cell))


def _marked(cell: TableCell, mark: str) -> TableCell:
    return cell if cell == BLANK else replace(cell, text=cell.text + mark)


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
    return (*counts, ("samples", f"{records:,} evaluated samples in {len(cells)} cells"))
