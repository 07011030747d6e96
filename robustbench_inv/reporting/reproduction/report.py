"""The report of a reproduction, from the records of runs or from the results of an experiment."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

from robustbench_inv.catalogue.reproduction import CellAddress, Reproduction
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.canvas import COLOURS, ReportFigure
from robustbench_inv.reporting.definitions import Definition, Section
from robustbench_inv.reporting.experiment_figures import (
    DecisionPlanes,
    draw_decision_planes,
    draw_histograms,
    logit_table,
)
from robustbench_inv.reporting.html import export_files, files_of, render_page, write_page
from robustbench_inv.reporting.image_figures import draw_image_grid
from robustbench_inv.reporting.layer_figures import RegularizationEffect, draw_layers, layer_table
from robustbench_inv.reporting.page import ReportPage, build_page
from robustbench_inv.reporting.provenance import GRADES, ProvenanceFacts
from robustbench_inv.reporting.reproduction.claims import (
    ClaimFinding,
    evaluate_claims,
    evaluate_expectations,
)
from robustbench_inv.reporting.reproduction.comparison import (
    ComparedNumber,
    compare_outcomes,
    compare_result,
    find_datasets,
    numbers_by_remark,
)
from robustbench_inv.reporting.reproduction.comparison_tables import (
    ATTACK_FORMAT,
    EXPERIMENT_FORMAT,
    NumberBand,
    NumberFormat,
    claims_table,
    comparisons_table,
    number_bands,
    numbers_table,
)
from robustbench_inv.reporting.reproduction.curve_panels import (
    accuracy_curves,
    curves_frame,
    curves_table,
    draw_panels,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    ReproductionOutcomes,
    outcomes_frame,
    outcomes_to_gzip,
)
from robustbench_inv.reporting.run_results import RunResult, read_runs
from robustbench_inv.reporting.table_formats import Table, to_markdown
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.experiment_result import ExperimentResult, read_result

__all__ = [
    "ReportPart",
    "ReproductionReport",
    "SamplesByCell",
    "find_results",
    "part_from_outcomes",
    "part_from_result",
    "report_from_results",
    "report_from_runs",
]

SamplesByCell = Mapping[str, Sequence[int]]
"""The requested samples of each cell, by its digest."""

OUTCOMES = "outcomes.csv.gz"
RESULT_PATTERN = "measured-*.json.gz"

DETAILS = (
    Section("Each attack", tables=("accuracy", "distances", "rejection"), folded=True),
    Section("Cost and state of every cell", tables=("cells",), folded=True),
)
"""Sections on the cells themselves."""


@dataclass(frozen=True)
class ReportPart:
    """The numbers, claims, tables and figures of one data set, or of an item that runs attacks.

    Args:
        dataset: name of the data set.
        style: how tables show numbers.
        numbers: the published numbers and ours, row by row.
        findings: the verdicts on the claims.
        figures: all figures.
        details: further tables.
        files: files to store beside the page, by name, with their content.
        facts: further entries of the JSON, by key.
        suffix: suffix of table names, if the report has several parts.
    """

    dataset: str
    style: NumberFormat
    numbers: Sequence[ComparedNumber]
    findings: Sequence[ClaimFinding]
    figures: Sequence[ReportFigure] = ()
    details: Sequence[Table] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    suffix: str = ""

    @property
    def bands(self) -> list[NumberBand]:
        """The rows of the table of numbers."""
        return number_bands(self.numbers, self.style)

    @property
    def by_remark(self) -> dict[str, list[ComparedNumber]]:
        """The numbers that have or need a remark, by remark."""
        return numbers_by_remark(self.numbers)

    @cached_property
    def numbers_table(self) -> Table:
        """Published numbers beside ours."""
        return numbers_table(self.numbers, self.style, self.suffix)

    @cached_property
    def claims_table(self) -> Table:
        """The verdicts on the claims."""
        return claims_table(self.findings, self.style, self.suffix)

    @cached_property
    def comparisons_table(self) -> Table:
        """Every comparison behind the claims."""
        return comparisons_table(self.findings, self.style, self.suffix)

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        claims = [self.claims_table, self.comparisons_table] if self.findings else []
        numbers = [self.numbers_table] if self.numbers else []
        return [*claims, *numbers, *self.details]

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {
            "dataset": self.dataset,
            "numbers": [number.to_json() for number in self.numbers],
            "claims": [finding.to_json() for finding in self.findings],
            "without_remark": [each.label for each in self.numbers if each.lacks_remark],
            **self.facts,
        }


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
            "reproduction.html", page=self.page, report=self, files=files_of(path).name
        )
        write_page(path, html, files)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        checks = [
            {k: v for k, v in each.items() if k != "value_text"} for each in self.failed_checks
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
    frame = outcomes_frame(
        (addresses[cell.digest], cell)
        for result in results
        for addresses in [_addresses(result)]
        for cell in result.cells
    )
    outcomes = ReproductionOutcomes(item, frame, find_datasets(item, frame, dataset))
    page = _page_of_runs(item, results)
    return ReproductionReport(item, (part_from_outcomes(outcomes),), page, tuple(outcomes.missing))


def part_from_outcomes(outcomes: ReproductionOutcomes) -> ReportPart:
    """Return the content of a report on an item that runs attacks."""
    curves = accuracy_curves(outcomes)
    names = (column.name for column in outcomes.item.columns)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    return ReportPart(
        dataset=", ".join(outcomes.dataset_names.values()),
        style=ATTACK_FORMAT,
        numbers=compare_outcomes(outcomes),
        findings=evaluate_claims(outcomes),
        figures=draw_panels(outcomes, curves, colours),
        details=[curves_table(outcomes, curves)] if curves else [],
        files={OUTCOMES: outcomes_to_gzip(outcomes.outcomes)},
        facts={"curves": curves_frame(outcomes, curves).to_dict("records")},
    )


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


def part_from_result(item: Reproduction, result: ExperimentResult, suffix: str = "") -> ReportPart:
    """Return the content of a report on one data set of an experiment.

    Args:
        item: what is reproduced.
        result: of the experiment.
        suffix: of the names of tables and figures.
    """
    numbers = compare_result(item, result) if result.numbers else []
    layers = None if result.layers is None else RegularizationEffect.from_json(result.layers)
    layer_tables = [layer_table(layers)] if layers else []
    return ReportPart(
        dataset=result.dataset,
        style=EXPERIMENT_FORMAT,
        numbers=numbers,
        findings=evaluate_expectations(item.expectations, numbers),
        figures=list(_draw_result(result, layers, suffix)),
        details=[*(logit_table(sheet, suffix) for sheet in result.logit_sheets), *layer_tables],
        facts={
            "samples": result.samples,
            "layers": [fact for table in layer_tables for fact in table.frame.to_dict("records")],
        },
        suffix=suffix,
    )


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


def _draw_result(
    result: ExperimentResult, layers: RegularizationEffect | None, suffix: str
) -> Iterator[ReportFigure]:
    for grid in result.image_grids:
        yield draw_image_grid(grid, suffix)
    for panels in result.histograms:
        yield draw_histograms(panels, suffix)
    if result.planes is not None:
        yield draw_decision_planes(DecisionPlanes.from_json(result.planes))
    if layers:
        yield from draw_layers(layers)


def _page_of_runs(item: Reproduction, results: Sequence[RunResult]) -> ReportPage:
    page = build_page(Definition(item.name, item.title, DETAILS, item.text), results)
    facts = dict(page.overview)  # without models and attacks, which the tables name
    sizes = sorted({len(cell.records) for result in results for cell in result.cells})
    overview = (
        ("paper", item.paper),
        ("data sets", facts["data sets"]),
        ("samples per cell", " to ".join(f"{n:,}" for n in dict.fromkeys(sizes[:1] + sizes[-1:]))),
        ("samples", facts["samples"]),
    )
    return replace(page, overview=overview, headlines=())


def _page_of_results(item: Reproduction, results: Mapping[Path, ExperimentResult]) -> ReportPage:
    samples = [
        (result.dataset, f"{result.samples:,} sample{'s' * (result.samples != 1)}")
        for result in results.values()
    ]
    files = tuple((result.dataset, path.name) for path, result in results.items())
    models = dict(pair for result in results.values() for pair in result.models.items())
    return ReportPage(
        definition=Definition(item.name, item.title, (), item.text),
        overview=(("paper", item.paper), *samples),
        headlines=(),
        colours={},
        sections=(),
        pending=(),
        verdicts={grade: [] for grade in GRADES},
        failures=(),
        facts=(
            ProvenanceFacts("Results", files),
            ProvenanceFacts("Digests of models", tuple(models.items())),
        ),
    )


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
    return replace(result, cells=tuple(_with_requested_samples(cells, requested)))


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
            records=tuple(r for r in cell.records if r.sample in ids),
            requested=tuple(sorted(ids)),
        )
        for cell, ids in chosen
        if ids
    ]
