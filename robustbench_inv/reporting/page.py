"""What stands on the page: the sections of a definition, filled from runs, ready for the template."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustbench_inv.reporting.canvas import Picture
from robustbench_inv.reporting.cells import CellResult, RunResult
from robustbench_inv.reporting.definitions import Definition, Section
from robustbench_inv.reporting.exports import Table
from robustbench_inv.reporting.figures import Plot, draw_figures
from robustbench_inv.reporting.headlines import Headline, write_headlines
from robustbench_inv.reporting.provenance import (
    Facts,
    Failure,
    collect_facts,
    collect_verdicts,
    list_failures,
)
from robustbench_inv.reporting.statistics import INTERVALS
from robustbench_inv.reporting.tables import build_tables

__all__ = ["Filled", "Page", "build_page"]


@dataclass(frozen=True)
class Filled:
    """A section with the tables and figures that its cells give."""

    section: Section
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Page:
    """All that the template shows.

    Args:
        definition: title, text, interval.
        measured: what was measured, in a few figures.
        headlines: the shortest true answers.
        colours: of each model, the same as in the figures.
        sections: those that are not empty.
        pending: unfinished cells: what, samples done, samples planned.
        verdicts: of the checks, by grade, worst first.
        failures: samples for which an attack has no valid proposal.
        facts: provenance.
    """

    definition: Definition
    measured: tuple[tuple[str, str], ...]
    headlines: tuple[Headline, ...]
    colours: dict[str, str]
    sections: tuple[Filled, ...]
    pending: tuple[tuple[str, int, int], ...]
    verdicts: dict[str, list[dict[str, Any]]]
    failures: tuple[Failure, ...]
    facts: tuple[Facts, ...]

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for filled in self.sections for table in filled.tables]

    @property
    def pictures(self) -> list[Picture]:
        """The figures of all sections."""
        return [picture for filled in self.sections for picture in filled.pictures]


def build_page(definition: Definition, runs: Sequence[RunResult]) -> Page:
    """Fill a definition.

    Args:
        definition: what is to be shown.
        runs: what was read, selected already.
    """
    cells = [cell for run in runs for cell in run.cells]
    interval = INTERVALS[definition.interval]
    plot = Plot(tuple(cells), interval, definition.images)
    return Page(
        definition=definition,
        measured=_measured(cells),
        headlines=tuple(write_headlines(cells, interval)),
        colours={cell.model: plot.colour(cell.model) for cell in cells},
        sections=tuple(_fill(definition, plot)),
        pending=tuple(each for run in runs for each in run.pending),
        verdicts=collect_verdicts(runs),
        failures=tuple(list_failures(cells)),
        facts=tuple(collect_facts(runs)),
    )


def _fill(definition: Definition, plot: Plot) -> Iterator[Filled]:
    names: Counter[str] = Counter()
    for section in definition.sections:
        chosen = plot.only(tuple(c for c in plot.cells if c.admitted(section.select)))
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
            yield Filled(section, tuple(tables), tuple(pictures))


def _unique(name: str, names: Counter[str]) -> str:
    """Return the name, numbered where sections with other selections gave it before."""
    names[name] += 1
    return name if names[name] == 1 else f"{name}-{names[name]}"


def _measured(cells: Sequence[CellResult]) -> tuple[tuple[str, str], ...]:
    named = {
        "models": [cell.model for cell in cells],
        "attacks": [cell.attack for cell in cells],
        "data sets": [cell.panel.data for cell in cells],
    }
    records = sum(len(cell.records) for cell in cells)
    counts = [(name, ", ".join(dict.fromkeys(values))) for name, values in named.items()]
    return (*counts, ("measured", f"{records:,} attacked samples in {len(cells)} cells"))
