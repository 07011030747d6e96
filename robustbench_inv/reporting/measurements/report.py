"""The report of what was measured: one HTML file, its tables and figures beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.canvas import Picture
from robustbench_inv.reporting.decision_planes import Planes
from robustbench_inv.reporting.exports import Table, slug, to_markdown
from robustbench_inv.reporting.html import export_files, files_of, render_page, write_page
from robustbench_inv.reporting.image_grid import draw_grid
from robustbench_inv.reporting.layer_figures import draw_effect, tabulate_effect
from robustbench_inv.reporting.layer_views import Effect
from robustbench_inv.reporting.measurements.comparison import (
    Band,
    Entry,
    bands,
    compare,
    numbers_table,
)
from robustbench_inv.reporting.measurements.expectations import (
    Finding,
    expectations_table,
    judge_expectations,
)
from robustbench_inv.reporting.measurements.sheets import sheet_table
from robustbench_inv.reporting.plane_figures import draw_planes
from robustbench_inv.reporting.spread_figures import draw_spread
from robustbench_inv.results.measurement import Measured, read_measured_file

__all__ = ["MeasuredReport", "Part", "find_measured", "report_measured"]

PATTERN = "measured-*.json.gz"


@dataclass(frozen=True)
class Part:
    """What the page shows of one data set.

    Args:
        item: what is reproduced.
        path: the file that holds what was measured.
        measured: its content.
        alone: whether there is no other data set, whose tables need other names.
    """

    item: Reproduction
    path: Path
    measured: Measured
    alone: bool

    @cached_property
    def entries(self) -> list[Entry]:
        """Every number, with the published one."""
        return compare(self.item, self.measured) if self.measured.numbers else []

    @cached_property
    def findings(self) -> list[Finding]:
        """What became of each expectation."""
        return judge_expectations(self.item.expectations, self.entries)

    @property
    def bands(self) -> list[Band]:
        """The rows of the table as a reader sees them."""
        return bands(self.entries)

    @property
    def remarked(self) -> dict[str, list[Entry]]:
        """The numbers with a remark or far from the published ones, by remark; those without one last."""
        found: dict[str, list[Entry]] = {}
        for entry in sorted(self.entries, key=lambda e: not e.remark):
            if entry.remark or entry.far:
                found.setdefault(entry.remark, []).append(entry)
        return found

    @cached_property
    def numbers(self) -> Table:
        """Published numbers beside ours."""
        return numbers_table(self.entries, self._suffix)

    @cached_property
    def expectations(self) -> Table:
        """What was expected, and what became of it."""
        return expectations_table(self.findings, slug(f"expectations-{self._suffix}"))

    @cached_property
    def sheets(self) -> list[Table]:
        """The tables of logits."""
        return [sheet_table(sheet, self._suffix) for sheet in self.measured.sheets]

    @cached_property
    def effect(self) -> Effect | None:
        """Hidden layers before and after, where they were measured."""
        layers = self.measured.layers
        return None if layers is None else Effect.from_json(layers)

    @cached_property
    def details(self) -> list[Table]:
        """The tables that are not about published numbers."""
        return [tabulate_effect(self.effect)] if self.effect else []

    @cached_property
    def pictures(self) -> list[Picture]:
        """Everything that is drawn."""
        return list(self._draw())

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        own = [self.expectations] if self.findings else []
        own += [self.numbers] if self.entries else []
        return own + self.sheets + self.details

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {
            "dataset": self.measured.dataset,
            "samples": self.measured.samples,
            "numbers": [entry.to_json() for entry in self.entries],
            "expectations": [finding.to_json() for finding in self.findings],
            "networks": [f for table in self.details for f in table.frame.to_dict("records")],
        }

    @property
    def _suffix(self) -> str:
        return "" if self.alone else self.measured.dataset

    def _draw(self) -> Iterator[Picture]:
        for grid in self.measured.grids:
            yield draw_grid(grid, self._suffix)
        for spread in self.measured.spreads:
            yield draw_spread(spread, self._suffix)
        if self.measured.planes is not None:
            yield draw_planes(Planes.from_json(self.measured.planes))
        if self.effect:
            yield from draw_effect(self.effect)


@dataclass(frozen=True)
class MeasuredReport:
    """What the page shows: one part for each data set."""

    item: Reproduction
    parts: tuple[Part, ...]

    def write(self, path: Path) -> None:
        """Write the page, and what it shows as files beside it.

        Raises:
            BadResults: if they cannot be written.
        """
        tables = [table for part in self.parts for table in part.tables]
        files = export_files(tables, [picture for part in self.parts for picture in part.pictures])
        files |= {part.path.name: part.path.read_bytes() for part in self.parts}
        html = render_page("measured.html", found=self, files=files_of(path).name)
        write_page(path, html, files)

    @property
    def texts(self) -> list[str]:
        """The tables in Markdown."""
        return [to_markdown(table) for part in self.parts for table in part.tables]

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {"item": self.item.name, "data": [part.to_json() for part in self.parts]}


def find_measured(folders: Sequence[Path]) -> list[Path]:
    """Return the files of what was measured in some folders, or in the files beside a page there.

    Raises:
        BadResults: if there are none.
    """
    found = [path for folder in folders for path in sorted(folder.glob(f"**/{PATTERN}"))]
    if not found:
        got = ", ".join(map(str, folders))
        raise BadResults("nothing was measured", got=got, expected=f"files {PATTERN}")
    return list({path.name: path for path in found}.values())


def report_measured(item: Reproduction, files: Sequence[Path]) -> MeasuredReport:
    """Return the report of files that were measured for an item.

    Raises:
        BadResults: if one cannot be read.
    """
    return MeasuredReport(item, tuple(_part(item, path, alone=len(files) == 1) for path in files))


def _part(item: Reproduction, path: Path, *, alone: bool) -> Part:
    part = Part(item, path, read_measured_file(path), alone)
    try:
        part.pictures  # noqa: B018 - drawn once, now, so that what is damaged is found
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadResults(f"cannot draw what {path} holds", remedy=repr(error)) from error
    return part
