"""The report of a reproduction, from the records of runs or from the results of an experiment."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_inv.catalogue.reproduction import CellAddress, Reproduction
from robustbench_inv.checks.verdict import GRADES
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.definitions import Definition, Section
from robustbench_inv.reporting.gallery import NO_GALLERY
from robustbench_inv.reporting.html import export_files, files_of, render_page, write_page
from robustbench_inv.reporting.page import ReportPage, build_page
from robustbench_inv.reporting.provenance import ProvenanceFacts
from robustbench_inv.reporting.reproduction.comparison import (
    find_datasets,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    ReproductionOutcomes,
    outcomes_frame,
)
from robustbench_inv.reporting.reproduction.report_part import (
    ReportPart,
    part_from_outcomes,
    part_from_result,
)
from robustbench_inv.reporting.run_results import RunResult, read_runs
from robustbench_inv.reporting.table_formats import to_markdown
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.experiment_result import ExperimentResult, read_result

__all__ = [
    "ReproductionReport",
    "SamplesByCell",
    "find_results",
    "report_from_results",
    "report_from_runs",
]

SamplesByCell = Mapping[str, Sequence[int]]
"""The requested samples of each cell, by its digest."""

RESULT_PATTERN = "measured-*.json.gz"

DETAILS = (
    Section("Each attack", tables=("accuracy", "distances", "rejection"), folded=True),
    Section("Cost and state of every cell", tables=("cells",), folded=True),
)
"""Sections on the cells themselves."""


@dataclass(frozen=True)
class ReproductionReport:
    """The report on one table or figure of a paper.

    Args:
        item: what is reproduced.
        parts: one for each data set, or one for an item that runs attacks.
        page: title, checks, failures, sections on cells, and provenance.
        missing: the cells without records.
    """

    item: Reproduction
    parts: tuple[ReportPart, ...]
    page: ReportPage
    missing: tuple[CellAddress, ...] = ()

    @property
    def failed_checks(self) -> list[dict[str, Any]]:
        """The checks that fail or warn, failures first."""
        return self.page.verdicts["FAIL"] + self.page.verdicts["WARN"]

    @property
    def texts(self) -> list[str]:
        """The tables of all parts in Markdown."""
        return [to_markdown(table) for part in self.parts for table in part.tables]

    def write(self, path: Path) -> None:
        """Write one HTML file, and tables, figures and results beside it.

        Raises:
            BadResults: if they cannot be written.
        """
        tables = [table for part in self.parts for table in part.tables]
        figures = [figure for part in self.parts for figure in part.figures]
        files = export_files([*tables, *self.page.tables], [*figures, *self.page.pictures])
        for part in self.parts:
            files |= part.files
        html = render_page(
            "reproduction.html", files, page=self.page, report=self, folder=files_of(path).name
        )
        write_page(path, html, files)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        checks = [
            {k: v for k, v in each.items() if k not in ("value_text", "topic")}
            for each in self.failed_checks
        ]
        return {
            "item": self.item.name,
            "parts": [part.to_json() for part in self.parts],
            "missing_cells": [str(address) for address in self.missing],
            "failed_checks": checks,
        }


def report_from_runs(
    item: Reproduction,
    runs: Sequence[Path],
    *,
    dataset: str | None = None,
    requested: SamplesByCell | None = None,
) -> ReproductionReport:
    """Return the report of an item from the records of runs; nothing is run.

    Args:
        item: what is reproduced.
        runs: folders that ``evaluate`` or ``reproduce`` wrote.
        dataset: data set to use if there are records on several.
        requested: cells and samples to report; None for all records of the item's cells.

    Raises:
        BadResults: if there are no records, or two cells have the same address.
    """
    results = [_cells_of_item(result, item, requested) for result in read_runs(runs)]
    if not any(result.cells for result in results):
        folders = ", ".join(map(str, runs))
        expected = "a run of its attacks"
        raise BadResults(f"no records of {item.name}", got=folders, expected=expected)
    frame = outcomes_frame(
        (addresses[cell.digest], cell)
        for result in results
        for addresses in [_addresses(result)]
        for cell in result.cells
    )
    outcomes = ReproductionOutcomes(item, frame, find_datasets(item, frame, dataset))
    page = _page_of_runs(item, results)
    return ReproductionReport(item, (part_from_outcomes(outcomes),), page, tuple(outcomes.missing))


def report_from_results(item: Reproduction, files: Sequence[Path]) -> ReproductionReport:
    """Return the report of an item from files with results of its experiment.

    Raises:
        BadResults: if one cannot be read.
    """
    results = {path: read_result(path) for path in files}
    parts = []
    for path, result in results.items():
        try:
            part = part_from_result(item, result, "" if len(files) == 1 else result.dataset)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadResults(f"cannot draw the results in {path}", remedy=repr(error)) from error
        parts.append(replace(part, files={path.name: path.read_bytes()}))
    return ReproductionReport(item, tuple(parts), _page_of_results(item, results))


def find_results(folders: Sequence[Path]) -> list[Path]:
    """Return the result files of experiments in some folders and in the folders below them.

    Raises:
        BadResults: if there are none.
    """
    found = [path for folder in folders for path in sorted(folder.glob(f"**/{RESULT_PATTERN}"))]
    if not found:
        got = ", ".join(map(str, folders))
        raise BadResults("no results of an experiment", got=got, expected=f"files {RESULT_PATTERN}")
    return list({path.name: path for path in found}.values())


def _page_of_runs(item: Reproduction, results: Sequence[RunResult]) -> ReportPage:
    page = build_page(Definition(item.name, item.title, DETAILS, item.text), results)
    facts = dict(page.overview)  # without models and attacks, which the tables name
    sizes = sorted({len(cell.records) for result in results for cell in result.cells})
    overview = (
        ("paper", item.paper),
        ("data sets", facts["data sets"]),
        ("samples per cell", " to ".join(f"{n:,}" for n in dict.fromkeys(sizes[:1] + sizes[-1:]))),
        ("samples", facts["samples"]),
        *_absent(", ".join(_without_records(item, results))),
    )
    return replace(page, overview=overview, headlines=(), gallery=NO_GALLERY)


def _page_of_results(item: Reproduction, results: Mapping[Path, ExperimentResult]) -> ReportPage:
    samples = [
        (result.dataset, f"{result.samples:,} sample{'s' * (result.samples != 1)}")
        for result in results.values()
    ]
    files = tuple((result.dataset, path.name) for path, result in results.items())
    models = dict(pair for result in results.values() for pair in result.models.items())
    return ReportPage(
        definition=Definition(item.name, item.title, (), item.text),
        overview=(("paper", item.paper), *samples, *_absent(_left_out(item, results))),
        headlines=(),
        colours={},
        sections=(),
        pending=(),
        conclusions=(),
        verdicts={grade: [] for grade in GRADES},
        failures=(),
        facts=(
            ProvenanceFacts("Results", files),
            ProvenanceFacts("Digests of models", tuple(models.items())),
        ),
    )


def _absent(text: str) -> list[tuple[str, str]]:
    return [("left out", text)] if text else []


def _without_records(item: Reproduction, results: Sequence[RunResult]) -> list[str]:
    """Return the item's data sets on which nothing was run, such as those that were not at hand."""
    names = {cell.dataset.name for result in results for cell in result.cells}
    return [data for data in item.datasets if not any(name.startswith(data) for name in names)]


