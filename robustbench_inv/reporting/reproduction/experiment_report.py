"""The report of a reproduction that runs an experiment: one HTML file with its tables and figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.canvas import ReportFigure
from robustbench_inv.reporting.experiment_figures import (
    DecisionPlanes,
    draw_decision_planes,
    draw_histograms,
)
from robustbench_inv.reporting.html import export_files, files_of, render_page, write_page
from robustbench_inv.reporting.image_figures import draw_image_grid
from robustbench_inv.reporting.layer_figures import RegularizationEffect, draw_layers, layer_table
from robustbench_inv.reporting.reproduction.claims import (
    ExpectationFinding,
    evaluate_expectations,
    expectations_table,
)
from robustbench_inv.reporting.reproduction.comparison import (
    ComparedNumber,
    NumberBand,
    compare_numbers,
    number_bands,
    numbers_table,
)
from robustbench_inv.reporting.table_formats import BLANK, Table, TableCell, Tone, slug, to_markdown
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    LogitRow,
    LogitSheet,
    read_result,
)

__all__ = [
    "DatasetPart",
    "ExperimentReport",
    "build_experiment_report",
    "find_results",
    "logit_table",
]


def logit_table(sheet: LogitSheet, prefix: str = "") -> Table:
    """Return the table of a sheet.

    Args:
        sheet: numbers in rows.
        prefix: of its name, to tell it from sheets of other data.
    """
    name = slug(f"{prefix}-{sheet.name}" if prefix else sheet.name)
    rows = tuple((TableCell(line.name, tone="name"), *_logit_cells(line)) for line in sheet.lines)
    frame = pd.DataFrame(
        {"row": line.name, "column": head, "value": value, "accepted": line.accepted}
        for line in sheet.lines
        for head, value in zip(sheet.heads, line.values, strict=True)
    )
    return Table(name, sheet.title, sheet.caption, frame, ("", *sheet.heads), rows)


def _logit_cells(line: LogitRow) -> list[TableCell]:
    best = max((v for v in line.values if not isnan(v)), default=0.0)
    return [_logit_cell(value, line, best=value == best) for value in line.values]


def _logit_cell(value: float, line: LogitRow, *, best: bool) -> TableCell:
    """Return a number; of an answer the largest is told: accepted and right, rejected, or accepted and wrong."""
    if isnan(value):
        return BLANK
    text = f"{value:.1f}".replace("-", "−")
    if not best or line.accepted is None:
        return TableCell(text)
    tone: Tone = "warn" if not line.accepted else "fail" if line.wrong else "pass"
    return TableCell(text, tone=tone)


RESULT_PATTERN = "measured-*.json.gz"


@dataclass(frozen=True)
class DatasetPart:
    """What the page shows of one data set.

    Args:
        item: what is reproduced.
        path: the file that holds what was measured.
        measured: its content.
        alone: whether there is no other data set, whose tables need other names.
    """

    item: Reproduction
    path: Path
    measured: ExperimentResult
    alone: bool

    @cached_property
    def entries(self) -> list[ComparedNumber]:
        """Every number, with the published one."""
        return compare_numbers(self.item, self.measured) if self.measured.numbers else []

    @cached_property
    def findings(self) -> list[ExpectationFinding]:
        """What became of each expectation."""
        return evaluate_expectations(self.item.expectations, self.entries)

    @property
    def bands(self) -> list[NumberBand]:
        """The rows of the table as a reader sees them."""
        return number_bands(self.entries)

    @property
    def by_remark(self) -> dict[str, list[ComparedNumber]]:
        """The numbers with a remark or far from the published ones, by remark; those without one last."""
        found: dict[str, list[ComparedNumber]] = {}
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
    def logit_sheets(self) -> list[Table]:
        """The tables of logits."""
        return [logit_table(sheet, self._suffix) for sheet in self.measured.logit_sheets]

    @cached_property
    def effect(self) -> RegularizationEffect | None:
        """Hidden layers before and after, where they were measured."""
        layers = self.measured.layers
        return None if layers is None else RegularizationEffect.from_json(layers)

    @cached_property
    def details(self) -> list[Table]:
        """The tables that are not about published numbers."""
        return [layer_table(self.effect)] if self.effect else []

    @cached_property
    def pictures(self) -> list[ReportFigure]:
        """Everything that is drawn."""
        return list(self._draw())

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        own = [self.expectations] if self.findings else []
        own += [self.numbers] if self.entries else []
        return own + self.logit_sheets + self.details

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

    def _draw(self) -> Iterator[ReportFigure]:
        for grid in self.measured.image_grids:
            yield draw_image_grid(grid, self._suffix)
        for spread in self.measured.histograms:
            yield draw_histograms(spread, self._suffix)
        if self.measured.planes is not None:
            yield draw_decision_planes(DecisionPlanes.from_json(self.measured.planes))
        if self.effect:
            yield from draw_layers(self.effect)


@dataclass(frozen=True)
class ExperimentReport:
    """What the page shows: one part for each data set."""

    item: Reproduction
    parts: tuple[DatasetPart, ...]

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


def find_results(folders: Sequence[Path]) -> list[Path]:
    """Return the files of what was measured in some folders, or in the files beside a page there.

    Raises:
        BadResults: if there are none.
    """
    found = [path for folder in folders for path in sorted(folder.glob(f"**/{RESULT_PATTERN}"))]
    if not found:
        got = ", ".join(map(str, folders))
        raise BadResults("nothing was measured", got=got, expected=f"files {RESULT_PATTERN}")
    return list({path.name: path for path in found}.values())


def build_experiment_report(item: Reproduction, files: Sequence[Path]) -> ExperimentReport:
    """Return the report of files that were measured for an item.

    Raises:
        BadResults: if one cannot be read.
    """
    return ExperimentReport(
        item, tuple(_read_part(item, path, alone=len(files) == 1) for path in files)
    )


def _read_part(item: Reproduction, path: Path, *, alone: bool) -> DatasetPart:
    part = DatasetPart(item, path, read_result(path), alone)
    try:
        part.pictures  # noqa: B018 - drawn once, now, so that what is damaged is found
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadResults(f"cannot draw what {path} holds", remedy=repr(error)) from error
    return part
