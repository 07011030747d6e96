"""The content of a report page: headline numbers, sections, checks, provenance."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from robustbench_inv.catalogue.datasets import describe_dataset
from robustbench_inv.checks.audit_verdict import Conclusion
from robustbench_inv.checks.verdict import Verdict, mark_of, mark_of_cells
from robustbench_inv.reporting.answers import Answer, answer_questions
from robustbench_inv.reporting.canvas import ReportFigure
from robustbench_inv.reporting.citations import Citation, collect_citations
from robustbench_inv.reporting.definitions import Definition, Section
from robustbench_inv.reporting.exports import conclusions_of
from robustbench_inv.reporting.figures import FigureContext, draw_figures
from robustbench_inv.reporting.gallery import NO_GALLERY, Gallery, collect_gallery
from robustbench_inv.reporting.glance import Glance, draw_both_failures, take_glance
from robustbench_inv.reporting.headlines import Headline, build_headlines
from robustbench_inv.reporting.provenance import (
    FailedSamples,
    ProvenanceFacts,
    collect_provenance,
    collect_verdicts,
    list_failures,
)
from robustbench_inv.reporting.run_results import (
    RunResult,
)
from robustbench_inv.reporting.statistics import INTERVALS
from robustbench_inv.reporting.table_formats import (
    Table,
    TableCell,
    dataset_title,
)
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.sequences import looked_texts

__all__ = [
    "FilledSection",
    "ReportPage",
    "build_page",
]


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
        citations: of the attacks and models.
        gallery: samples with their images.
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
    citations: tuple[Citation, ...] = ()
    gallery: Gallery = NO_GALLERY

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """Which model is best, whether the numbers can be trusted, and what broke the models."""
        return answer_questions(self.headlines, self.conclusions)

    @cached_property
    def glance(self) -> Glance:
        """The headlines by model, with the verdicts."""
        return take_glance(self.headlines, self.conclusions)

    @cached_property
    def both_failures(self) -> ReportFigure | None:
        """A picture of the headlines; None unless a model was attacked in both ways."""
        return draw_both_failures(self.glance, self.colours)

    @property
    def checks(self) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
        """The topics of the checks: those that fail or warn, and the others; topics with a failure first."""
        ranked = [verdict for found in self.verdicts.values() for verdict in found]
        topics = dict.fromkeys(verdict["topic"] for verdict in ranked)
        urgent = [v for grade in ("FAIL", "WARN") for v in self.verdicts.get(grade, ())]
        return [
            (
                topic,
                [v for v in urgent if v["topic"] == topic],
                [v for v in ranked if v["topic"] == topic and v not in urgent],
            )
            for topic in topics
        ]

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for filled in self.sections for table in filled.tables]

    @property
    def pictures(self) -> list[ReportFigure]:
        """The figures of the first screen and of all sections."""
        first = [self.both_failures] if self.both_failures else []
        return first + [picture for filled in self.sections for picture in filled.pictures]


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
    conclusions = tuple(conclusions_of(*runs))
    marks = _Marks(cells, verdicts, conclusions)
    return ReportPage(
        definition=definition,
        overview=(*_overview(cells), *_decided(runs)),
        headlines=tuple(build_headlines(cells, interval)),
        colours={cell.model_label: plot.colour(cell.model_label) for cell in cells},
        sections=tuple(
            replace(filled, tables=tuple(map(marks.on_table, filled.tables)))
            for filled in _fill_sections(definition, plot)
        ),
        pending=tuple(each for run in runs for each in run.pending.values()),
        conclusions=conclusions,
        verdicts=collect_verdicts(runs),
        failures=tuple(list_failures(cells)),
        facts=tuple(collect_provenance(runs)),
        citations=collect_citations(cells),
        gallery=collect_gallery(cells),
    )


@dataclass(frozen=True)
class _Marks:
    """Puts a sign beside each number that a check concerns, and beside one of several attacks that of the verdict."""

    cells: Sequence[FinishedCell]
    verdicts: Sequence[Verdict]
    conclusions: Sequence[Conclusion]

    def on_table(self, table: Table) -> Table:
        """Return a table whose shares are marked; its first cells name the model, and perhaps the attack."""
        worst = table.name.startswith("worst")
        about = set(table.frame["dataset"]) if "dataset" in table.frame else None
        here = [cell for cell in self.cells if about is None or cell.dataset.name in about]
        marks = replace(self, cells=here)
        rows = (marks._on_row(table.columns, row, worst=worst) for row in table.rows)
        return replace(table, rows=tuple(rows))

    def _on_row(
        self, columns: Sequence[str], row: tuple[TableCell, ...], *, worst: bool
    ) -> tuple[TableCell, ...]:
        names = [cell.text for cell in row[:2] if cell.tone == "name"]
        named = [cell for cell in self.cells if cell.model_label == "".join(names[:1])]
        about = [cell for cell in named if cell.attack_label in names[1:]] or named
        clean = mark_of_cells(about, self.verdicts, clean=True)
        overall = mark_of(c.grade for c in self.conclusions if any(map(c.concerns, named)))
        mark = overall if worst else mark_of_cells(about, self.verdicts)
        return tuple(
            cell.signed(clean if column == "Clean" else mark)
            for column, cell in zip(columns, row, strict=True)
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
        "data sets": [_about_dataset(cell.dataset.name) for cell in cells],
    }
    counts = [(name, ", ".join(dict.fromkeys(values))) for name, values in named.items()]
    sizes = sorted({len(cell.records) for cell in cells}) or [0]
    span = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    return (*counts, ("samples", f"{span} in each of {len(cells)} cells"))


def _decided(runs: Sequence[RunResult]) -> Iterator[tuple[str, str]]:
    """Yield what an evaluation decided before its last sample, and what looking at it means for the intervals."""
    for run in runs:
        yield from (("decision", str(each["sentence"])) for each in run.plan.get("decisions", ()))
        yield from (("looked at early", text) for text in looked_texts(run.cells))


def _about_dataset(name: str) -> str:
    about = describe_dataset(name)
    return f"{dataset_title(name)} ({about})" if about else dataset_title(name)