def _left_out(item: Reproduction, results: Mapping[Path, ExperimentResult]) -> str:
    """Return what was not measured, and why: rows and columns, and data sets without results."""
    names = {result.dataset for result in results.values()}
    several = len(item.datasets) > 1  # a result on several data sets may name each of them
    absent = [d for d in item.datasets if several and not any(n.startswith(d) for n in names)]
    reasons = (pair for result in results.values() for pair in result.left_out.items())
    return "; ".join([*absent, *(f"{name}: {reason}" for name, reason in reasons)])


def _cells_of_item(
    result: RunResult, item: Reproduction, requested: SamplesByCell | None
) -> RunResult:
    """Return the run with the cells of the item alone, and with the requested samples of these."""
    wanted = {
        address
        for data in item.datasets
        for trial in item.trials
        for column in item.attacked(trial)
        for address in item.addresses(trial, column, data)
    }
    addresses = _addresses(result)
    cells = [cell for cell in result.cells if addresses[cell.digest] in wanted]
    pending = {each: state for each, state in result.pending.items() if addresses[each] in wanted}
    chosen = tuple(_with_requested_samples(cells, requested))
    return replace(result, cells=chosen, pending=pending)


def _addresses(result: RunResult) -> dict[str, CellAddress]:
    """Return the address of each cell by its digest, from the latest plan: an older one may use another name."""
    return {
        entry["digest"]: CellAddress(entry["model"], entry["attack"], entry["threat"])
        for entry in result.plan["cells"]
    }


def _with_requested_samples(
    cells: Iterable[FinishedCell], requested: SamplesByCell | None
) -> Iterable[FinishedCell]:
    if requested is None:
        return cells
    chosen = [(cell, frozenset(requested.get(cell.digest, ()))) for cell in cells]
    return [
        replace(
            cell,
            records=cell.records.where(np.isin(cell.ids, list(ids))),
            requested=tuple(sorted(ids)),
        )
        for cell, ids in chosen
        if ids
    ]
